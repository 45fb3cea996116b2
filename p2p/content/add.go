package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"
)

// profile is how files and folders become DAGs: what `ipfs add` does under the
// unixfs-v1-2025 profile.
func profile() uio.UnixFSProfile { return uio.UnixFS_v1_2025 }

// Permissions that are not written down, so that a file or a folder with them
// has the CID any other IPFS tool gives its bytes.
const (
	plainFile = 0o644
	plainDir  = 0o755
)

// maxAddDepth bounds folders in folders.
const maxAddDepth = 256

// AddOptions configures Add.
type AddOptions struct {
	// ModTime keeps the times of last change too. The same bytes then have
	// another CID whenever they were written at another time.
	ModTime bool
	// Live says that the folder may be written to meanwhile: what vanishes, what
	// may not be read and what is no file, folder or link is left out, and a file
	// that is being written is taken as it is.
	Live bool
	// Only, if set, names the entries of the folder that are added; others are
	// left out, and so are those of them that are not there.
	Only []string
	// Memory, if set, spares reading files that have not changed since.
	Memory Memory
	// Progress, if set, is called as bytes are in, by one goroutine at a time.
	Progress func(Progress)

	// clock is when a file was looked at; nil is time.Now. It must be the file
	// system's clock.
	clock func() time.Time
	// opened, if set, is told of every file that is opened.
	opened func(name string)
}

// Root is what Add made.
type Root struct {
	CID   cid.Cid
	Bytes uint64 // of all files
	Files uint64 // files and links
	Size  uint64 // of all blocks; those in several places count in each
}

// Add puts a file or a folder with all in it as UnixFS, and makes it durable.
// Permissions are kept where they are not 0644 for a file or 0755 for a
// folder; symbolic links are kept as links; sockets, pipes and devices are an
// error. Files are read and hashed by several workers; what comes out does not
// depend on their order. Hold puts until the root is kept by something else:
// see Store.HoldPuts.
func Add(ctx context.Context, s *Store, path string, o AddOptions) (Root, error) {
	return add(ctx, s, o, path, func(a *adder) (made, error) { return a.path(path) })
}

// AddReader is Add of a file's bytes that come from a stream, such as stdin.
func AddReader(ctx context.Context, s *Store, r io.Reader, o AddOptions) (Root, error) {
	return add(ctx, s, o, "the stream", func(a *adder) (made, error) {
		w := a.worker()
		m, err := w.stream(r, 0, attributes{})
		a.note("files", 0, 1)
		return m, errors.Join(err, w.flush())
	})
}

func add(ctx context.Context, s *Store, o AddOptions, what string, run func(*adder) (made, error)) (Root, error) {
	defer s.HoldPuts()()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := newAdder(ctx, s, o)
	m, err := run(a)
	cancel()
	a.sizing.Wait()
	if err == nil {
		err = s.Sync()
	}
	if err != nil {
		return Root{}, fmt.Errorf("add %s: %w", what, err)
	}
	a.remember(context.WithoutCancel(ctx)) // only now is all of it durable
	a.note("done", 0, 0)
	return Root{CID: m.ref.cid(), Bytes: a.prog.Done, Files: a.prog.Files, Size: m.size}, nil
}

// adder is one Add at work.
type adder struct {
	ctx     context.Context
	s       *Store
	o       AddOptions
	buffers chan []byte    // of a chunk each; they bound what large files take
	sizing  sync.WaitGroup // of the goroutine that sums up what there is

	mu         sync.Mutex
	prog       Progress
	total      uint64
	open       map[*addFolder]struct{} // with an os.Root
	fresh      map[string][]byte       // listings to remember, by folder
	freshBytes int
}

func newAdder(ctx context.Context, s *Store, o AddOptions) *adder {
	if o.clock == nil {
		o.clock = time.Now
	}
	if o.opened == nil {
		o.opened = func(string) {}
	}
	a := &adder{ctx: ctx, s: s, o: o, open: map[*addFolder]struct{}{}, fresh: map[string][]byte{}}
	a.buffers = make(chan []byte, 2*workers())
	for range cap(a.buffers) {
		a.buffers <- nil // made when it is first wanted
	}
	return a
}

// workers is how many goroutines read and hash.
func workers() int { return min(max(runtime.GOMAXPROCS(0), 2), 16) }

// note reports progress.
func (a *adder) note(phase string, bytes, files uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.prog.Phase = phase
	a.prog.Done += bytes
	a.prog.Files += files
	if a.o.Progress != nil {
		p := a.prog
		p.Total = a.total
		a.o.Progress(p)
	}
}

// sizeAfter is when somebody who waits is worth a look at how much there is.
const sizeAfter = 500 * time.Millisecond

// sizeUp sums up, for the progress alone, what is below path, once adding takes
// long. What cannot be read counts for nothing here.
func (a *adder) sizeUp(path string) {
	if a.o.Progress == nil {
		return
	}
	ctx := a.ctx
	a.sizing.Go(func() {
		t := time.NewTimer(sizeAfter)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		var sum uint64
		_ = filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil || !e.Type().IsRegular() {
				return nil //nolint:nilerr // adding it tells what is wrong
			}
			if info, err := e.Info(); err == nil {
				sum += uint64(max(0, info.Size()))
			}
			return nil
		})
		if ctx.Err() == nil {
			a.mu.Lock()
			a.total = sum
			a.mu.Unlock()
		}
	})
}

// path adds a file or a folder of the host.
func (a *adder) path(path string) (made, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return made{}, err
	}
	if !fi.IsDir() {
		if !fi.Mode().IsRegular() {
			return made{}, fmt.Errorf("%w: neither file nor folder", ErrUnsafe)
		}
		return a.single(path)
	}
	a.sizeUp(path)
	root, err := os.OpenRoot(path)
	if err != nil {
		return made{}, err
	}
	top := &addFolder{root: root, fi: fi, path: path}
	if abs, err := filepath.Abs(path); err == nil && a.o.Memory != nil {
		top.recall = abs
	}
	a.opens(top)
	defer a.closeAll()
	return a.tree(top)
}

// single adds one file; its memory is a listing of its own.
func (a *adder) single(path string) (made, error) {
	dir, name := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return made{}, err
	}
	defer func() { _ = root.Close() }()
	// A link at the end is followed here as os.Stat did, also out of the folder.
	if fi, err := root.Lstat(name); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
		to, err := filepath.EvalSymlinks(path)
		if err != nil {
			return made{}, err
		}
		return a.single(to)
	}
	f := &addFolder{root: root, entries: []addChild{{name: name}}, path: dir}
	if abs, err := filepath.Abs(path); err == nil && a.o.Memory != nil {
		f.recall = abs
		f.known = a.recall(abs)
	}
	w := a.worker()
	if err := errors.Join(w.regular(f, 0), w.flush()); err != nil {
		return made{}, err
	}
	a.keep(f)
	return f.entries[0].made, nil
}

// tree adds a folder: one goroutine lists, the workers read and hash, and who
// finishes the last entry of a folder makes its node.
func (a *adder) tree(top *addFolder) (made, error) {
	group, ctx := errgroup.WithContext(a.ctx)
	a.ctx = ctx
	jobs := make(chan fileJob, 128)
	group.Go(func() error {
		defer close(jobs)
		w := a.worker()
		return errors.Join(a.walk(w, top, jobs, 0), w.flush())
	})
	for range workers() {
		group.Go(func() error {
			w := a.worker()
			for j := range jobs {
				if ctx.Err() != nil {
					continue // it drains
				}
				if err := w.do(j); err != nil {
					return fmt.Errorf("%s: %w", filepath.Join(j.in.below(), j.in.entries[j.at].name), err)
				}
			}
			return w.flush()
		})
	}
	if err := group.Wait(); err != nil {
		return made{}, err
	}
	return top.made, nil
}

// walk lists a folder and those in it, and hands their files to the workers.
func (a *adder) walk(w *addWorker, f *addFolder, jobs chan<- fileJob, depth int) error {
	if depth > maxAddDepth {
		return fmt.Errorf("%s: %w: folders more than %d deep", f.below(), ErrTooLarge, maxAddDepth)
	}
	var only []string
	if f.parent == nil {
		only = a.o.Only
	}
	if err := f.list(only); err != nil {
		return err
	}
	if f.recall != "" {
		f.known = a.recall(f.recall)
	}
	for i := range f.entries {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		if f.entries[i].kind.IsDir() {
			if err := a.walkInto(w, f, i, jobs, depth); err != nil {
				return err
			}
			continue
		}
		select {
		case jobs <- fileJob{f, i}:
		case <-a.ctx.Done():
			return a.ctx.Err()
		}
	}
	a.fileDone(f) // the list's own share
	return a.entryDone(w, f)
}

func (a *adder) walkInto(w *addWorker, f *addFolder, i int, jobs chan<- fileJob, depth int) error {
	name := f.entries[i].name
	sub := &addFolder{parent: f, at: i, path: filepath.Join(f.path, name)}
	if f.recall != "" {
		sub.recall = filepath.Join(f.recall, name)
	}
	var err error
	if sub.root, err = f.root.OpenRoot(name); err == nil {
		a.opens(sub)
		sub.fi, err = sub.root.Stat(".")
	}
	if err == nil {
		return a.walk(w, sub, jobs, depth+1)
	}
	if !a.passOver(err) {
		return fmt.Errorf("%s: %w", sub.below(), err)
	}
	f.entries[i].gone = true
	return a.entryDone(w, f)
}

// passOver says whether an entry that cannot be read is simply left out.
func (a *adder) passOver(err error) bool {
	return a.o.Live && a.ctx.Err() == nil &&
		(errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, ErrUnsafe) ||
			errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP))
}

func (a *adder) opens(f *addFolder) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open[f] = struct{}{}
}

func (a *adder) closeAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for f := range a.open {
		_ = f.root.Close()
	}
	clear(a.open)
}
