package job

import (
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/ledger"
)

const quietFor = time.Minute

// idler is a job that is over when nobody is connected to it for a minute.
func idler(words ...string) Spec {
	s := withFiles(words...)
	s.Ports, s.IdleStop = []PortSpec{{Local: 8080, Remote: 80}}, quietFor
	return s
}

// visit connects to the container of the renter's newest lease.
func (w *town) visit(port uint16) (sandbox.Conn, error) {
	all := w.renter.store.allContracts()
	return providerOf(w.shops[0]).Connect(w.t.Context(), w.renter.id(), all[len(all)-1].ID, port)
}

func (w *town) mustVisit() sandbox.Conn {
	w.t.Helper()
	c, err := w.visit(80)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// wasIdle holds a job's end against what an idle one must be, after so much time
// that is paid for.
func wasIdle(t *testing.T, w *town, paid time.Duration) {
	t.Helper()
	j := w.over("j1")
	task := w.renter.store.tasksOf("j1")[0]
	const why = "idle for 1m: no connection to its ports"
	if j.State != JobDone || j.ExitCode != 0 || task.ExitCode != 0 || task.Exceeded != nil || len(task.Outputs) == 0 || task.Attempts != 1 {
		t.Errorf("job %s, exit %d, %+v, exceeded %+v", j.State, j.ExitCode, task, task.Exceeded)
	}
	if j.Reason != why || task.Reason != why {
		t.Errorf("the job says %q, its task %q", j.Reason, task.Reason)
	}
	if used := time.Duration(task.UsageMs) * time.Millisecond; used < paid || used > paid+time.Second || j.Spent != ledger.Units(Asset, uint64(task.UsageMs)) {
		t.Errorf("it ran %s and cost %s; want %s", used, j.Spent, paid)
	}
}

// TestIdleStop ends a service a minute after its last connection ended.
func TestIdleStop(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", idler("print", "gate"))
		w.await("it to run", func() bool { return w.state("j1", 0) == Running })
		w.pass(50 * time.Second)
		one := w.mustVisit()
		w.pass(50 * time.Second)
		two := w.mustVisit() // they overlap
		if err := one.Close(); err != nil {
			t.Error(err)
		}
		_ = one.Reset() // as Join does of what broke: it is counted once
		w.pass(5 * time.Minute)
		if s := w.state("j1", 0); s != Running {
			t.Fatalf("%s while somebody is connected", s)
		}
		if err := two.Reset(); err != nil {
			t.Error(err)
		}
		w.pass(30 * time.Second)
		if _, err := w.visit(2000); err == nil { // nothing listens there, so nobody came
			t.Error("connected to a port that nothing listens on")
		}
		paid := time.Since(leaseOn(w.shops[0]).RunningAt) + quietFor - 30*time.Second
		wasIdle(t, w, paid)
	})
}

// TestIdleFromItsStart ends a service that nobody ever came to; its time counts
// from when it is ready.
func TestIdleFromItsStart(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		s := idler("deaf", "sleep=100s", "answer=200", "gate")
		s.Ready = &ReadySpec{HTTP: "/", Within: 2 * time.Minute}
		w.submit("j1", s)
		wasIdle(t, w, quietFor)
	})
}

// TestIdleStopOfAStubbornService kills it after its grace, which is no failure.
func TestIdleStopOfAStubbornService(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", idler("stubborn", "gate"))
		wasIdle(t, w, quietFor+serviceGrace)
	})
}

// TestIdleStopOverARestart begins the wait anew: its provider's node was away,
// and with it all connections.
func TestIdleStopOverARestart(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", idler("gate"))
		w.await("it to run", func() bool { return w.state("j1", 0) == Running })
		c := w.mustVisit()
		w.pass(55 * time.Second)
		w.shops[0].kill()
		_ = c.Close()
		w.pass(testBeat)
		w.shops[0].reopen()
		back := time.Since(leaseOn(w.shops[0]).RunningAt)
		wasIdle(t, w, back+quietFor)
	})
}

// TestProviderKilledWhileItStopsAnIdleService ends it as idle all the same.
func TestProviderKilledWhileItStopsAnIdleService(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", idler("stubborn", "gate"))
		w.await("it to be idle", func() bool {
			return len(w.shops[0].store.allContracts()) > 0 && leaseOn(w.shops[0]).TimeUp == LimitIdle
		})
		w.pass(3 * time.Second)
		w.shops[0].kill()
		w.pass(testBeat)
		w.shops[0].reopen()
		wasIdle(t, w, time.Since(leaseOn(w.shops[0]).RunningAt)+serviceGrace) // the grace begins anew
	})
}

// TestServiceEndsByItself has its own end stand, however short before it would
// have been idle.
func TestServiceEndsByItself(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", idler("sleep=59s", "exit=3"))
		if j := w.over("j1"); j.State != JobFailed || j.ExitCode != 3 {
			t.Errorf("job %s, exit %d, %q", j.State, j.ExitCode, j.Reason)
		}
	})
}

// TestIdleServiceStoppedByItsOwner is cancelled, though it was about to end.
func TestIdleServiceStoppedByItsOwner(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", idler("stubborn", "gate"))
		w.await("it to be idle", func() bool {
			return len(w.shops[0].store.allContracts()) > 0 && leaseOn(w.shops[0]).TimeUp == LimitIdle
		})
		w.stop("j1", 0)
		if j := w.over("j1"); j.State != JobCancelled {
			t.Errorf("job %s %q", j.State, j.Reason)
		}
	})
}

func TestSpanWord(t *testing.T) {
	for d, want := range map[time.Duration]string{10 * time.Minute: "10m", 30 * time.Second: "30s", 2 * time.Hour: "2h", 90 * time.Second: "1m30s", 70 * time.Minute: "1h10m", 10 * time.Second: "10s", 20 * time.Minute: "20m"} {
		if got := spanWord(d); got != want {
			t.Errorf("%s is written %q", d, got)
		}
	}
}
