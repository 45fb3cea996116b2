package job_test

import (
	"bytes"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/lumbung-net/lumbung"

// layers say which packages of ours those of a folder may import; the first
// line that fits a folder counts. A name with a slash at its end stands for all
// that lies below it.
var layers = []struct {
	folder string
	may    []string
}{
	{"protocol/", []string{"protocol"}},
	{"protocol", nil},
	{"p2p/content", []string{"protocol"}},
	{"p2p/", []string{"p2p", "protocol"}}, // simulated networks for tests are of p2p
	{"p2p", []string{"protocol"}},
	{"job/sandbox/", []string{"job/sandbox/", "protocol"}},
	{"job/sandbox", []string{"job/sandbox/", "protocol"}},
	{"job/gpu", []string{"protocol"}},
	{"job/check", []string{"job", "job/sandbox", "job/gpu", "ledger", "protocol"}},
	{"job", []string{"job/sandbox", "job/gpu", "ledger", "protocol"}},
	{"ledger/", []string{"ledger", "protocol"}},
	{"ledger", []string{"protocol"}},
	{"node/client", []string{"job", "ledger", "protocol"}},
	{"node/store", []string{"job", "ledger", "protocol"}},
	{"node/api", []string{"node/client", "job", "ledger", "p2p/content", "protocol"}},
	{"node", []string{"node/", "p2p", "p2p/", "job", "job/", "ledger", "ledger/", "protocol"}},
	{"cmd/", []string{"node", "node/client", "job", "job/sandbox", "job/gpu", "ledger", "protocol", "examples/"}},
	{"docs", []string{"protocol"}},
	{"examples/", []string{"examples/"}},
}

// tests may look further, where they try the parts together.
var testsMay = map[string][]string{
	"cmd/": {"node/api"},
	"job":  {"job"}, // of another package in the same folder
}

// badNames are names that say nothing of what a package hides.
var badNames = []string{"util", "utils", "common", "types", "models", "helpers"}

const maxLines = 600

// source is one Go file of the module; folder is slash-separated, from the root.
type source struct {
	folder, file string
	pkg          string
	imports      []string // of ours, without the module's name
	doc          bool     // says what the package hides
	lines        int
}

func (s source) path() string    { return path.Join(s.folder, s.file) }
func (s source) isTest() bool    { return strings.HasSuffix(s.file, "_test.go") }
func (s source) generated() bool { return strings.HasSuffix(s.file, ".pb.go") }

// sources parses every Go file that git would keep; build is the folder for
// what is made.
func sources(t *testing.T) []source {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	var out []source
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() && rel != "." && (strings.HasPrefix(d.Name(), ".") || rel == "build" || d.Name() == "testdata" || d.Name() == "node_modules") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		s, err := parseSource(name, rel)
		out = append(out, s)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 50 {
		t.Fatalf("only %d Go files below %s; this test looks at the wrong folder", len(out), root)
	}
	return out
}

func parseSource(name, rel string) (source, error) {
	text, err := os.ReadFile(name) //nolint:gosec // a file of this very module
	if err != nil {
		return source{}, err
	}
	f, err := parser.ParseFile(token.NewFileSet(), name, text, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return source{}, err
	}
	s := source{
		folder: path.Dir(rel), file: path.Base(rel), pkg: f.Name.Name,
		doc: f.Doc != nil && len(strings.TrimSpace(f.Doc.Text())) > 0, lines: bytes.Count(text, []byte("\n")),
	}
	for _, im := range f.Imports {
		p, err := strconv.Unquote(im.Path.Value)
		if err != nil {
			return source{}, err
		}
		if ours, ok := strings.CutPrefix(p, module+"/"); ok {
			s.imports = append(s.imports, ours)
		}
	}
	return s, nil
}

// fits reports whether a folder is the one that a line names or, with a slash at
// its end, lies below it.
func fits(folder, name string) bool {
	return folder == name || strings.HasSuffix(name, "/") && strings.HasPrefix(folder, name)
}

func TestImportsRunOneWay(t *testing.T) {
	for _, s := range sources(t) {
		for _, l := range layers {
			if !fits(s.folder, l.folder) {
				continue
			}
			may := l.may
			if s.isTest() {
				may = append(slices.Clone(may), testsMay[l.folder]...)
				may = append(may, s.folder)
			}
			for _, im := range s.imports {
				if !slices.ContainsFunc(may, func(name string) bool { return fits(im, name) }) {
					t.Errorf("%s imports %s; packages in %s may import of ours only: %s", s.path(), im, l.folder, strings.Join(may, ", "))
				}
			}
			break
		}
	}
}

// TestTheRuleOfImportsBites keeps the rule itself from allowing all.
func TestTheRuleOfImportsBites(t *testing.T) {
	for folder, im := range map[string]string{
		"protocol": "ledger", "p2p": "p2p/content", "p2p/content": "p2p", "job/sandbox": "job/gpu", "job/gpu": "job", "job": "node",
		"ledger": "job", "ledger/channel": "p2p", "node/client": "p2p", "node/api": "node", "cmd/lumbung": "node/store",
	} {
		for _, l := range layers {
			if !fits(folder, l.folder) {
				continue
			}
			if slices.ContainsFunc(l.may, func(name string) bool { return fits(im, name) }) {
				t.Errorf("%s may import %s by the line of %s", folder, im, l.folder)
			}
			break
		}
	}
}

func TestPackagesSayWhatTheyHide(t *testing.T) {
	documented := map[string]bool{}
	folders := map[string]bool{}
	for _, s := range sources(t) {
		if s.isTest() {
			continue
		}
		folders[s.folder] = true
		documented[s.folder] = documented[s.folder] || s.doc
		if slices.Contains(badNames, s.pkg) || slices.Contains(badNames, path.Base(s.folder)) {
			t.Errorf("%s: a package named %s says nothing of what it hides", s.path(), s.pkg)
		}
	}
	for folder := range folders {
		if !documented[folder] {
			t.Errorf("package in %s has no doc comment that says what it hides", folder)
		}
	}
}

func TestFilesStayShort(t *testing.T) {
	for _, s := range sources(t) {
		if s.lines > maxLines && !s.generated() {
			t.Errorf("%s has %d lines, over %d: take a part that stands alone out of it", s.path(), s.lines, maxLines)
		}
	}
}

func TestOnlyTheHousesFolders(t *testing.T) {
	for _, s := range sources(t) {
		top, _, _ := strings.Cut(s.path(), "/")
		if !slices.Contains([]string{"p2p", "node", "protocol", "job", "ledger", "cmd", "docs", "examples"}, top) {
			t.Errorf("%s: Go code stands in p2p, node, protocol, job, ledger, cmd and docs alone, and examples beside them", s.path())
		}
	}
}
