package content

import (
	"context"
	"sync"
	"time"
)

// share is how many turns those ahead take for one of those who wait.
const share = 7

// turns shares what a node uploads: a number of groups are written at one
// time, at a rate, those of peers with priority first and one in eight for the
// others, so that none starves. Each stream waits for one turn at a time, so
// within a class streams take turns. A quarter of the turns is for those with
// priority alone, and one whose peer does not take its bytes is not counted
// meanwhile, so that nobody holds all by reading slowly.
type turns struct {
	now func() time.Time

	mu     sync.Mutex
	free   int     // turns that may be taken; below 0 as those set aside come back
	most   int     // of them, in all
	others int     // taken and counted, of those without priority
	aside  int     // taken and not counted
	rate   float64 // bytes a second; 0 is no bound
	tokens float64 // bytes that may be sent now; below 0 a turn must wait
	at     time.Time
	queues [2][]*turn // those with priority, and the others
	ahead  int        // turns in a row given to those with priority while others waited
	timer  *time.Timer
}

// turn is somebody waiting.
type turn struct {
	t     *turns
	class int
	bytes int
	ready chan struct{} // closed when it is theirs
	given bool
	aside bool // its peer takes nothing
}

func newTurns(places int, bytesPerSecond uint64, now func() time.Time) *turns {
	return &turns{now: now, free: places, most: places, rate: float64(bytesPerSecond), at: now()}
}

// take waits for a turn to send bytes, which give gives back. While it waits,
// alive is called every interval, and ends the wait with its error.
func (t *turns) take(ctx context.Context, first bool, bytes int, interval time.Duration, alive func() error) (w *turn, err error) {
	w = &turn{t: t, class: 1, bytes: bytes, ready: make(chan struct{})}
	if first {
		w.class = 0
	}
	t.mu.Lock()
	t.queues[w.class] = append(t.queues[w.class], w)
	t.next()
	given := w.given
	t.mu.Unlock()
	if given {
		return w, nil
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-w.ready:
			return w, nil
		case <-ctx.Done():
			err = ctx.Err()
		case <-tick.C:
			err = alive()
		}
		if err != nil {
			t.leave(w)
			return nil, err
		}
	}
}

// count takes a turn into account, or with n of -1 out of it. The caller holds mu.
func (t *turns) count(w *turn, n int) {
	t.free -= n
	t.others += n * w.class
}

// give gives a turn back.
func (w *turn) give() {
	t := w.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.aside {
		t.aside--
	} else {
		t.count(w, -1)
	}
	t.next()
}

// blocked says whether the turn's peer takes no bytes now: if so, somebody else
// may have a turn. No more are set aside than there are turns, for on a slow
// uplink all block, and are not to be written all at once.
func (w *turn) blocked(yes bool) {
	t := w.t
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case yes == w.aside, yes && t.aside >= t.most:
		return
	case yes:
		t.aside++
		t.count(w, -1)
	default:
		t.aside--
		t.count(w, 1)
	}
	w.aside = yes
	t.next()
}

// leave ends a wait.
func (t *turns) leave(w *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.given {
		t.count(w, -1)
		t.tokens += float64(w.bytes)
		t.next()
		return
	}
	q := t.queues[w.class]
	for i := range q {
		if q[i] == w {
			t.queues[w.class] = append(q[:i:i], q[i+1:]...)
			return
		}
	}
}

// next gives turns to those waiting. The caller holds mu.
func (t *turns) next() {
	for t.free > 0 {
		class := 0
		others := len(t.queues[1]) > 0 && t.others < t.most-t.most/4
		switch {
		case len(t.queues[0]) == 0 && !others:
			return
		case len(t.queues[0]) == 0, others && t.ahead >= share:
			class = 1
		}
		w := t.queues[class][0]
		if wait := t.wait(); wait > 0 {
			if t.timer == nil {
				t.timer = time.AfterFunc(wait, t.resume)
			}
			return
		}
		t.queues[class] = t.queues[class][1:]
		t.ahead++
		if class == 1 {
			t.ahead = 0
		}
		t.count(w, 1)
		t.tokens -= float64(w.bytes)
		w.given = true
		close(w.ready)
	}
}

func (t *turns) resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timer = nil
	t.next()
}

// wait says how long the rate keeps the next turn from beginning. The caller
// holds mu.
func (t *turns) wait() time.Duration {
	if t.rate == 0 {
		return 0
	}
	now := t.now()
	t.tokens = min(t.tokens+t.rate*now.Sub(t.at).Seconds(), t.rate/4)
	t.at = now
	if t.tokens >= 0 {
		return 0
	}
	return max(time.Millisecond, time.Duration(-t.tokens/t.rate*float64(time.Second)))
}

// Spend waits until n bytes may be sent within UploadRate by somebody who sends
// blocks in another way, in line with the streams of those without priority.
func (e *Exchange) Spend(ctx context.Context, n int) error { return e.spend(ctx, false, n) }

func (e *Exchange) spend(ctx context.Context, first bool, n int) error {
	if e.o.UploadRate == 0 {
		return nil
	}
	turn, err := e.turns.take(ctx, first, n, time.Hour, func() error { return nil })
	if err != nil {
		return err
	}
	turn.give()
	return nil
}
