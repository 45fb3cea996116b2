package content

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"time"
)

// Pauses between asking a peer what it has by now.
const (
	haveSoon = 100 * time.Millisecond
	haveLate = time.Second
)

// follow asks a peer what it has of the DAG until it has all, or the fetch or
// the peer's time is over. A peer that does not answer is asked for anything.
func (f *fetch) follow(own context.Context, p *source) {
	for own.Err() == nil {
		err := f.followStream(own, p)
		if err == nil || errors.Is(err, ErrProtocol) {
			if err != nil {
				f.blame(own, p, err)
			}
			return
		}
		f.mu.Lock()
		wait := haveLate
		if p.away() {
			wait = retryMost
		}
		over := f.finished
		f.mu.Unlock()
		if over || !pause(own, wait) {
			return
		}
	}
}

// pause waits, and says whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool { return pauseOr(ctx, nil, d) }

// pauseOr is pause, cut short by wake.
func pauseOr(ctx context.Context, wake <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wake:
		return true
	case <-t.C:
		return true
	}
}

func (f *fetch) followStream(ctx context.Context, p *source) error {
	st, err := f.e.n.OpenContent(ctx, p.id, ProtocolHave)
	if err != nil {
		return fmt.Errorf("cannot be reached: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = st.Reset() })
	defer stop()
	defer func() { _ = st.Reset() }() // nothing more is wanted of it
	br := bufio.NewReader(st)
	ask := appendCID(nil, f.root)
	wait := haveSoon
	for {
		if err := st.SetDeadline(time.Now().Add(f.e.o.Stall)); err != nil {
			return err
		}
		if _, err := st.Write(ask); err != nil {
			return err
		}
		h, err := readHolding(br)
		if err != nil {
			return err
		}
		if h.kind == haveBusy {
			return ErrBusy
		}
		more, over := f.see(p, h)
		if over {
			return nil
		}
		if wait = min(wait*3/2, haveLate); more {
			wait = haveSoon
		}
		if !pause(ctx, wait) {
			return ctx.Err()
		}
	}
}

// see notes what a peer has. It says whether that is more than before, and
// whether there is nothing more to ask.
func (f *fetch) see(p *source, h holding) (more, over bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.finished || p.dead {
		return false, true
	}
	if h.kind == haveAll {
		p.view, p.told, p.has = viewAll, nil, nil
		f.spreadOut()
		f.changed()
		return true, true
	}
	var order []int32
	if h.kind == haveSome {
		order = f.board.order()
	}
	var told, has bitset
	for pos, i := range order[:min(len(order), h.count)] {
		told.set(int(i))
		if h.bits.has(pos) {
			has.set(int(i))
			f.items[i].lacks &^= p.bit // it came since
		}
	}
	more = has.count() > p.has.count()
	if p.view != viewSome || more || len(told) > len(p.told) {
		p.view, p.told, p.has = viewSome, told, has
		f.spreadOut()
		f.changed()
	}
	return more, false
}

// spreadOut gathers what peers that fetch too have. The caller holds mu.
func (f *fetch) spreadOut() {
	f.spread, f.swarming = nil, false
	for _, p := range f.order {
		if p.dead || p.away() || p.origin || p.view != viewSome {
			continue
		}
		f.swarming = true
		for w, m := range p.has {
			for w >= len(f.spread) {
				f.spread = append(f.spread, 0)
			}
			f.spread[w] |= m
		}
	}
}
