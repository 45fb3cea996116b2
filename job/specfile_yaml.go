package job

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// specFile reads the YAML of one job file and knows where in it each thing is.
type specFile struct{ name string }

// reader takes a value; at is its path, such as limits.run.
type reader func(n ast.Node, at string) error

type keys map[string]reader

// fileError is an error of what a file says; it is an ErrSpec.
type fileError struct {
	where string
	err   error
}

func (e *fileError) Error() string        { return e.where + ": " + e.err.Error() }
func (e *fileError) Unwrap() error        { return e.err }
func (e *fileError) Is(target error) bool { return target == ErrSpec }

func (f *specFile) errAt(n ast.Node, at, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if at != "" {
		err = fmt.Errorf("%s: %w", at, err)
	}
	var t *token.Token
	if n != nil {
		t = n.GetToken()
	}
	return &fileError{where: f.place(t), err: err}
}

// place is the file, the line and the column of a token.
func (f *specFile) place(t *token.Token) string {
	if t == nil || t.Position == nil {
		return f.name
	}
	return fmt.Sprintf("%s:%d:%d", f.name, t.Position.Line, t.Position.Column)
}

// maxDepth is how deep a file may nest; the parser recurses as deep.
const maxDepth = 32

// load parses the text into the one mapping that a job file is.
func (f *specFile) load(data []byte) (root ast.Node, err error) {
	switch {
	case len(data) > maxFile:
		return nil, f.errAt(nil, "", "more than %d bytes, which no job file needs", maxFile)
	case !utf8.Valid(data) || strings.ContainsRune(string(data), 0):
		return nil, f.errAt(nil, "", "this is no UTF-8 text")
	}
	// The parser is known to panic on text that nobody writes.
	defer func() {
		if p := recover(); p != nil {
			root, err = nil, f.errAt(nil, "", "this is no YAML: %v", p)
		}
	}()
	tokens := lexer.Tokenize(string(data))
	if err := f.checkDepth(tokens); err != nil {
		return nil, err
	}
	file, err := parser.Parse(tokens, 0)
	if err != nil {
		var syntax yaml.Error
		if errors.As(err, &syntax) {
			return nil, &fileError{where: f.place(syntax.GetToken()), err: errors.New(syntax.GetMessage())}
		}
		return nil, f.errAt(nil, "", "%w", err)
	}
	var docs []ast.Node
	for _, d := range file.Docs {
		if d.Body != nil {
			docs = append(docs, d.Body)
		}
	}
	if len(docs) != 1 {
		return nil, f.errAt(nil, "", "it holds %d documents, want one", len(docs))
	}
	return docs[0], nil
}

// checkDepth bounds how deep brackets, indents and dashes nest.
func (f *specFile) checkDepth(tokens token.Tokens) error {
	flow, line, dashes := 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			line, dashes = t.Position.Line, 0
		}
		switch t.Type {
		case token.MappingStartType, token.SequenceStartType:
			flow++
		case token.MappingEndType, token.SequenceEndType:
			flow--
		case token.SequenceEntryType, token.MappingKeyType, token.MappingValueType, token.TagType, token.AnchorType:
			dashes++
		}
		if flow > maxDepth || dashes > 16*maxDepth || t.Position.IndentNum > 8*maxDepth {
			return &fileError{where: f.place(t), err: errors.New("nested deeper than any job file")}
		}
	}
	return nil
}

// entries reads a mapping whose keys are free.
func (f *specFile) entries(n ast.Node, at string, each func(key string, n ast.Node, at string) error) error {
	var values []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		return f.errAt(n, at, "want keys with values, got %s", kindOf(n))
	}
	seen := map[string]bool{}
	for _, v := range values {
		key, err := f.key(v.Key, at)
		if err != nil {
			return err
		}
		path := key
		if at != "" {
			path = at + "." + key
		}
		if seen[key] {
			return f.errAt(v.Key, path, "it is given twice")
		}
		seen[key] = true
		if err := each(key, v.Value, path); err != nil {
			return err
		}
	}
	return nil
}

func (f *specFile) key(k ast.MapKeyNode, at string) (string, error) {
	n, ok := k.(ast.Node)
	if !ok || !isScalar(n) {
		return "", f.errAt(n, at, "a key must be a plain word")
	}
	return f.scalarText(n, at)
}

// mapping reads a mapping of known keys.
func (f *specFile) mapping(n ast.Node, at string, known keys) error {
	return f.entries(n, at, func(key string, v ast.Node, path string) error {
		read, ok := known[key]
		switch {
		case ok && v == nil:
			return f.errAt(n, path, "it has no value; leave the key out, or give it one")
		case ok:
			return read(v, path)
		case at == "" && slices.Contains(laterKeys, key):
			return f.errAt(keyOf(n, key), path, "not in this version yet")
		}
		names := slices.Sorted(maps.Keys(known))
		if near := nearest(key, names); near != "" {
			return f.errAt(keyOf(n, key), "", "unknown key %q; did you mean %q?", path, strings.TrimSuffix(path, key)+near)
		}
		return f.errAt(keyOf(n, key), "", "unknown key %q; there is %s", path, strings.Join(names, ", "))
	})
}

// keyOf is the node of a key, to point at.
func keyOf(n ast.Node, key string) ast.Node {
	if m, ok := n.(*ast.MappingNode); ok {
		for _, v := range m.Values {
			if k, ok := v.Key.(ast.Node); ok && k.GetToken().Value == key {
				return k
			}
		}
	}
	return n
}

func (f *specFile) list(n ast.Node, at string, each reader) error {
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		return f.errAt(n, at, "want a list, got %s", kindOf(n))
	}
	for i, v := range list.Values {
		if err := each(v, fmt.Sprintf("%s[%d]", at, i)); err != nil {
			return err
		}
	}
	return nil
}

func isScalar(n ast.Node) bool {
	switch n.(type) {
	case *ast.StringNode, *ast.LiteralNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return true
	}
	return false
}

func (f *specFile) boolean(to *bool) reader {
	return func(n ast.Node, at string) error {
		b, ok := n.(*ast.BoolNode)
		if !ok {
			return f.errAt(n, at, "want true or false")
		}
		*to = b.Value
		return nil
	}
}

// scalarText is a plain value as it was written, so that no number is rounded.
func (f *specFile) scalarText(n ast.Node, at string) (string, error) {
	switch v := n.(type) {
	case *ast.StringNode:
		return v.Value, nil
	case *ast.LiteralNode:
		return v.Value.Value, nil
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return v.GetToken().Value, nil
	case *ast.NullNode, nil:
		return "", f.errAt(n, at, "it has no value; leave the key out, or give it one")
	case *ast.AliasNode, *ast.AnchorNode, *ast.MergeKeyNode:
		return "", f.errAt(n, at, "anchors and aliases are not read in job files; write the value out")
	}
	return "", f.errAt(n, at, "want one value, got %s", kindOf(n))
}

// kindOf names what a node is, for people.
func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys with values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode, nil:
		return "nothing"
	case *ast.AliasNode, *ast.AnchorNode, *ast.MergeKeyNode:
		return "an anchor or alias, which job files do not have"
	case *ast.TagNode:
		return "a tag, which job files do not have"
	case *ast.InfinityNode, *ast.NanNode:
		return "no finite number"
	}
	return "a plain value"
}
