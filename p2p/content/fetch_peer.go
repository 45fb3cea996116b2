package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// work asks one peer for ranges until the fetch is over or the peer is given
// up, which ends own. ctx is of what is done with blocks that came.
func (f *fetch) work(ctx, own context.Context, p *source, l lane) {
	open, failed := f.mayOpen(p, l), false
	for {
		var st Stream // opened ahead: while the quick start finds out what to ask,
		var err error // and after a failure, so that no range waits for a peer that is away
		if open {
			st, err = f.openGet(own, p)
		}
		if err == nil {
			var most time.Duration
			if failed {
				most = linger // a stream that idles for long is closed by its peer
			}
			b := f.wait(own, p, l, most)
			if b == nil && st != nil {
				_ = st.Reset()
			}
			if b == nil && !failed {
				return
			}
			if b != nil {
				err = f.session(ctx, own, p, l, st, b)
			}
		}
		open, failed = err != nil, err != nil
		if err == nil {
			continue
		}
		wait, over := f.blame(own, p, err)
		if over || !f.rest(own, p, wait) {
			return
		}
	}
}

// rest leaves a peer that failed alone for a while, or until another stream of
// it brings something. It says whether the peer is to be asked again.
func (f *fetch) rest(own context.Context, p *source, most time.Duration) bool {
	until := time.Now().Add(most)
	f.mu.Lock()
	fails := p.fails
	f.mu.Unlock()
	for {
		f.mu.Lock()
		back, wake := p.fails < fails, f.wake
		f.mu.Unlock()
		left := time.Until(until)
		if back || left <= 0 {
			return own.Err() == nil
		}
		if !pauseOr(own, wake, left) {
			return false
		}
	}
}

// mayOpen says whether to open a stream before there is something to ask.
func (f *fetch) mayOpen(p *source, l lane) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return l == laneUrgent || f.quickWorks() && !p.origin
}

func (f *fetch) openGet(ctx context.Context, p *source) (Stream, error) {
	st, err := f.e.n.OpenContent(ctx, p.id, ProtocolGet)
	if err != nil {
		return nil, fmt.Errorf("cannot be reached: %w", err)
	}
	return st, nil
}

// blame notes why a session with p ended, and says how long to leave it alone,
// or that it is given up. Only one that lies or breaks the protocol is: any
// other may be back, and it is for Patience to say when to stop hoping.
func (f *fetch) blame(own context.Context, p *source, err error) (wait time.Duration, over bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.finished || own.Err() != nil { // what ended own is what matters
		return 0, true
	}
	defer f.changed()
	p.last = err
	if errors.Is(err, ErrLiar) || errors.Is(err, ErrProtocol) {
		p.dead = true
		p.stop()
		f.spreadOut()
		f.e.ban(p.id, err)
		return 0, true
	}
	if errors.Is(err, ErrBusy) { // it is there: Patience bounds how long to come again
		return f.e.o.RetryAfter, false
	}
	if p.fails++; p.fails == awayAfter {
		f.spreadOut()
	}
	return min(f.e.o.RetryAfter<<min(p.fails/streamsPerPeer, 5), retryMost), false
}

// wait returns the next range for p, or nil when the fetch is over, or none
// came up within most, if that is not 0.
func (f *fetch) wait(own context.Context, p *source, l lane, most time.Duration) *batch {
	t := time.NewTimer(f.e.o.TailAfter)
	defer t.Stop()
	began := time.Now()
	for {
		f.mu.Lock()
		if f.finished || own.Err() != nil {
			f.mu.Unlock()
			return nil
		}
		b := f.take(p, l, rangeBegin)
		wake := f.wake
		f.mu.Unlock()
		if b != nil {
			return b
		}
		next := min(f.e.o.TailAfter, 100*time.Millisecond)
		if most > 0 {
			left := most - time.Since(began)
			if left <= 0 {
				return nil
			}
			next = min(next, left)
		}
		t.Reset(next)
		select {
		case <-own.Done():
			return nil
		case <-wake:
		case <-t.C:
		}
	}
}

// more returns a further range for p if there is one now.
func (f *fetch) more(own context.Context, p *source, l lane, most uint64) *batch {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.finished || own.Err() != nil {
		return nil
	}
	return f.take(p, l, most)
}

// session is one get/1 stream: ranges are asked for ahead, so that the peer
// never waits for us.
type session struct {
	in   intake
	own  context.Context
	f    *fetch
	p    *source
	l    lane
	st   Stream
	gr   *groupReader
	out  []*batch    // asked for, in order
	rest atomic.Bool // nothing is out: the stream is closed when own ends, and not broken off
	last time.Time   // when the range before was whole
	most uint64      // bytes of the next range
}

// session asks p for b and what follows. st may be nil.
func (f *fetch) session(ctx, own context.Context, p *source, l lane, st Stream, b *batch) (err error) {
	s := &session{own: own, f: f, p: p, l: l, st: st, most: rangeBegin, out: []*batch{b}}
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, b := range s.out {
			f.giveBack(b)
		}
	}()
	if st == nil {
		if s.st, err = f.openGet(own, p); err != nil {
			return err
		}
	}
	stop := context.AfterFunc(own, func() {
		if !s.rest.Load() { // to break it off is to complain of what came
			_ = s.st.Reset()
		}
	})
	defer stop()
	s.gr = newGroupReader(&deadlineReader{st: s.st, wait: f.e.o.Stall})
	defer s.gr.close()
	s.in = intake{f: f, ctx: ctx, own: own, p: p, gr: s.gr}
	defer s.in.close()
	if err = s.run(); err != nil {
		_ = s.st.Reset()
		return err
	}
	_ = s.st.CloseWrite() // all was received: how the stream ends no longer matters
	_ = s.st.Close()
	return nil
}

func (s *session) run() error {
	if err := s.ask(s.out[0]); err != nil {
		return err
	}
	s.last = time.Now()
	for {
		for len(s.out) > 0 && len(s.out) < rangesAhead {
			if !s.next(s.f.more(s.own, s.p, s.l, s.most)) {
				break
			}
			if err := s.ask(s.out[len(s.out)-1]); err != nil {
				return err
			}
		}
		if len(s.out) == 0 {
			if !s.next(s.f.wait(s.own, s.p, s.l, linger)) {
				return nil
			}
			if err := s.ask(s.out[0]); err != nil {
				return err
			}
			s.last = time.Now()
		}
		if err := s.answers(s.out[0]); err != nil {
			return s.in.stored(err)
		}
		s.done()
	}
}

func (s *session) next(b *batch) bool {
	if b != nil {
		s.out = append(s.out, b)
	}
	return b != nil
}

// ask sends the request for a range. It is small, and the peer has read all
// before it but one.
func (s *session) ask(b *batch) error {
	s.f.mu.Lock()
	refs := make([]ref, len(b.wants))
	for n, i := range b.wants {
		refs[n] = s.f.items[i].ref
	}
	s.f.mu.Unlock()
	s.rest.Store(false)
	if err := s.own.Err(); err != nil { // it has ended before, and the stream is not broken off
		return err
	}
	if err := s.st.SetDeadline(time.Now().Add(s.f.e.o.Stall)); err != nil {
		return s.f.explain(err)
	}
	if _, err := s.st.Write(appendAsk(nil, refs)); err != nil {
		return s.refused(err)
	}
	return nil
}

// refused says why a request could not be written: a peer that has no place
// says so and hangs up before it has read any.
func (s *session) refused(err error) error {
	if s.last.IsZero() { // nothing was answered yet
		if kind, _, rerr := s.gr.next(); rerr == nil && kind == groupBusy {
			return ErrBusy
		}
	}
	return s.f.explain(err)
}

// done ends the first range, and fits the size of the next ones to what the
// peer gives, so that one is a matter of a tenth to half a second.
func (s *session) done() {
	b := s.out[0]
	s.out = s.out[1:]
	now := time.Now()
	took := now.Sub(s.last)
	s.last = now
	switch {
	case took < 100*time.Millisecond:
		s.most = min(2*s.most, rangeBytes)
	case took > 500*time.Millisecond:
		s.most = max(s.most/2, rangeLeast)
	}
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.p.rate = s.p.rate/2 + float64(b.size)/max(took.Seconds(), 1e-4)/2
	s.f.giveBack(b)
}

// answers reads the groups for one range.
func (s *session) answers(b *batch) error {
	for at := 0; at < len(b.wants); {
		kind, heads, err := s.gr.next()
		switch {
		case err != nil:
			return s.f.explain(err)
		case kind == groupBusy:
			return ErrBusy
		case kind != groupBlocks:
			return fmt.Errorf("%w: group of kind %d", ErrProtocol, kind)
		case len(heads) > len(b.wants)-at:
			return fmt.Errorf("%w: more blocks than were asked for", ErrProtocol)
		}
		if err := s.group(b, b.wants[at:at+len(heads)], heads); err != nil {
			return err
		}
		at += len(heads)
		s.f.mu.Lock()
		b.at = at
		s.f.mu.Unlock()
	}
	s.rest.Store(len(s.out) == 1) // all that was asked for has come
	return s.in.flush()
}

// group reads the blocks of one group.
func (s *session) group(b *batch, wants []int32, heads []uint32) error {
	s.f.mu.Lock()
	s.in.begin()
	for n, h := range heads {
		switch it := &s.f.items[wants[n]]; h {
		case headMissing:
			it.lacks |= s.p.bit
			s.p.lacking++
		case headLeftOut:
			s.f.mu.Unlock()
			return fmt.Errorf("%w: a block left out of an answer to get/1", ErrProtocol)
		default:
			s.in.expect(wants[n], it.ref, int(h-headBlock))
		}
	}
	s.f.mu.Unlock()
	return s.in.read()
}

// explain puts words to the ways a stream ends.
func (f *fetch) explain(err error) error {
	var slow net.Error
	switch {
	case errors.Is(err, ErrProtocol):
		return err
	case errors.As(err, &slow) && slow.Timeout():
		return fmt.Errorf("gave no byte for %v: %w", f.e.o.Stall, err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("closed the stream in the midst of it: %w", err)
	}
	return fmt.Errorf("the stream broke: %w", err)
}
