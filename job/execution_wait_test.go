package job

import (
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
)

// Time in which a program waited for its image is in no heartbeat and in no
// result.
func TestWaitingForTheImageIsNotPaid(t *testing.T) {
	began := time.Unix(1_700_000_000, 0)
	e := &execution{c: Contract{State: Running, RunningAt: began, UsageMs: 1500}}
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
