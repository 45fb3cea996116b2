package content

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/PlakarKorp/go-cdc-chunkers/chunkers/fastcdc"
	"golang.org/x/sync/errgroup"
)

// A layer is imported by a chain of goroutines: one unpacks into slabs, one
// hashes the whole tar, one lists what is in it, one cuts, and as many as there
// are slabs hash and put chunks. Slabs are shared by all layers of a load and bound its memory.
const (
	slabSize = 4 << 20
	slabHead = cdcMax // room before a slab's bytes for what the slab before left
)

type slab struct {
	buf  []byte // slabHead + slabSize
	n    int    // bytes read, after the head
	last bool   // no more follow
	refs atomic.Int32
	home *slabPool
}

// slabPool hands out a bounded number of slabs, made when first needed.
type slabPool struct {
	free chan *slab
}

func newSlabPool() *slabPool {
	n := 4 + 2*runtime.GOMAXPROCS(0)
	p := &slabPool{free: make(chan *slab, min(n, 12))}
	for range cap(p.free) {
		p.free <- &slab{home: p}
	}
	return p
}

// get returns a slab with one reference.
func (p *slabPool) get(ctx context.Context) (*slab, error) {
	select {
	case s := <-p.free:
		if s.buf == nil {
			s.buf = make([]byte, slabHead+slabSize)
		}
		s.n, s.last = 0, false
		s.refs.Store(1)
		return s, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (s *slab) release() {
	if s.refs.Add(-1) == 0 {
		s.home.free <- s
	}
}

// importTar cuts an uncompressed layer tar into chunks, puts them and their map,
// and returns how the image root names it. stop ends a read of tar that is
// waited for when something else fails.
func (l *loader) importTar(ctx context.Context, tar io.Reader, stop func()) (layerRef, error) {
	g, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, func() {
		if !errors.Is(context.Cause(ctx), context.Canceled) { // as it is when all went well
			stop()
		}
	})()
	slabs, toHash, toTOC := make(chan *slab), make(chan *slab, 2), make(chan *slab, 2)
	g.Go(func() error {
		defer close(slabs)
		return fillSlabs(ctx, l.slabs, tar, slabs)
	})
	sum := sha256.New()
	g.Go(func() error {
		for s := range toHash {
			_, _ = sum.Write(s.buf[slabHead : slabHead+s.n])
			s.release()
		}
		return nil
	})
	var toc []sized
	g.Go(func() (err error) {
		toc, err = putTOC(l.s, toTOC)
		return err
	})
	c := &cutter{l: l, g: g}
	g.Go(func() error {
		defer close(toHash)
		defer close(toTOC)
		return c.run(ctx, slabs, toHash, toTOC)
	})
	if err := g.Wait(); err != nil {
		return layerRef{}, err
	}
	return putMap(l.s, slices.Concat(c.segs...), key(sum.Sum(nil)), c.total, toc...)
}

// fillSlabs reads r into slabs until it ends.
func fillSlabs(ctx context.Context, pool *slabPool, r io.Reader, out chan<- *slab) error {
	for {
		s, err := pool.get(ctx)
		if err != nil {
			return err
		}
		n, err := fillBlock(r, s.buf[slabHead:])
		if err != nil && !errors.Is(err, io.EOF) {
			s.release()
			return err
		}
		s.n, s.last = n, err != nil
		last := s.last
		select {
		case out <- s:
		case <-ctx.Done():
			s.release()
			return context.Cause(ctx)
		}
		if last {
			return nil
		}
	}
}

// fillBlock fills p. Unlike io.ReadFull it keeps the reader's own error, so
// that a torn stream is not taken for the end.
func fillBlock(r io.Reader, p []byte) (n int, err error) {
	for idle := 0; n < len(p) && err == nil; {
		var m int
		m, err = r.Read(p[n:])
		if n += m; m > 0 {
			idle = 0
		} else if idle++; idle > 100 {
			err = io.ErrNoProgress
		}
	}
	return n, err
}

// cutter cuts slabs into chunks and starts their hashing and putting.
type cutter struct {
	l     *loader
	g     *errgroup.Group
	segs  [][]sized // of each slab, filled by its worker
	total uint64
	carry []byte // what the last slab left, less than a chunk can be
}

func (c *cutter) run(ctx context.Context, in <-chan *slab, also ...chan<- *slab) error {
	for s := range in {
		for _, ch := range also {
			s.refs.Add(1)
			select {
			case ch <- s:
			case <-ctx.Done():
				s.release()
				s.release()
				return context.Cause(ctx)
			}
		}
		c.slab(s)
	}
	return nil
}

// slab cuts one slab and hands its chunks to a worker.
func (c *cutter) slab(s *slab) {
	start := slabHead - len(c.carry)
	copy(s.buf[start:], c.carry)
	rest := s.buf[start : slabHead+s.n]
	var chunks [][]byte
	for len(rest) >= cdcMax || s.last && len(rest) > 0 {
		n := cutPoint(rest)
		chunks = append(chunks, rest[:n])
		rest = rest[n:]
		c.total += uint64(n)
	}
	c.carry = append(c.carry[:0], rest...)
	seg := make([]sized, len(chunks))
	c.segs = append(c.segs, seg)
	c.g.Go(func() error {
		defer s.release()
		batch := make([]putItem, len(chunks))
		for i, chunk := range chunks {
			seg[i] = sized{rawRef(chunk), uint64(len(chunk))}
			batch[i] = putItem{seg[i].ref.key, chunk}
		}
		_, err := c.l.s.putBatch(batch)
		return err
	})
}

// Masks of FastCDC for a mean of 256 KiB at normalization level 2: 20 and 16
// bits, spread over the word.
const (
	cdcMaskS = 0x9249249249249240
	cdcMaskL = 0x8888888888888888
)

// cutPoint returns where the first chunk of data ends; less than cdcMax bytes
// are there only at the end. It is FastCDC as go-cdc-chunkers does it, without
// the copy through its reader; a test holds it to that.
func cutPoint(data []byte) int {
	n := min(len(data), cdcMax)
	if n <= cdcMin {
		return n
	}
	gear := &fastcdc.G
	fp := uint64(0)
	normal := min(n, cdcNormal)
	for i, b := range data[cdcMin:normal] {
		if fp = fp<<1 + gear[b]; fp&cdcMaskS == 0 {
			return cdcMin + i
		}
	}
	for i, b := range data[normal:n] {
		if fp = fp<<1 + gear[b]; fp&cdcMaskL == 0 {
			return normal + i
		}
	}
	return n
}
