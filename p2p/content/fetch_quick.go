package content

import (
	"context"
	"fmt"
	"time"
)

// originGrace is what the peers have to give the root, or to say what they have,
// before an origin is asked.
const originGrace = 2 * time.Second

// quickStart asks peers for the DAG in one round trip: all blocks with links
// and some MiB of leaves, which is all of a small DAG. Another peer is asked
// when one is slow; the first to give the root is the one that goes on. What it
// does not bring is asked for like the rest.
func (f *fetch) quickStart(ctx context.Context) {
	q := &quickRun{f: f, won: make(chan struct{}), leaves: f.claim}
	peers, origins := f.quickPeers()
	done := make(chan struct{}, len(peers)+len(origins))
	running, began := 0, time.Now()
	ask := func(list []*source) []*source {
		if len(list) == 0 {
			return nil
		}
		running++
		go func() {
			own := f.streamsOf(list[0])
			if err := q.ask(ctx, own, list[0]); err != nil {
				f.blame(own, list[0], err)
			}
			done <- struct{}{}
		}()
		return list[1:]
	}
	t := time.NewTimer(f.e.o.TailAfter)
	defer t.Stop()
	won := q.won
	for {
		if len(peers) > 0 {
			peers = ask(peers)
		} else if running == 0 || time.Since(began) >= originGrace {
			origins = ask(origins)
		}
		if running == 0 && len(peers)+len(origins) == 0 {
			break
		}
		t.Reset(f.e.o.TailAfter)
		select {
		case <-done:
			running--
		case <-won:
			won, peers, origins = nil, nil, nil
		case <-t.C:
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.quick, f.claim = false, 0
	if f.items[0].state == stOut {
		f.queue(0, false)
	}
	f.changed()
}

// streamsOf returns the context of a peer's streams.
func (f *fetch) streamsOf(p *source) context.Context {
	f.mu.Lock()
	defer f.mu.Unlock()
	return p.ctx
}

// quickPeers are whom a quick start asks, in order.
func (f *fetch) quickPeers() (peers, origins []*source) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.order {
		switch {
		case p.dead:
		case p.origin:
			origins = append(origins, p)
		case len(peers) < activePeers:
			peers = append(peers, p)
		}
	}
	return peers, origins
}

// quickRun is the dag/1 streams of one quick start.
type quickRun struct {
	f      *fetch
	leaves uint64        // bytes of them to ask for
	won    chan struct{} // closed when winner is set
	winner *source       // guarded by f.mu
}

// wins says whether p goes on after giving the root.
func (q *quickRun) wins(p *source) bool {
	q.f.mu.Lock()
	defer q.f.mu.Unlock()
	if q.winner == nil {
		q.winner = p
		close(q.won)
	}
	return q.winner == p
}

func (q *quickRun) ask(ctx, own context.Context, p *source) error {
	st, err := q.f.e.n.OpenContent(own, p.id, ProtocolDAG)
	if err != nil {
		return fmt.Errorf("cannot be reached: %w", err)
	}
	stop := context.AfterFunc(own, func() { _ = st.Reset() })
	defer stop()
	whole, err := q.read(ctx, own, p, st)
	if err != nil || !whole {
		_ = st.Reset()
		return err
	}
	_ = st.CloseWrite() // all was received, and was right
	_ = st.Close()
	return nil
}

// read reads one dag/1 answer; whole says that it did to the end.
func (q *quickRun) read(ctx, own context.Context, p *source, st Stream) (whole bool, err error) {
	f := q.f
	if err := st.SetDeadline(time.Now().Add(f.e.o.Stall)); err != nil {
		return false, f.explain(err)
	}
	if _, err := st.Write(appendDAGAsk(nil, f.root, q.leaves)); err != nil {
		return false, f.explain(err)
	}
	r := &quickReader{q: q, p: p, walk: newBreadth(f.root), leaves: q.leaves}
	r.in = intake{f: f, ctx: ctx, own: own, p: p, walk: r.walk}
	defer r.in.close()
	r.in.gr = newGroupReader(&deadlineReader{st: st, wait: f.e.o.Stall})
	defer r.in.gr.close()
	for {
		kind, heads, err := r.in.gr.next()
		switch {
		case err != nil:
			return false, r.in.stored(f.explain(err))
		case kind == groupEnd:
			return true, r.in.flush()
		case kind == groupBusy:
			return false, ErrBusy
		}
		if err := r.group(heads); err != nil {
			return false, r.in.stored(err)
		}
		if !q.wins(p) {
			return false, nil
		}
	}
}

// quickReader reads the answer of one peer.
type quickReader struct {
	q      *quickRun
	p      *source
	in     intake
	walk   *breadth
	leaves uint64
	spent  uint64 // bytes of leaves that came
	nodes  uint64 // bytes of the others
	refs   []ref
}

// group reads the blocks of one group. Their links are in the walk before the
// next one is read, on both sides.
func (r *quickReader) group(heads []uint32) error {
	f := r.q.f
	r.refs = r.walk.peek(r.refs[:0], len(heads))
	if len(heads) > len(r.refs) || r.spent >= r.leaves && r.walk.nodes == 0 {
		return fmt.Errorf("%w: more blocks than were asked for", ErrProtocol)
	}
	f.mu.Lock()
	r.in.begin()
	for n, h := range heads {
		switch {
		case h == headLeftOut && r.refs[n].codec == codecRaw:
		case h == headLeftOut:
			f.mu.Unlock()
			return fmt.Errorf("%w: a block with links was left out", ErrProtocol)
		case h == headMissing && r.refs[n] == f.root:
			f.mu.Unlock()
			return fmt.Errorf("root: %w", ErrNotFound)
		case h == headMissing:
			if i, ok := f.index[r.refs[n].key]; ok {
				f.items[i].lacks |= r.p.bit
			}
		default:
			i, ok := f.index[r.refs[n].key]
			if !ok { // beyond the bound on blocks, for the walk follows what was met
				f.mu.Unlock()
				return fmt.Errorf("%w: a block that nothing links to", ErrProtocol)
			}
			r.in.expect(i, r.refs[n], int(h-headBlock))
			if r.refs[n].codec == codecRaw {
				r.spent += uint64(h - headBlock)
			} else {
				r.nodes += uint64(h - headBlock)
			}
		}
	}
	f.mu.Unlock()
	r.walk.skip(len(heads))
	if r.spent > r.leaves+groupBytes+MaxBlockHard || r.nodes > maxDAGAnswer+groupBytes+MaxBlockHard {
		return fmt.Errorf("%w: more bytes than were asked for", ErrProtocol)
	}
	err := r.in.read()
	f.mu.Lock()
	f.quickByte = time.Now()
	f.mu.Unlock()
	return err
}
