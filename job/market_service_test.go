package job

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
)

// service is a job that is ready when its program says so.
func service(within time.Duration, words ...string) Spec {
	s := withFiles(words...)
	s.Ready = &ReadySpec{HTTP: "/health?deep=1", Port: 80, Within: within}
	return s
}

func leaseOn(s *shop) Contract { return s.store.allContracts()[0] }

// TestReadyBeforeItIsBilled follows a service from deaf to unwell to ready: its
// output flows, and nothing is billed before.
func TestReadyBeforeItIsBilled(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", service(time.Minute, "deaf", "print", "sleep=10s", "mute", "sleep=7s", "answer=503", "print", "sleep=10s", "answer=302", "gate"))
		w.await("it to start", func() bool { return w.state("j1", 0) == Starting })
		w.await("its output", func() bool {
			return w.renter.store.logText(w.renter.store.tasksOf("j1")[0].Lease) == "line 1\nline 2\n"
		})
		if j := w.renter.store.job("j1"); j.State != JobRunning || j.Counts[string(Starting)] != 1 {
			t.Errorf("job %s %v", j.State, j.Counts)
		}
		if task := w.renter.store.tasksOf("j1")[0]; task.State != string(Starting) || !task.Started.IsZero() {
			t.Errorf("before it is ready the task is %+v", task)
		}
		for _, s := range []*shop{w.renter, w.shops[0]} {
			if c := leaseOn(s); c.UsageMs != 0 || !c.RunningAt.IsZero() {
				t.Errorf("%s counts %d ms before it is ready", s.name, c.UsageMs)
			}
		}
		w.await("it to be ready", func() bool { return w.state("j1", 0) == Running })
		began := leaseOn(w.shops[0])
		if took := began.RunningAt.Sub(began.StartingAt); took < 27*time.Second || took > 27*time.Second+probeMost {
			t.Errorf("ready after %s, its program after 27 s", took)
		}
		w.pass(4 * time.Second)
		w.shops[0].machine.open()
		j := w.over("j1")
		ran := time.Since(began.RunningAt)
		task := w.renter.store.tasksOf("j1")[0]
		if j.State != JobDone || task.UsageMs < 4000 || task.UsageMs > ran.Milliseconds() || task.Charge != ledger.Units(Asset, uint64(task.UsageMs)) {
			t.Errorf("job %s, %d ms of at most %s, %s", j.State, task.UsageMs, ran, task.Charge)
		}
		asked := w.shops[0].machine.asked()
		if len(asked) == 0 || len(asked) > 12 || slices.ContainsFunc(asked, func(r string) bool { return r != "GET /health?deep=1" }) {
			t.Errorf("asked %v", asked)
		}
	})
}

// TestNeverReady fails, costs nothing and leaves its outputs.
func TestNeverReady(t *testing.T) {
	for words, why := range map[string]string{
		"deaf":          "nothing listens on port 80",
		"mute":          "was not answered within",
		"answer=404":    "was answered by status 404",
		"stubborn deaf": "nothing listens",
	} {
		t.Run(words, func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice, testPrice}}, func(t *testing.T, w *town) {
				s := service(30*time.Second, append(strings.Fields(words), "print", "gate")...)
				s.Retry = RetrySpec{Max: 3, Given: true}
				w.submit("j1", s)
				j := w.over("j1")
				task := w.renter.store.tasksOf("j1")[0]
				if j.State != JobFailed || j.ExitCode != 124 || task.Attempts != 1 || !j.Spent.IsZero() || task.UsageMs != 0 || len(task.Outputs) == 0 {
					t.Errorf("job %s, exit %d, spent %s, %+v", j.State, j.ExitCode, j.Spent, task)
				}
				if x := task.Exceeded; x == nil || x.Limit != LimitReady || x.Max != 30_000 || x.Seen < 30_000 || x.Seen > 36_000 {
					t.Errorf("exceeded %+v", x)
				}
				if !strings.Contains(task.Reason, "not ready within 30s: ") || !strings.Contains(task.Reason, why) {
					t.Errorf("reason %q", task.Reason)
				}
				if log := w.renter.store.logText(task.Lease); log != "line 1\n" {
					t.Errorf("log %q", log)
				}
			})
		})
	}
}

func TestEndsBeforeItIsReady(t *testing.T) {
	for words, code := range map[string]int{"exit=0": 125, "exit=3": 3} {
		t.Run(words, func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
				w.submit("j1", service(time.Minute, "deaf", "print", "sleep=3s", words))
				j := w.over("j1")
				task := w.renter.store.tasksOf("j1")[0]
				if j.State != JobFailed || j.ExitCode != code || !j.Spent.IsZero() || task.Exceeded != nil || !strings.Contains(task.Reason, "ended before it was ready") {
					t.Errorf("job %s, exit %d, spent %s, %+v", j.State, j.ExitCode, j.Spent, task)
				}
			})
		})
	}
}

func TestStoppedBeforeItIsReady(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", service(time.Minute, "deaf", "stubborn", "sleep=5s", "answer=200", "gate"))
		w.await("it to start", func() bool { return w.state("j1", 0) == Starting })
		w.pass(4 * time.Second)
		w.stop("j1", 10*time.Second) // it answers in its last moments
		if j := w.over("j1"); j.State != JobCancelled || !j.Spent.IsZero() {
			t.Errorf("job %s, spent %s", j.State, j.Spent)
		}
	})
}

// TestProviderKilledBeforeItIsReady has the next life find the container and
// probe on: whether it gets ready meanwhile, later, or not at all.
func TestProviderKilledBeforeItIsReady(t *testing.T) {
	for _, c := range []struct {
		ready  time.Duration // after its start
		within time.Duration
		away   time.Duration
		want   string
	}{
		{ready: 8 * time.Second, within: time.Minute, away: testBeat, want: JobDone},
		{ready: 2 * time.Second, within: 3 * time.Second, away: testBeat, want: JobDone},
		{ready: time.Hour, within: 5 * time.Second, away: testBeat, want: JobFailed},
		{ready: time.Hour, within: 2100 * time.Millisecond, away: testBeat, want: JobFailed}, // its time is up meanwhile
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
				w.submit("j1", service(c.within, "deaf", "print", "sleep="+c.ready.String(), "answer=200", "sleep=4s"))
				w.await("it to start", func() bool { return w.state("j1", 0) == Starting })
				w.pass(1900 * time.Millisecond)
				w.shops[0].kill()
				w.pass(c.away)
				w.shops[0].reopen()
				j := w.over("j1")
				task := w.renter.store.tasksOf("j1")[0]
				if j.State != c.want || len(w.shops[0].machine.ran()) != 1 || task.Attempts != 1 {
					t.Errorf("job %s, ran %v, %+v", j.State, w.shops[0].machine.ran(), task)
				}
				switch {
				case c.want == JobFailed && (!j.Spent.IsZero() || task.Exceeded == nil || task.Exceeded.Limit != LimitReady):
					t.Errorf("spent %s, %+v", j.Spent, task)
				case c.want == JobDone && (task.UsageMs > 4000 || task.UsageMs < 4000-probeMost.Milliseconds()):
					t.Errorf("%d ms of 4 s", task.UsageMs)
				}
			})
		})
	}
}

// TestProviderKilledWhileItsServiceIsEnded has a decision hold over a restart.
func TestProviderKilledWhileItsServiceIsEnded(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", service(5*time.Second, "stubborn", "deaf", "sleep=9s", "answer=200", "gate"))
		w.await("its time to be up", func() bool {
			return len(w.shops[0].store.allContracts()) > 0 && leaseOn(w.shops[0]).TimeUp == LimitReady
		})
		w.shops[0].kill()
		w.pass(testBeat)
		w.shops[0].reopen()
		j := w.over("j1")
		if task := w.renter.store.tasksOf("j1")[0]; j.State != JobFailed || !j.Spent.IsZero() || task.Exceeded == nil || task.Exceeded.Limit != LimitReady {
			t.Errorf("job %s, spent %s, %+v", j.State, j.Spent, task)
		}
	})
}

// TestRunLimitOfAService counts from when it is ready, and holds when its
// provider's node is away at the time.
func TestRunLimitOfAService(t *testing.T) {
	for _, away := range []time.Duration{0, testBeat} {
		t.Run(away.String(), func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
				s := service(time.Minute, "deaf", "sleep=20s", "answer=200", "gate")
				s.Limits.Run = 5 * time.Second
				w.submit("j1", s)
				w.await("it to be ready", func() bool { return w.state("j1", 0) == Running })
				if away > 0 {
					w.pass(4800 * time.Millisecond)
					w.shops[0].kill()
					w.pass(away)
					w.shops[0].reopen()
				}
				j := w.over("j1")
				task := w.renter.store.tasksOf("j1")[0]
				if j.State != JobFailed || j.ExitCode != 124 || task.UsageMs != 5000 || task.Exceeded == nil || task.Exceeded.Limit != "time" || task.Exceeded.Max != 5000 {
					t.Errorf("job %s, exit %d, %+v, exceeded %+v", j.State, j.ExitCode, task, task.Exceeded)
				}
			})
		})
	}
}

// TestBudgetOfAService counts from when it is ready too.
func TestBudgetOfAService(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		s := service(time.Minute, "deaf", "sleep=20s", "answer=200", "gate")
		s.Pay.Budget = ledger.Units(Asset, 3000)
		w.submit("j1", s)
		j := w.over("j1")
		task := w.renter.store.tasksOf("j1")[0]
		if j.State != JobFailed || j.Spent != ledger.Units(Asset, 3000) || task.Exceeded == nil || task.Exceeded.Limit != "budget" {
			t.Errorf("job %s, spent %s, exceeded %+v", j.State, j.Spent, task.Exceeded)
		}
	})
}

// TestProviderThatIsNeverReady is given up by its renter: it may not hold a task
// for longer than it may fetch and start.
func TestProviderThatIsNeverReady(t *testing.T) {
	c := contractIn(SideRenter, Starting)
	late := noon.Add(c.FetchMax + c.ReadyMax + c.slack() + time.Second)
	c.LastBeat = late
	after, effects, err := Apply(c, Tick{}, late)
	if err != nil || !slices.Contains(effects, EffectSendCancel) || !strings.Contains(after.CancelReason, "not ready within") {
		t.Errorf("%+v %v %v", after, effects, err)
	}
	if after, effects, _ = Apply(c, Tick{}, late.Add(-2*time.Second)); len(effects) > 0 || !after.CancelAt.IsZero() {
		t.Errorf("given up too early: %v", effects)
	}
}
