package job

import (
	"bytes"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
)

// A state that nobody left can go on from is given up, and the task begins anew.
func TestCheckpointNobodyCanTake(t *testing.T) {
	hosts := []sandbox.Portability{{Engine: "e1", CPU: []byte{3}}, {Engine: "e2", CPU: []byte{3}}}
	inTown(t, plan{prices: []uint64{1, testPrice}, change: func(i int, cfg *ProviderConfig) { cfg.Portability = &hosts[i] }}, func(t *testing.T, w *town) {
		w.submit("j1", ticking(30))
		w.saved(9)
		w.shops[0].lose()
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("%s %q", j.State, j.Reason)
		}
		lines := w.lines()
		if len(lines) != 2 || len(lines[1]) < 30 || lines[1][0] != "tick 1" {
			t.Errorf("%q", lines)
		}
		w.shops[0].reopen()
	})
}

// Heartbeats tell of a checkpoint again while it is fetched: it is kept once, and
// the one before stays.
func TestCheckpointToldOfTwice(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.rules(func(c call) fate {
			if c.name == "outputs" {
				return fate{delay: 3 * testBeat}
			}
			return fate{}
		})
		w.submit("j1", ticking(60))
		w.saved(19)
		w.pass(4 * testBeat) // in which it could be fetched again
		if c := w.task("j1").Checkpoints; len(c) != keepCheckpoints || bytes.Equal(c[0].Root, c[1].Root) {
			t.Errorf("%+v", c)
		}
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("%s %q", j.State, j.Reason)
		}
	})
}

// The time that a provider takes to store the last state is not the renter's: the
// program has ended.
func TestCheckpointDrainIsNotBilled(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice, testPrice}}, func(t *testing.T, w *town) {
		w.storing = time.Minute
		w.submit("j1", ticking(60))
		w.await("the job to run", func() bool { return w.at() != nil })
		w.pass(3500 * time.Millisecond)
		first := w.at()
		providerOf(first).Drain()
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("%s %q", j.State, j.Reason)
		}
		if c := leaseOn(first); c.UsageMs < 3000 || c.UsageMs > 5000 {
			t.Errorf("%d ms are billed of a program that ran for four seconds", c.UsageMs)
		}
	})
}
