package content

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// Bounds on a tocTree. A table of contents says much in few bytes: names share
// their beginnings, and links lead to long paths. An image that is over one of
// them is not laid out before it is whole, and an unpacker may still take it.
const (
	maxTOCTree   = 128 << 20 // bytes of memory, about
	tocEntrySize = 400       // of an entry and what is made of it, without its texts
	tocXattrSize = 64        // of an attribute, without its texts
	maxBase      = 255       // bytes of a name in a folder, as file systems have it
	maxTOCSteps  = 1 << 24   // names looked at for all entries
)

// tocTree is what the layers of an image make together, in memory: names and
// attributes as an unpacker would write them, by the same rules (see unpacker).
// A test holds the two to each other.
type tocTree struct {
	root    *treeName
	limit   Limits
	layer   int // being applied, from 1
	entries uint64
	bytes   uint64
	memory  int
	steps   int
}

// treeName is a name in a folder, or the root.
type treeName struct {
	parent *treeName
	base   string
	file   *treeFile
	layer  int                  // the last that wrote it, or something under it
	depth  int                  // below the root
	length int                  // bytes of its path
	kids   map[string]*treeName // of a folder
}

// treeFile is what one or, by hard links, several names stand for.
type treeFile struct {
	entry *tocEntry // nil for a folder no entry speaks of
	layer int       // whose entry, from 0
	kind  byte      // tar.TypeDir, TypeReg or TypeSymlink
}

func newTOCTree(limit Limits) *tocTree {
	root := &treeName{file: &treeFile{kind: tar.TypeDir}, kids: map[string]*treeName{}, base: "."}
	return &tocTree{root: root, limit: limit}
}

func (n *treeName) isDir() bool { return n.file.kind == tar.TypeDir }

// path is the name in full, "." for the root.
func (n *treeName) path() string {
	if n.parent == nil {
		return "."
	}
	return path.Join(n.parent.path(), n.base)
}

// mark remembers that the current layer wrote a name, and with it its folders.
func (t *tocTree) mark(n *treeName) {
	for ; n != nil && n.layer != t.layer; n = n.parent {
		n.layer = t.layer
	}
}

func (t *tocTree) count() error {
	if t.entries++; t.entries > t.limit.Entries {
		return fmt.Errorf("%w: more than %d files, folders and links", ErrTooLarge, t.limit.Entries)
	}
	return nil
}

// keep takes memory.
func (t *tocTree) keep(n int) error {
	if t.memory += n; t.memory > maxTOCTree {
		return fmt.Errorf("%w: more names and attributes than %d MiB of memory can keep track of", ErrTooLarge, maxTOCTree>>20)
	}
	return nil
}

// step is one name looked at.
func (t *tocTree) step() error {
	if t.steps++; t.steps > maxTOCSteps {
		return fmt.Errorf("%w: more than %d steps from folder to folder and link to link", ErrTooLarge, maxTOCSteps)
	}
	return nil
}

// put puts a name into its folder.
func (t *tocTree) put(n *treeName) error {
	n.depth, n.length = n.parent.depth+1, n.parent.length+1+len(n.base)
	if len(n.base) > maxBase || n.length > maxPathLen || n.isDir() && n.depth > maxDepth {
		return fmt.Errorf("%w: name of %d bytes, in a path of %d and %d folders", ErrTooLarge, len(n.base), n.length, n.parent.depth)
	}
	if err := t.keep(n.length); err != nil { // Lazy knows it by its path
		return err
	}
	n.parent.kids[n.base] = n
	t.mark(n)
	return nil
}

// add applies an entry of the layer numbered layer from 0.
func (t *tocTree) add(layer int, e *tocEntry) error {
	t.layer = layer + 1
	if err := errors.Join(t.count(), t.keep(e.memory())); err != nil || e.kind == tar.TypeXGlobalHeader {
		return err
	}
	name, err := entryName(e.name)
	if err != nil {
		return err
	}
	if name == "." {
		if e.kind != tar.TypeDir {
			return fmt.Errorf("%w: the root is no folder", ErrUnsafe)
		}
		t.root.file.entry, t.root.file.layer = e, layer
		return nil
	}
	dirName, base := path.Split(name)
	dir, err := t.resolve(path.Clean(dirName), true)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteout) {
		return t.whiteout(dir, base)
	}
	old := dir.kids[base]
	if old != nil && (!old.isDir() || e.kind != tar.TypeDir) {
		delete(dir.kids, base)
		old = nil
	}
	return t.write(dir, base, old, layer, e)
}

// write puts an entry into a folder; old is the folder that was there before it.
func (t *tocTree) write(dir *treeName, base string, old *treeName, layer int, e *tocEntry) error {
	n := &treeName{parent: dir, base: base, file: &treeFile{entry: e, layer: layer, kind: e.kind}}
	switch e.kind {
	case tar.TypeDir:
		n.kids = map[string]*treeName{}
		if old != nil {
			old.file, n = n.file, old
		}
	case tar.TypeReg:
		if t.bytes = addCapped(t.bytes, e.size); t.bytes > t.limit.Bytes {
			return fmt.Errorf("%w: more than %d bytes when unpacked", ErrTooLarge, t.limit.Bytes)
		}
	case tar.TypeSymlink:
		if e.link == "" || strings.ContainsRune(e.link, 0) {
			return fmt.Errorf("%w: link target", ErrUnsafe)
		}
	case tar.TypeLink:
		target, err := t.linked(e)
		if err != nil {
			return err
		}
		n.file = target
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return nil
	default:
		return fmt.Errorf("%w: entry of type %q", ErrMalformed, e.kind)
	}
	if n == old {
		t.mark(n)
		return nil
	}
	return t.put(n)
}

// linked finds what a hard link is to.
func (t *tocTree) linked(e *tocEntry) (*treeFile, error) {
	target, err := entryName(e.link)
	if err != nil || target == "." {
		return nil, fmt.Errorf("%w: hard link to %.300q leads outside", ErrUnsafe, e.link)
	}
	dirName, base := path.Split(target)
	dir, err := t.resolve(path.Clean(dirName), true)
	if err != nil {
		return nil, err
	}
	old := dir.kids[base]
	if old == nil {
		return nil, fmt.Errorf("hard link to %.300q: %w", e.link, fs.ErrNotExist)
	}
	if old.isDir() {
		return nil, fmt.Errorf("%w: hard link to a folder", ErrUnsafe)
	}
	return old.file, nil
}

func (t *tocTree) whiteout(dir *treeName, base string) error {
	if base == whiteoutOpaque {
		return t.opaque(dir)
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	name := strings.TrimPrefix(base, whiteout)
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("%w: whiteout of %q", ErrUnsafe, name)
	}
	if n := dir.kids[name]; n != nil && n.layer != t.layer { // it hides lower layers only
		delete(dir.kids, name)
	}
	return nil
}

// opaque removes what lower layers put under a folder, at any depth.
func (t *tocTree) opaque(dir *treeName) error {
	for name, n := range dir.kids {
		err := t.step()
		switch {
		case err != nil:
		case n.layer != t.layer:
			delete(dir.kids, name)
		case n.isDir():
			err = t.opaque(n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// errNoPath says that there is nothing of that name.
var errNoPath = errors.New("no such file in the image")

// resolve follows the links in a folder's name within the root. With create it
// makes folders that are missing.
func (t *tocTree) resolve(name string, create bool) (*treeName, error) {
	rest := strings.Split(name, "/")
	at := t.root
	for hops := 0; len(rest) > 0; {
		c := rest[0]
		rest = rest[1:]
		if create { // many find at one time
			if err := t.step(); err != nil {
				return nil, err
			}
		}
		switch c {
		case "", ".":
			continue
		case "..":
			if at.parent != nil {
				at = at.parent
			}
			continue
		}
		n := at.kids[c]
		switch {
		case n == nil && !create:
			return nil, fmt.Errorf("%w: %.300q", errNoPath, name)
		case n == nil:
			if err := t.count(); err != nil {
				return nil, err
			}
			n = &treeName{parent: at, base: c, file: &treeFile{kind: tar.TypeDir}, kids: map[string]*treeName{}}
			if err := errors.Join(t.keep(tocEntrySize), t.put(n)); err != nil {
				return nil, err
			}
			at = n
		case n.isDir():
			at = n
		case n.file.kind == tar.TypeSymlink:
			target := n.file.entry.link
			if hops++; hops > maxLinkHops || len(rest) > maxPathLen {
				return nil, fmt.Errorf("%w: too many symbolic links on the way to %.300q", ErrUnsafe, name)
			}
			if path.IsAbs(target) {
				at = t.root
			}
			rest = append(strings.Split(target, "/"), rest...)
		case !create && len(rest) == 0:
			return n, nil // a file, asked for by find
		default:
			return nil, fmt.Errorf("%w: %.300q on the way is no folder", ErrMalformed, n.path())
		}
	}
	return at, nil
}

// find returns the regular file a name leads to, links followed.
func (t *tocTree) find(name string) (*treeName, error) {
	n, err := t.resolve(name, false)
	if err != nil {
		return nil, err
	}
	if n.file.kind != tar.TypeReg {
		return nil, fmt.Errorf("%w: %.300q is no file", errNoPath, name)
	}
	return n, nil
}
