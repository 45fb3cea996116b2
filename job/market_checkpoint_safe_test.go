package job

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
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

// A state that nobody can take for a while is not given up sooner than it could be
// made again.
func TestCheckpointWaitsForAnother(t *testing.T) {
	hosts := []sandbox.Portability{{Engine: "e1", CPU: []byte{3}}, {Engine: "e2", CPU: []byte{3}}, {Engine: "e1", CPU: []byte{3}}}
	inTown(t, plan{prices: []uint64{1, testPrice, testPrice}, change: func(i int, cfg *ProviderConfig) { cfg.Portability = &hosts[i] }}, func(t *testing.T, w *town) {
		w.shops[2].kill()
		w.submit("j1", ticking(90))
		w.saved(59)
		w.shops[0].lose()
		w.await("the task to wait", func() bool { return w.task("j1").State == TaskQueued })
		w.pass(40 * time.Second)
		if c := w.task("j1").Checkpoints; len(c) == 0 || w.at() != nil {
			t.Fatalf("%+v", c)
		}
		w.shops[2].reopen()
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("%s %q", j.State, j.Reason)
		}
		if lines := w.lines(); len(lines) != 2 || slices.Contains(lines[1], "tick 1") {
			t.Errorf("%q", lines)
		}
		w.shops[0].reopen()
	})
}

// A provider that was drained, and is open again, is as good as another.
func TestCheckpointComesBack(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice, testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", ticking(60))
		w.saved(9)
		first := w.at()
		_ = providerOf(first).Drain()
		w.await("the other provider", func() bool { s := w.at(); return s != nil && s != first })
		second := w.at()
		w.pass(15 * time.Second)
		providerOf(first).Resume()
		second.lose()
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("%s %q", j.State, j.Reason)
		}
		lines := w.lines()
		if len(lines) != 3 || slices.Contains(lines[2], "tick 1") {
			t.Errorf("%q", lines)
		}
		second.reopen()
	})
}

// What a provider made before this one stays until the task is over: its own may
// all be bad.
func TestKeepWith(t *testing.T) {
	lease := func(b byte) (id protocol.MsgID) { id[0] = b; return id }
	at := func(l byte, n int64) CheckpointRecord {
		return CheckpointRecord{Lease: lease(l), At: time.UnixMilli(n)}
	}
	var have []CheckpointRecord
	for i, l := range []byte{1, 1, 1, 2, 2, 2, 3, 4} {
		have = keepWith(at(l, int64(i)), have)
	}
	var got []int64
	for _, c := range have {
		got = append(got, c.At.UnixMilli())
	}
	if !slices.Equal(got, []int64{7, 6}) {
		t.Errorf("%v", got)
	}
	have = nil
	for i, l := range []byte{1, 1, 1, 2, 2, 2} {
		have = keepWith(at(l, int64(i)), have)
	}
	if len(have) != 3 || have[2].At.UnixMilli() != 2 || have[2].Lease != lease(1) {
		t.Errorf("%+v", have)
	}
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
