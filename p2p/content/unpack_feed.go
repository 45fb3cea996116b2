package content

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// feedChunks is how many chunks of a layer, each at most MaxBlockHard bytes,
// may be read ahead of the one who parses them. Chunks this package makes have
// 256 KiB on average and at most 1 MiB.
const feedChunks = 12

// layerEntry is one entry of a layer on its way to disk.
type layerEntry struct {
	layer  int // counted from 0, the lowest
	header *tar.Header
	body   io.Reader // header.Size bytes, valid until the next entry
	at     uint64    // where the body begins in the layer tar, if it is not sparse
}

// walkLayers calls each for every entry of every layer, lowest layer first.
// Chunks are read ahead, also those of the layers to come, and hashed beside.
// What each has seen counts only if walkLayers returns nil: that a layer is the
// one its diff id names is known when its last byte was read.
func walkLayers(ctx context.Context, s *Store, layers []layerRef, each func(layerEntry) error) error {
	f := startFeed(ctx, s, layers)
	defer f.stop()
	for i, l := range layers {
		b := &layerBody{f: f, want: l}
		if err := b.walk(i, each); err != nil {
			f.stop()
			if ctx.Err() == nil && contentErr(err) {
				err = blame(ctx, s, l, b.read, err)
			}
			return fmt.Errorf("layer %d (%s): %w", i, l.diff.digest(), err)
		}
	}
	return nil
}

// contentErr says whether what was read may be to blame.
func contentErr(err error) bool {
	for _, e := range []error{ErrMismatch, ErrMalformed, ErrUnsafe, ErrTooLarge, io.ErrUnexpectedEOF} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// nextChunk names the following chunk; false says that there is none.
func (r *layerReader) nextChunk() (sized, bool, error) {
	for len(r.list) == 0 {
		if len(r.parts) == 0 {
			return sized{}, false, nil
		}
		part := r.parts[0]
		r.parts = r.parts[1:]
		data, err := r.s.get(part.ref, nil)
		if err == nil {
			r.list, err = decodeChunks(data, part.size)
		}
		if err != nil {
			return sized{}, false, err
		}
	}
	c := r.list[0]
	r.list = r.list[1:]
	return c, true, nil
}

// blame looks whether a layer failed because a chunk is damaged on this disk:
// chunks are not checked one by one on their way, since the diff id covers
// them all. Only what was read is read again.
func blame(ctx context.Context, s *Store, l layerRef, upTo uint64, err error) error {
	r, merr := openLayer(ctx, s, l)
	if merr != nil {
		return err
	}
	seen := map[key]struct{}{}
	var buf []byte
	for at := uint64(0); at < upTo; {
		c, ok, merr := r.nextChunk()
		if merr != nil || !ok || ctx.Err() != nil {
			return err
		}
		at += c.size
		if _, again := seen[c.ref.key]; again {
			continue
		}
		seen[c.ref.key] = struct{}{}
		data, gerr := s.get(c.ref, buf)
		if gerr != nil {
			return fmt.Errorf("%w (found after: %w)", gerr, err)
		}
		buf = data
	}
	return err
}

// layerFeed reads the chunks of layers, one after the other, ahead of their reader.
type layerFeed struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	free   chan []byte
	out    chan *feedPiece // to the parser
	hash   chan *feedPiece // to the hasher
	sums   chan key        // one for each layer
}

// feedPiece is a chunk, or the end of a layer if it has no data.
type feedPiece struct {
	data []byte
	err  error
	uses atomic.Int32 // parser and hasher
}

func startFeed(ctx context.Context, s *Store, layers []layerRef) *layerFeed {
	ctx, cancel := context.WithCancel(ctx)
	f := &layerFeed{
		ctx: ctx, cancel: cancel, free: make(chan []byte, feedChunks), out: make(chan *feedPiece, feedChunks),
		hash: make(chan *feedPiece, feedChunks), sums: make(chan key, len(layers)),
	}
	for range feedChunks {
		f.free <- nil
	}
	f.wg.Go(func() { f.readAll(s, layers) })
	f.wg.Go(f.hashAll)
	return f
}

// stop ends reading and waits for that.
func (f *layerFeed) stop() {
	f.cancel()
	f.wg.Wait()
}

func (f *layerFeed) readAll(s *Store, layers []layerRef) {
	defer close(f.hash)
	for _, l := range layers {
		if err := f.readLayer(s, l); err != nil {
			f.send(f.out, &feedPiece{err: err})
			return
		}
	}
}

func (f *layerFeed) readLayer(s *Store, l layerRef) error {
	r, err := openLayer(f.ctx, s, l)
	if err != nil {
		return err
	}
	for {
		c, ok, err := r.nextChunk()
		if err != nil {
			return err
		}
		p := &feedPiece{}
		if ok {
			if p.data, err = f.chunk(s, c); err != nil {
				return err
			}
		}
		p.uses.Store(2)
		if !f.send(f.hash, p) || !f.send(f.out, p) || !ok {
			return f.ctx.Err()
		}
	}
}

// chunk reads one chunk into a buffer that is free. Its bytes are checked with
// those of the whole layer.
func (f *layerFeed) chunk(s *Store, c sized) ([]byte, error) {
	var buf []byte
	select {
	case buf = <-f.free:
	case <-f.ctx.Done():
		return nil, f.ctx.Err()
	}
	data, err := s.readUnchecked(c.ref, buf)
	if err != nil {
		return nil, err
	}
	if uint64(len(data)) != c.size {
		return nil, fmt.Errorf("%w: chunk %s has %d bytes, not %d", ErrMismatch, c.ref, len(data), c.size)
	}
	return data, nil
}

func (f *layerFeed) send(to chan<- *feedPiece, p *feedPiece) bool {
	select {
	case to <- p:
		return true
	case <-f.ctx.Done():
		return false
	}
}

// done gives a piece's buffer back when both have used it.
func (f *layerFeed) done(p *feedPiece) {
	if p.uses.Add(-1) == 0 {
		f.free <- p.data[:0] // there is room: as many buffers are about as fit
	}
}

func (f *layerFeed) hashAll() {
	h := sha256.New()
	for p := range f.hash {
		if p.data != nil {
			_, _ = h.Write(p.data) // a hash does not fail
			f.done(p)
			continue
		}
		f.sums <- key(h.Sum(nil)) // there is room for every layer's
		h.Reset()
	}
}

// layerBody yields the tar of one layer, and at its end says whether it was
// the right one.
type layerBody struct {
	f    *layerFeed
	want layerRef
	cur  *feedPiece
	rest []byte
	read uint64
	end  error
}

func (b *layerBody) walk(layer int, each func(layerEntry) error) error {
	tr := tar.NewReader(b)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, tar.ErrHeader) {
			return fmt.Errorf("%w: it is no tar: %w", ErrMalformed, err)
		}
		if err != nil {
			return err
		}
		if err := each(layerEntry{layer, h, tr, b.read}); err != nil {
			return fmt.Errorf("%.300q: %w", h.Name, err)
		}
	}
	_, err := io.Copy(io.Discard, b) // what stands behind the end mark is hashed too
	return err
}

func (b *layerBody) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		if b.end == nil {
			b.end = b.next()
		}
		if b.end != nil {
			return 0, b.end
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	b.read += uint64(n)
	return n, nil
}

// next brings the following chunk, or io.EOF when all were right.
func (b *layerBody) next() error {
	if b.cur != nil {
		b.f.done(b.cur)
		b.cur = nil
	}
	var p *feedPiece
	select {
	case p = <-b.f.out:
	case <-b.f.ctx.Done():
		return b.f.ctx.Err()
	}
	if p.err != nil {
		return p.err
	}
	if p.data != nil {
		b.cur, b.rest = p, p.data
		return nil
	}
	select {
	case got := <-b.f.sums:
		if got != b.want.diff || b.read != b.want.size {
			return fmt.Errorf("%w: its chunks make %s", ErrMismatch, got.digest())
		}
		return io.EOF
	case <-b.f.ctx.Done():
		return b.f.ctx.Err()
	}
}

// readUnchecked returns the bytes of a block as they lie on disk, for a caller
// who checks them. It counts as a use.
func (s *Store) readUnchecked(r ref, buf []byte) ([]byte, error) {
	e, p, err := s.find(r, true)
	if err != nil {
		return nil, err
	}
	return s.readAt(r, e, p, buf, false)
}
