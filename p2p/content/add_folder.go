package content

import (
	"cmp"
	"context"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/boxo/ipld/unixfs/hamt"
	format "github.com/ipfs/go-ipld-format"
)

// addFolder is a folder being added. It is made when nothing of it is left.
type addFolder struct {
	parent *addFolder
	at     int      // in the parent's entries
	root   *os.Root // until no file of it is left
	fi     fs.FileInfo
	path   string // for errors
	made   made   // of the top, when it is

	entries []addChild
	files   atomic.Int32 // entries that still need root, and the listing
	left    atomic.Int32 // entries to make, and the listing

	recall  string // its name in the memory; "" is none
	known   listing
	changed atomic.Bool // the memory does not say what is here
}

// addChild is an entry of a folder being added.
type addChild struct {
	name   string
	kind   fs.FileMode
	made   made
	gone   bool // left out
	stamp  stamp
	marked bool // the stamp may be remembered
}

// fileJob is an entry that a worker is to make.
type fileJob struct {
	in *addFolder
	at int
}

// below is the folder's path as seen from the top.
func (f *addFolder) below() string {
	if f.parent == nil {
		return ""
	}
	return strings.TrimPrefix(strings.TrimPrefix(f.path, f.top().path), string(os.PathSeparator))
}

func (f *addFolder) top() *addFolder {
	for f.parent != nil {
		f = f.parent
	}
	return f
}

// list reads the names, in order; those in only, unless it is nil.
func (f *addFolder) list(only []string) error {
	d, err := f.root.Open(".")
	if err != nil {
		return err
	}
	entries, err := d.ReadDir(-1)
	_ = d.Close() // it was only read
	if err != nil {
		return err
	}
	if only != nil {
		entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return !slices.Contains(only, e.Name()) })
	}
	files := int32(1)
	f.entries = make([]addChild, len(entries))
	for i, e := range entries {
		f.entries[i] = addChild{name: e.Name(), kind: e.Type()}
		if !e.IsDir() {
			files++
		}
	}
	slices.SortFunc(f.entries, func(a, b addChild) int { return cmp.Compare(a.name, b.name) })
	f.files.Store(files)
	f.left.Store(int32(len(entries)) + 1) //nolint:gosec // a folder of 2^31 entries does not fit in memory
	return nil
}

// fileDone gives up one need of the folder's handle.
func (a *adder) fileDone(f *addFolder) {
	if f.files.Add(-1) > 0 {
		return
	}
	a.mu.Lock()
	delete(a.open, f)
	a.mu.Unlock()
	_ = f.root.Close() // it was only read
}

// entryDone makes the folder when its last entry is, and so those above it.
func (a *adder) entryDone(w *addWorker, f *addFolder) error {
	for f.left.Add(-1) == 0 {
		m, err := w.folderNode(f)
		if err != nil {
			return err
		}
		a.keep(f)
		f.entries, f.known = nil, nil
		if f.parent == nil {
			f.made = m
			return nil
		}
		f.parent.entries[f.at].made = m
		f = f.parent
	}
	return nil
}

// folderNode makes a folder's node: one block, or a HAMT where that would be
// larger than the profile allows.
func (w *addWorker) folderNode(f *addFolder) (made, error) {
	at := w.a.attributesOf(f.fi, plainDir)
	links := make([]pbLink, 0, len(f.entries))
	for i := range f.entries {
		if e := &f.entries[i]; !e.gone {
			links = append(links, pbLink{e.made.ref, e.name, e.made.size})
		}
	}
	var data []byte
	if at.none() {
		data = unixfs.FolderPBData()
	} else {
		data = unixfs.FolderPBDataWithStat(at.mode, at.mtime)
	}
	node := encodePB(links, data)
	if len(node) > profile().HAMTShardingSize {
		return w.sharded(links, at)
	}
	return w.putNode(node, links)
}

// sharded makes a folder's HAMT.
func (w *addWorker) sharded(links []pbLink, at attributes) (made, error) {
	p := profile()
	shard, err := hamt.NewShard(batchService{dagService{w.a.ctx, w.a.s}, w}, p.HAMTShardWidth)
	if err != nil {
		return made{}, err
	}
	shard.SetCidBuilder(p.CidBuilder())
	shard.SetStat(at.mode, at.mtime)
	for _, l := range links {
		if err := shard.SetLink(w.a.ctx, l.name, &format.Link{Name: l.name, Size: l.size, Cid: l.ref.cid()}); err != nil {
			return made{}, err
		}
	}
	n, err := shard.Node()
	if err != nil {
		return made{}, err
	}
	r, err := refOf(n.Cid())
	if err != nil {
		return made{}, err
	}
	size, err := n.Size()
	return made{ref: r, size: size}, err
}

// batchService is a dagService whose nodes go into a worker's batch.
type batchService struct {
	dagService
	w *addWorker
}

func (b batchService) Add(_ context.Context, n format.Node) error {
	r, err := refOf(n.Cid())
	if err != nil {
		return err
	}
	return b.w.put(r.key, n.RawData())
}

func (b batchService) AddMany(ctx context.Context, nodes []format.Node) error {
	for _, n := range nodes {
		if err := b.Add(ctx, n); err != nil {
			return err
		}
	}
	return nil
}
