package content

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"
)

// slabBytes is what a stream's blocks are gathered in before they are stored:
// large enough for any block. All fetches of a node together have maxSlabs, so
// that what they hold stays below 64 MiB.
const (
	slabBytes   = MaxBlockHard
	maxSlabs    = 24
	slabsSpared = 8 // of which a peer that holds two already gets none
)

// runBytes bounds the bytes of small blocks read before they are hashed, and
// so what a liar can make us read in vain beyond one block.
const runBytes = 64 << 10

// flushAfter is how long blocks that came wait for more before they are stored.
const flushAfter = 2 * time.Second

// slabs lends the slabs of all streams. A stream has one only from the first
// byte of a block on until that is stored: those that wait for their peer, or
// for something to ask, take up no memory.
type slabs struct {
	pool sync.Pool
	mu   sync.Mutex
	free int
	wake chan struct{} // closed and made anew when one comes back
}

func newSlabs() slabs { return slabs{free: maxSlabs, wake: make(chan struct{})} }

// take waits for a slab for a stream of p. What p sends waits with it.
func (s *slabs) take(own context.Context, p *source) (*[slabBytes]byte, error) {
	for {
		s.mu.Lock()
		if s.free > slabsSpared || s.free > 0 && p.slabs < streamsPerPeer {
			s.free--
			p.slabs++
			s.mu.Unlock()
			if b, ok := s.pool.Get().(*[slabBytes]byte); ok {
				return b, nil
			}
			return new([slabBytes]byte), nil
		}
		wake := s.wake
		s.mu.Unlock()
		select {
		case <-own.Done():
			return nil, own.Err()
		case <-wake:
		}
	}
}

func (s *slabs) give(p *source, b *[slabBytes]byte) {
	s.pool.Put(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	p.slabs--
	close(s.wake)
	s.wake = make(chan struct{})
}

// intake takes the blocks of one stream: reads them into a slab, checks them
// as they come and stores them together. Other streams go on meanwhile, which
// is what keeps the processor's cores at work.
type intake struct {
	f     *fetch
	ctx   context.Context
	own   context.Context // of p's streams
	p     *source
	gr    *groupReader
	slab  *[slabBytes]byte
	walk  *breadth // takes in links of blocks, if there is one
	used  int
	since time.Time  // when the first of what is in slab came
	todo  []expected // of the group being read
	got   []arrival  // checked, in slab, not stored yet
	node  bool       // one of them has links
}

// expected is a block about to be read.
type expected struct {
	i   int32
	ref ref
	n   int
}

// arrival is a block that came and is right.
type arrival struct {
	i     int32
	ref   ref
	data  []byte
	links []link // of a block with links
}

func (t *intake) begin() { t.todo = t.todo[:0] }

func (t *intake) expect(i int32, r ref, n int) { t.todo = append(t.todo, expected{i, r, n}) }

// read reads the blocks expected. What is right of them is kept, or stored,
// also when one is not.
func (t *intake) read() error {
	for todo := t.todo; len(todo) > 0; {
		if t.used+todo[0].n > slabBytes {
			if err := t.flush(); err != nil {
				return err
			}
		}
		if t.slab == nil {
			slab, err := t.f.e.slabs.take(t.own, t.p)
			if err != nil {
				return err
			}
			t.slab = slab
		}
		k, size := 1, todo[0].n
		for k < len(todo) && size+todo[k].n <= runBytes && t.used+size+todo[k].n <= len(t.slab) {
			size += todo[k].n
			k++
		}
		data := t.slab[t.used : t.used+size]
		if err := t.fill(data); err != nil {
			return t.stored(t.f.explain(err))
		}
		if t.used == 0 {
			t.since = t.f.e.o.Now()
		}
		t.used += size
		if err := t.check(todo[:k], data); err != nil {
			return t.stored(err)
		}
		todo = todo[k:]
		// On a slow link a slab takes minutes, and what came in them would be
		// neither seen nor safe.
		if t.f.comes(t.p, true).Sub(t.since) >= flushAfter {
			if err := t.flush(); err != nil {
				return err
			}
		}
	}
	if t.node { // what it links to can be asked for
		return t.flush()
	}
	return nil
}

// fill reads p, of which a part is a sign of life too: a large block may take
// longer on a slow link than Patience lasts.
func (t *intake) fill(p []byte) error {
	for len(p) > runBytes {
		if err := t.gr.read(p[:runBytes]); err != nil {
			return err
		}
		t.f.comes(t.p, false)
		p = p[runBytes:]
	}
	return t.gr.read(p)
}

// comes notes that bytes come from p, and with right that they are right.
func (f *fetch) comes(p *source, right bool) time.Time {
	now := f.e.o.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lastByte = now
	if right && !p.proven {
		p.proven = true
		f.changed()
	}
	return now
}

// check hashes blocks that were read.
func (t *intake) check(list []expected, data []byte) error {
	for _, x := range list {
		block := data[:x.n]
		data = data[x.n:]
		if sha256.Sum256(block) != x.ref.key {
			t.f.mu.Lock()
			t.f.received += uint64(x.n)
			t.f.wasted += uint64(x.n)
			t.f.mu.Unlock()
			return fmt.Errorf("%w: block %s", ErrLiar, x.ref)
		}
		a := arrival{i: x.i, ref: x.ref, data: block}
		if x.ref.codec != codecRaw {
			t.node = true
			links, err := linksOf(x.ref, block)
			if err != nil {
				return t.fail(fmt.Errorf("block %s: %w", x.ref, err))
			}
			a.links = links
			if t.walk != nil {
				t.walk.add(links)
			}
		}
		t.got = append(t.got, a)
	}
	return nil
}

// stored stores what is right before an error is returned.
func (t *intake) stored(err error) error {
	if ferr := t.flush(); ferr != nil {
		return ferr
	}
	return err
}

// fail ends the whole fetch: what is wrong is wrong with every peer.
func (t *intake) fail(err error) error {
	t.f.finish(err)
	return err
}

// flush stores what came and goes on with what that links to.
func (t *intake) flush() error {
	got := t.got
	t.got, t.used, t.node = t.got[:0], 0, false
	defer t.close()
	if len(got) == 0 {
		return nil
	}
	if err := t.f.arrived(t.ctx, t.p, got); err != nil {
		return t.fail(err)
	}
	if t.walk != nil {
		t.f.claimLess(got)
	}
	return nil
}

// close gives the slab back.
func (t *intake) close() {
	if t.slab != nil {
		t.f.e.slabs.give(t.p, t.slab)
		t.slab = nil
	}
}

// claimLess notes that the quick start has brought leaves.
func (f *fetch) claimLess(got []arrival) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range got {
		if a.ref.codec == codecRaw {
			f.claim -= min(f.claim, uint64(len(a.data)))
		}
	}
}

// arrived stores blocks that came and are right.
func (f *fetch) arrived(ctx context.Context, p *source, got []arrival) error {
	items, ok := f.receipt(p, got)
	if !ok {
		return nil
	}
	var err error
	if len(items) > 0 {
		_, err = f.s.putBatch(items)
	}
	var nodes []met
	if err == nil {
		nodes, err = f.note(got)
	}
	if err == nil && len(nodes) > 0 {
		if nodes[0].i == 0 {
			err = f.checkRoot()
		}
		if err == nil {
			err = f.explore(ctx, nodes)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy--
	f.changed()
	return err
}

// receipt counts what came, and returns what of it is to be stored.
func (f *fetch) receipt(p *source, got []arrival) (items []putItem, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	back := p.away()
	p.fails, p.last = 0, nil
	if back {
		f.spreadOut()
	}
	f.rounds = 0
	items = make([]putItem, 0, len(got))
	for _, a := range got {
		n := uint64(len(a.data))
		p.gave += n
		f.received += n
		if !p.origin {
			f.others += n
		}
		if st := f.items[a.i].state; st == stHere || st == stBusy { // its twin was faster
			f.wasted += n
			continue
		}
		items = append(items, putItem{a.ref.key, a.data})
	}
	if f.finished {
		return nil, false
	}
	f.busy++
	return items, true
}

// note makes stored blocks known, and returns those with links.
func (f *fetch) note(got []arrival) (nodes []met, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range got {
		if st := f.items[a.i].state; st == stHere || st == stBusy {
			continue
		}
		f.missing--
		if err := f.count(len(a.data)); err != nil {
			return nil, err
		}
		if a.ref.codec == codecRaw {
			f.move(a.i, stHere)
			continue
		}
		f.move(a.i, stBusy)
		nodes = append(nodes, met{i: a.i, links: a.links, known: true})
	}
	return nodes, nil
}
