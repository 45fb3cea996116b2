package content

import (
	"archive/tar"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// maxDepth bounds the folders within folders of an image that is laid out
// before it is whole; each has a descriptor open meanwhile.
const maxDepth = 200

// layout writes a tree of names below a folder: the shape of an image, its
// files empty but of their size, or only the folders and links.
type layout struct {
	top   *os.Root
	root  bool // running as root
	files bool
	umask fs.FileMode
	g     *errgroup.Group
	first map[*treeFile]*treeName // of files with several names, the one to make

	mu   sync.Mutex
	more []*treeName // further names, made at the end
}

// layOutWorkers is how many folders are written at a time.
const layOutWorkers = 8

// layOut writes t as folder dir, which must not be there yet.
func layOut(t *tocTree, dir string, files bool) (err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	top, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, top.Close()) }()
	fi, err := top.Stat(".")
	if err != nil {
		return err
	}
	w := &layout{
		top: top, root: os.Geteuid() == 0, files: files, umask: 0o755 &^ fi.Mode(),
		g: &errgroup.Group{}, first: firstNames(t),
	}
	w.g.SetLimit(layOutWorkers)
	if err := errors.Join(w.folder(top, t.root), w.g.Wait()); err != nil {
		return err
	}
	for _, n := range w.more {
		if err := top.Link(w.first[n.file].path(), n.path()); err != nil {
			return err
		}
	}
	return w.finish(t.root)
}

// firstNames picks one of the names of each file with several.
func firstNames(t *tocTree) map[*treeFile]*treeName {
	first := map[*treeFile]*treeName{}
	t.each(func(n *treeName) {
		if !n.isDir() && first[n.file] == nil {
			first[n.file] = n
		}
	})
	return first
}

// each calls f for all names, folders before what is in them, in order.
func (t *tocTree) each(f func(*treeName)) {
	var walk func(*treeName)
	walk = func(n *treeName) {
		f(n)
		for _, base := range slices.Sorted(maps.Keys(n.kids)) {
			walk(n.kids[base])
		}
	}
	walk(t.root)
}

// folder writes what is in a folder; dir stays open for it.
func (w *layout) folder(dir *os.Root, n *treeName) error {
	for _, kid := range n.kids {
		var err error
		switch {
		case kid.isDir():
			err = w.sub(dir, kid)
		case kid.file.kind == tar.TypeReg && !w.files:
		case w.first[kid.file] != kid:
			w.mu.Lock()
			w.more = append(w.more, kid)
			w.mu.Unlock()
		case kid.file.kind == tar.TypeSymlink:
			err = w.symlink(dir, kid)
		default:
			err = w.file(dir, kid)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sub writes a folder within another, beside it if a worker is free.
func (w *layout) sub(dir *os.Root, n *treeName) error {
	if err := dir.Mkdir(n.base, 0o700); err != nil {
		return err
	}
	sub, err := dir.OpenRoot(n.base)
	if err != nil {
		return err
	}
	write := func() error { return errors.Join(w.folder(sub, n), sub.Close()) }
	if w.g.TryGo(write) {
		return nil
	}
	return write()
}

// finish gives folders their attributes, the innermost first: what is written
// into one moves its time, and its mode may forbid writing.
func (w *layout) finish(root *treeName) error {
	var walk func(dir *os.Root, n *treeName) error
	walk = func(dir *os.Root, n *treeName) error {
		for _, kid := range n.kids {
			if !kid.isDir() {
				continue
			}
			sub, err := dir.OpenRoot(kid.base)
			if err == nil {
				err = errors.Join(walk(sub, kid), sub.Close())
			}
			if err != nil {
				return err
			}
		}
		return finishFolder(dir, n.file.entry, w.root)
	}
	return walk(w.top, root)
}

func (w *layout) symlink(dir *os.Root, n *treeName) error {
	if err := dir.Symlink(n.file.entry.link, n.base); err != nil {
		return err
	}
	return own(dir, n.base, n.file.entry, w.root)
}

func (w *layout) file(dir *os.Root, n *treeName) error {
	e := n.file.entry
	mode := fs.FileMode(e.mode) & fs.ModePerm
	if !w.root {
		mode |= 0o400
	}
	f, err := dir.OpenFile(n.base, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	if e.size > 0 {
		err = f.Truncate(int64(e.size)) //nolint:gosec // at most maxLayerLen
	}
	plain := len(e.xattrs) == 0 && mode&w.umask == 0 && (!w.root || e.uid == 0 && e.gid == 0 && e.mode&^0o777 == 0)
	switch {
	case err != nil:
	case plain: // as most are: its owner and mode are right from the beginning
		err = dir.Chtimes(n.base, time.Time{}, e.mtime)
	default:
		err = finishFile(dir, n.base, f, e, w.root)
	}
	return errors.Join(err, f.Close())
}

// finishFile gives a file that is written what its entry says of it.
func finishFile(dir *os.Root, base string, f *os.File, e *tocEntry, root bool) error {
	if err := setAttributes(dir, base, e, false, root); err != nil {
		return err
	}
	return setXattrs(f, e.kept(root)) // after the owner is set: that takes capabilities away
}

// kept is what an unpacker keeps of the extended attributes.
func (e *tocEntry) kept(root bool) []fileXattr {
	var list []fileXattr
	for _, x := range e.xattrs {
		if strings.HasPrefix(x.name, "user.") || x.name == "security.capability" && root {
			list = append(list, fileXattr(x))
		}
	}
	return list
}

// finishFolder is finishFile for a folder that is filled.
func finishFolder(dir *os.Root, e *tocEntry, root bool) error {
	if e != nil {
		if list := e.kept(root); len(list) > 0 {
			f, err := dir.Open(".")
			if err != nil {
				return err
			}
			if err := errors.Join(setXattrs(f, list), f.Close()); err != nil {
				return err
			}
		}
	}
	return setAttributes(dir, ".", e, true, root)
}

// setAttributes sets owner, mode and time, as an unpacker does.
func setAttributes(dir *os.Root, base string, e *tocEntry, folder, root bool) error {
	if e == nil {
		return dir.Chmod(base, 0o755)
	}
	if err := own(dir, base, e, root); err != nil {
		return err
	}
	mode := (&tar.Header{Mode: int64(e.mode)}).FileInfo().Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	if !root {
		mode = mode&fs.ModePerm | 0o400
		if folder {
			mode |= 0o700
		}
	}
	return errors.Join(dir.Chmod(base, mode), dir.Chtimes(base, time.Time{}, e.mtime))
}

func own(dir *os.Root, base string, e *tocEntry, root bool) error {
	if !root {
		return nil
	}
	return dir.Lchown(base, int(e.uid), int(e.gid))
}

// lazyFiles lists the files of a tree in the order they lie in, with their names.
func lazyFiles(t *tocTree) []*lazyFile {
	byFile := map[*treeFile]*lazyFile{}
	var all []*lazyFile
	t.each(func(n *treeName) {
		if n.file.kind != tar.TypeReg {
			return
		}
		f := byFile[n.file]
		if f == nil {
			f = &lazyFile{layer: n.file.layer, entry: n.file.entry}
			byFile[n.file] = f
			all = append(all, f)
		}
		f.names = append(f.names, n.path())
	})
	slices.SortStableFunc(all, func(a, b *lazyFile) int {
		if a.layer != b.layer {
			return a.layer - b.layer
		}
		return int(int64(a.entry.from) - int64(b.entry.from)) //nolint:gosec // both at most maxLayerLen
	})
	return all
}

// shapeBytes is about what a shape takes in a file system in memory.
func (t *tocTree) shapeBytes() uint64 {
	const (
		nameSize  = 1 << 10 // an inode with its name
		pageSize  = 4 << 10 // of a link to more than
		shortLink = 128     // bytes
	)
	n := 0
	t.each(func(name *treeName) {
		n += nameSize
		e := name.file.entry
		if e == nil {
			return
		}
		if len(e.link) >= shortLink {
			n += pageSize
		}
		for _, x := range e.xattrs {
			n += tocXattrSize + len(x.name) + len(x.value)
		}
	})
	return uint64(n) //nolint:gosec // not negative
}
