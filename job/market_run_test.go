package job

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/ledger"
)

// oneTask is a job of one program.
func oneTask(words ...string) Spec { return Spec{Command: words} }

// array is a job of n programs.
func array(n, parallel int, words ...string) Spec {
	return Spec{Command: words, Array: &Array{First: 0, Last: n - 1, Parallel: parallel}}
}

// testPrice of a core for an hour comes to one base unit a millisecond.
const testPrice = 3_600_000

func TestOneTask(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", oneTask("print=3", "sleep=2s", "print"))
		j := w.over("j1")
		task := w.renter.store.tasksOf("j1")[0]
		if j.State != JobDone || task.State != string(Done) || task.Attempts != 1 {
			t.Errorf("job %s, %+v", j.State, task)
		}
		if want := ledger.Units(Asset, 2000); task.UsageMs != 2000 || j.Spent != want || task.Charge != want {
			t.Errorf("%d ms, spent %s, charged %s; want 2000 ms and %s", task.UsageMs, j.Spent, task.Charge, want)
		}
		if log := w.renter.store.logText(task.Lease); log != "line 1\nline 2\nline 3\nline 4\n" {
			t.Errorf("log %q", log)
		}
		if ran := w.shops[0].machine.ran(); len(ran) != 1 {
			t.Errorf("ran %v", ran)
		}
	})
}

func TestArrayOverThreeProviders(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice, testPrice, testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", array(20, 9, "print", "sleep=3s"))
		most := 0
		w.await("the end", func() bool {
			n := 0
			for _, s := range w.shops {
				n += s.machine.running()
			}
			most = max(most, n)
			return w.renter.store.job("j1").State == JobDone
		})
		if most != 9 {
			t.Errorf("at most %d tasks ran at once, want 9", most)
		}
		var ran []string
		for _, s := range w.shops {
			if n := len(s.machine.ran()); n < 3 {
				t.Errorf("%s ran %d of 20 tasks at equal prices", s.name, n)
			}
			ran = append(ran, s.machine.ran()...)
		}
		slices.Sort(ran)
		if len(slices.Compact(slices.Clone(ran))) != 20 || len(ran) != 20 {
			t.Errorf("ran %v", ran)
		}
	})
}

func TestOutputsComeBeforeTheReceipt(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.rules(func(c call) fate { return fate{lose: c.name == "outputs"} })
		s := oneTask("print", "sleep=1s", "exit=3")
		s.Outputs = []OutputSpec{{From: "/out"}}
		s.Inputs = []InputSpec{{From: "data", To: "/in"}}
		w.submit("j1", s)
		w.await("three tries", func() bool { return w.calls("outputs") >= 3 })
		if c := w.renter.store.allContracts()[0]; c.State.Terminal() || c.Booked {
			t.Errorf("the contract is %s before its outputs are here", c.State)
		}
		w.rules(nil)
		j := w.over("j1")
		task := w.renter.store.tasksOf("j1")[0]
		if j.State != JobFailed || j.ExitCode != 3 || len(task.Outputs) == 0 {
			t.Errorf("job %s, exit %d, outputs %x", j.State, j.ExitCode, task.Outputs)
		}
		if ran := w.shops[0].machine.ran(); len(ran) != 1 {
			t.Errorf("a job's own failure was retried: %v", ran)
		}
	})
}

func TestSlowOutputsDoNotLoseTheProvider(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.rules(func(c call) fate {
			if c.name == "outputs" {
				return fate{delay: time.Minute}
			}
			return fate{}
		})
		s := oneTask("sleep=1s")
		s.Outputs = []OutputSpec{{From: "/out"}}
		w.submit("j1", s)
		if j := w.over("j1"); j.State != JobDone || w.calls("outputs") != 1 {
			t.Errorf("job %s, fetched %d times", j.State, w.calls("outputs"))
		}
	})
}

func TestProviderFaultGoesElsewhere(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice / 2, testPrice}}, func(t *testing.T, w *town) {
		w.shops[0].machine.breakStep("start", errRefused)
		w.submit("j1", oneTask("sleep=1s"))
		j := w.over("j1")
		task := w.renter.store.tasksOf("j1")[0]
		if j.State != JobDone || task.Provider != w.shops[1].id().String() || task.Attempts != 2 {
			t.Errorf("job %s, %+v", j.State, task)
		}
		if !slices.Contains(task.Avoid, w.shops[0].id().String()) {
			t.Errorf("avoid: %v", task.Avoid)
		}
		if want := ledger.Units(Asset, 1000); j.Spent != want {
			t.Errorf("spent %s, want %s: a start that failed costs nothing", j.Spent, want)
		}
	})
}

func TestSandboxFaultIsTheProviders(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", oneTask("sleep=1s", "crash"))
		j := w.over("j1")
		task := w.renter.store.tasksOf("j1")[0]
		if j.State != JobFailed || j.ExitCode != 125 || task.Attempts != 1 {
			t.Errorf("job %s, exit %d, %+v", j.State, j.ExitCode, task)
		}
		if !strings.Contains(j.Reason+task.Reason, "fell over") {
			t.Errorf("reason %q, %q", j.Reason, task.Reason)
		}
	})
}

func TestRetries(t *testing.T) {
	failing := oneTask("sleep=1s", "exit=7")
	given := failing
	given.Retry = RetrySpec{Max: 2, Given: true, AvoidFailed: true}
	same := failing
	same.Retry = RetrySpec{Max: 3, Given: true}
	never := failing
	never.Retry = RetrySpec{Max: 0, Given: true}
	for _, c := range []struct {
		name     string
		spec     Spec
		attempts int
	}{{"not by default", failing, 1}, {"when given", given, 3}, {"on the same provider", same, 4}, {"never", never, 1}} {
		t.Run(c.name, func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice, testPrice, testPrice}}, func(t *testing.T, w *town) {
				w.submit("j1", c.spec)
				j := w.over("j1")
				task := w.renter.store.tasksOf("j1")[0]
				if j.State != JobFailed || j.ExitCode != 7 || task.Attempts != c.attempts {
					t.Errorf("job %s, exit %d, attempts %d, want %d", j.State, j.ExitCode, task.Attempts, c.attempts)
				}
				if want := ledger.Units(Asset, 1000*uint64(c.attempts)); j.Spent != want {
					t.Errorf("spent %s, want %s", j.Spent, want)
				}
				for _, s := range w.shops {
					if n := len(s.machine.ran()); c.spec.Retry.AvoidFailed && n > 1 {
						t.Errorf("%s, which failed, got the task %d times", s.name, n)
					}
				}
			})
		})
	}
}

func TestMaxFailed(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		s := array(12, 2, "sleep=1s", "exit=1")
		s.Array.MaxFailed = 3
		w.submit("j1", s)
		j := w.over("j1")
		if j.State != JobFailed || j.Counts[string(Failed)] < 4 || j.Counts[string(Failed)] > 5 || j.Counts[string(Cancelled)] < 7 {
			t.Errorf("job %s: %v", j.State, j.Counts)
		}
		if !strings.Contains(j.Reason, "failed where 3 may") {
			t.Errorf("reason %q", j.Reason)
		}
	})
}

func TestFailuresThatAJobBears(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		s := array(3, 0, "sleep=1s", "exit=1")
		s.Array.MaxFailed = 3
		w.submit("j1", s)
		if j := w.over("j1"); j.State != JobDone || j.Counts[string(Failed)] != 3 {
			t.Errorf("job %s: %v", j.State, j.Counts)
		}
	})
}

func TestRunLimit(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		s := oneTask("sleep=1h")
		s.Limits.Run = 5 * time.Second
		s.Retry = RetrySpec{Max: 2, Given: true}
		w.submit("j1", s)
		j := w.over("j1")
		task := w.renter.store.tasksOf("j1")[0]
		if j.State != JobFailed || j.ExitCode != 124 || task.Attempts != 1 || task.Exceeded == nil || task.Exceeded.Limit != "time" || task.Exceeded.Max != 5000 {
			t.Errorf("job %s, exit %d, %+v, exceeded %+v", j.State, j.ExitCode, task, task.Exceeded)
		}
	})
}

func TestFetchLimitIsTheProvidersFault(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice / 2, testPrice}}, func(t *testing.T, w *town) {
		w.shops[0].depot.set(func(d *depot) { d.took = time.Hour })
		s := oneTask("sleep=1s")
		s.Limits.Fetch = 20 * time.Second
		w.submit("j1", s)
		j := w.over("j1")
		if j.State != JobDone || j.Spent != ledger.Units(Asset, 1000) {
			t.Errorf("job %s, spent %s", j.State, j.Spent)
		}
		if c := w.renter.store.allContracts()[0]; c.Exceeded == nil || c.Exceeded.Limit != "fetch" || !c.Charge.IsZero() {
			t.Errorf("%+v", c)
		}
	})
}

// TestLogFlood has a provider send far more output than the job allows.
func TestLogFlood(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		s := oneTask("print=6000", "sleep=1s", "print=6000", "sleep=1s", "print=6000")
		s.Limits.Logs = 1000
		w.submit("j1", s)
		j := w.over("j1")
		log := w.renter.store.logText(w.renter.store.tasksOf("j1")[0].Lease)
		if j.State != JobDone || len(log) < 1000 || len(log) > 1000+logSlack+logChunkBytes {
			t.Errorf("job %s, a log of %d bytes with a limit of 1000", j.State, len(log))
		}
	})
}

// A machine that cannot tell for a while how a container ended lets it run on.
func TestEndThatCannotBeAsked(t *testing.T) {
	for name, fails := range map[string]time.Duration{"for a while": 20 * time.Second, "for long": 2 * exitDoubt} {
		t.Run(name, func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
				s := oneTask("tick=200")
				s.Retry = RetrySpec{Given: true}
				w.submit("j1", s)
				m := w.shops[0].machine
				w.await("the job to run", func() bool { return m.running() == 1 })
				m.breakStep("wait", errors.New("too many open files"))
				w.pass(fails)
				m.breakStep("wait", nil)
				j := w.over("j1")
				if fails < exitDoubt && j.State != JobDone {
					t.Errorf("%s %q", j.State, j.Reason)
				}
				if c := leaseOn(w.shops[0]); fails > exitDoubt && (c.State != Failed || !c.ProviderFault) {
					t.Errorf("%s %q fault=%v", c.State, c.Reason, c.ProviderFault)
				}
				w.await("its container to be gone", func() bool { return len(m.left()) == 0 })
			})
		})
	}
}

// Outputs that cannot be handed over are their job's fault, and paid for.
func TestOutputsThatCannotBeSaved(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice, testPrice}}, func(t *testing.T, w *town) {
		w.unsafe = fmt.Errorf("%w: out/pipe: a pipe cannot be added", ErrOutputs)
		s := oneTask("tick=5")
		s.Outputs = []OutputSpec{{From: "/out"}}
		w.submit("j1", s)
		j := w.over("j1")
		task := w.task("j1")
		if j.State != JobFailed || task.Attempts != 1 || !strings.Contains(task.Reason, "out/pipe") || task.ExitCode != sandbox.CodeSandbox || task.UsageMs < 5000 {
			t.Errorf("%s %q %+v", j.State, j.Reason, task)
		}
		for _, c := range w.renter.store.allContracts() {
			if c.ProviderFault {
				t.Error("it is said to be the provider's fault")
			}
		}
	})
}

// Outputs that cannot be saved change nothing in the end of a job that was stopped.
func TestWithout(t *testing.T) {
	for state, want := range map[State]Ended{
		Done:      {State: Failed, Reason: "a pipe", ExitCode: sandbox.CodeSandbox, ExitSource: sandbox.SourceSandbox},
		Failed:    {State: Failed, Reason: "why; a pipe"},
		Cancelled: {State: Cancelled, Reason: "why"},
	} {
		if got := (Ended{State: state, Reason: "why"}).without(errors.New("a pipe")); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v", state, got)
		}
	}
}
