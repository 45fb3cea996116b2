package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/p2p/content"
)

// bring fetches an image, lays it out as soon as its tables are here, and ends
// when it is whole or cannot be had.
func (s *arrivals) bring(ctx context.Context, a *arrival) {
	err := s.bringAll(ctx, a)
	s.mu.Lock()
	defer s.mu.Unlock()
	a.err, a.whole, a.lazy = err, err == nil, nil
	select {
	case <-a.ready:
	default:
		close(a.ready)
	}
	if err != nil && ctx.Err() == nil {
		s.n.log.Warn("an image does not arrive", "image", a.root, "err", err)
	}
	a.mu.Lock()
	a.progress = nil
	a.mu.Unlock()
	close(a.over)
	s.tidy(a)
}

func (s *arrivals) bringAll(ctx context.Context, a *arrival) error {
	if err := os.MkdirAll(s.images.dir, 0o755); err != nil {
		return err
	}
	more, stop := s.n.holders(ctx, a.root)
	defer stop()
	began := s.n.now()
	tell := s.tell(a)
	ctx, cancel := context.WithCancel(ctx)
	f := startSteady(ctx, func(ctx context.Context) *content.Fetcher {
		plan := s.plan(a)
		return s.n.exchange.Start(ctx, a.root, content.FetchOptions{
			Kind: content.KindImage, Peers: plan.Peers, Origins: plan.Origins, MorePeers: more, MaxBytes: plan.MaxBytes, Progress: tell,
		})
	}, func(ctx context.Context, err error, tries int) bool { return s.again(ctx, a, err, tries) })
	var fetching sync.WaitGroup
	fetching.Go(func() { f.run(ctx) })
	defer fetching.Wait()
	defer cancel()
	if err := content.NeedTables(ctx, s.n.blocks, a.root, f); err != nil {
		return err
	}
	tables := s.n.now()
	l, err := s.layOut(ctx, a, f)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()                             // only read from
	for _, name := range []string{"/etc/passwd", "/etc/group"} { // preparing a container reads them
		if err := l.FillAny(ctx, name); err != nil {
			return err
		}
	}
	dir := s.images.folder(a.root)
	plan, err := json.Marshal(s.plan(a))
	if err == nil {
		err = os.WriteFile(dir+lazyPlan, plan, 0o600)
	}
	if err != nil {
		return fmt.Errorf("remember where the image comes from: %w", err)
	}
	s.mu.Lock()
	a.lazy = l
	close(a.ready)
	s.mu.Unlock()
	s.n.log.Info("an image can be used while it arrives", "image", a.root, "files", l.Left(), "first", len(l.Wanted()),
		"tables", tables.Sub(began).Round(time.Millisecond), "layout", s.n.now().Sub(tables).Round(time.Millisecond))
	if err := l.Run(ctx, dir); err != nil {
		return err
	}
	if received, smooth := f.measure(); smooth {
		s.n.link.measured(ctx, received, s.n.now().Sub(began))
	}
	return nil
}

func (s *arrivals) plan(a *arrival) arrivalPlan {
	s.mu.Lock()
	defer s.mu.Unlock()
	return a.plan
}

// layOut lays an image out, its names in memory if there is room for them.
func (s *arrivals) layOut(ctx context.Context, a *arrival, f content.Source) (*content.Lazy, error) {
	dir := s.images.folder(a.root)
	o := content.LazyOptions{
		Fetch: f, First: readFirst(dir + firstEnd), Shape: s.inMemory(a.root),
		ShapeRoom: func(bytes uint64) bool { return s.reserve(a, bytes) },
	}
	l, err := content.OpenLazy(ctx, s.n.blocks, a.root, dir+lazyEnd, o)
	if err != nil && o.Shape != "" && ctx.Err() == nil && !errors.Is(err, content.ErrTooLarge) { // there may be too little memory for it
		err = errors.Join(err, sandbox.RemoveTree(o.Shape))
		s.n.log.Info("an image is laid out on disk", "image", a.root, "why", err)
		s.unreserve(a)
		o.Shape = ""
		l, err = content.OpenLazy(ctx, s.n.blocks, a.root, dir+lazyEnd, o)
	}
	if err == nil {
		s.mu.Lock()
		a.place = l.Shape()
		s.mu.Unlock()
	}
	return l, err
}

// reserve takes memory for the names of an image. Names that an earlier life
// left there take it already.
func (s *arrivals) reserve(a *arrival, bytes uint64) bool {
	_, err := os.Lstat(s.inMemory(a.root))
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && (bytes > maxShape || s.held+bytes > maxShapes) {
		return false
	}
	a.held = bytes
	s.held += bytes
	return true
}

func (s *arrivals) unreserve(a *arrival) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held -= a.held
	a.held = 0
}

// again waits until the fetch of an image that nobody could give is to be begun
// anew: as long as a container runs on it, which its lease's limit ends, or one
// may begin to, within the limit on fetching of the lease that came last.
func (s *arrivals) again(ctx context.Context, a *arrival, why error, tries int) bool {
	pause := againMost
	if tries < 6 {
		pause = min(againMost, againFirst<<(tries-1))
	}
	s.n.log.Info("an image is fetched again soon", "image", a.root, "in", pause, "why", why)
	t := time.NewTimer(pause)
	defer t.Stop()
	for {
		wanted, left := s.wanted(a)
		if !wanted {
			return false
		}
		limit := time.NewTimer(left)
		select {
		case <-ctx.Done():
			limit.Stop()
			return false
		case <-t.C:
			limit.Stop()
			return true
		case <-a.nudge:
			limit.Stop()
		case <-limit.C:
		}
	}
}

// wanted says whether an image is waited for, and for how long at least.
func (s *arrivals) wanted(a *arrival) (bool, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for owner, of := range s.uses {
		if of == a && s.runs[owner] {
			return true, againMost
		}
	}
	left := time.Until(a.until)
	if a.users == 0 { // what asked for it may be about to use it, or gone
		left = min(left, time.Until(a.asked.Add(againMost)))
	}
	return left > 0, left
}

// running notes that an owner's container runs: from now on its own limit ends it.
func (s *arrivals) running(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.uses[owner]; a != nil {
		s.runs[owner] = true
		a.poke()
	}
}

// tell passes on how far the fetch is, and says early that part is here.
func (s *arrivals) tell(a *arrival) func(content.FetchProgress) {
	announced := false
	return func(p content.FetchProgress) { // of one goroutine at a time
		if p.HaveBytes > 0 && !announced {
			announced = true
			s.n.announce(a.root, true)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		// A fetch that is begun again counts anew what is here.
		a.told = job.Progress{Phase: "fetching", Done: max(a.told.Done, p.HaveBytes), Total: max(a.told.Total, p.TotalBytes)}
		for _, f := range a.progress {
			f(a.told)
		}
	}
}
