package job

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
)

// wholeLog is what the program of the crash tests prints in one run.
const wholeLog = "line 1\nline 2\nline 3\n"

// crashJob prints, waits for its gate and prints again.
func crashJob() Spec { return withFiles("print=2", "gate", "print") }

// endsWell lets the job go on and holds its end against what must be: one run,
// all of its log, its outputs.
func endsWell(t *testing.T, w *town, runs int) {
	t.Helper()
	w.shops[0].machine.open()
	j := w.over("j1")
	task := w.renter.store.tasksOf("j1")[0]
	if j.State != JobDone || len(task.Outputs) == 0 {
		t.Errorf("job %s %q, outputs %x\n%s", j.State, j.Reason, task.Outputs, w.picture())
	}
	if log := w.renter.store.logText(task.Lease); log != wholeLog {
		t.Errorf("log %q", log)
	}
	if ran := w.shops[0].machine.ran(); len(ran) > runs {
		t.Errorf("the program ran %d times: %v", len(ran), ran)
	}
}

func TestRenterKilledInEveryPhase(t *testing.T) {
	for _, p := range everyPhase() {
		for _, away := range []time.Duration{time.Second, time.Minute} {
			t.Run(fmt.Sprintf("%s, away %s", p.name, away), func(t *testing.T) {
				inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
					p.hold(w)
					w.submit("j1", crashJob())
					w.await(p.name, func() bool { return p.there(w) })
					w.renter.kill()
					w.pass(away)
					w.renter.reopen()
					p.goOn(w)
					began := time.Now()
					endsWell(t, w, 1)
					if took := time.Since(began); took > 20*time.Second {
						t.Errorf("the end came %s after the renter was back", took)
					}
				})
			})
		}
	}
}

// TestJobsWhileARenterStarts has jobs submitted and stopped after a new life has
// read what the last one left, and before it follows that.
func TestJobsWhileARenterStarts(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("old", oneTask("gate"))
		w.await("it to run", func() bool { return w.state("old", 0) == Running })
		w.renter.shut()
		stall := make(chan struct{})
		w.renter.mu.Lock()
		w.renter.stall = stall
		w.renter.mu.Unlock()
		w.renter.reopen()
		w.group.Go(func() {
			if err := w.trySubmit("new", oneTask("sleep=1s")); err != nil {
				t.Error(err)
			}
		})
		w.group.Go(func() {
			if err := renterOf(w.renter).Stop(t.Context(), "old", "no longer wanted", 0); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		w.renter.mu.Lock()
		w.renter.stall = nil
		w.renter.mu.Unlock()
		close(stall)
		if j := w.over("new"); j.State != JobDone {
			t.Errorf("the new job is %s", j.State)
		}
		if j := w.over("old"); j.State != JobCancelled || j.Reason != "no longer wanted" {
			t.Errorf("the old job is %s %q", j.State, j.Reason)
		}
	})
}

// TestStopWhileARenterEnds has a stop outlive the life that it came too late for.
func TestStopWhileARenterEnds(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", oneTask("gate"))
		w.await("it to run", func() bool { return w.state("j1", 0) == Running })
		w.renter.shut()
		w.stop("j1", 0)
		w.renter.reopen()
		if j := w.over("j1"); j.State != JobCancelled {
			t.Errorf("the job is %s", j.State)
		}
		w.stop("j1", 0) // once more
		if err := renterOf(w.renter).Stop(t.Context(), "j2", "", 0); !errors.Is(err, ErrNotFound) {
			t.Errorf("a job that there is not: %v", err)
		}
	})
}

func TestProviderKilledInEveryPhase(t *testing.T) {
	for _, p := range everyPhase() {
		t.Run(p.name, func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
				p.hold(w)
				w.submit("j1", crashJob())
				w.await(p.name, func() bool { return p.there(w) })
				w.shops[0].kill()
				w.pass(testBeat)
				w.shops[0].reopen()
				if p.name == "queued" {
					providerOf(w.shops[0]).Pause()
				}
				for _, owner := range w.shops[0].machine.left() {
					if w.shops[0].machine.running() > 0 && !slices.Contains(w.shops[0].depot.owners(), owner) {
						t.Errorf("container %s runs on an image that nobody holds", owner)
					}
				}
				p.goOn(w)
				endsWell(t, w, 1)
			})
		})
	}
}

func TestContainerEndsWhileItsProviderIsAway(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", withFiles("print=2", "sleep=3s", "print"))
		w.await("it to run", func() bool { return w.state("j1", 0) == Running })
		w.pass(2500 * time.Millisecond)
		w.shops[0].kill()
		w.pass(1200 * time.Millisecond)
		w.shops[0].reopen()
		endsWell(t, w, 1)
		if j := w.renter.store.job("j1"); j.Spent != ledger.Units(Asset, 3000) {
			t.Errorf("spent %s for 3000 ms", j.Spent)
		}
	})
}

// TestPowerFailure takes provider and container away: the usage up to the last
// heartbeat is booked, and the task runs elsewhere.
func TestPowerFailure(t *testing.T) {
	for _, away := range []time.Duration{testBeat, time.Minute} {
		t.Run(away.String(), func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice / 2, testPrice}}, func(t *testing.T, w *town) {
				first := w.shops[0]
				w.submit("j1", oneTask("print", "sleep=5s", "print"))
				w.await("it to run", func() bool { return w.state("j1", 0) == Running })
				w.pass(2*time.Second + 10*time.Millisecond)
				first.kill()
				first.machine.outage()
				w.pass(away)
				first.reopen()
				j := w.over("j1")
				task := w.renter.store.tasksOf("j1")[0]
				if j.State != JobDone || task.Attempts != 2 || task.Provider != w.shops[1].id().String() {
					t.Errorf("job %s, %+v", j.State, task)
				}
				w.await("the first provider to hear of it", w.quiet)
				c := w.renter.store.allContracts()[0]
				if c.UsageMs < 1500 || c.UsageMs > 2100 || c.Charge != ledger.Charge(Asset, testPrice/2, c.UsageMs) {
					t.Errorf("usage %d ms, charge %s", c.UsageMs, c.Charge)
				}
			})
		})
	}
}

// TestSilentProvider cuts a provider off for longer than is borne: it is lost
// within three heartbeats, the task runs elsewhere, and when it is back it hears
// the receipt and stops.
func TestSilentProvider(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice / 2, testPrice}}, func(t *testing.T, w *town) {
		silent := w.shops[0]
		w.submit("j1", oneTask("print", "sleep=30s"))
		w.await("it to run", func() bool { return w.state("j1", 0) == Running })
		w.pass(3 * time.Second)
		w.cutOff(silent)
		began := time.Now()
		lease := w.renter.store.allContracts()[0].ID
		w.await("the loss to be noticed", func() bool { return w.renter.store.allContracts()[0].State == Lost })
		if took := time.Since(began); took > (MissedHeartbeats+1)*testBeat {
			t.Errorf("noticed after %s", took)
		}
		if silent.machine.running() != 1 {
			t.Error("the silent provider's container does not run on")
		}
		w.await("the task to run elsewhere", func() bool { return w.shops[1].machine.running() == 1 })
		w.rules(nil)
		w.await("the silent provider to stop", func() bool { return silent.machine.running() == 0 })
		if j := w.renter.store.job("j1"); j.Over() {
			t.Error("the silent provider heard only after the job was over")
		}
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("job %s", j.State)
		}
		for _, c := range silent.store.allContracts() {
			if c.ID == lease && (c.State != Lost || !c.Booked || c.UsageMs > 3500) {
				t.Errorf("the silent provider's side: %+v", c)
			}
		}
	})
}

// TestProviderDiesWhileItsOutputsAreFetched has the loss noticed in time although
// the transfer itself would wait for long; one that goes on is not cut short,
// whatever becomes of the heartbeats.
func TestProviderDiesWhileItsOutputsAreFetched(t *testing.T) {
	slow := func(c call) fate {
		switch c.name {
		case "outputs":
			return fate{delay: 5 * time.Minute}
		case "heartbeat":
			return fate{lose: true}
		}
		return fate{}
	}
	inTown(t, plan{prices: []uint64{testPrice / 2, testPrice}}, func(t *testing.T, w *town) {
		first := w.shops[0]
		w.rules(func(c call) fate {
			if c.name == "outputs" && c.to == first {
				return fate{delay: 5 * time.Minute}
			}
			return fate{}
		})
		w.submit("j1", withFiles("sleep=1s"))
		w.await("the outputs to be on their way", func() bool { return w.calls("outputs") > 0 })
		w.pass(time.Minute) // slow, and no fault of anybody's
		if c := w.renter.store.allContracts()[0]; c.State != Saving {
			t.Fatalf("the lease is %s", c.State)
		}
		first.kill()
		first.machine.outage()
		began := time.Now()
		w.await("the loss to be noticed", func() bool { return w.renter.store.allContracts()[0].State == Lost })
		if took := time.Since(began); took > (MissedHeartbeats+1)*testBeat {
			t.Errorf("noticed after %s", took)
		}
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("job %s %q", j.State, j.Reason)
		}
		first.reopen()
	})
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", withFiles("gate"))
		w.await("it to run", func() bool { return w.state("j1", 0) == Running })
		w.rules(slow)
		w.moving.Store(true)
		w.shops[0].machine.open()
		if j := w.over("j1"); j.State != JobDone || w.calls("outputs") != 1 {
			t.Errorf("job %s %q, fetched %d times", j.State, j.Reason, w.calls("outputs"))
		}
	})
}

// TestSilenceWhileOthersArePlaced has a loss noticed in time although a round of
// placing waits for a provider that does not answer.
func TestSilenceWhileOthersArePlaced(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice, testPrice}, cores: 1}, func(t *testing.T, w *town) {
		w.submit("j1", array(3, 0, "sleep=30s"))
		w.await("two to run", func() bool { return w.renter.store.job("j1").Counts[string(Running)] == 2 })
		w.pass(2 * time.Second)
		w.cutOff(w.shops[0])
		began := time.Now()
		lost := func() bool {
			return slices.ContainsFunc(w.renter.store.allContracts(), func(c Contract) bool { return c.State == Lost })
		}
		w.await("the loss", lost)
		if took := time.Since(began); took > (MissedHeartbeats+1)*testBeat {
			t.Errorf("noticed after %s", took)
		}
		w.rules(nil)
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("job %s", j.State)
		}
	})
}

func TestOneLostHeartbeatIsNoLoss(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.rules(func(c call) fate { return fate{lose: c.name == "heartbeat" && c.n%3 != 0} })
		w.submit("j1", oneTask("sleep=30s"))
		if j := w.over("j1"); j.State != JobDone || len(w.renter.store.allContracts()) != 1 {
			t.Errorf("job %s, %d leases", j.State, len(w.renter.store.allContracts()))
		}
	})
}

func TestLostDecision(t *testing.T) {
	for name, rule := range map[string]func(call) fate{
		"a heartbeat proves it": func(c call) fate { return fate{loseAnswer: c.name == "lease", lose: c.name == "status"} },
		"the status tells of it": func(c call) fate {
			return fate{loseAnswer: c.name == "lease", reset: true, delay: heartbeatsLate(c)}
		},
		"the award comes twice": func(c call) fate { return fate{repeat: c.name == "lease"} },
	} {
		t.Run(name, func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice, testPrice}}, func(t *testing.T, w *town) {
				w.rules(rule)
				w.submit("j1", array(4, 0, "print", "sleep=20s"))
				if j := w.over("j1"); j.State != JobDone || len(w.renter.store.allContracts()) != 4 {
					t.Errorf("job %s, %d leases for 4 tasks", j.State, len(w.renter.store.allContracts()))
				}
			})
		})
	}
}

// heartbeatsLate lets the first heartbeats come after the status was asked for.
func heartbeatsLate(c call) time.Duration {
	if c.name == "heartbeat" && c.n <= 4 {
		return testBeat - 10*time.Millisecond
	}
	return 0
}

// TestLostAward never reaches its provider: the task is placed anew when the
// provider says so, or at the latest when the award lapses.
func TestLostAward(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.rules(func(c call) fate { return fate{lose: c.name == "lease" && c.n == 1} })
		began := time.Now()
		w.submit("j1", oneTask("sleep=1s"))
		if j := w.over("j1"); j.State != JobDone || time.Since(began) > 2*acceptWithin {
			t.Errorf("job %s after %s", j.State, time.Since(began))
		}
	})
}

func TestResultLostOrTwice(t *testing.T) {
	for name, rule := range map[string]func(call) fate{
		"the first two are lost":   func(c call) fate { return fate{lose: c.name == "result" && c.n <= 2} },
		"the first receipt is":     func(c call) fate { return fate{loseAnswer: c.name == "result" && c.n == 1} },
		"each comes twice at once": func(c call) fate { return fate{repeat: c.name == "result"} },
		"all receipts are lost":    func(c call) fate { return fate{loseAnswer: c.name == "result"} },
		"all comes twice":          func(c call) fate { return fate{repeat: true} },
	} {
		t.Run(name, func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
				w.rules(rule)
				w.shops[0].machine.open()
				w.submit("j1", crashJob())
				endsWell(t, w, 1)
				w.await("both to have booked", w.quiet)
				for _, s := range []*shop{w.renter, w.shops[0]} {
					if n := len(s.store.journal()); n > 1 {
						t.Errorf("%s has %d entries for one lease", s.name, n)
					}
				}
			})
		})
	}
}

// TestFlakyNetwork loses and delays a fixed share of everything.
func TestFlakyNetwork(t *testing.T) {
	for seed := range byte(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice, testPrice, testPrice}}, func(t *testing.T, w *town) {
				random := chacha(seed)
				w.rules(func(call) fate {
					n := random.Uint64() % 100
					return fate{lose: n < 2, loseAnswer: n >= 10 && n < 20, repeat: n >= 20 && n < 30, delay: time.Duration(n) * time.Millisecond}
				})
				s := array(15, 6, "print", "sleep=2s", "print=2")
				s.Retry = RetrySpec{Max: 10, Given: true} // heartbeats may be lost in a row
				w.submit("j1", s)
				j := w.over("j1")
				if j.State != JobDone {
					t.Errorf("job %s %q %v\n%s", j.State, j.Reason, j.Counts, w.picture())
				}
				for _, task := range w.renter.store.tasksOf("j1") {
					if log := w.renter.store.logText(task.Lease); log != wholeLog {
						t.Errorf("task %d: log %q", task.Index, log)
					}
				}
				w.rules(nil)
			})
		})
	}
}

// TestOverclaimer runs a provider whose clock is an hour ahead once it works: it
// is refused, becomes lost, and is paid up to what it said before.
func TestOverclaimer(t *testing.T) {
	var fast bool
	change := func(i int, cfg *ProviderConfig) {
		if i == 0 {
			cfg.Now = func() time.Time {
				if fast {
					return time.Now().Add(90 * time.Second)
				}
				return time.Now()
			}
		}
	}
	inTown(t, plan{prices: []uint64{testPrice / 2, testPrice}, change: change}, func(t *testing.T, w *town) {
		w.submit("j1", oneTask("sleep=10s"))
		w.await("it to run", func() bool { return w.state("j1", 0) == Running })
		w.pass(2 * time.Second)
		w.shops[0].kill() // so that the clock changes between two lives
		fast = true
		w.shops[0].reopen()
		j := w.over("j1")
		first := w.renter.store.allContracts()[0]
		if j.State != JobDone || first.State != Lost || first.UsageMs > 3000 {
			t.Errorf("job %s; first lease %s, %d ms", j.State, first.State, first.UsageMs)
		}
	})
}

// TestKilledAtEveryCommit kills one side after each of its commits in turn, and
// starts it again: nothing is lost and nothing runs twice.
func TestKilledAtEveryCommit(t *testing.T) {
	for _, side := range []string{"renter", "provider"} {
		t.Run(side, func(t *testing.T) {
			for commit := 1; ; commit++ {
				hit := true
				t.Run(fmt.Sprint(commit), func(t *testing.T) {
					inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
						w.shops[0].machine.open()
						s := withFiles("print=2", "sleep=1200ms", "print")
						victim := w.shops[0]
						if side == "renter" {
							victim = w.renter
							w.submit("j1", s)
						}
						up := victim.killAfter(commit, 400*time.Millisecond)
						if side == "provider" {
							w.submit("j1", s)
						}
						j := w.over("j1")
						if j.State != JobDone {
							t.Errorf("job %s %q\n%s", j.State, j.Reason, w.picture())
						}
						task := w.renter.store.tasksOf("j1")[0]
						if log := w.renter.store.logText(task.Lease); log != wholeLog {
							t.Errorf("log %q", log)
						}
						if ran := w.shops[0].machine.ran(); len(ran) != 1 {
							t.Errorf("the program ran %d times", len(ran))
						}
						w.await("both to have booked", w.quiet)
						if hit = !victim.disarm(); hit {
							<-up
						}
					})
				})
				if !hit || t.Failed() {
					if commit < 8 {
						t.Errorf("only %d commits", commit)
					}
					return
				}
			}
		})
	}
}

// thueMorse picks one number of so many: never three in a row, and in no period,
// so that it cannot keep step with a retry that takes as many commits.
func thueMorse(n, of int) bool {
	sum := 0
	for ; n > 0; n /= of {
		sum += n % of
	}
	return sum%of == 0
}

// TestFailingCommits lets each commit of one side fail in turn, and then one in
// two or three. What happened is stored in the end.
func TestFailingCommits(t *testing.T) {
	for _, side := range []string{"renter", "provider"} {
		for _, every := range []int{0, 2, 3} {
			last := 30
			if every > 0 {
				last = 4
			}
			for commit := 1; commit <= last; commit++ {
				t.Run(fmt.Sprintf("%s/%d/%d", side, every, commit), func(t *testing.T) {
					inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
						victim := w.shops[0]
						if side == "renter" {
							victim = w.renter
						}
						w.submit("j1", withFiles("print=2", "sleep=1200ms", "print"))
						from := 0
						victim.store.failWhen(func(n int) bool {
							if from == 0 {
								from = n - 1
							}
							n -= from
							return n == commit && every == 0 || every > 0 && thueMorse(n+commit, every)
						})
						j := w.over("j1")
						if j.State != JobDone {
							t.Errorf("job %s %q\n%s", j.State, j.Reason, w.picture())
						}
						task := w.renter.store.tasksOf("j1")[0]
						if log := w.renter.store.logText(task.Lease); log != wholeLog {
							t.Errorf("log %q", log)
						}
						if ran := w.shops[0].machine.ran(); len(ran) != 1 {
							t.Errorf("the program ran %d times", len(ran))
						}
						if states := w.renter.store.jobStates(); len(states) == 0 || states[len(states)-1] != JobDone {
							t.Errorf("events of the job: %q", states)
						}
					})
				})
			}
		}
	}
}

// TestFullDisk lets no commit of the provider succeed while its container ends:
// the result arrives when there is room again.
func TestFullDisk(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", crashJob())
		w.await("it to run", func() bool { return w.state("j1", 0) == Running })
		w.shops[0].store.failWhen(func(int) bool { return true })
		w.shops[0].machine.open()
		w.pass(2 * testBeat)
		w.shops[0].store.failWhen(nil)
		endsWell(t, w, 1)
	})
}

// TestRenterNeverComesBack keeps a result for a week and no longer.
func TestRenterNeverComesBack(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}, beat: time.Minute}, func(t *testing.T, w *town) {
		w.submit("j1", crashJob())
		w.await("it to run", func() bool { return w.state("j1", 0) == Running })
		w.renter.kill()
		w.shops[0].machine.open()
		_, p, _ := w.shops[0].now()
		w.pass(time.Minute)
		if free := w.shops[0].pool.Free(time.Now(), true); free.CPUMillis != w.shops[0].total.CPUMillis {
			t.Errorf("work that is over holds room while its result waits: %+v is free", free)
		}
		w.pass(keepTrying - time.Hour)
		if len(p.Leases()) != 1 {
			t.Error("given up before a week was over")
		}
		w.pass(2 * time.Hour)
		if len(p.Leases()) != 0 {
			t.Error("not given up after a week")
		}
		w.shops[0].leftovers()
		w.renter.reopen()
		w.shops[0].shut()
		w.shops[0].reopen()
		w.over("j1")
	})
}

// TestClosedLeaseFreesItsRoom: the output of a lease that its renter closed, and
// that nobody takes, keeps no room.
func TestClosedLeaseFreesItsRoom(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		s := oneTask("tick=300", "stubborn")
		s.Retry = RetrySpec{Given: true}
		w.submit("j1", s)
		w.await("it to run", func() bool { return w.state("j1", 0) == Running })
		w.cutOff(w.shops[0])
		w.over("j1")
		w.rules(func(c call) fate { return fate{lose: c.name == "logs"} })
		free := func() bool {
			f := w.shops[0].pool.Free(time.Now(), true)
			return f.CPUMillis == w.shops[0].total.CPUMillis && f.Disk == w.shops[0].total.Disk
		}
		w.await("the room", func() bool { return free() && w.shops[0].machine.running() == 0 })
	})
}
