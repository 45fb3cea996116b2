package job

import (
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/ledger"
)

// Time in which a program waited for its image is in no heartbeat and in no
// result.
func TestWaitingForTheImageIsNotPaid(t *testing.T) {
	began := time.Unix(1_700_000_000, 0)
	e := &execution{c: Contract{State: Running, LeasedAt: began.Add(-time.Minute), RunningAt: began, FetchMax: 2 * time.Minute, UsageMs: 1500}}
	for _, c := range []struct {
		ran, waited time.Duration
		want        int64
	}{{10 * time.Second, 0, 10_000}, {10 * time.Second, 4 * time.Second, 6000}, {10 * time.Second, 9 * time.Second, 1500}, {time.Second, time.Minute, 1500}} {
		if got := e.usage(began.Add(c.ran), Running, c.waited); got != c.want {
			t.Errorf("ran %s, waited %s: %d ms, want %d", c.ran, c.waited, got, c.want)
		}
	}
	exit := sandbox.Exit{Started: began, Ended: began.Add(10 * time.Second), Usage: sandbox.Usage{Waited: 4 * time.Second}}
	if end := e.endOf(exit); end.UsageMs != 6000 {
		t.Errorf("the result says %d ms", end.UsageMs)
	}
}

// A file that is kept back lets nothing run for free for longer than the image
// may take to come.
func TestWaitingLongIsPaid(t *testing.T) {
	began := time.Unix(1_700_000_000, 0)
	c := Contract{State: Running, LeasedAt: began.Add(-50 * time.Second), RunningAt: began, FetchMax: time.Minute}
	e := &execution{c: c}
	if got := e.usage(began.Add(time.Hour), Running, time.Hour); got != (time.Hour - 10*time.Second).Milliseconds() {
		t.Errorf("an hour of it is %d ms", got)
	}
	exit := sandbox.Exit{Started: began, Ended: began.Add(time.Hour), Usage: sandbox.Usage{Waited: time.Hour}}
	if end := e.endOf(exit); end.UsageMs != (time.Hour - 10*time.Second).Milliseconds() {
		t.Errorf("the result says %d ms", end.UsageMs)
	}
	e.c.RunMax, e.c.Budget, e.c.ReadyMax = time.Hour, ledger.Units(Asset, 1_000_000), time.Minute
	e.c.StartingAt, e.c.RunningAt, e.c.WaitedBefore = began, began.Add(20*time.Second), 8*time.Second
	if got := e.usage(began.Add(80*time.Second), Running, time.Minute); got != 58_000 {
		t.Errorf("a minute of a service that waited before is %d ms", got)
	}
}
