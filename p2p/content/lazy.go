package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"
)

// Names in a Lazy's folder.
const (
	lazyShape = "shape" // names, sizes and attributes of the whole image
	lazyWhole = "whole" // the files that are here, and all folders and links
	lazyTmp   = "tmp"   // files being written
	lazyMade  = "made"  // its presence says that the above are
)

// Source brings the blocks of one DAG into a store; a Fetcher is one.
type Source interface {
	// Prioritize has blocks fetched before all others.
	Prioritize(cids []cid.Cid) error
	// Need is Prioritize, and waits until the blocks are here.
	Need(ctx context.Context, cids []cid.Cid) error
	// Await waits for blocks whose turn it leaves to the fetch.
	Await(ctx context.Context, cids []cid.Cid) error
	// Wait waits until all of the DAG is here.
	Wait(ctx context.Context) error
}

// LazyOptions configures OpenLazy.
type LazyOptions struct {
	// Fetch brings the image here; nil if it is whole in the store.
	Fetch Source
	// First names files to bring before those that the image names.
	First []string
	// Limits are those of UnpackLimited.
	Limits Limits
	// Shape is the folder to make the shape as, if it shall not be in the other's
	// place: one in memory is made in a tenth of the time. Nothing else may lie there.
	Shape string
	// ShapeRoom, if set, is told about how much memory a shape there would take,
	// and says whether it may; else it is made in the other's place.
	ShapeRoom func(bytes uint64) bool
}

// Lazy is an image laid out before it is whole. Shape is a folder with all its
// names, sizes, links and attributes, in which every file is a hole; Whole is
// one in which each file appears under its name when it is here, verified
// against its chunks' digests and against the header in its layer, never to
// change. Neither needs the other.
type Lazy struct {
	s      *Store
	img    imageRoot
	dir    string
	shape  string
	top    *os.Root
	layers []*layerAt
	fetch  Source
	root   bool

	tree   *tocTree
	files  []*lazyFile // in the order in which they are brought
	first  int         // how many of them are wanted first
	byName map[string]*lazyFile
	left   atomic.Int64
	moved  atomic.Bool // whole is at its destination

	mu   sync.Mutex
	busy map[*lazyFile]chan struct{} // being written; closed when it is over
}

// lazyFile is a file of the image with all its names.
type lazyFile struct {
	names []string
	layer int
	entry *tocEntry
	here  atomic.Bool
}

// tables names the blocks that OpenLazy needs, as far as those here tell, and
// whether these are all.
func tables(s *Store, root cid.Cid) (missing []cid.Cid, err error) {
	r, err := refOf(root)
	if err != nil {
		return nil, err
	}
	need := func(rs ...ref) (lack bool) {
		for _, r := range rs {
			if _, here := s.size(r.key); !here {
				missing, lack = append(missing, r.cid()), true
			}
		}
		return lack
	}
	if need(r) {
		return missing, nil
	}
	data, err := s.get(r, nil)
	if err != nil {
		return nil, err
	}
	m, err := decodeImageRoot(data)
	if err != nil {
		return nil, err
	}
	need(m.config, m.manifest)
	for _, l := range m.layers {
		if need(l.mp) {
			continue
		}
		data, err := s.get(l.mp, nil)
		if err != nil {
			return nil, err
		}
		lm, err := decodeLayerMap(data)
		if err != nil {
			return nil, err
		}
		if lm.toc == nil {
			return nil, fmt.Errorf("layer %s: %w", l.diff.digest(), ErrNoTOC)
		}
		for _, b := range append(lm.toc, lm.parts...) {
			need(b.ref)
		}
	}
	return missing, nil
}

// NeedTables brings what OpenLazy needs of an image: its root, config and
// manifest, the maps of its layers and their tables of contents. ErrNoTOC says
// that one has none.
func NeedTables(ctx context.Context, s *Store, root cid.Cid, f Source) error {
	for {
		missing, err := tables(s, root)
		if err != nil || len(missing) == 0 {
			return err
		}
		if f == nil {
			return fmt.Errorf("image %s: %w: block %s", root, ErrNotFound, missing[0])
		}
		if err := f.Need(ctx, missing); err != nil {
			return fmt.Errorf("image %s: %w", root, err)
		}
	}
}

// OpenLazy lays the image under root out in folder dir, or takes up what an
// earlier OpenLazy of the same image began there. What NeedTables brings must be
// here. Close must be called when neither Fill nor Run is running any more.
func OpenLazy(ctx context.Context, s *Store, root cid.Cid, dir string, o LazyOptions) (*Lazy, error) {
	l, err := openLazy(ctx, s, root, dir, o)
	if err != nil {
		return nil, fmt.Errorf("lay out image %s in %s: %w", root, dir, err)
	}
	return l, nil
}

func openLazy(ctx context.Context, s *Store, root cid.Cid, dir string, o LazyOptions) (*Lazy, error) {
	_, m, err := readImage(ctx, s, root)
	if err != nil {
		return nil, err
	}
	l := &Lazy{
		s: s, img: m, dir: dir, fetch: o.Fetch, root: os.Geteuid() == 0,
		byName: map[string]*lazyFile{}, busy: map[*lazyFile]chan struct{}{},
	}
	if l.layers, err = openLayersAt(s, m.layers); err != nil {
		return nil, err
	}
	t, err := tocTreeOf(ctx, l.layers, o.Limits)
	if err != nil {
		return nil, err
	}
	l.tree, l.shape = t, o.Shape
	if o.Shape == "" || o.ShapeRoom != nil && !o.ShapeRoom(t.shapeBytes()) {
		l.shape = filepath.Join(dir, lazyShape)
	}
	if err := prepareLazy(t, dir, l.shape); err != nil {
		return nil, err
	}
	l.files = lazyFiles(t)
	for _, f := range l.files {
		for _, name := range f.names {
			l.byName[name] = f
		}
	}
	l.order(t, append(append([]string{}, o.First...), m.first...))
	if l.top, err = os.OpenRoot(dir); err != nil {
		return nil, err
	}
	for _, f := range l.files {
		f.here.Store(l.complete(f))
		if !f.here.Load() {
			l.left.Add(1)
		}
	}
	return l, nil
}

// prepareLazy makes the folders unless they are made.
func prepareLazy(t *tocTree, dir, shape string) error {
	made := filepath.Join(dir, lazyMade)
	_, err := os.Lstat(made)
	if err == nil {
		_, err = os.Lstat(shape)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp := filepath.Join(dir, lazyTmp)
	if err == nil {
		return errors.Join(RemoveAll(tmp), os.Mkdir(tmp, 0o700))
	}
	if err := errors.Join(RemoveAll(dir), RemoveAll(shape)); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	var g errgroup.Group
	g.Go(func() error { return layOut(t, shape, true) })
	g.Go(func() error { return layOut(t, filepath.Join(dir, lazyWhole), false) })
	if err := g.Wait(); err != nil {
		return err
	}
	return os.WriteFile(made, nil, 0o600)
}

// order puts the files wanted first in front.
func (l *Lazy) order(t *tocTree, first []string) {
	seen := map[*lazyFile]bool{}
	var list []*lazyFile
	for _, name := range first {
		n, err := t.find(name)
		if err != nil {
			continue // it is a hint
		}
		if f := l.byName[n.path()]; !seen[f] {
			seen[f], list = true, append(list, f)
		}
	}
	l.first = len(list)
	for _, f := range l.files {
		if !seen[f] {
			list = append(list, f)
		}
	}
	l.files = list
}

// complete says whether an earlier life brought a file.
func (l *Lazy) complete(f *lazyFile) bool {
	for _, name := range f.names {
		if fi, err := l.top.Lstat(path.Join(lazyWhole, name)); err != nil || !fi.Mode().IsRegular() {
			return false
		}
	}
	return true
}

// LazyFolders are the folders that OpenLazy makes in dir.
func LazyFolders(dir string) (shape, whole string) {
	return filepath.Join(dir, lazyShape), filepath.Join(dir, lazyWhole)
}

// Shape is the folder with the image's names and attributes.
func (l *Lazy) Shape() string { return l.shape }

// Whole is the folder in which files appear.
func (l *Lazy) Whole() string { return filepath.Join(l.dir, lazyWhole) }

// Wanted names the files that Run asks for before others, in that order.
func (l *Lazy) Wanted() []string {
	names := make([]string, l.first)
	for i, f := range l.files[:l.first] {
		names[i] = f.names[0]
	}
	return names
}

// Left is how many files are not here yet.
func (l *Lazy) Left() int { return int(l.left.Load()) }

// Close ends the use of the folder.
func (l *Lazy) Close() error { return l.top.Close() }

// Fill brings one file, before those that nobody waits for. name is its path in
// the image, without links in it. It may be called any number of times.
func (l *Lazy) Fill(ctx context.Context, name string) error {
	f := l.byName[strings.TrimLeft(name, "/")]
	if f == nil {
		return fmt.Errorf("%w: %.300q", errNoPath, name)
	}
	return l.fill(ctx, f, true)
}

// FillAny is Fill for a name that may lead over links, or to nothing: then it
// does nothing.
func (l *Lazy) FillAny(ctx context.Context, name string) error {
	n, err := l.tree.find(name)
	if err != nil {
		return nil //nolint:nilerr // there is none
	}
	return l.fill(ctx, l.byName[n.path()], true)
}

// fill brings a file; one that is urgent is fetched ahead of others.
func (l *Lazy) fill(ctx context.Context, f *lazyFile, urgent bool) error {
	if f.here.Load() {
		return nil
	}
	done, err := l.turn(ctx, f)
	if err != nil {
		return err
	}
	defer done()
	if f.here.Load() {
		return nil
	}
	err = l.await(ctx, f, urgent)
	if err == nil {
		err = l.write(f)
	}
	if err != nil {
		return fmt.Errorf("/%s of the image: %w", f.names[0], err)
	}
	f.here.Store(true)
	l.left.Add(-1)
	if urgent && l.fetch != nil {
		l.ahead(f)
	}
	return nil
}

// turn waits until nobody else writes a file, and keeps others from it until done.
func (l *Lazy) turn(ctx context.Context, f *lazyFile) (done func(), err error) {
	for {
		l.mu.Lock()
		other := l.busy[f]
		if other == nil {
			mine := make(chan struct{})
			l.busy[f] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				delete(l.busy, f)
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// aheadBytes is how much behind a file that was waited for is fetched early too:
// files that are read together often lie together.
const aheadBytes = 2 << 20

// ahead fetches early what is likely to be wanted after a file: what it is
// linked to, and what lies behind it.
func (l *Lazy) ahead(f *lazyFile) {
	want := l.layers[f.layer].cids(f.entry.from+f.entry.len, aheadBytes)
	needs := &firsts{t: l.tree, layers: l.layers, seen: map[*treeFile]bool{}}
	if n, err := l.tree.find(f.names[0]); err == nil {
		needs.needs(n, 0)
	}
	for _, name := range needs.names {
		if n, err := l.tree.find(name); err == nil {
			want = append(want, l.layers[n.file.layer].cids(n.file.entry.from, n.file.entry.len)...)
		}
	}
	if err := l.fetch.Prioritize(want); err != nil {
		return // the fetch is over, as the next who waits is told
	}
}

// await waits for a file's chunks.
func (l *Lazy) await(ctx context.Context, f *lazyFile, urgent bool) error {
	var missing []cid.Cid
	for _, c := range l.layers[f.layer].cids(f.entry.from, f.entry.len) {
		if !l.s.Has(c) {
			missing = append(missing, c)
		}
	}
	switch {
	case len(missing) == 0:
		return nil
	case l.fetch == nil:
		return fmt.Errorf("%w: block %s", ErrNotFound, missing[0])
	case urgent:
		return l.fetch.Need(ctx, missing)
	}
	return l.fetch.Await(ctx, missing)
}

// write makes the file out of its chunks and puts it in its place.
func (l *Lazy) write(f *lazyFile) (err error) {
	body, err := l.layers[f.layer].open(f.entry)
	if err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Join(l.dir, lazyTmp), "*")
	if err != nil {
		return err
	}
	tmp := path.Join(lazyTmp, filepath.Base(out.Name()))
	defer func() {
		if err != nil {
			err = errors.Join(err, l.top.Remove(tmp))
		}
	}()
	n, err := io.Copy(out, body)
	if err == nil && uint64(n) != f.entry.size { //nolint:gosec // not negative
		err = fmt.Errorf("%w: %d bytes of %d", ErrMismatch, n, f.entry.size)
	}
	if err == nil {
		err = finishFile(l.top, tmp, out, f.entry, l.root)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	first := path.Join(lazyWhole, f.names[0])
	if err := l.top.Rename(tmp, first); err != nil {
		return err
	}
	for _, name := range f.names[1:] {
		if err := l.top.Link(first, path.Join(lazyWhole, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// fillers is how many files the background writes at a time.
const fillers = 2

// Run brings the whole image, verifies every layer against its diff id and its
// table of contents, and then makes Whole the ordinary folder dest, as
// UnpackLimited would. ErrMismatch says that the image lies.
func (l *Lazy) Run(ctx context.Context, dest string) error {
	if l.fetch != nil {
		var ahead []cid.Cid
		for _, f := range l.files[:l.first] {
			ahead = append(ahead, l.layers[f.layer].cids(f.entry.from, f.entry.len)...)
		}
		if err := l.fetch.Prioritize(ahead); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range fillers {
		g.Go(func() error {
			for {
				i := next.Add(1) - 1
				if i >= int64(len(l.files)) {
					return nil
				}
				if err := l.fill(gctx, l.files[i], false); err != nil {
					return err
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if l.fetch != nil {
		if err := l.fetch.Wait(ctx); err != nil {
			return err
		}
	}
	for i, a := range l.layers {
		if err := a.verify(ctx); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return l.publish(dest)
}

// publish makes the files the ordinary tree. Who has the folder open keeps it.
func (l *Lazy) publish(dest string) error {
	if l.moved.Load() {
		return nil
	}
	dest, err := filepath.Abs(dest)
	if err == nil {
		err = os.Rename(l.Whole(), dest)
	}
	if err == nil { // for who is about to open it
		err = os.Symlink(dest, l.Whole())
	}
	if err != nil {
		return fmt.Errorf("put the image in its place: %w", err)
	}
	l.moved.Store(true)
	return nil
}

// verify reads a whole layer: its tar must have the digest that the image names,
// and hold what its table of contents says.
func (a *layerAt) verify(ctx context.Context) error {
	r, err := openLayer(ctx, a.s, a.ref)
	if err != nil {
		return err
	}
	var list []tocEntry
	if err := a.s.eachTOC(a.m, func(e *tocEntry) error {
		list = append(list, *e)
		return nil
	}); err != nil {
		return err
	}
	err = eachEntry(r, func(e *tocEntry) error {
		if len(list) == 0 || !list[0].same(e) || list[0].from != e.from || list[0].len != e.len {
			return fmt.Errorf("%w: its table of contents does not list %.100q at %d", ErrMismatch, e.name, e.from)
		}
		list = list[1:]
		return nil
	})
	if errors.Is(err, errNoTOC) {
		return fmt.Errorf("%w: its tar is not what its table of contents says: %w", ErrMismatch, err)
	}
	if err != nil {
		return err
	}
	if len(list) > 0 {
		return fmt.Errorf("%w: its table of contents lists %.100q, which is not there", ErrMismatch, list[0].name)
	}
	_, err = io.Copy(io.Discard, r) // what stands behind the end mark is hashed too
	return err
}

// Await is Need for blocks that nobody waits for: it leaves their turn to the
// fetch.
func (r *Fetcher) Await(ctx context.Context, cids []cid.Cid) error {
	if r.f == nil {
		return r.err
	}
	for _, c := range cids {
		b, err := refOf(c)
		if err == nil {
			err = r.await(ctx, b)
		}
		if err != nil {
			return fmt.Errorf("wait for block %s: %w", c, err)
		}
	}
	return nil
}
