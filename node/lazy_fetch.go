package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/p2p/content"
)

// Pauses before a fetch is begun again.
const (
	againFirst = time.Second
	againMost  = 30 * time.Second
)

// steadyFetch is a fetch that is begun again when it ends because nobody could
// give what was missing: a container that runs on its image is not ended because
// who has the image is away for a while. It is a content.Source.
type steadyFetch struct {
	begin func(ctx context.Context) *content.Fetcher
	// again waits until a fetch that failed is to be begun again; false says that
	// nobody wants it any more. tries is how many in a row brought nothing.
	again func(ctx context.Context, err error, tries int) bool

	mu       sync.Mutex
	cur      *content.Fetcher
	next     chan struct{} // closed when cur is another, or it is over
	over     chan struct{} // closed when err is set
	err      error
	begun    int
	received uint64 // by fetches before cur
}

// startSteady begins the first fetch; run must be called.
func startSteady(ctx context.Context, begin func(context.Context) *content.Fetcher, again func(context.Context, error, int) bool) *steadyFetch {
	return &steadyFetch{
		begin: begin, again: again, cur: begin(ctx), begun: 1,
		next: make(chan struct{}), over: make(chan struct{}),
	}
}

// run returns when all is here, when nothing can mend what failed, when it is
// not to be tried again, or when ctx ends.
func (s *steadyFetch) run(ctx context.Context) {
	tries := 0
	for {
		cur := s.current()
		err := cur.Wait(ctx)
		cur.Stop()
		got := cur.Progress().Received
		if tries++; got > 0 {
			tries = 1
		}
		if !errors.Is(err, content.ErrUnavailable) || !s.again(ctx, err, tries) {
			s.end(err)
			return
		}
		s.replace(s.begin(ctx), got)
	}
}

func (s *steadyFetch) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	close(s.over)
	close(s.next)
}

func (s *steadyFetch) replace(cur *content.Fetcher, got uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cur = cur
	s.begun++
	s.received += got
	close(s.next)
	s.next = make(chan struct{})
}

func (s *steadyFetch) current() *content.Fetcher {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur
}

// measure is how much came over the network, and whether that was without a break.
func (s *steadyFetch) measure() (received uint64, smooth bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received + s.cur.Progress().Received, s.begun == 1
}

// wait does what waits for blocks of the present fetch, and with the next one
// again if that one ended without them.
func (s *steadyFetch) wait(ctx context.Context, do func(*content.Fetcher) error) error {
	for {
		s.mu.Lock()
		cur, next := s.cur, s.next
		s.mu.Unlock()
		err := do(cur)
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-cur.Done():
		default:
			return err
		}
		select {
		case <-next:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-s.over:
			if s.err != nil {
				return s.err
			}
			return err
		default:
		}
	}
}

// Need implements content.Source.
func (s *steadyFetch) Need(ctx context.Context, cids []cid.Cid) error {
	return s.wait(ctx, func(f *content.Fetcher) error { return f.Need(ctx, cids) })
}

// Await implements content.Source.
func (s *steadyFetch) Await(ctx context.Context, cids []cid.Cid) error {
	return s.wait(ctx, func(f *content.Fetcher) error { return f.Await(ctx, cids) })
}

// Prioritize implements content.Source. What is waited for is asked for again of
// a later fetch, and what is only likely to be wanted is not.
func (s *steadyFetch) Prioritize(cids []cid.Cid) error { return s.current().Prioritize(cids) }

// Wait implements content.Source.
func (s *steadyFetch) Wait(ctx context.Context) error {
	select {
	case <-s.over:
		return s.err
	case <-ctx.Done():
		return ctx.Err()
	}
}
