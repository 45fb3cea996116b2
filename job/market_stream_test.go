package job

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// produce writes a file into an output of the one container that runs.
func (s *shop) produce(output, name string) {
	s.w.t.Helper()
	s.machine.mu.Lock()
	defer s.machine.mu.Unlock()
	for _, c := range s.machine.containers {
		for _, m := range c.spec.Mounts {
			if m.Dest == output {
				if err := os.WriteFile(filepath.Join(m.Source, name), []byte(name), 0o600); err != nil {
					s.w.t.Error(err)
				}
			}
		}
	}
}

func streaming(words ...string) Spec {
	s := oneTask(words...)
	s.Outputs = []OutputSpec{{From: "/out", Stream: true}, {From: "/late"}}
	return s
}

func (w *town) task(id string) TaskRecord { return w.renter.store.tasksOf(id)[0] }

// outputEvents counts the events that tell of streamed outputs.
func (w *town) outputEvents() int {
	return len(w.renter.store.eventTexts(EventOutput))
}

// What a job has put out so far is here while it runs, the newest, and what it
// puts out in the end replaces it.
func TestOutputsStream(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		p := w.shops[0]
		w.submit("j1", streaming("gate"))
		w.await("the job to run", func() bool { return p.machine.running() == 1 })
		want := func(text string) {
			t.Helper()
			w.await(text, func() bool { return bytes.Equal(w.task("j1").Streamed, rootOf(text)) })
		}
		want("snapshot")
		p.produce("/out", "one")
		p.produce("/late", "unseen")
		want("snapshot 0/one")
		p.produce("/out", "two")
		want("snapshot 0/one 0/two")
		if w.task("j1").State != string(Running) {
			t.Errorf("%+v", w.task("j1"))
		}
		events := w.outputEvents()
		w.pass(time.Minute)
		if n := w.outputEvents(); n != events || events != 3 {
			t.Errorf("%d events of outputs, then %d without a change", events, n)
		}
		holds := func() int {
			n := 0
			w.renter.store.view(func(t *memTx) { n = len(t.s.holds[streamOwner("j1", 0)]) })
			return n
		}
		if holds() != 1 {
			t.Errorf("%d snapshots are held", holds())
		}
		p.machine.open()
		j := w.over("j1")
		if task := w.task("j1"); j.State != JobDone || len(task.Outputs) == 0 || task.Streamed != nil || holds() != 0 {
			t.Errorf("job %s, %+v, %d held", j.State, task, holds())
		}
	})
}

// Both sides go on where they were.
func TestOutputsStreamOverRestarts(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		p := w.shops[0]
		w.submit("j1", streaming("gate"))
		w.await("the job to run", func() bool { return p.machine.running() == 1 })
		p.produce("/out", "one")
		seen := func(text string) func() bool {
			return func() bool { return bytes.Equal(w.task("j1").Streamed, rootOf(text)) }
		}
		w.await("one", seen("snapshot 0/one"))
		p.kill()
		p.reopen()
		p.produce("/out", "two")
		w.await("two, of a provider that was killed", seen("snapshot 0/one 0/two"))
		w.renter.kill()
		w.renter.reopen()
		if !seen("snapshot 0/one 0/two")() {
			t.Error("forgotten by a renter that was killed")
		}
		p.produce("/out", "zwei")
		w.await("three, at a renter that was killed", seen("snapshot 0/one 0/two 0/zwei"))
		p.machine.open()
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("job %s", j.State)
		}
	})
}

// A snapshot that cannot be had holds nothing up, and nothing that was here is
// lost by it.
func TestOutputsStreamFails(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		p := w.shops[0]
		w.submit("j1", streaming("gate"))
		w.await("the first", func() bool { return w.task("j1").Streamed != nil })
		w.rules(func(c call) fate { return fate{lose: c.name == "outputs"} })
		p.produce("/out", "one")
		w.await("three tries", func() bool { return w.calls("outputs") >= 4 })
		if !bytes.Equal(w.task("j1").Streamed, rootOf("snapshot")) {
			t.Error("what was here is gone")
		}
		w.rules(nil)
		w.await("the next", func() bool { return bytes.Equal(w.task("j1").Streamed, rootOf("snapshot 0/one")) })
		w.rules(func(c call) fate {
			if c.name == "outputs" {
				return fate{delay: time.Hour} // the final ones are not kept waiting by a snapshot
			}
			return fate{}
		})
		before := w.calls("outputs")
		p.produce("/out", "two")
		w.await("a slow snapshot", func() bool { return w.calls("outputs") > before })
		w.rules(nil)
		p.machine.open()
		if j := w.over("j1"); j.State != JobDone || w.task("j1").Streamed != nil {
			t.Errorf("job %s, %+v", j.State, w.task("j1"))
		}
	})
}

// Without the wish, and for private tasks, nothing is saved before the end.
func TestOutputsDoNotStream(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"unasked": func(s *Spec) { s.Outputs[0].Stream = false },
	} {
		t.Run(name, func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
				s := streaming("sleep=1m")
				change(&s)
				w.submit("j1", s)
				if j := w.over("j1"); j.State != JobDone || w.outputEvents() != 0 || w.shops[0].depot.snapshots != 0 {
					t.Errorf("job %s, %d events, %d snapshots", j.State, w.outputEvents(), w.shops[0].depot.snapshots)
				}
			})
		})
	}
}
