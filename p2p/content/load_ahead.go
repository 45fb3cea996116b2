package content

import (
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"sync/atomic"
)

// aheadBlock is how much is read at a time, aheadBlocks how many lie in between.
const (
	aheadBlock  = 512 << 10
	aheadBlocks = 3
)

// aheadReader reads a source on a goroutine of its own, a few blocks ahead of
// who unpacks it, and hashes it there.
type aheadReader struct {
	gone chan struct{}
	full chan piece
	free chan []byte
	read atomic.Uint64
	sum  hash.Hash // or nil; the goroutine's until gone

	cur  piece
	left []byte // of cur, not yet read
}

type piece struct {
	buf []byte
	err error // after buf
}

// readAhead starts to read r until ctx ends; gone tells when it has. tick is
// told of what was read.
func readAhead(ctx context.Context, r io.Reader, hashed bool, tick func(int)) *aheadReader {
	a := &aheadReader{gone: make(chan struct{}), full: make(chan piece), free: make(chan []byte, aheadBlocks)}
	if hashed {
		a.sum = sha256.New()
	}
	for range aheadBlocks {
		a.free <- nil // made when needed
	}
	go a.run(ctx, r, tick)
	return a
}

func (a *aheadReader) run(ctx context.Context, r io.Reader, tick func(int)) {
	defer close(a.gone)
	defer close(a.full)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-ctx.Done():
			return
		}
		if buf == nil {
			buf = make([]byte, aheadBlock)
		}
		n, err := fillBlock(r, buf[:aheadBlock])
		a.read.Add(uint64(n)) //nolint:gosec // not negative
		if a.sum != nil {
			_, _ = a.sum.Write(buf[:n])
		}
		tick(n)
		select {
		case a.full <- piece{buf[:n], err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// count is how many bytes were read.
func (a *aheadReader) count() uint64 { return a.read.Load() }

// Read implements io.Reader.
func (a *aheadReader) Read(p []byte) (int, error) {
	for len(a.left) == 0 {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.buf != nil {
			a.free <- a.cur.buf
		}
		next, ok := <-a.full
		if !ok {
			return 0, context.Canceled
		}
		a.cur, a.left = next, next.buf
	}
	n := copy(p, a.left)
	a.left = a.left[n:]
	return n, nil
}

// rest reads to the end and returns the digest of everything.
func (a *aheadReader) rest() (key, error) {
	if _, err := io.Copy(io.Discard, a); err != nil {
		return key{}, err
	}
	<-a.gone
	return key(a.sum.Sum(nil)), nil
}
