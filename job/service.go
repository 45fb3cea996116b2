package job

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
)

// serviceGrace is how long a service has to end by itself when its provider
// ends it as its owner has told.
const serviceGrace = 10 * time.Second

// untilReady enters Running: at once, or when the container answers its probe.
// A container that ends before, or whose time is up, never does; it is on its
// end when this returns.
func (e *execution) untilReady(ctx context.Context) error {
	switch c := e.contract(); {
	case c.State.order() >= Running.order() || c.TimeUp != "":
		return nil
	case c.ReadyMax == 0:
		return e.enter(ctx, Running)
	}
	if err := e.enter(ctx, Starting); err != nil {
		return err
	}
	probing, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer stop()
	watch.Go(func() { // its end, whoever waits for it next learns how it came
		_, _ = e.p.Sandbox.Wait(probing, e.containerID())
		stop()
	})
	if ready, err := e.probe(ctx, probing); !ready || err != nil {
		return err
	}
	waited := e.waited(ctx)
	e.mu.Lock()
	ending := e.ending() // what answers in its last moments is not begun to be paid for
	e.c.WaitedBefore = waited
	e.mu.Unlock()
	if ending {
		return nil
	}
	return e.enter(ctx, Running)
}

// probe tries until the service is ready, its time is up, or probing ends with
// its container.
func (e *execution) probe(ctx, probing context.Context) (ready bool, err error) {
	spec := e.lease.Msg.GetSpec().GetReady()
	for wait := retryFirst; ; {
		limit := probeTime
		if left := e.readyLeft(ctx); left > 0 { // once at least, however long this node was away
			limit = min(limit, left)
		}
		err := probe(probing, e.reach.connect, spec, limit)
		if err == nil {
			return true, nil
		}
		if probing.Err() != nil {
			return false, ctx.Err()
		}
		e.mu.Lock()
		e.unwell = err.Error()
		e.mu.Unlock()
		left := e.readyLeft(ctx)
		if left <= 0 {
			return false, e.outOfTime(ctx, LimitReady, serviceGrace)
		}
		if !pause(probing, &wait, min(probeMost, left), nil) {
			return false, ctx.Err()
		}
	}
}

// readyLeft is how much of the time to be ready there is left. Waiting for the
// image is not the service's, as far as the time to fetch goes.
func (e *execution) readyLeft(ctx context.Context) time.Duration {
	c := e.contract()
	left := c.ReadyMax - e.p.Now().Sub(c.StartingAt)
	if left > 0 {
		return left
	}
	return left + min(e.waited(ctx), max(0, c.FetchMax-c.StartingAt.Sub(c.LeasedAt)))
}

// outOfTime decides that the work ends for what is named, and ends it.
func (e *execution) outOfTime(ctx context.Context, of string, grace time.Duration) error {
	return e.insist(ctx, func() error {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.advance(ctx, TimeUp{Of: of, Grace: grace}, e.p.Now())
	})
}

// attend watches over a service while it runs, until the function it returns is
// called.
func (e *execution) attend(ctx context.Context) (leave func()) {
	c, idle := e.contract(), time.Duration(e.lease.Msg.GetSpec().GetIdleStopMs())*time.Millisecond
	ctx, cancel := context.WithCancel(ctx)
	var g sync.WaitGroup
	if c.State == Running && c.ReadyMax > 0 {
		g.Go(func() { e.holdLimit(ctx, c) })
	}
	if c.State == Running && idle > 0 {
		g.Go(func() { e.watchIdle(ctx, idle) })
	}
	return func() {
		cancel()
		g.Wait()
	}
}

// holdLimit ends a service whose paid time is up: its sandbox counts from the
// container's start.
func (e *execution) holdLimit(ctx context.Context, c Contract) {
	t := time.NewTimer(c.RunningAt.Add(c.paidLimit()).Sub(e.p.Now()))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return
	case <-t.C:
	}
	if err := e.outOfTime(ctx, sandbox.LimitTime, 0); err != nil && ctx.Err() == nil {
		e.p.Log.Error("end a service at its limit", "lease", c.ID.Short(), "err", err)
	}
}

// watchIdle ends a service when nobody has been connected to its ports for so
// long. A restart of this node, which cuts all connections, begins that anew.
func (e *execution) watchIdle(ctx context.Context, limit time.Duration) {
	began := e.p.Now()
	t := time.NewTimer(limit)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.visits.changed:
		case <-t.C:
		}
		since, idle := e.visits.idle(began)
		left := limit - e.p.Now().Sub(since)
		switch {
		case !idle:
			t.Stop()
			continue
		case left > 0:
			t.Reset(left)
			continue
		}
		e.p.Log.Info("service is idle", "lease", e.lease.ID().Short(), "limit", limit)
		if err := e.outOfTime(ctx, LimitIdle, serviceGrace); err != nil && ctx.Err() == nil {
			e.p.Log.Error("end an idle service", "lease", e.lease.ID().Short(), "err", err)
		}
		return
	}
}

// sandboxLimit is how long the container may exist, as its sandbox counts it.
func (c Contract) sandboxLimit() time.Duration {
	if c.ReadyMax == 0 {
		return c.paidLimit()
	}
	return c.paidLimit() + c.ReadyMax + c.FetchMax // which its image may arrive in
}

// paid is what a container's time comes to: all of it, or that since it was
// ready.
func (c Contract) paid(exit sandbox.Exit) int64 {
	switch {
	case exit.Started.IsZero():
		return 0
	case exit.Found: // nobody knows how long it ran beyond what was reported
		return c.UsageMs
	case c.ReadyMax == 0:
		return c.paidTime(exit.Ended.Sub(exit.Started), exit.Usage.Waited)
	case c.RunningAt.IsZero():
		return 0
	}
	ran := c.paidTime(exit.Ended.Sub(c.RunningAt), exit.Usage.Waited-c.WaitedBefore)
	return min(ran, c.paidLimit().Milliseconds())
}

// serviceEnd words an end that is a service's alone, and reports whether it was
// one. The lock is held.
func (e *execution) serviceEnd(end *Ended, exit sandbox.Exit) bool {
	c := &e.c
	byTime := exit.Exceeded != nil && exit.Exceeded.Limit == sandbox.LimitTime
	switch {
	case c.TimeUp == LimitIdle && exit.Stopped && !killedFor(exit) && exit.Source == sandbox.SourceJob:
		e.servedItsTime(end, exit)
	case c.ReadyMax == 0:
		return false
	case c.RunningAt.IsZero() && (byTime || c.TimeUp == LimitReady):
		e.neverReady(end, exit)
	case c.RunningAt.IsZero() && exit.Source != sandbox.SourceSandbox:
		end.State = Failed
		if end.Reason == "" {
			end.Reason = fmt.Sprintf("exit code %d", exit.Code)
		}
		end.Reason = "it ended before it was ready: " + end.Reason
		if exit.Code == 0 {
			end.ExitCode = sandbox.CodeSandbox
		}
	case byTime || c.TimeUp == sandbox.LimitTime:
		limit := uint64(c.paidLimit())
		x := &sandbox.Exceeded{Limit: sandbox.LimitTime, Max: limit, Seen: limit, At: c.TimeUpAt, Killed: true}
		if byTime {
			x.At = exit.Exceeded.At
		}
		end.State, end.ExitCode, end.Exceeded, end.Reason = Failed, sandbox.CodeTimeout, e.exceeded(x), x.String()
	default:
		return false
	}
	return true
}

// servedItsTime words the end of an idle service, which is what its owner wants:
// the signal that ended it is no failure of its.
func (e *execution) servedItsTime(end *Ended, exit sandbox.Exit) {
	const signalled = 128
	if exit.Signal != 0 || exit.Code == signalled+int(syscall.SIGTERM) || exit.Code == signalled+int(syscall.SIGKILL) {
		end.ExitCode = 0
	}
	idle := time.Duration(e.lease.Msg.GetSpec().GetIdleStopMs()) * time.Millisecond
	end.State, end.Reason = Done, fmt.Sprintf("idle for %s: no connection to its ports", spanWord(idle))
}

// spanWord is a time without the zeros at its end: 10m, not 10m0s.
func spanWord(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// neverReady words the end of a service that took too long to be ready.
func (e *execution) neverReady(end *Ended, exit sandbox.Exit) {
	c := &e.c
	at := c.TimeUpAt
	if at.IsZero() { // its sandbox ended it while this node was away
		at = exit.Ended
	}
	end.State, end.ExitCode, end.ExitSource = Failed, sandbox.CodeTimeout, sandbox.SourceJob
	end.Exceeded = &Exceeded{
		Limit: LimitReady, Max: uint64(c.ReadyMax.Milliseconds()), Seen: uint64(max(0, at.Sub(c.StartingAt).Milliseconds())), At: at,
	}
	end.Reason = fmt.Sprintf("not ready within %s", spanWord(c.ReadyMax))
	if e.unwell != "" {
		end.Reason += ": " + e.unwell
	}
}
