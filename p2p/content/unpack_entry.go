package content

import (
	"archive/tar"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Whiteouts of the OCI image spec, "Representing Changes".
const (
	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh."
)

const readDirBatch = 1024

// unpacker applies tar entries to a folder that was empty. One goroutine hands
// it the entries in their order; file bodies are written by others meanwhile.
// What an entry does to the tree is done at once, except that a file appears
// later: whoever needs to see it, or its absence, settles its path first.
type unpacker struct {
	tree    *folderTree
	w       *layWriters
	attrs   *attrWriter
	limit   Limits
	bytes   uint64
	entries uint64
	layer   int
	seed    maphash.Seed
	known   map[uint64]uint16 // by hash of the path: the layer that last wrote what is no folder there
	left    leftOut
}

// leftOut counts what was not made.
type leftOut struct {
	devices int
	xattrs  map[string]int
}

// maxLeftNames bounds how many names of attributes are told.
const maxLeftNames = 16

func (l *leftOut) xattr(name string) {
	if l.xattrs == nil {
		l.xattrs = map[string]int{}
	}
	if _, ok := l.xattrs[name]; !ok && len(l.xattrs) >= maxLeftNames {
		name = "others"
	}
	l.xattrs[name]++
}

// newUnpacker takes top over; close gives it back.
func newUnpacker(top *os.Root, w *layWriters, limit Limits) *unpacker {
	u := &unpacker{
		tree: newFolderTree(top, w.attrs), w: w, attrs: w.attrs, limit: limit,
		seed: maphash.MakeSeed(), known: map[uint64]uint16{},
	}
	u.tree.implied = u.count
	u.tree.settle = func(at string) error { return w.settle(u.hash(at)) }
	return u
}

// startLayer says that entries of the next layer follow.
func (u *unpacker) startLayer(i int) { u.layer, u.tree.layer = i, i }

func (u *unpacker) hash(p string) uint64 { return maphash.String(u.seed, p) }

func (u *unpacker) count() error {
	if u.entries++; u.entries > u.limit.Entries {
		return fmt.Errorf("%w: more than %d files, folders and links", ErrTooLarge, u.limit.Entries)
	}
	return nil
}

// entryName is an entry's name as a path below the top, or an error.
func entryName(name string) (string, error) {
	name = strings.TrimLeft(name, "/")
	if name == "" || len(name) > maxPathLen || strings.ContainsRune(name, 0) || !filepath.IsLocal(filepath.FromSlash(name)) {
		return "", fmt.Errorf("%w: this name leads outside, or is empty or longer than %d bytes", ErrUnsafe, maxPathLen)
	}
	return path.Clean(name), nil
}

// entry applies one entry. r yields its body and is done with when entry
// returns; the file may appear later.
func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	if err := u.count(); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := entryName(h.Name)
	if err != nil {
		return err
	}
	a, err := u.attributes(h)
	if err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: the root is no folder", ErrUnsafe)
		}
		u.tree.top.node.attrs = a
		return nil
	}
	dirName, base := path.Split(name)
	dir, err := u.tree.folder(path.Clean(dirName))
	if err != nil {
		return err
	}
	defer dir.hold().release()
	if strings.HasPrefix(base, whiteout) {
		return u.whiteout(dir, base)
	}
	full := path.Join(dir.at, base)
	if err := u.clear(dir, base, full, h.Typeflag == tar.TypeDir); err != nil {
		return err
	}
	made, err := u.write(dir, base, full, a, h, r)
	if made && err == nil {
		u.tree.touch(dir.node)
	}
	return err
}

// clear makes way for an entry. A folder stays where a folder comes.
func (u *unpacker) clear(dir *treeFolder, base, full string, folder bool) error {
	if dir.node.children[base] != nil {
		if folder {
			return nil
		}
		return u.remove(dir, base)
	}
	k := u.hash(full)
	if _, ok := u.known[k]; !ok {
		return nil
	}
	if err := u.w.settle(k); err != nil {
		return err
	}
	return u.remove(dir, base)
}

// remove removes what is there, with all in it.
func (u *unpacker) remove(dir *treeFolder, base string) error {
	if dir.node.children[base] != nil {
		if err := u.w.wait(); err != nil {
			return err
		}
	}
	return u.tree.remove(dir, base)
}

// write makes one entry; false says it is of a kind that is left out.
func (u *unpacker) write(dir *treeFolder, base, full string, a attrs, h *tar.Header, r io.Reader) (bool, error) {
	switch h.Typeflag {
	case tar.TypeDir:
		return true, u.folder(dir, base, a, h)
	case tar.TypeReg, tar.TypeGNUSparse:
		return true, u.file(dir, base, full, a, h, r)
	case tar.TypeSymlink:
		if len(h.Linkname) > maxPathLen || strings.ContainsRune(h.Linkname, 0) || h.Linkname == "" {
			return false, fmt.Errorf("%w: link target is empty or longer than %d bytes", ErrUnsafe, maxPathLen)
		}
		if err := dir.Symlink(h.Linkname, base); err != nil {
			return false, appeared(err)
		}
		u.known[u.hash(full)] = uint16(u.layer)
		if u.attrs.foreign(a) {
			return true, dir.Lchown(base, a.uid, a.gid)
		}
		return true, nil
	case tar.TypeLink:
		return true, u.link(full, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		u.left.devices++
		return false, nil
	}
	return false, fmt.Errorf("%w: entry of type %q", ErrMalformed, h.Typeflag)
}

func (u *unpacker) folder(dir *treeFolder, base string, a attrs, h *tar.Header) error {
	if err := u.tree.mkdir(dir, base, a); err != nil {
		return err
	}
	list := u.xattrs(h)
	if len(list) == 0 {
		return nil
	}
	f, err := dir.Open(base)
	if err != nil {
		return err
	}
	return errors.Join(setXattrs(f, list), f.Close())
}

func (u *unpacker) file(dir *treeFolder, base, full string, a attrs, h *tar.Header, r io.Reader) error {
	if h.Size < 0 || uint64(h.Size) > u.limit.Bytes-u.bytes {
		return fmt.Errorf("%w: more than %d bytes when unpacked", ErrTooLarge, u.limit.Bytes)
	}
	u.bytes += uint64(h.Size)
	k := u.hash(full)
	u.known[k] = uint16(u.layer)
	return u.w.file(k, layFile{dir: dir, name: base, layer: u.layer, attrs: a, xattrs: u.xattrs(h), size: h.Size}, r)
}

// link makes a hard link. The target is found like any path in the image, and
// may itself be a symbolic link, which is then linked as such.
func (u *unpacker) link(full string, h *tar.Header) error {
	target, err := entryName(h.Linkname)
	if err != nil || target == "." {
		return fmt.Errorf("%w: hard link to %.300q leads outside", ErrUnsafe, h.Linkname)
	}
	dirName, base := path.Split(target)
	dirPath, n, err := u.tree.resolve(path.Clean(dirName))
	if err != nil {
		return err
	}
	if n.children[base] != nil {
		return fmt.Errorf("%w: hard link to a folder, %.300q", ErrUnsafe, h.Linkname)
	}
	old := path.Join(dirPath, base)
	if err := u.w.settle(u.hash(old)); err != nil {
		return err
	}
	if err := u.tree.top.Link(old, full); err != nil {
		return fmt.Errorf("hard link to %.300q: %w", h.Linkname, appeared(err))
	}
	u.known[u.hash(full)] = uint16(u.layer)
	return nil
}

// attributes reads what an entry says of itself. For an ordinary user all
// becomes the user's, who can always read it and remove it.
func (u *unpacker) attributes(h *tar.Header) (attrs, error) {
	const maxID = 1<<32 - 2
	a := attrs{time: h.ModTime}
	a.mode = h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	if h.Typeflag == tar.TypeDir {
		a.mode |= fs.ModeDir
	}
	if !u.attrs.root {
		a.mode = a.mode&(fs.ModePerm|fs.ModeDir) | 0o400
		if h.Typeflag == tar.TypeDir {
			a.mode |= 0o700
		}
		return a, nil
	}
	if h.Uid < 0 || h.Gid < 0 || uint64(h.Uid) > maxID || uint64(h.Gid) > maxID {
		return a, fmt.Errorf("%w: owner %d:%d", ErrMalformed, h.Uid, h.Gid)
	}
	a.uid, a.gid = h.Uid, h.Gid
	return a, nil
}

// fileXattr is an extended attribute.
type fileXattr struct{ name, value string }

// xattrs returns the extended attributes that mean something in a container:
// the user's own, and for root a program's capabilities. The others are
// counted.
func (u *unpacker) xattrs(h *tar.Header) []fileXattr {
	var list []fileXattr
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		switch {
		case !ok:
		case strings.HasPrefix(name, "user."), name == "security.capability" && u.attrs.root:
			list = append(list, fileXattr{name, v})
		default:
			u.left.xattr(fmt.Sprintf("%.64q", name))
		}
	}
	slices.SortFunc(list, func(a, b fileXattr) int { return strings.Compare(a.name, b.name) })
	return list
}

// whiteout removes what lower layers put there.
func (u *unpacker) whiteout(dir *treeFolder, base string) error {
	if base == whiteoutOpaque {
		if err := u.w.wait(); err != nil {
			return err
		}
		return u.opaque(dir.Root, dir.node, dir.at)
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil // aufs' own bookkeeping
	}
	name := strings.TrimPrefix(base, whiteout)
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("%w: whiteout of %q", ErrUnsafe, name)
	}
	if c := dir.node.children[name]; c != nil {
		if c.layer == u.layer {
			return nil // a whiteout hides lower layers only
		}
		return u.remove(dir, name)
	}
	layer, known := u.known[u.hash(path.Join(dir.at, name))]
	if !known || int(layer) == u.layer {
		return nil
	}
	if err := u.w.settle(u.hash(path.Join(dir.at, name))); err != nil {
		return err
	}
	return u.remove(dir, name)
}

// opaque removes what lower layers put under a folder, at any depth.
func (u *unpacker) opaque(dir *os.Root, n *treeNode, at string) error {
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for {
		list, err := f.ReadDir(readDirBatch)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range list {
			if err := u.opaqueEntry(dir, n, at, e.Name()); err != nil {
				return err
			}
		}
	}
}

func (u *unpacker) opaqueEntry(dir *os.Root, n *treeNode, at, name string) error {
	full := path.Join(at, name)
	c := n.children[name]
	if c == nil || c.layer != u.layer {
		if layer, ok := u.known[u.hash(full)]; c == nil && ok && int(layer) == u.layer {
			return nil
		}
		return u.tree.removeFrom(dir, n, name)
	}
	sub, err := dir.OpenRoot(name)
	if err != nil {
		return err
	}
	return errors.Join(u.opaque(sub, c, full), sub.Close())
}
