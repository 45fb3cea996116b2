package content

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"sync"
)

// Bounds on what is on its way to disk.
const (
	laySlab         = 256 << 10
	laySlabs        = 48        // 12 MiB
	laySmall        = 32 << 10  // files up to this size share a slab
	layBatchFiles   = 128       // in one slab
	layBatchFolders = 12        // different ones in one batch, each an open file
	layMaxPending   = 4096      // paths remembered as on their way
	sparseGrain     = 4 << 10   // bytes that are looked at as one
	minHole         = 16 << 10  // bytes of zeros that become a hole
	roomEvery       = 64 << 20  // bytes after which the free space is looked at
	keepFree        = 256 << 20 // bytes of the file system that stay free
)

// layFile is one file to write.
type layFile struct {
	dir    *treeFolder
	name   string
	layer  int
	attrs  attrs
	xattrs []fileXattr
	body   []byte
	size   int64
}

// writeBatch is what one writer does at a time: several small files, or a large one
// whose bytes come in pieces while it is written.
type writeBatch struct {
	files   []layFile
	slab    []byte
	folders int
	pieces  chan []byte
	done    chan struct{}
}

// layWriters puts files on disk beside the one who parses the layers. Every
// method but those of the workers is the parser's alone.
type layWriters struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	attrs  *attrWriter
	room   *diskRoom
	jobs   chan *writeBatch
	free   chan []byte
	wg     sync.WaitGroup // workers
	left   sync.WaitGroup // batches handed out and not done

	cur     *writeBatch            // being filled
	pending map[uint64]*writeBatch // by hash of the path
}

func startLayWriters(ctx context.Context, a *attrWriter, r *diskRoom) *layWriters {
	ctx, cancel := context.WithCancelCause(ctx)
	n := min(8, max(2, runtime.GOMAXPROCS(0)))
	w := &layWriters{
		ctx: ctx, cancel: cancel, attrs: a, room: r, jobs: make(chan *writeBatch, 2*n),
		free: make(chan []byte, laySlabs), pending: map[uint64]*writeBatch{},
	}
	for range laySlabs {
		w.free <- nil
	}
	for range n {
		w.wg.Go(w.work)
	}
	return w
}

// close waits for the writers and returns what went wrong first.
func (w *layWriters) close() error {
	err := w.wait()
	close(w.jobs)
	w.wg.Wait()
	w.cancel(nil)
	return err
}

// err says why writing has ended.
func (w *layWriters) err() error { return context.Cause(w.ctx) }

// slab returns memory for file bodies.
func (w *layWriters) slab() ([]byte, error) {
	if err := w.err(); err != nil {
		return nil, err
	}
	select {
	case b := <-w.free:
		if b == nil {
			b = make([]byte, laySlab)
		}
		return b[:laySlab], nil
	case <-w.ctx.Done():
		return nil, w.err()
	}
}

// file takes one file whose body r yields. It returns when the body was read,
// not when it is written.
func (w *layWriters) file(at uint64, t layFile, r io.Reader) error {
	if err := t.dir.ready(); err != nil {
		return err
	}
	t.dir.hold()
	if t.size > laySmall {
		return w.large(at, t, r)
	}
	if b := w.cur; b != nil && (len(b.slab)+int(t.size) > laySlab || len(b.files) >= layBatchFiles || b.folders >= layBatchFolders) {
		if err := w.flush(); err != nil {
			t.dir.release()
			return err
		}
	}
	if w.cur == nil {
		s, err := w.slab()
		if err != nil {
			t.dir.release()
			return err
		}
		w.cur = &writeBatch{slab: s[:0], done: make(chan struct{})}
	}
	b := w.cur
	start := len(b.slab)
	t.body = b.slab[start : start+int(t.size)]
	if _, err := io.ReadFull(r, t.body); err != nil {
		t.dir.release()
		return short(err)
	}
	if n := len(b.files); n == 0 || b.files[n-1].dir != t.dir {
		b.folders++
	}
	b.slab = b.slab[:start+int(t.size)]
	b.files = append(b.files, t)
	w.remember(at, b)
	return nil
}

// large hands a file out and feeds the one who writes it.
func (w *layWriters) large(at uint64, t layFile, r io.Reader) error {
	if err := w.flush(); err != nil {
		t.dir.release()
		return err
	}
	b := &writeBatch{files: []layFile{t}, pieces: make(chan []byte, laySlabs), done: make(chan struct{})}
	if err := w.hand(b); err != nil {
		t.dir.release()
		return err
	}
	defer close(b.pieces)
	w.remember(at, b)
	for left := t.size; left > 0; {
		s, err := w.slab()
		if err != nil {
			return err
		}
		s = s[:min(left, laySlab)]
		if _, err := io.ReadFull(r, s); err != nil {
			w.free <- s
			w.cancel(short(err)) // before the writer sees the end
			return short(err)
		}
		left -= int64(len(s))
		b.pieces <- s // there is room for every slab
	}
	return nil
}

// short says that a body ended before its header says.
func short(err error) error {
	if err == io.EOF { //nolint:errorlint // io.ReadFull returns it as it is
		return io.ErrUnexpectedEOF
	}
	return err
}

// flush hands out the batch being filled.
func (w *layWriters) flush() error {
	b := w.cur
	w.cur = nil
	if b == nil {
		return nil
	}
	if len(b.files) == 0 {
		w.free <- b.slab
		return nil
	}
	if err := w.hand(b); err != nil {
		w.drop(b)
		return err
	}
	return nil
}

func (w *layWriters) hand(b *writeBatch) error {
	w.left.Add(1)
	select {
	case w.jobs <- b:
		return nil
	case <-w.ctx.Done():
		w.left.Done()
		return w.err()
	}
}

// remember notes that a path is on its way.
func (w *layWriters) remember(at uint64, b *writeBatch) {
	if len(w.pending) >= layMaxPending {
		for p, b := range w.pending {
			select {
			case <-b.done:
				delete(w.pending, p)
			default:
			}
		}
	}
	w.pending[at] = b
}

// settle waits until what was last written at a path is there.
func (w *layWriters) settle(at uint64) error {
	b := w.pending[at]
	if b == nil {
		return nil
	}
	if b == w.cur {
		if err := w.flush(); err != nil {
			return err
		}
	}
	<-b.done // a writer drops the rest of its work when the others have failed
	delete(w.pending, at)
	return w.err()
}

// wait waits for everything.
func (w *layWriters) wait() error {
	err := w.flush()
	w.left.Wait()
	clear(w.pending)
	if err == nil {
		err = w.err()
	}
	return err
}

func (w *layWriters) work() {
	for b := range w.jobs {
		if w.ctx.Err() == nil {
			if err := w.write(b); err != nil {
				w.cancel(err)
			}
		}
		w.drop(b)
		w.left.Done()
	}
}

// drop gives back what a batch holds.
func (w *layWriters) drop(b *writeBatch) {
	for i := range b.files {
		b.files[i].dir.release()
	}
	b.files = nil
	if b.slab != nil {
		w.free <- b.slab
		b.slab = nil
	}
	if b.pieces != nil {
		for s := range b.pieces {
			w.free <- s
		}
	}
	close(b.done)
}

func (w *layWriters) write(b *writeBatch) error {
	for i := range b.files {
		t := &b.files[i]
		if err := w.writeFile(t, b.pieces); err != nil {
			return fmt.Errorf("layer %d: %.300q: %w", t.layer, path.Join(t.dir.at, t.name), err)
		}
	}
	return nil
}

// writeFile makes a file of its body or of the pieces that come.
func (w *layWriters) writeFile(t *layFile, pieces <-chan []byte) error {
	perm := t.attrs.mode.Perm()
	f, err := t.dir.create(t.name, perm)
	if err != nil {
		return appeared(err)
	}
	if err = w.fill(f, t, pieces); err == nil {
		err = w.finish(f, t, perm&w.attrs.modes)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (w *layWriters) fill(f *os.File, t *layFile, pieces <-chan []byte) error {
	if pieces == nil {
		if len(t.body) == 0 {
			return nil
		}
		_, err := f.Write(t.body)
		if err == nil {
			err = w.room.took(len(t.body))
		}
		return err
	}
	var at, end int64
	for s := range pieces {
		n, err := writeSparse(f, at, s)
		if n > 0 {
			end = at + n
		}
		at += int64(len(s))
		w.free <- s
		if err == nil {
			err = w.room.took(int(n))
		}
		if err != nil {
			return err
		}
	}
	if err := w.err(); err != nil {
		return err
	}
	if end < t.size { // it ends with a hole
		return f.Truncate(t.size)
	}
	return nil
}

// finish sets owner, mode, attributes and time, in that order: a new owner
// takes set-id bits and capabilities away, and all of it may move the time.
func (w *layWriters) finish(f *os.File, t *layFile, made fs.FileMode) error {
	if w.attrs.foreign(t.attrs) {
		if err := f.Chown(t.attrs.uid, t.attrs.gid); err != nil {
			return err
		}
	}
	if t.attrs.mode != made {
		if err := f.Chmod(t.attrs.mode); err != nil {
			return err
		}
	}
	if err := setXattrs(f, t.xattrs); err != nil {
		return err
	}
	return setFileTime(t.dir.Root, t.name, f, t.attrs.time)
}

// writeSparse writes p at an offset, leaving holes for long runs of zeros. It
// returns where the last byte written ends, relative to at.
func writeSparse(f *os.File, at int64, p []byte) (end int64, err error) {
	start := 0 // of what is to be written
	put := func(to int) error {
		if to > start {
			if _, err := f.WriteAt(p[start:to], at+int64(start)); err != nil {
				return err
			}
			end = int64(to)
		}
		return nil
	}
	for i := 0; i < len(p); {
		run := zeroRun(p[i:])
		if run < minHole {
			i += max(run, sparseGrain)
			continue
		}
		if err := put(i); err != nil {
			return end, err
		}
		i += run
		start = i
	}
	return end, put(len(p))
}

var zeroGrain [sparseGrain]byte

// zeroRun says how many whole grains of zeros p begins with, in bytes.
func zeroRun(p []byte) int {
	n := 0
	for len(p)-n >= sparseGrain && bytes.Equal(p[n:n+sparseGrain], zeroGrain[:]) {
		n += sparseGrain
	}
	return n
}

// diskRoom keeps the file system from being filled.
type diskRoom struct {
	dir  string
	free func(dir string) (uint64, error)

	mu    sync.Mutex
	taken int
}

// took counts bytes written and looks, now and then, what is left. Without a
// room nobody looks.
func (r *diskRoom) took(n int) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.taken += n; r.taken < roomEvery {
		return nil
	}
	r.taken = 0
	return r.check()
}

// check says whether enough is free. A file system that does not tell is
// trusted to say when it is full.
func (r *diskRoom) check() error {
	if free, err := r.free(r.dir); err == nil && free < keepFree {
		return fmt.Errorf("%w: only %d MiB are free around %s, and %d MiB are left to others; make room there", ErrNoRoom, free>>20, r.dir, keepFree>>20)
	}
	return nil
}
