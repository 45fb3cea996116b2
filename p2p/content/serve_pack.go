package content

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
)

// When groups are packed. On a fast link packing costs more than it saves, so
// that only a slow one is tried, and only what gets smaller by an eighth is
// worth unpacking.
const (
	slowLink   = 100 << 20 // bytes a second below which packing is tried
	verySlow   = 24 << 20  // and below which it may take more time for less bytes
	packLeast  = 4 << 10   // bytes of a group that is worth it
	packWindow = 512 << 10
	packPause  = 8   // groups sent as they are after one that did not shrink,
	packRest   = 256 // doubled each time up to this
)

// A link is judged by what it took while something was being written to it, over
// a window that is long enough for buffers on the way to have filled.
const (
	rateWindow = 200 * time.Millisecond
	rateBytes  = 16 << 20 // or so many bytes, which no buffer takes
)

// linkRate is how fast a peer takes bytes.
type linkRate struct {
	limit uint64 // of our own, bytes a second; 0 is none

	mu      sync.Mutex
	writing int       // writes under way, of all the peer's streams
	since   time.Time // when the first of them began, or the window after it
	bytes   uint64    // of this window
	busy    time.Duration
	rate    float64 // bytes a second, over the windows so far; 0 is not known
}

// bound notes a limit that we keep ourselves.
func (l *linkRate) bound(n uint64) {
	if n > 0 && (l.limit == 0 || n < l.limit) {
		l.limit = n
	}
}

// began notes that a write begins.
func (l *linkRate) began(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writing++; l.writing == 1 {
		l.since = now
	}
}

// ended notes that a write of n bytes is over.
func (l *linkRate) ended(n int, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writing--
	l.bytes += uint64(n) //nolint:gosec // a length
	l.busy += now.Sub(l.since)
	l.since = now
	if l.busy < rateWindow && l.bytes < rateBytes {
		return
	}
	seen := float64(l.bytes) / max(l.busy.Seconds(), 1e-6)
	if l.rate > 0 {
		seen = (3*l.rate + seen) / 4
	}
	l.rate, l.bytes, l.busy = seen, 0, 0
}

// slow reports whether the link is slower than a rate. One that is not known yet
// is: packing the first few groups for a fast link costs little.
func (l *linkRate) slower(than float64) bool {
	if l.limit > 0 && float64(l.limit) < than {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rate < than
}

// packing is one stream's experience with packing.
type packing struct {
	skip  int // groups to send as they are
	pause int // how many the next time
}

// pack returns the group packed, if that pays; head is the length of its head.
func (w *server) pack(group []byte, head int) []byte {
	size := len(group) - head
	if size < packLeast || !w.c.link.slower(slowLink) {
		return group
	}
	if w.packs.skip > 0 {
		w.packs.skip--
		return group
	}
	enc := w.e.packer(w.c.link.slower(verySlow))
	// The length before the frame is not known before the frame: room is left.
	room := head + binary.MaxVarintLen32
	if cap(w.zip) < room {
		w.zip = make([]byte, room, room+size)
	}
	w.zip = enc.EncodeAll(group[head:], w.zip[:room])
	n := len(w.zip) - room
	if n > size-size/8 {
		w.packs.pause = min(max(2*w.packs.pause, packPause), packRest)
		w.packs.skip = w.packs.pause
		return group
	}
	w.packs.pause = 0
	var length [binary.MaxVarintLen32]byte
	k := binary.PutUvarint(length[:], uint64(n))
	start := room - k - head
	copy(w.zip[start:], group[:head])
	w.zip[start] = groupPacked
	copy(w.zip[start+head:], length[:k])
	return w.zip[start:]
}

// packer is an encoder for all streams, one that packs well or one that is fast.
func (e *Exchange) packer(well bool) *zstd.Encoder {
	e.packOnce.Do(func() {
		for i, level := range []zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedDefault} {
			e.encoders[i], _ = zstd.NewWriter(nil, // the options are right
				zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(packWindow), zstd.WithEncoderCRC(false))
		}
	})
	if well {
		return e.encoders[1]
	}
	return e.encoders[0]
}

// unpacking reads the blocks of a packed group, and takes no more memory than
// the window, whatever the frame says.
type unpacking struct {
	src frameSource
	dec *zstd.Decoder
}

// frameSource is the bytes of one frame on the wire.
type frameSource struct {
	r    io.Reader
	left uint64
	err  error // of the stream, which breaks no protocol
}

func (s *frameSource) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.r.Read(p[:min(uint64(len(p)), s.left)])
	s.left -= uint64(n)
	if err != nil {
		s.err = err
	}
	return n, err
}

// beginPacked reads what stands between the heads and the frame.
func (g *groupReader) beginPacked() error {
	var size uint64
	for _, h := range g.heads {
		if h >= headBlock {
			size += uint64(h - headBlock)
		}
	}
	n, err := readUvarint(g.br, size)
	if err != nil {
		return broken("answer", err)
	}
	if g.unpack == nil {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(packWindow))
		if err != nil {
			return err
		}
		g.unpack = &unpacking{dec: dec}
	}
	g.packed = g.unpack
	g.packed.src = frameSource{r: g.br, left: n}
	return g.packed.explain(g.packed.dec.Reset(&g.packed.src))
}

// endPacked finds that a packed group held its blocks and nothing else.
func (g *groupReader) endPacked() error {
	p := g.packed
	if p == nil {
		return nil
	}
	g.packed = nil
	var one [1]byte
	n, err := p.dec.Read(one[:])
	switch {
	case n > 0 || errors.Is(err, io.EOF) && p.src.left > 0:
		return fmt.Errorf("%w: a packed group holds more than its blocks", ErrProtocol)
	case errors.Is(err, io.EOF):
		return nil
	}
	return p.explain(err)
}

func (p *unpacking) read(b []byte) error {
	_, err := io.ReadFull(p.dec, b)
	return p.explain(err)
}

// explain tells what is wrong with the frame from what is with the stream.
func (p *unpacking) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case p.src.err != nil:
		return broken("block", p.src.err)
	}
	return fmt.Errorf("%w: packed group: %w", ErrProtocol, err)
}

// close gives back what unpacking took.
func (g *groupReader) close() {
	if g.unpack != nil {
		g.unpack.dec.Close()
	}
}
