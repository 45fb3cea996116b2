package content

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"
	"time"
)

// The bytes of have/1, by which peers that fetch the same tell each other what
// they have already:
//
//	request:  length, CIDv1 of the root; again whenever the asker likes
//	answer:   0 (the root is not here), 1 (all is), 2 (busy) or
//	          3 (some), count, bitmap of (count+7)/8 bytes
//
// Bit i (of byte i/8, the lowest first) is block i of the breadth-first walk of
// dag/1. The walk ends before the first block with links that is not there, for
// behind it the two sides would count differently; count is where.
const (
	haveNone = 0
	haveAll  = 1
	haveBusy = groupBusy
	haveSome = 3
)

// haveFresh is how long a computed answer is given again.
const haveFresh = 100 * time.Millisecond

// bitset is a set of small numbers.
type bitset []uint64

func (b bitset) has(i int) bool { return i>>6 < len(b) && b[i>>6]>>(i&63)&1 != 0 }
func (b bitset) clear(i int)    { b[i>>6] &^= 1 << (i & 63) }

// set adds i, growing b as needed.
func (b *bitset) set(i int) {
	for i>>6 >= len(*b) {
		*b = append(*b, 0)
	}
	(*b)[i>>6] |= 1 << (i & 63)
}

// word returns 64 members at once.
func (b bitset) word(w int) uint64 {
	if w < len(b) {
		return b[w]
	}
	return 0
}

func (b bitset) count() (n int) {
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// holding is a have/1 answer.
type holding struct {
	kind  byte
	count int
	bits  bitset
}

func appendHolding(b []byte, h holding) []byte {
	b = append(b, h.kind)
	if h.kind != haveSome {
		return b
	}
	b = binary.AppendUvarint(b, uint64(h.count))
	for i := range (h.count + 7) / 8 {
		b = append(b, byte(h.bits.word(i/8)>>(i%8*8)))
	}
	return b
}

// readHolding reads a have/1 answer.
func readHolding(r byteReader) (holding, error) {
	kind, err := r.ReadByte()
	if err != nil {
		return holding{}, broken("answer", err)
	}
	if kind > haveSome {
		return holding{}, fmt.Errorf("%w: have/1 answer of kind %d", ErrProtocol, kind)
	}
	h := holding{kind: kind}
	if kind != haveSome {
		return h, nil
	}
	n, err := readUvarint(r, maxDAGLinks)
	if err != nil {
		return holding{}, broken("answer", err)
	}
	h.count = int(n)
	raw := make([]byte, (n+7)/8) // 32 KiB at most
	if _, err := io.ReadFull(r, raw); err != nil {
		return holding{}, broken("answer", err)
	}
	h.bits = make(bitset, (n+63)/64)
	for i, v := range raw {
		h.bits[i/8] |= uint64(v) << (i % 8 * 8)
	}
	if k := h.count % 64; k > 0 {
		h.bits[len(h.bits)-1] &= 1<<k - 1
	}
	return h, nil
}

// holdings remembers the walks of the roots asked for lately, since peers ask
// about the same ones again and again.
type holdings struct {
	mu    sync.Mutex
	roots map[ref]*walked
}

// Bounds of the walks remembered, and of their blocks, of 33 bytes each, in all:
// two walks as long as they may be, or more that are shorter.
const (
	maxWalked       = 8
	maxWalkedBlocks = 2 * maxDAGLinks
)

// walked is the part of a DAG that can be walked here.
type walked struct {
	order []ref
	whole bool // no block with links was missing
	at    time.Time
	last  holding
}

func (w *server) serveHave(br *bufio.Reader) error {
	for {
		err := awaitAsk(br)
		if errors.Is(err, io.EOF) {
			return nil
		}
		var r ref
		if err == nil {
			r, err = readCID(br)
		}
		if err != nil {
			return err
		}
		w.e.asksFor(w.c, r)
		h, err := w.e.holding(r)
		if err != nil {
			return err
		}
		w.buf = appendHolding(w.buf[:0], h)
		if err := w.spendHave(); err != nil {
			return err
		}
		if err := w.write(w.buf); err != nil {
			return err
		}
	}
}

// spendHave takes the bytes of an answer from the rate. Nothing tells the asker
// that its stream waits, so it is told to come again before it gives up hope.
func (w *server) spendHave() error {
	if len(w.buf) == 1 {
		return nil
	}
	ctx, cancel := context.WithTimeout(w.ctx, w.e.o.Stall/4)
	defer cancel()
	err := w.e.spend(ctx, w.c.first.Load(), len(w.buf))
	if err != nil && w.ctx.Err() == nil {
		w.buf = append(w.buf[:0], haveBusy)
		return nil
	}
	return err
}

// holding says what is here of the DAG under root.
func (e *Exchange) holding(root ref) (holding, error) {
	e.holds.mu.Lock() // one at a time: it may be work
	defer e.holds.mu.Unlock()
	if e.holds.roots == nil {
		e.holds.roots = map[ref]*walked{}
	}
	now := e.o.Now()
	w := e.holds.roots[root]
	if w != nil && now.Sub(w.at) < haveFresh {
		return w.last, nil
	}
	if w == nil || !w.whole {
		order, whole, err := e.s.walkHere(root)
		if err != nil {
			return holding{}, err
		}
		w = &walked{order: order, whole: whole}
		e.holds.add(root, w)
	}
	w.at = now
	w.last = e.s.holdingOf(w)
	return w.last, nil
}

func (h *holdings) add(root ref, w *walked) {
	delete(h.roots, root)
	blocks := len(w.order)
	for _, o := range h.roots {
		blocks += len(o.order)
	}
	for len(h.roots) > 0 && (len(h.roots) >= maxWalked || blocks > maxWalkedBlocks) {
		var oldest ref
		for r, o := range h.roots {
			if v := h.roots[oldest]; v == nil || o.at.Before(v.at) {
				oldest = r
			}
		}
		blocks -= len(h.roots[oldest].order)
		delete(h.roots, oldest)
	}
	h.roots[root] = w
}

// walkHere walks breadth first as far as blocks with links are here.
func (s *Store) walkHere(root ref) (order []ref, whole bool, err error) {
	walk := newBreadth(root)
	for len(walk.queue) > 0 {
		r := walk.queue[0]
		if r.codec != codecRaw {
			_, here, links, err := s.look(r)
			if errors.Is(err, ErrMalformed) || errors.Is(err, ErrUnsupportedCID) {
				here, links, err = true, nil, nil // has no links for anybody
			}
			if err != nil {
				return nil, false, err
			}
			if !here {
				return order, false, nil
			}
			walk.add(links)
		}
		walk.skip(1)
		order = append(order, r)
	}
	return order, true, nil
}

// holdingOf looks which blocks of a walk are here.
func (s *Store) holdingOf(w *walked) holding {
	if len(w.order) == 0 {
		return holding{kind: haveNone}
	}
	h := holding{kind: haveSome, count: len(w.order), bits: make(bitset, (len(w.order)+63)/64)}
	all := w.whole
	var lens []int32
	for from := 0; from < len(w.order); from += 4096 {
		lens = s.lengths(w.order[from:min(from+4096, len(w.order))], lens[:0])
		for i, n := range lens {
			if n >= 0 {
				h.bits.set(from + i)
			} else {
				all = false
			}
		}
	}
	if all {
		return holding{kind: haveAll}
	}
	return h
}
