package content

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"time"
)

// Bounds on folders being laid out.
const (
	maxLinkHops  = 64
	maxPathLen   = 4096
	maxTreeDepth = maxAddDepth
	openFolders  = 64        // kept open for the entries to come
	maxTreeBytes = 128 << 20 // of memory to remember folders in
	treeNodeSize = 256       // bytes of memory of one folder, without its name
)

// treeNode is a folder that was laid out. Its attributes are set when all
// layers are: what is written into a folder moves its time.
type treeNode struct {
	up       *treeNode
	depth    int
	children map[string]*treeNode
	made     fs.FileMode // permissions it was made with
	attrs    attrs
	layer    int // the last that wrote it or something in it
}

// treeFolder is a folder that entries go to. Writers use it after the parser
// has gone on, so it is closed when the last of them lets it go.
type treeFolder struct {
	*os.Root
	dir  *os.File // the same, once files go there
	at   string   // relative to the top, without a link in it
	node *treeNode
	uses atomic.Int32
}

// ready opens the folder for files.
func (f *treeFolder) ready() (err error) {
	if f.dir == nil {
		f.dir, err = f.Open(".")
	}
	return err
}

func (f *treeFolder) hold() *treeFolder {
	f.uses.Add(1)
	return f
}

func (f *treeFolder) release() {
	if f.uses.Add(-1) == 0 {
		_ = f.Close() // a folder open for reading: nothing can be lost
		if f.dir != nil {
			_ = f.dir.Close()
		}
	}
}

// folderTree knows the folders under top. Links in the way are followed as the
// container will see them, with top as "/"; os.Root stands behind that and lets
// nothing out, whoever else changes the tree meanwhile.
type folderTree struct {
	top   *treeFolder
	open  map[string]*treeFolder // by the name they were asked for with
	order []string               // of open, the oldest first
	bytes int                    // of memory

	// implied is called before a folder is made that has no entry of its own;
	// settle waits until what was last written at a path is there.
	implied func() error
	settle  func(at string) error
	layer   int
	attrs   *attrWriter
}

func newFolderTree(top *os.Root, w *attrWriter) *folderTree {
	f := &treeFolder{Root: top, at: ".", node: &treeNode{}}
	return &folderTree{top: f.hold(), open: map[string]*treeFolder{}, attrs: w}
}

func (t *folderTree) close() {
	t.forgetOpen()
	t.top.release()
}

// forgetOpen closes the folders kept open. It is called when a path may lead
// elsewhere from now on.
func (t *folderTree) forgetOpen() {
	for _, f := range t.open {
		f.release()
	}
	clear(t.open)
	t.order = t.order[:0]
}

// folder returns the folder a name leads to, made if it is missing. It stays
// open until the next call.
func (t *folderTree) folder(name string) (*treeFolder, error) {
	if name == "." {
		return t.top, nil
	}
	if f := t.open[name]; f != nil {
		return f, nil
	}
	at, n, err := t.resolve(name)
	if err != nil {
		return nil, err
	}
	if n == t.top.node {
		return t.top, nil
	}
	from, rest := t.top, at
	if f := t.open[path.Dir(at)]; f != nil && f.at == path.Dir(at) {
		from, rest = f, path.Base(at)
	}
	r, err := from.OpenRoot(rest)
	if err != nil {
		return nil, err
	}
	f := &treeFolder{Root: r, at: at, node: n}
	if len(t.order) >= openFolders {
		t.open[t.order[0]].release()
		delete(t.open, t.order[0])
		t.order = t.order[1:]
	}
	t.open[name] = f.hold()
	t.order = append(t.order, name)
	return f, nil
}

// resolve follows the links in a folder's name, making folders that are
// missing. The path it returns has no link in it.
func (t *folderTree) resolve(name string) (at string, n *treeNode, err error) {
	rest := strings.Split(name, "/")
	at, n = ".", t.top.node
	var fresh *os.Root // the folder at, if it was made just now: nothing is in it
	leave := func() {
		if fresh != nil {
			_ = fresh.Close() // a folder open for reading: nothing can be lost
			fresh = nil
		}
	}
	defer leave()
	for hops := 0; len(rest) > 0; {
		c := rest[0]
		rest = rest[1:]
		next, target := path.Join(at, c), ""
		switch child := n.children[c]; {
		case c == "" || c == ".":
			continue
		case c == "..":
			leave()
			if n.up != nil { // of the top it is the top
				at, n = path.Dir(at), n.up
			}
			continue
		case child != nil:
			at, n = next, child
			continue
		case fresh == nil:
			target, err = t.notFolder(next)
		}
		if fresh != nil || errors.Is(err, fs.ErrNotExist) {
			was := fresh
			if n, fresh, err = t.imply(n, was, at, c); was != nil {
				_ = was.Close()
			}
			if err != nil {
				return "", nil, err
			}
			at = next
			continue
		}
		if err != nil {
			return "", nil, err
		}
		if hops++; hops > maxLinkHops || len(rest) > maxPathLen {
			return "", nil, fmt.Errorf("%w: too many symbolic links on the way to %.300q", ErrUnsafe, name)
		}
		if path.IsAbs(target) {
			at, n = ".", t.top.node
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, n, nil
}

// notFolder returns the target of the link at a path that is no folder of ours.
func (t *folderTree) notFolder(at string) (target string, err error) {
	if err := t.settle(at); err != nil {
		return "", err
	}
	fi, err := t.top.Lstat(at)
	switch {
	case err != nil:
		return "", err
	case fi.Mode()&fs.ModeSymlink != 0:
		return t.top.Readlink(at)
	case fi.IsDir():
		return "", fmt.Errorf("%w: folder %.300q appeared while the image was unpacked", ErrUnsafe, at)
	}
	return "", fmt.Errorf("%w: %.300q on the way is no folder", ErrMalformed, at)
}

// imply makes a folder no entry speaks of, in dir or, if that is nil, at a path,
// and opens it. It counts, since one entry's name can ask for thousands.
func (t *folderTree) imply(up *treeNode, dir *os.Root, at, name string) (*treeNode, *os.Root, error) {
	if err := t.implied(); err != nil {
		return nil, nil, err
	}
	where := name
	if dir == nil {
		dir, where = t.top.Root, path.Join(at, name)
	}
	if err := dir.Mkdir(where, 0o755); err != nil {
		return nil, nil, appeared(err)
	}
	n, err := t.add(up, name, attrs{mode: fs.ModeDir | 0o755})
	if err != nil {
		return nil, nil, err
	}
	made, err := dir.OpenRoot(where)
	return n, made, err
}

// mkdir makes a folder, or gives the one that is there other attributes.
func (t *folderTree) mkdir(dir *treeFolder, name string, a attrs) error {
	if n := dir.node.children[name]; n != nil {
		n.attrs = a
		t.touch(n) // an opaque mark of this layer does not hide it
		return nil
	}
	if err := dir.Mkdir(name, a.mode.Perm()|0o700); err != nil {
		return appeared(err)
	}
	_, err := t.add(dir.node, name, a)
	return err
}

func (t *folderTree) add(up *treeNode, name string, a attrs) (*treeNode, error) {
	n := &treeNode{up: up, depth: up.depth + 1, attrs: a, made: (a.mode.Perm() | 0o700) & t.attrs.modes, layer: -1}
	if n.depth > maxTreeDepth {
		return nil, fmt.Errorf("%w: folders more than %d deep", ErrTooLarge, maxTreeDepth)
	}
	if t.bytes += treeNodeSize + 2*len(name); t.bytes > maxTreeBytes {
		return nil, fmt.Errorf("%w: more folders than %d MiB of memory can keep track of", ErrTooLarge, maxTreeBytes>>20)
	}
	if up.children == nil {
		up.children = map[string]*treeNode{}
	}
	up.children[strings.Clone(name)] = n
	t.touch(n)
	return n, nil
}

// touch notes that the present layer wrote a folder or something in it.
func (t *folderTree) touch(n *treeNode) {
	for ; n != nil && n.layer != t.layer; n = n.up {
		n.layer = t.layer
	}
}

// remove removes what is at a name in a folder.
func (t *folderTree) remove(dir *treeFolder, name string) error {
	return t.removeFrom(dir.Root, dir.node, name)
}

func (t *folderTree) removeFrom(dir *os.Root, n *treeNode, name string) error {
	if err := dir.RemoveAll(name); err != nil {
		return err
	}
	t.forgetOpen() // a folder in it, or one behind it if it was a link
	delete(n.children, name)
	return nil
}

// finish gives every folder its attributes, those in a folder before itself.
func (t *folderTree) finish() error {
	t.forgetOpen()
	return t.finishFolder(t.top.Root, t.top.node, ".")
}

func (t *folderTree) finishFolder(dir *os.Root, n *treeNode, at string) error {
	for name, c := range n.children {
		full := path.Join(at, name)
		sub, err := dir.OpenRoot(name)
		if err != nil {
			return fmt.Errorf("folder %.300q: %w", full, err)
		}
		if err := errors.Join(t.finishFolder(sub, c, full), sub.Close()); err != nil {
			return err
		}
	}
	if n.attrs.mode == 0 { // the top, if no entry spoke of it
		return nil
	}
	if err := t.attrs.folder(dir, n.made, n.attrs); err != nil {
		return fmt.Errorf("folder %.300q: %w", at, err)
	}
	return nil
}

// appeared explains why something is where the unpacker has put nothing.
func appeared(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: something appeared there while the image was unpacked: %w", ErrUnsafe, err)
	}
	return err
}

// attrWriter sets attributes, passing over those that are as they should be.
type attrWriter struct {
	root     bool        // running as root
	modes    fs.FileMode // permissions the system lets a new file have
	uid, gid int         // who a new file belongs to
}

// attrs is what an entry says of itself besides its bytes.
type attrs struct {
	mode     fs.FileMode // permissions and set-id bits
	uid, gid int
	time     time.Time
}

// folder sets owner, mode and time, in that order: a new owner takes set-id
// bits away.
func (w *attrWriter) folder(dir *os.Root, made fs.FileMode, a attrs) error {
	if w.foreign(a) {
		if err := dir.Lchown(".", a.uid, a.gid); err != nil {
			return err
		}
	}
	if mode := a.mode &^ fs.ModeDir; mode != made {
		if err := dir.Chmod(".", mode); err != nil {
			return err
		}
	}
	return setTime(dir, ".", a.time)
}

// foreign says whether what we make must be given to somebody else.
func (w *attrWriter) foreign(a attrs) bool { return w.root && (a.uid != w.uid || a.gid != w.gid) }
