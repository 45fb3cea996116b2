package job

import (
	"testing"
	"time"
)

// phase is a place in a lease's life where a test can act, with what holds a
// lease there and what lets it go on.
type phase struct {
	name  string
	hold  func(w *town)
	there func(w *town) bool
	goOn  func(w *town)
	// ran says whether the program has run when the phase is reached.
	ran string
}

const (
	yes   = "yes"
	no    = "no"
	maybe = "maybe"
)

func withFiles(words ...string) Spec {
	s := oneTask(words...)
	s.Outputs = []OutputSpec{{From: "/out"}}
	s.Inputs = []InputSpec{{From: "data", To: "/in"}}
	return s
}

// everyPhase is all of a lease's life, for one task on one provider that prints,
// waits at its gate and prints again.
func everyPhase() []phase {
	nothing := func(*town) {}
	inState := func(s State) func(*town) bool {
		return func(w *town) bool { return w.state("j1", 0) == s }
	}
	return []phase{
		{
			"queued",
			func(w *town) { providerOf(w.shops[0]).Pause() },
			func(w *town) bool { return w.renter.store.job("j1").Heard == 1 },
			func(w *town) { providerOf(w.shops[0]).Resume() }, no,
		},
		{
			"proposed, the award on its way",
			func(w *town) {
				w.rules(func(c call) fate {
					if c.name == "lease" && c.n == 1 {
						return fate{delay: 4 * time.Second}
					}
					return fate{}
				})
			}, inState(Proposed), nothing, maybe, // for a moment, when the award arrives
		},
		{
			"proposed, the answer lost",
			func(w *town) {
				w.rules(func(c call) fate {
					return fate{loseAnswer: c.name == "lease", lose: c.name == "heartbeat" || c.name == "status"}
				})
			},
			func(w *town) bool {
				return w.state("j1", 0) == Proposed && len(w.shops[0].store.allContracts()) > 0
			}, func(w *town) { w.rules(nil) }, yes,
		},
		{
			"fetching",
			func(w *town) { w.shops[0].depot.set(func(d *depot) { d.gate = make(chan struct{}) }) },
			inState(Fetching),
			func(w *town) {
				w.shops[0].depot.set(func(d *depot) { close(d.gate); d.gate = nil })
			}, no,
		},
		{"running", nothing, inState(Running), nothing, yes},
		{
			"saving",
			func(w *town) {
				w.shops[0].machine.open()
				w.shops[0].depot.set(func(d *depot) { d.save = make(chan struct{}) })
			}, inState(Saving),
			func(w *town) {
				w.shops[0].depot.set(func(d *depot) { close(d.save); d.save = nil })
			}, yes,
		},
		{
			"done, the outputs on their way",
			func(w *town) {
				w.shops[0].machine.open()
				w.rules(func(c call) fate { return fate{lose: c.name == "outputs"} })
			},
			func(w *town) bool { return w.calls("outputs") > 0 },
			func(w *town) { w.rules(nil) }, yes,
		},
		{
			"done, the receipt lost",
			func(w *town) {
				w.shops[0].machine.open()
				w.rules(func(c call) fate { return fate{loseAnswer: c.name == "result"} })
			},
			func(w *town) bool { return w.state("j1", 0) == Done },
			func(w *town) { w.rules(nil) }, yes,
		},
	}
}

func TestCancelInEveryPhase(t *testing.T) {
	for _, p := range everyPhase() {
		t.Run(p.name, func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
				p.hold(w)
				w.submit("j1", withFiles("print", "gate", "print"))
				w.await(p.name, func() bool { return p.there(w) })
				if job := w.renter.store.job("j1"); job.Over() {
					p.goOn(w)
					return // nothing is left to cancel
				}
				w.stop("j1", 2*time.Second)
				w.pass(time.Second)
				p.goOn(w)
				j := w.over("j1")
				late := p.name == "saving" || p.name == "done, the outputs on their way"
				if j.State != JobCancelled && (!late || j.State != JobDone) {
					t.Errorf("job %s %q", j.State, j.Reason)
				}
				if j.State == JobCancelled && (j.Reason != "stopped by its owner" || j.ExitCode != 130) {
					t.Errorf("reason %q, exit %d", j.Reason, j.ExitCode)
				}
				if n := len(w.shops[0].machine.ran()); p.ran != maybe && (n > 0) != (p.ran == yes) {
					t.Errorf("the program ran %d times", n)
				}
			})
		})
	}
}

func TestStubbornProgramIsKilledAfterItsGrace(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", oneTask("stubborn", "gate"))
		w.await("it to run", func() bool { return w.state("j1", 0) == Running })
		began := time.Now()
		w.stop("j1", 20*time.Second)
		w.over("j1")
		if took := time.Since(began); took < 20*time.Second || took > 25*time.Second {
			t.Errorf("it ended after %s, with a grace of 20s", took)
		}
	})
}

func TestCancelOfAnArray(t *testing.T) {
	// The heartbeats are so rare that a stop may not wait for one.
	inTown(t, plan{prices: []uint64{testPrice, testPrice}, cores: 2, beat: 30 * time.Second}, func(t *testing.T, w *town) {
		w.submit("j1", array(10, 0, "gate"))
		w.await("four to run", func() bool { return w.renter.store.job("j1").Counts[string(Running)] == 4 })
		began := time.Now()
		w.stop("j1", 0)
		j := w.over("j1")
		if j.State != JobCancelled || j.Counts[string(Cancelled)] != 10 {
			t.Errorf("job %s: %v", j.State, j.Counts)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the stop took %s", took)
		}
	})
}

// TestCancelWhileTheProviderIsSilent ends a job whose provider cannot be told.
func TestCancelWhileTheProviderIsSilent(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", oneTask("gate"))
		w.await("it to run", func() bool { return w.state("j1", 0) == Running })
		w.pass(2 * time.Second)
		w.cutOff(w.shops[0])
		w.stop("j1", 0)
		if j := w.over("j1"); j.State != JobCancelled {
			t.Errorf("job %s %q", j.State, j.Reason)
		}
		w.pass(5 * time.Second)
		w.rules(nil)
	})
}

// TestCancelOutlivesItsProvider kills the provider while its container uses up
// its grace: the next life carries the stop out.
func TestCancelOutlivesItsProvider(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", oneTask("stubborn", "gate"))
		w.await("it to run", func() bool { return w.state("j1", 0) == Running })
		w.stop("j1", 10*time.Second)
		w.await("the provider to hear of it", func() bool { return !w.shops[0].store.allContracts()[0].CancelAt.IsZero() })
		w.shops[0].kill()
		w.pass(testBeat)
		w.shops[0].reopen()
		began := time.Now()
		if j := w.over("j1"); j.State != JobCancelled || time.Since(began) > 12*time.Second {
			t.Errorf("job %s after %s", j.State, time.Since(began))
		}
	})
}

// TestShutdownDoesNotWaitForAStop ends a provider's process while a container
// uses up a long grace.
func TestShutdownDoesNotWaitForAStop(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", oneTask("stubborn", "gate"))
		w.await("it to run", func() bool { return w.state("j1", 0) == Running })
		w.stop("j1", time.Minute)
		w.await("the provider to hear of it", func() bool { return !w.shops[0].store.allContracts()[0].CancelAt.IsZero() })
		began := time.Now()
		w.shops[0].shut()
		if took := time.Since(began); took > time.Second {
			t.Errorf("the shutdown took %s", took)
		}
		w.shops[0].reopen()
		w.over("j1")
	})
}
