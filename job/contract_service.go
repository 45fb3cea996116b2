package job

import (
	"fmt"
	"time"
)

// Limits of a service that its provider's node holds, as in Exceeded.
const (
	// LimitReady is the time in which a service must answer its probe.
	LimitReady = "ready"
	// LimitIdle is the time after which a service that nobody is connected to has
	// done its work.
	LimitIdle = "idle"
)

// timeUp notes on the provider's side why it ends the work, before it does:
// what was decided holds over a restart.
func (c Contract) timeUp(in TimeUp, now time.Time) (Contract, []Effect, error) {
	if c.Side != SideProvider || in.Of == "" {
		return c, nil, fmt.Errorf("time is up for %q: %w", in.Of, ErrTransition)
	}
	if c.State.Terminal() || c.TimeUp != "" || !c.CancelAt.IsZero() {
		return c, nil, nil
	}
	c.TimeUp, c.TimeUpAt, c.Grace = in.Of, now, in.Grace
	return c, []Effect{EffectStop}, nil
}

// started reports whether a container has begun, ready or not.
func (c Contract) started() bool { return !c.StartingAt.IsZero() || !c.RunningAt.IsZero() }

// paidLimit is how long the work may be paid for: its limit, or what the budget
// lasts for.
func (c Contract) paidLimit() time.Duration { return min(c.RunMax, c.affordable()) }
