package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
)

// Bounds on reading a UnixFS DAG from a stranger.
const (
	maxFileDepth = 32      // nodes above a leaf; 1024^4 leaves need 4
	maxDirList   = 1 << 20 // entries of one folder
)

// Kinds of entries: what a path in a DAG leads to.
const (
	EntryFile    = "file"
	EntryFolder  = "folder"
	EntrySymlink = "symlink"
	// EntryUnknown is an entry whose block is not here.
	EntryUnknown = "unknown"
)

// Entry is one entry of a folder.
type Entry struct {
	Name string
	CID  cid.Cid
	Kind string
	Size uint64      // bytes of a file, as its node says
	Mode fs.FileMode // permissions; 0644 and 0755 where none are written down
}

// node is a decoded UnixFS node.
type node struct {
	ref    ref
	kind   string
	leaf   []byte         // data of a file without children, or of a raw leaf
	fsn    *unixfs.FSNode // nil for a raw leaf
	proto  *merkledag.ProtoNode
	target string // of a symlink
}

// node reads and decodes one block.
func (d dagService) node(r ref) (node, error) {
	data, err := d.s.get(r, nil)
	if err != nil {
		return node{}, notHere(r, err)
	}
	return parseNode(r, data)
}

func parseNode(r ref, data []byte) (node, error) {
	if r.codec == codecRaw {
		return node{ref: r, kind: EntryFile, leaf: data}, nil
	}
	n, err := decodeNode(r, data)
	if err != nil {
		return node{}, err
	}
	pn, ok := n.(*merkledag.ProtoNode)
	if !ok {
		return node{}, fmt.Errorf("%s: %w: it is no file or folder", r, ErrMalformed)
	}
	fsn, err := unixfs.FSNodeFromBytes(pn.Data())
	if err != nil {
		return node{}, fmt.Errorf("%s: %w: %w", r, ErrMalformed, err)
	}
	out := node{ref: r, fsn: fsn, proto: pn}
	switch fsn.Type() {
	case unixfs.TFile, unixfs.TRaw:
		out.kind, out.leaf = EntryFile, fsn.Data()
		if len(pn.Links()) != fsn.NumChildren() {
			return node{}, fmt.Errorf("%s: %w: %d links but %d sizes", r, ErrMalformed, len(pn.Links()), fsn.NumChildren())
		}
	case unixfs.TDirectory, unixfs.THAMTShard:
		out.kind = EntryFolder
	case unixfs.TSymlink:
		out.kind, out.target = EntrySymlink, string(fsn.Data())
	default:
		return node{}, fmt.Errorf("%s: %w: UnixFS node of type %v", r, ErrMalformed, fsn.Type())
	}
	return out, nil
}

// mode returns the permissions, and whether the node says them.
func (n node) mode() (fs.FileMode, bool) {
	if n.fsn != nil {
		if m := n.fsn.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky); m != 0 {
			return m, true
		}
	}
	if n.kind == EntryFolder {
		return plainDir, false
	}
	return plainFile, false
}

func (n node) modTime() time.Time {
	if n.fsn == nil {
		return time.Time{}
	}
	return n.fsn.ModTime()
}

func (n node) size() uint64 {
	switch {
	case n.kind != EntryFile:
		return 0
	case n.fsn == nil:
		return uint64(len(n.leaf))
	}
	return n.fsn.FileSize()
}

// eachEntry calls f for each entry of a folder, sharded or not.
func (d dagService) eachEntry(ctx context.Context, n node, f func(*format.Link) error) error {
	if n.kind != EntryFolder {
		return fmt.Errorf("%s is a %s, not a folder", n.ref, n.kind)
	}
	seen := 0
	err := d.eachLink(ctx, n, func(l *format.Link) error {
		if seen++; seen > maxDirList {
			return fmt.Errorf("%w: more than %d entries", ErrTooLarge, maxDirList)
		}
		if !safeName(l.Name) {
			return fmt.Errorf("%w: entry %.100q", ErrUnsafe, l.Name)
		}
		return f(l)
	})
	if err != nil {
		return fmt.Errorf("folder %s: %w", n.ref, err)
	}
	return nil
}

// safeName says whether an entry may become a file of that name.
func safeName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 255 && !strings.ContainsAny(s, "/\\\x00")
}

// find walks a slash-separated path from root.
func (d dagService) find(ctx context.Context, root cid.Cid, path string) (node, error) {
	r, err := refOf(root)
	if err != nil {
		return node{}, err
	}
	n, err := d.node(r)
	if err != nil {
		return node{}, err
	}
	at := ""
	for _, name := range strings.Split(path, "/") {
		if name == "" || name == "." {
			continue
		}
		if n.kind != EntryFolder {
			return node{}, fmt.Errorf("no %q: %s is a %s, not a folder: %w", name, joinCID(root, at), n.kind, fs.ErrNotExist)
		}
		dir, err := uio.NewDirectoryFromNode(d, n.proto)
		if err != nil {
			return node{}, fmt.Errorf("folder %s: %w: %w", n.ref, ErrMalformed, err)
		}
		child, err := dir.Find(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			return node{}, fmt.Errorf("no %q in folder %s: %w", name, joinCID(root, at), fs.ErrNotExist)
		}
		if err != nil {
			return node{}, fmt.Errorf("%q in folder %s: %w", name, joinCID(root, at), err)
		}
		if r, err = refOf(child.Cid()); err != nil {
			return node{}, err
		}
		if n, err = parseNode(r, child.RawData()); err != nil {
			return node{}, err
		}
		at += "/" + name
	}
	return n, nil
}

// Cat writes the bytes of the file at path under root to w. An empty path is
// the root itself.
func Cat(ctx context.Context, s *Store, root cid.Cid, path string, w io.Writer) error {
	d := dagService{ctx, s}
	n, err := d.find(ctx, root, path)
	if err == nil {
		err = d.write(ctx, n, w, 0)
	}
	if err != nil {
		return fmt.Errorf("cat %s: %w", joinCID(root, path), err)
	}
	return nil
}

func joinCID(root cid.Cid, path string) string {
	if path = strings.Trim(path, "/"); path == "" {
		return root.String()
	}
	return root.String() + "/" + path
}

// write writes a file's bytes: the node's own, then its children's. Each node
// must yield what its parent says, so a file ends where its root says.
func (d dagService) write(ctx context.Context, n node, w io.Writer, depth int) error {
	return d.writeNode(ctx, n, w, depth, &reads{})
}

func (d dagService) writeNode(ctx context.Context, n node, w io.Writer, depth int, left *reads) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.kind != EntryFile {
		return fmt.Errorf("%s is a %s, not a file", n.ref, n.kind)
	}
	if depth > maxFileDepth {
		return fmt.Errorf("%s: %w: nodes more than %d deep", n.ref, ErrTooLarge, maxFileDepth)
	}
	if err := left.take(n); err != nil {
		return err
	}
	if len(n.leaf) > 0 {
		if _, err := w.Write(n.leaf); err != nil {
			return err
		}
	}
	if n.proto == nil {
		return nil
	}
	if sum := n.childBytes(); sum != n.fsn.FileSize() {
		return fmt.Errorf("%s: %w: its parts add up to %d bytes, not %d", n.ref, ErrMalformed, sum, n.fsn.FileSize())
	}
	for i, l := range n.proto.Links() {
		r, err := refOf(l.Cid)
		if err != nil {
			return err
		}
		c, err := d.node(r)
		if err != nil {
			return err
		}
		if c.size() != n.fsn.BlockSize(i) {
			return fmt.Errorf("%s: %w: part %s has %d bytes, not %d", n.ref, ErrMalformed, r, c.size(), n.fsn.BlockSize(i))
		}
		if err := d.writeNode(ctx, c, w, depth+1, left); err != nil {
			return err
		}
	}
	return nil
}

// childBytes adds up a file node's own bytes and its children's as it tells them.
func (n node) childBytes() uint64 {
	sum := uint64(len(n.leaf))
	for _, b := range n.fsn.BlockSizes() {
		sum = addCapped(sum, b)
	}
	return sum
}

// List lists the folder at path under root, or the one file that is there.
func List(ctx context.Context, s *Store, root cid.Cid, path string) ([]Entry, error) {
	d := dagService{ctx, s}
	n, err := d.find(ctx, root, path)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", joinCID(root, path), err)
	}
	if n.kind != EntryFolder {
		name := path[strings.LastIndex(path, "/")+1:]
		return []Entry{n.entry(name)}, nil
	}
	var out []Entry
	each := describer{d, map[ref]Entry{}}
	err = d.eachEntry(ctx, n, func(l *format.Link) error {
		e, err := each.entry(l)
		out = append(out, e)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", joinCID(root, path), err)
	}
	return out, nil
}

func (n node) entry(name string) Entry {
	mode, _ := n.mode()
	return Entry{Name: name, CID: n.ref.cid(), Kind: n.kind, Size: n.size(), Mode: mode}
}

func (d dagService) describe(l *format.Link) (Entry, error) {
	r, err := refOf(l.Cid)
	if err != nil {
		return Entry{}, err
	}
	if r.codec == codecRaw {
		return Entry{Name: l.Name, CID: r.cid(), Kind: EntryFile, Size: l.Size, Mode: plainFile}, nil
	}
	n, err := d.node(r)
	if errors.Is(err, ErrNotFound) {
		return Entry{Name: l.Name, CID: r.cid(), Kind: EntryUnknown, Size: l.Size}, nil
	}
	if err != nil {
		return Entry{}, err
	}
	return n.entry(l.Name), nil
}
