package content

import (
	"context"
	"fmt"
	"math/bits"
	"time"
)

// blockState says how far a block of the DAG is.
type blockState uint8

const (
	stNone   blockState = iota
	stQueued            // missing, to be asked for
	stOut               // asked for
	stBusy              // here, or arrived, and being looked into
	stHere              // here, verified
)

// item is a block met under the root.
type item struct {
	ref   ref
	hint  uint32 // bytes, as its parent says
	state blockState
	lacks uint64 // bit set of the peers that said they do not have it
}

// board is what a fetch knows of the blocks under its root. Its user locks.
type board struct {
	items   []item
	index   map[key]int32
	kids    map[int32][]int32 // links of the blocks with links that are here
	queued  bitset            // leaves in state stQueued
	nodes   []int32           // blocks with links that are queued, and some no longer
	urgent  []int32           // queued blocks that somebody waits for, and some no longer
	missing int               // blocks that are not here
}

// meet returns the item of a link, and whether it is new.
func (b *board) meet(l link) (int32, bool, error) {
	hint := uint32(guessBlock)
	if l.hint > 0 && l.hint <= MaxBlockHard {
		hint = uint32(l.hint)
	}
	if i, ok := b.index[l.ref.key]; ok {
		b.items[i].hint = min(b.items[i].hint, hint)
		return i, false, nil
	}
	if len(b.items) >= maxDAGBlocks {
		return 0, false, fmt.Errorf("%w: more than %d blocks", ErrTooLarge, maxDAGBlocks)
	}
	i := int32(len(b.items))
	b.items = append(b.items, item{ref: l.ref, hint: hint})
	b.index[l.ref.key] = i
	return i, true, nil
}

// queue makes a missing block one to be asked for.
func (b *board) queue(i int32, urgent bool) {
	it := &b.items[i]
	it.state = stQueued
	switch {
	case urgent:
		b.urgent = append(b.urgent, i)
	case it.ref.codec != codecRaw:
		b.nodes = append(b.nodes, i)
	}
	if it.ref.codec == codecRaw {
		b.queued.set(int(i))
	}
}

// move takes a block out of the queues to another state.
func (b *board) move(i int32, to blockState) {
	b.items[i].state = to
	if b.queued.has(int(i)) {
		b.queued.clear(int(i))
	}
}

// order lists items as the breadth-first walk of have/1 counts them, as far as
// blocks with links are here.
func (b *board) order() []int32 {
	if len(b.items) == 0 {
		return nil
	}
	out := []int32{0}
	var seen bitset
	seen.set(0)
	for at := 0; at < len(out); at++ {
		i := out[at]
		if b.items[i].ref.codec == codecRaw {
			continue
		}
		if b.items[i].state != stHere {
			return out[:at]
		}
		for _, k := range b.kids[i] {
			if len(out) >= maxDAGLinks {
				break
			}
			if !seen.has(int(k)) {
				seen.set(int(k))
				out = append(out, k)
			}
		}
	}
	return out
}

// met is a block with links that is here and has to be looked into.
type met struct {
	i     int32
	links []link
	known bool // links are read already
}

// explore takes in blocks with links that are here, and what is under them
// here: what is missing is queued.
func (f *fetch) explore(ctx context.Context, work []met) error {
	for len(work) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		m := work[0]
		work = work[1:]
		if !m.known {
			here, err := f.readLinks(&m)
			if err != nil {
				return err
			}
			if !here {
				continue
			}
		}
		found, err := f.takeIn(m)
		if err != nil {
			return err
		}
		work = append(work, found...)
	}
	return nil
}

// readLinks reads the links of a block that was here a moment ago.
func (f *fetch) readLinks(m *met) (here bool, err error) {
	f.mu.Lock()
	r := f.items[m.i].ref
	f.mu.Unlock()
	n, here, links, err := f.s.look(r)
	if err != nil {
		return false, err
	}
	if r == f.root && here {
		if err := f.checkRoot(); err != nil {
			return false, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !here {
		f.missing++
		f.queue(m.i, false)
		f.changed()
		return false, nil
	}
	m.links = links
	return true, f.count(n)
}

// takeIn notes the links of a block. It returns those that are here and have
// links themselves.
func (f *fetch) takeIn(m met) (found []met, err error) {
	refs := make([]ref, len(m.links))
	for i, l := range m.links {
		refs[i] = l.ref
	}
	lens := f.s.lengths(refs, make([]int32, 0, len(refs)))
	f.mu.Lock()
	defer f.mu.Unlock()
	kids := make([]int32, 0, len(m.links))
	for n, l := range m.links {
		i, fresh, err := f.meet(l)
		if err != nil {
			return nil, err
		}
		kids = append(kids, i)
		if !fresh {
			continue
		}
		switch {
		case lens[n] < 0:
			f.missing++
			f.queue(i, false)
		case l.ref.codec == codecRaw:
			f.items[i].state = stHere
			if err := f.count(int(lens[n])); err != nil {
				return nil, err
			}
		default:
			f.items[i].state = stBusy
			found = append(found, met{i: i})
		}
	}
	f.kids[m.i] = kids
	f.items[m.i].state = stHere
	if m.i == 0 {
		f.total = f.have
		for _, l := range m.links {
			f.total = addCapped(f.total, l.hint)
		}
	}
	f.changed()
	return found, nil
}

// batch is a range handed to one peer.
type batch struct {
	wants  []int32
	at     int    // wants answered
	size   uint64 // bytes, as far as known
	urgent bool
	src    *source
	since  time.Time
	twin   *batch // the same range at another peer, at the tail
}

// lane says what a stream to a peer is for.
type lane int

const (
	laneBulk   lane = iota
	laneUrgent      // blocks somebody waits for, and no others
)

// take hands out a range: what is urgent, what has links, then the rest, or at
// the tail what another peer has had for too long. The caller holds mu.
func (f *fetch) take(p *source, l lane, most uint64) *batch {
	if l == laneBulk && !p.proven && p.asked > 0 {
		return nil // a liar has lied on one stream and not on all
	}
	b := &batch{src: p, since: time.Now()}
	f.urgent = f.pickList(b, f.urgent, urgentBytes)
	b.urgent = len(b.wants) > 0
	if len(b.wants) == 0 && l == laneBulk {
		if f.swarming && p.view != viewSome {
			most = min(most, max(rangeLeast, f.total/swarmParts))
		}
		if !f.quickWorks() {
			f.nodes = f.pickList(b, f.nodes, most)
		}
		if len(b.wants) == 0 {
			f.pick(b, most)
		}
		if len(b.wants) == 0 {
			return f.tail(p, b)
		}
	}
	if len(b.wants) == 0 {
		return nil
	}
	f.handOut(b)
	return b
}

func (f *fetch) handOut(b *batch) {
	f.out[b] = struct{}{}
	b.src.asked++
}

func (f *fetch) add(b *batch, i int32) {
	f.move(i, stOut)
	b.wants = append(b.wants, i)
	b.size += uint64(f.items[i].hint)
}

// pickList moves what b's peer may have from the front of a list to b, and
// returns the rest.
func (f *fetch) pickList(b *batch, list []int32, most uint64) []int32 {
	kept := list[:0:0]
	n := 0
	for ; n < len(list) && n < scanWants && len(b.wants) < rangeBlocks && b.size < most; n++ {
		i := list[n]
		switch it := &f.items[i]; {
		case it.state != stQueued:
		case !f.may(b.src, i) || b.src.origin && !f.onlyOrigin(i):
			kept = append(kept, i)
		default:
			f.add(b, i)
		}
	}
	if len(kept) == 0 {
		return list[n:]
	}
	return append(kept, list[n:]...)
}

// may says whether a peer may have a block, by what it said.
func (f *fetch) may(p *source, i int32) bool {
	if f.items[i].lacks&p.bit != 0 {
		return false
	}
	return p.view != viewSome || p.has.has(int(i)) || !p.told.has(int(i))
}

// pick moves leaves from the queue to b: first ones that no fetching peer has,
// which the holders of all alone can give, then any. Fetchers that begin
// together look from different places, so that they soon have something to
// give to each other.
func (f *fetch) pick(b *batch, most uint64) {
	p, words := b.src, len(f.queued)
	if words == 0 {
		return
	}
	from, skip := 0, 0 // items
	if f.claim > 0 && f.quickWorks() {
		skip = f.claimed()
	}
	if len(f.order) > 1 {
		from = f.rnd.IntN(64 * words)
	}
	spread := f.spread
	if p.view == viewSome {
		spread = nil
	}
	var not bitset // what an origin is not asked for
	if p.origin {
		var all bool
		if all, not = f.heldByOthers(); all {
			return
		}
	}
	for pass := range 2 {
		for n := range words + 1 {
			w := (from/64 + n) % words
			m := f.queued[w] &^ not.word(w)
			switch n { // the first word is looked at in two parts
			case 0:
				m &= ^uint64(0) << (from % 64)
			case words:
				m &^= ^uint64(0) << (from % 64)
			}
			if pass == 0 {
				m &^= spread.word(w)
			}
			if p.view == viewSome && pass == 0 {
				m &= p.has.word(w)
			} else if p.view == viewSome { // it did not tell of all: it may have them
				m &^= p.told.word(w)
			}
			for ; m != 0; m &= m - 1 {
				i := int32(w<<6 + bits.TrailingZeros64(m))
				if int(i) < skip || f.items[i].lacks&p.bit != 0 {
					continue
				}
				f.add(b, i)
				if len(b.wants) >= rangeBlocks || b.size >= most {
					return
				}
			}
		}
		if len(b.wants) > 0 || len(spread) == 0 && p.view != viewSome {
			return
		}
	}
}

// claimed returns the first item that the quick start will not bring.
func (f *fetch) claimed() int {
	left := int64(f.claim)
	for w, m := range f.queued {
		for ; m != 0; m &= m - 1 {
			i := w<<6 + bits.TrailingZeros64(m)
			if left <= 0 {
				return i
			}
			left -= int64(f.items[i].hint)
		}
	}
	return len(f.items)
}

// quickWorks says whether the quick start brings blocks, so that others leave
// its part to it.
func (f *fetch) quickWorks() bool {
	return f.quick && time.Since(f.quickByte) < f.e.o.TailAfter
}

// heldByOthers says what an origin is not asked for: all, when a live peer has
// all or has not said yet, and else what the fetching peers have. When the
// others are too slow it is asked for anything.
func (f *fetch) heldByOthers() (all bool, some bitset) {
	if f.slow {
		return false, nil
	}
	for _, p := range f.order {
		if f.counts(p) && p.view != viewSome {
			return true, nil
		}
	}
	return false, f.spread
}

// counts says whether what a peer may have spares the origins: it is there, or
// has had little time to show it.
func (f *fetch) counts(p *source) bool {
	if p.origin || p.dead || p.away() || p.fails > 0 && p.gave == 0 {
		return false
	}
	return p.gave > 0 || p.view != viewUnknown || f.e.o.Now().Sub(f.began) < originGrace
}

// onlyOrigin says whether a block must come from an origin.
func (f *fetch) onlyOrigin(i int32) bool {
	if f.slow {
		return true
	}
	for _, p := range f.order {
		if f.counts(p) && f.may(p, i) && (p.view != viewSome || p.has.has(int(i))) {
			return false
		}
	}
	return true
}

// tail makes b a twin of the range that has been out longest, of those that p
// can answer whole, in reverse order so that the two meet. The caller holds mu.
func (f *fetch) tail(p *source, b *batch) *batch {
	if p.origin && !f.slow {
		return nil
	}
	var slow *batch
	for o := range f.out {
		if o.twin != nil || o.src == p || !f.late(o, p) || slow != nil && !o.since.Before(slow.since) {
			continue
		}
		if wants := f.open(o, p); len(wants) > 0 {
			slow, b.wants = o, wants
		}
	}
	if slow == nil {
		return nil
	}
	slow.twin, b.twin = b, slow
	for n := range len(b.wants) / 2 {
		k := len(b.wants) - 1 - n
		b.wants[n], b.wants[k] = b.wants[k], b.wants[n]
	}
	f.handOut(b)
	return b
}

// late says whether a range should be doubled: it is out for long, or p would
// bring what is left of it in half the time its peer will take.
func (f *fetch) late(o *batch, p *source) bool {
	out := time.Since(o.since)
	if out >= f.e.o.TailAfter {
		return true
	}
	if out < 50*time.Millisecond || p.rate == 0 || o.src.rate == 0 {
		return false
	}
	left := float64(o.size) * float64(len(o.wants)-o.at) / float64(len(o.wants))
	return left/o.src.rate > 2*left/p.rate+0.1
}

// open returns what is still to come of a range, or nothing if p is known to
// lack some of it. The caller holds mu.
func (f *fetch) open(b *batch, p *source) []int32 {
	var wants []int32
	for _, i := range b.wants[b.at:] {
		if f.items[i].state != stOut {
			continue
		}
		if !f.may(p, i) {
			return nil
		}
		wants = append(wants, i)
	}
	return wants
}

// giveBack ends a range, and queues what it did not bring unless its twin
// still may. The caller holds mu.
func (f *fetch) giveBack(b *batch) {
	if _, out := f.out[b]; !out {
		return
	}
	delete(f.out, b)
	b.src.asked--
	var twin map[int32]struct{}
	if t := b.twin; t != nil {
		t.twin, b.twin = nil, nil
		twin = make(map[int32]struct{}, len(t.wants))
		for _, i := range t.wants {
			twin[i] = struct{}{}
		}
	}
	for _, i := range b.wants {
		if f.items[i].state != stOut {
			continue
		}
		if _, still := twin[i]; !still {
			f.queue(i, b.urgent)
		}
	}
	f.changed()
}
