package job

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

func TestBusyProviderRefusesAndTheTaskGoesElsewhere(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice / 2, testPrice}, cores: 1}, func(t *testing.T, w *town) {
		cheap := w.shops[0]
		// Between the bid and the award the room goes to a lease of somebody else.
		w.rules(func(c call) fate {
			if c.name == "lease" && c.to == cheap {
				cheap.pool.Restore(Reservation{ID: "another", CPUMillis: 1000})
			}
			return fate{}
		})
		w.submit("j1", oneTask("sleep=1s"))
		j := w.over("j1")
		cheap.pool.Release("another")
		task := w.renter.store.tasksOf("j1")[0]
		if j.State != JobDone || task.Provider != w.shops[1].id().String() {
			t.Errorf("job %s on %s", j.State, task.Provider)
		}
		first := w.renter.store.allContracts()[0]
		if first.State == Refused && first.Refusal != protocol.Reason_REASON_BUSY.String() || len(task.Avoid) > 0 {
			t.Errorf("the first award: %s, %s; avoid %v", first.State, first.Refusal, task.Avoid)
		}
	})
}

// TestRefusingProviderDoesNotHoldAJobUp has the cheapest provider bid again and
// again and refuse every award.
func TestRefusingProviderDoesNotHoldAJobUp(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice / 2, testPrice}, cores: 1}, func(t *testing.T, w *town) {
		liar := w.shops[0]
		w.rules(func(c call) fate {
			if c.to == liar && c.name == "lease" {
				providerOf(liar).Pause()
			} else if c.to == liar && (c.name == "quote" || c.name == "gossip") {
				providerOf(liar).Resume()
			}
			return fate{}
		})
		w.submit("j1", array(4, 1, "sleep=1s"))
		began := time.Now()
		j := w.over("j1")
		w.rules(nil)
		if took := time.Since(began); j.State != JobDone || took > time.Minute {
			t.Errorf("job %s after %s", j.State, took)
		}
		refused := 0
		for _, c := range w.renter.store.allContracts() {
			if c.State == Refused {
				refused++
			}
		}
		if refused > 8 {
			t.Errorf("%d awards went to a provider that refuses them all", refused)
		}
	})
}

func TestPriceLimit(t *testing.T) {
	inTown(t, plan{prices: []uint64{3000, 2000, 5000}}, func(t *testing.T, w *town) {
		s := oneTask("sleep=1s")
		s.Pay.MaxHourly = ledger.Units(Asset, 1000)
		w.submit("j1", s)
		j := w.over("j1")
		if j.State != JobFailed || j.Unplaced["REASON_PRICE"] != 3 || j.Heard != 3 || j.Cheapest != ledger.Units(Asset, 2000) {
			t.Errorf("job %s, unplaced %v, heard %d, cheapest %s", j.State, j.Unplaced, j.Heard, j.Cheapest)
		}
		task := w.renter.store.tasksOf("j1")[0]
		if task.Reason != ReasonUnplaced || task.ExitCode != 125 || len(w.renter.store.allContracts()) != 0 {
			t.Errorf("%+v", task)
		}
	})
}

func TestReasonsAreCounted(t *testing.T) {
	change := func(i int, cfg *ProviderConfig) {
		switch i {
		case 1:
			cfg.Platform = "linux/arm64"
		case 2:
			cfg.Sandbox = nil
		case 3:
			cfg.Prices.Asset = "eur"
		}
	}
	inTown(t, plan{prices: []uint64{1000, 1000, 1000, 1000}, cores: 2, change: change}, func(t *testing.T, w *town) {
		s := oneTask("sleep=1s")
		s.CPUMillis = 3000
		began := time.Now()
		w.submit("j1", s)
		j := w.over("j1")
		want := map[string]int{"REASON_CPU": 1, "REASON_PLATFORM": 1, "REASON_NO_SANDBOX": 1, "REASON_ASSET": 1}
		if j.State != JobFailed || !sameCounts(j.Unplaced, want) || j.Heard != 4 {
			t.Errorf("job %s, unplaced %v, heard %d", j.State, j.Unplaced, j.Heard)
		}
		if took := time.Since(began); took > 4*testWindow {
			t.Errorf("given up only after %s", took)
		}
	})
}

// TestNetworkNotAllowed: a job that needs a network is not placed with providers
// that allow none, and not charged.
func TestNetworkNotAllowed(t *testing.T) {
	inTown(t, plan{prices: []uint64{1000, 1000}}, func(t *testing.T, w *town) {
		s := oneTask("sleep=1s")
		s.Network = NetworkOutbound
		w.submit("j1", s)
		j := w.over("j1")
		if j.State != JobFailed || j.Unplaced["REASON_NETWORK_POLICY"] != 2 || len(w.renter.store.allContracts()) != 0 {
			t.Errorf("job %s, unplaced %v", j.State, j.Unplaced)
		}
	})
}

// TestNetworkAllowed: it goes to the provider that does, whose container gets
// the limit; what it used comes back with the result, to both sides alike.
func TestNetworkAllowed(t *testing.T) {
	allow := func(i int, cfg *ProviderConfig) { cfg.AllowNet = i == 1 }
	inTown(t, plan{prices: []uint64{1000, 2000}, change: allow}, func(t *testing.T, w *town) {
		s := oneTask("surf=7")
		s.Network, s.Limits.Net = NetworkOutbound, 7_000_000
		w.submit("j1", s)
		j := w.over("j1")
		task := w.task("j1")
		if j.State != JobDone || task.NetUp != 7 || task.NetDown != 6_999_993 {
			t.Errorf("job %s: %+v", j.State, task)
		}
		for _, side := range w.renter.store.allContracts() {
			if side.NetUp != 7 || side.NetDown != 6_999_993 {
				t.Errorf("%+v", side)
			}
		}
	})
}

func TestNobodyThere(t *testing.T) {
	inTown(t, plan{}, func(t *testing.T, w *town) {
		w.submit("j1", oneTask("sleep=1s"))
		if j := w.over("j1"); j.State != JobFailed || j.Heard != 0 || len(j.Unplaced) != 0 {
			t.Errorf("job %s, heard %d, %v", j.State, j.Heard, j.Unplaced)
		}
	})
}

// TestNobodyThereForAWhile has a renter without a network for minutes: what
// waited is placed when it is back, and given up when it never is.
func TestNobodyThereForAWhile(t *testing.T) {
	lost := map[string]func(*town){
		"since it was started again": func(w *town) {
			w.renter.kill()
			w.cutOff(w.renter)
			w.renter.reopen()
		},
		"while it runs": func(w *town) { w.cutOff(w.renter) },
	}
	for name, lose := range lost {
		t.Run(name, func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice, testPrice}, cores: 1}, func(t *testing.T, w *town) {
				w.submit("j1", array(6, 0, "sleep=1s"))
				w.await("a task to run", func() bool { return w.state("j1", 0) == Running })
				lose(w)
				w.pass(silencePatience / 2)
				if j := w.renter.store.job("j1"); j.Over() {
					t.Fatalf("given up without a network: %s %q, %v", j.State, j.Reason, j.Counts)
				}
				w.rules(nil)
				if j := w.over("j1"); j.State != JobDone || j.Counts[string(Done)] != 6 {
					t.Errorf("job %s %q, %v", j.State, j.Reason, j.Counts)
				}
			})
			inTown(t, plan{prices: []uint64{testPrice, testPrice}, cores: 1}, func(t *testing.T, w *town) {
				w.submit("j1", array(6, 0, "sleep=1s"))
				w.await("a task to run", func() bool { return w.state("j1", 0) == Running })
				lose(w)
				w.pass(silencePatience + time.Minute)
				j := w.renter.store.job("j1")
				w.rules(nil)
				if j.State != JobFailed || j.Heard != 0 {
					t.Errorf("job %s %q, heard %d, %v", j.State, j.Reason, j.Heard, j.Counts)
				}
			})
		})
	}
}

func TestAJobWaitsWhileAProviderIsBusy(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}, cores: 1}, func(t *testing.T, w *town) {
		w.submit("first", oneTask("gate"))
		w.await("the first job to run", func() bool { return w.state("first", 0) == Running })
		w.submit("second", oneTask("sleep=1s"))
		w.pass(time.Minute)
		if j := w.renter.store.job("second"); j.State != JobQueued || j.Unplaced["REASON_BUSY"] != 1 {
			t.Errorf("the second job is %s, unplaced %v", j.State, j.Unplaced)
		}
		w.shops[0].machine.open()
		if j := w.over("second"); j.State != JobDone || len(j.Unplaced) != 0 {
			t.Errorf("the second job is %s, unplaced %v", j.State, j.Unplaced)
		}
		w.over("first")
	})
}

func TestAJobWaitsWhileAProviderIsPaused(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		providerOf(w.shops[0]).Pause()
		w.submit("j1", oneTask("sleep=1s"))
		w.pass(time.Minute)
		if j := w.renter.store.job("j1"); j.State != JobQueued || j.Unplaced["REASON_PAUSED"] != 1 {
			t.Errorf("%s, %v", j.State, j.Unplaced)
		}
		providerOf(w.shops[0]).Resume()
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("%s %q", j.State, j.Reason)
		}
	})
}

func TestDrainEndsWithTheLastLease(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		p := providerOf(w.shops[0])
		w.submit("j1", oneTask("gate"))
		w.await("the job to run", func() bool { return w.state("j1", 0) == Running })
		drained := p.Drain()
		w.pass(time.Minute)
		select {
		case <-drained:
			t.Error("drained while a lease runs")
		default:
		}
		w.shops[0].machine.open()
		<-drained
		if j := w.over("j1"); j.State != JobDone || p.State() != ProviderDrained {
			t.Errorf("job %s, provider %s", j.State, p.State())
		}
	})
}

// TestShutdownTellsTheRenter ends a provider for good: its work goes elsewhere.
func TestShutdownTellsTheRenter(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice / 2, testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", oneTask("sleep=5s"))
		w.await("the job to run", func() bool { return w.state("j1", 0) == Running })
		w.pass(2 * time.Second)
		if err := providerOf(w.shops[0]).StopAll(t.Context(), time.Second); err != nil {
			t.Error(err)
		}
		providerOf(w.shops[0]).Pause()
		j := w.over("j1")
		first := w.renter.store.allContracts()[0]
		if j.State != JobDone || first.State != Failed || !first.ProviderFault || !strings.Contains(first.Reason, "shut down") {
			t.Errorf("job %s; first lease %+v", j.State, first)
		}
	})
}

// TestNothingBeginsOnAProviderThatLeaves has more tasks than the provider has
// room for, so that each that ends leaves room for the next.
func TestNothingBeginsOnAProviderThatLeaves(t *testing.T) {
	leaves := map[string]func(*testing.T, *Provider){
		"with its work left alone": func(_ *testing.T, p *Provider) { p.Leave() },
		"with its work ended": func(t *testing.T, p *Provider) {
			if err := p.StopAll(t.Context(), time.Second); err != nil {
				t.Error(err)
			}
		},
	}
	for name, leave := range leaves {
		t.Run(name, func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice}, cores: 2}, func(t *testing.T, w *town) {
				s, p := w.shops[0], providerOf(w.shops[0])
				w.submit("j1", array(12, 0, "sleep=20s"))
				w.await("two tasks to run", func() bool { return s.machine.running() == 2 })
				leave(t, p)
				p.Resume() // somebody who does not know
				w.pass(time.Minute)
				if got := len(s.machine.ran()); got != 2 || len(p.Leases()) > 0 || p.State() != ProviderDraining {
					t.Errorf("%d tasks were begun and %d leases are left by a provider that is %s", got, len(p.Leases()), p.State())
				}
				if j := w.renter.store.job("j1"); j.Over() || j.Unplaced["REASON_PAUSED"] != 1 {
					t.Errorf("the job is %s, unplaced %v", j.State, j.Unplaced)
				}
				w.stop("j1", 0)
				w.over("j1")
			})
		})
	}
}

func TestOnOneProviderAlone(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice / 2, testPrice}}, func(t *testing.T, w *town) {
		s := oneTask("sleep=1s")
		s.On = w.shops[1].id().String()
		w.submit("j1", s)
		if j := w.over("j1"); j.State != JobDone || len(w.shops[1].machine.ran()) != 1 {
			t.Errorf("job %s, ran %v", j.State, w.shops[1].machine.ran())
		}
	})
}

// TestTheProviderWithTheImageIsPreferred runs one job, and then another that
// need not wait for the window.
func TestTheProviderWithTheImageIsPreferred(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice, testPrice, testPrice}}, func(t *testing.T, w *town) {
		for _, s := range w.shops {
			s.depot.set(func(d *depot) { d.took = 5 * time.Second })
		}
		w.submit("first", oneTask("sleep=1s"))
		w.over("first")
		where := w.renter.store.tasksOf("first")[0].Provider
		began := time.Now()
		w.submit("second", oneTask("sleep=1s"))
		w.over("second")
		if took := time.Since(began); took > 1500*time.Millisecond || w.renter.store.tasksOf("second")[0].Provider != where {
			t.Errorf("the second took %s on another provider than the first", took)
		}
	})
}

func TestBudget(t *testing.T) {
	t.Run("a lease stops at it", func(t *testing.T) {
		inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
			s := oneTask("sleep=1h")
			s.Pay.Budget = ledger.Units(Asset, 5000)
			w.submit("j1", s)
			j := w.over("j1")
			task := w.renter.store.tasksOf("j1")[0]
			if j.State != JobFailed || j.Spent != ledger.Units(Asset, 5000) || task.Exceeded == nil || task.Exceeded.Limit != "budget" {
				t.Errorf("job %s, spent %s, exceeded %+v", j.State, j.Spent, task.Exceeded)
			}
			if !strings.Contains(task.Reason, "budget") {
				t.Errorf("reason %q", task.Reason)
			}
		})
	})
	t.Run("an array stops at it", func(t *testing.T) {
		inTown(t, plan{prices: []uint64{testPrice, testPrice}}, func(t *testing.T, w *town) {
			s := array(20, 4, "sleep=1s")
			s.Pay.Budget = ledger.Units(Asset, 10_000)
			s.Array.MaxFailed = 20
			w.submit("j1", s)
			j := w.over("j1")
			if done := j.Counts[string(Done)]; done < 8 || done > 10 || j.Spent.Cmp(s.Pay.Budget) > 0 {
				t.Errorf("%d tasks of 1000 done with %s: %v, spent %s", done, s.Pay.Budget, j.Counts, j.Spent)
			}
		})
	})
	t.Run("it is shared, and what one leaves another may use", func(t *testing.T) {
		inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
			s := array(8, 4, "sleep=1s")
			s.Pay.Budget = ledger.Units(Asset, 12_000)
			w.submit("j1", s)
			if j := w.over("j1"); j.State != JobDone || j.Spent != ledger.Units(Asset, 8000) {
				t.Errorf("job %s, spent %s, %v", j.State, j.Spent, j.Counts)
			}
		})
	})
	t.Run("work that costs less than a unit is not cut short", func(t *testing.T) {
		inTown(t, plan{prices: []uint64{10}}, func(t *testing.T, w *town) {
			s := oneTask("sleep=10s")
			s.Limits.Run = time.Minute
			w.submit("j1", s)
			if j := w.over("j1"); j.State != JobDone || !j.Spent.IsZero() {
				t.Errorf("job %s %q, spent %s", j.State, j.Reason, j.Spent)
			}
		})
	})
}

func TestWhatCannotBeSubmitted(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		for name, s := range map[string]Spec{
			"no such image":        {Image: "nothing", Command: []string{"exit=0"}},
			"no command":           {},
			"unknown variable":     oneTask("${LUMBUNG_INDEX}"),
			"too long for a lease": oneTask(strings.Repeat("x", protocol.MaxLease)),
			"too many words":       oneTask(slices.Repeat([]string{"x"}, 1000)...),
			"a limit below 1 ms":   {Command: []string{"exit=0"}, Limits: LimitSpec{Run: time.Microsecond}},
		} {
			if err := w.trySubmit("j-"+name, s); err == nil {
				t.Errorf("%s: submitted", name)
			} else if name != "no such image" && !errors.Is(err, ErrSpec) {
				t.Errorf("%s: %v is no ErrSpec", name, err)
			}
			if j := w.renter.store.job("j-" + name); j.ID != "" {
				t.Errorf("%s: stored as %s", name, j.State)
			}
		}
	})
}

func TestTheSameJobTwice(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", oneTask("sleep=1s"))
		if err := w.trySubmit("j1", oneTask("sleep=1s")); err == nil {
			t.Error("submitted twice under one id")
		}
		if j := w.over("j1"); j.State != JobDone || len(w.shops[0].machine.ran()) != 1 {
			t.Errorf("job %s, ran %v", j.State, w.shops[0].machine.ran())
		}
	})
}

// TestTheSameOfferGetsTheSameAnswer asks one provider twice.
func TestTheSameOfferGetsTheSameAnswer(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		r, p := renterOf(w.renter), providerOf(w.shops[0])
		offer, err := r.makeOffer(&Job{Spec: oneTask("exit=0").WithDefaults(), Image: toolImage().ImageRef}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		first, err := p.HandleQuote(t.Context(), w.renter.id(), offer)
		if err != nil {
			t.Fatal(err)
		}
		w.pass(time.Second)
		again, err := p.HandleQuote(t.Context(), w.renter.id(), offer)
		if err != nil || again.ID() != first.ID() {
			t.Errorf("another answer, %v", err)
		}
		if _, err := p.HandleQuote(t.Context(), w.shops[0].id(), offer); !errors.Is(err, protocol.ErrBlame) {
			t.Errorf("an offer brought by another than its signer: %v", err)
		}
	})
}
