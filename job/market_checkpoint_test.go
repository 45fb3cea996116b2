package job

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

const testEvery = 10 * time.Second

// ticking is a job that counts to n, a number a second, and is saved now and then.
func ticking(n int) Spec {
	s := oneTask(fmt.Sprintf("tick=%d", n), "print")
	s.Checkpoint.Every = testEvery
	return s
}

// lines are what the attempts of job j1's task 0 have said, in order.
func (w *town) lines() (attempts [][]string) {
	for _, c := range w.renter.store.allContracts() {
		if c.Job != "j1" || c.State == Refused {
			continue
		}
		attempts = append(attempts, nil)
		w.renter.store.view(func(t *memTx) {
			records, err := t.Log(c.ID, 1, 1<<20)
			if err != nil {
				w.t.Error(err)
			}
			for _, r := range records {
				attempts[len(attempts)-1] = append(attempts[len(attempts)-1], strings.TrimSpace(string(r.Data)))
			}
		})
	}
	return attempts
}

// at finds the provider that runs the one container that there is.
func (w *town) at() *shop {
	for _, s := range w.shops {
		if s.machine.running() > 0 {
			return s
		}
	}
	return nil
}

// saved awaits that the renter has a checkpoint of so many ticks or more.
func (w *town) saved(ticks int) {
	w.t.Helper()
	w.await(fmt.Sprintf("a checkpoint of %d ticks", ticks), func() bool {
		c := w.task("j1").Checkpoints
		return len(c) > 0 && w.ticksOf(c[0]) >= ticks
	})
}

func (w *town) ticksOf(c CheckpointRecord) (n int) {
	w.t.Helper()
	j := w.renter.store.job("j1")
	secret, err := w.renter.keys.checkpoint(&j, 0, c.Attempt)
	if err != nil {
		w.t.Fatal(err)
	}
	key, _, err := identityOf(secret)
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := decrypted(w.vault.get(c.Root), key)
	if err == nil {
		var at int
		_, err = fmt.Sscanf(text, "at %d counter %d", &at, &n)
	}
	if err != nil {
		w.t.Errorf("checkpoint %q: %v", text, err)
	}
	return n
}

// lose ends a provider's machine for good.
func (s *shop) lose() {
	s.kill()
	s.machine.outage()
}

func (w *town) holds(owner string) int {
	n := 0
	w.renter.store.view(func(t *memTx) { n = len(t.s.holds[owner]) })
	return n
}

// TestCheckpointOfAService asks a service that goes on elsewhere whether it is
// ready, before anything of its new lease is billed.
func TestCheckpointOfAService(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice, testPrice}}, func(t *testing.T, w *town) {
		s := service(time.Minute, "answer=200", "tick=60", "print")
		s.Checkpoint.Every = testEvery
		w.submit("j1", s)
		w.saved(9)
		first := w.at()
		first.lose()
		w.await("another provider", func() bool { return w.at() != nil })
		second := w.at()
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("%s %q", j.State, j.Reason)
		}
		c := leaseOn(second)
		if c.StartingAt.IsZero() || c.RunningAt.Before(c.StartingAt) || c.UsageMs > c.EndedAt.Sub(c.RunningAt).Milliseconds() {
			t.Errorf("starting %s, running %s, ended %s, %d ms", c.StartingAt, c.RunningAt, c.EndedAt, c.UsageMs)
		}
		if asked := second.machine.asked(); len(asked) == 0 || asked[0] != "GET /health?deep=1" {
			t.Errorf("asked %q", asked)
		}
		if lines := w.lines(); len(lines) != 2 || slices.Contains(lines[1], "tick 1") {
			t.Errorf("%q", lines)
		}
		first.reopen()
	})
}

func TestCheckpointLoss(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice, testPrice, testPrice}}, func(t *testing.T, w *town) {
		s := ticking(60)
		s.Retry = RetrySpec{Given: true, AvoidFailed: true} // none
		w.submit("j1", s)
		w.saved(19)
		first := w.at()
		if n := w.holds(checkpointOwner("j1", 0)); n != keepCheckpoints {
			t.Errorf("%d checkpoints are held", n)
		}
		w.pass(5 * time.Second) // it is further than its checkpoint
		from := w.ticksOf(w.task("j1").Checkpoints[0])
		first.lose()
		w.renter.kill() // what is here outlives the renter's process
		w.renter.reopen()
		w.await("another provider", func() bool { return w.at() != nil })
		j := w.over("j1")
		task := w.task("j1")
		if j.State != JobDone || task.Retries != 0 || task.Moves != 1 || task.Attempts != 2 || task.Checkpoints != nil {
			t.Errorf("%s %q %+v", j.State, j.Reason, task)
		}
		lines := w.lines()
		if len(lines) != 2 || lines[1][0] != fmt.Sprintf("tick %d", from+1) || len(lines[1]) != 60-from+1 || slices.Contains(lines[1], "tick 1") {
			t.Errorf("from %d: %v", from, lines)
		}
		if lines[0][0] != "tick 1" || len(lines[0]) < from {
			t.Errorf("the first: %v", lines[0])
		}
		if n := w.holds(checkpointOwner("j1", 0)); n != 0 {
			t.Errorf("%d checkpoints are held of a job that is over", n)
		}
		first.reopen() // it hears that it was given up
	})
}

func TestCheckpointDrain(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice, testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", ticking(60))
		w.await("the job to run", func() bool { return w.at() != nil })
		w.pass(3500 * time.Millisecond) // no checkpoint yet
		first := w.at()
		drained := providerOf(first).Drain()
		w.await("the drain", func() bool {
			select {
			case <-drained:
				return true
			default:
				return false
			}
		})
		j := w.over("j1")
		if task := w.task("j1"); j.State != JobDone || task.Retries != 0 || task.Moves != 1 || task.Attempts != 2 {
			t.Errorf("%s %q %+v", j.State, j.Reason, task)
		}
		// Not a step is lost, and none is done twice.
		lines := w.lines()
		var all []string
		for _, l := range lines {
			all = append(all, l...)
		}
		for i := range 60 {
			if len(all) <= i || all[i] != fmt.Sprintf("tick %d", i+1) {
				t.Fatalf("%v", lines)
			}
		}
		if len(lines) != 2 {
			t.Errorf("%d leases", len(lines))
		}
	})
}

// Jobs without checkpoints go on to their end, and one whose last checkpoint
// cannot be made too.
func TestCheckpointDrainWithout(t *testing.T) {
	for name, s := range map[string]Spec{"none": oneTask("tick=30"), "broken": ticking(30)} {
		t.Run(name, func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice, testPrice}}, func(t *testing.T, w *town) {
				w.submit("j1", s)
				w.await("the job to run", func() bool { return w.at() != nil })
				first := w.at()
				first.machine.breakStep("checkpoint", errors.New("no room"))
				drained := providerOf(first).Drain()
				j := w.over("j1")
				if task := w.task("j1"); j.State != JobDone || task.Attempts != 1 {
					t.Errorf("%s %q %+v", j.State, j.Reason, task)
				}
				w.await("the drain", func() bool {
					select {
					case <-drained:
						return true
					default:
						return false
					}
				})
			})
		})
	}
}

// A provider that dies between a task's last step and its hand-over has done the
// task no harm: it goes on from what the renter has.
func TestCheckpointDrainKilled(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice, testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", ticking(60))
		w.saved(9)
		w.rules(func(c call) fate { return fate{lose: c.name == "outputs"} })
		first := w.at()
		_ = providerOf(first).Drain()
		w.await("the container's end", func() bool { return first.machine.running() == 0 })
		w.pass(testBeat)
		first.kill()
		first.reopen()
		w.rules(nil)
		j := w.over("j1")
		lines := w.lines()
		if task := w.task("j1"); j.State != JobDone || task.Moves != 1 || task.Retries != 0 || len(lines) != 2 || lines[1][0] == "tick 1" {
			t.Errorf("%s %q %+v %v", j.State, j.Reason, task, lines)
		}
	})
}

func TestCheckpointNoneYet(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice, testPrice}}, func(t *testing.T, w *town) {
		w.submit("j1", ticking(20))
		w.await("the job to run", func() bool { return w.at() != nil })
		first := w.at()
		first.lose()
		j := w.over("j1")
		task, lines := w.task("j1"), w.lines()
		if j.State != JobDone || task.Retries != 1 || task.Moves != 0 || len(lines) != 2 || lines[1][0] != "tick 1" {
			t.Errorf("%s %q %+v %v", j.State, j.Reason, task, lines)
		}
		first.reopen()
	})
}

// A checkpoint that cannot be restored is given up for the one before, and that
// for a new beginning.
func TestCheckpointDamaged(t *testing.T) {
	for name, c := range map[string]struct {
		bad   int // newest checkpoints that are damaged
		first string
	}{"the newest": {1, "tick 10"}, "both": {2, "tick 1"}} {
		t.Run(name, func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice, testPrice, testPrice, testPrice, testPrice, testPrice}}, func(t *testing.T, w *town) {
				s := ticking(40)
				s.Retry = RetrySpec{Given: true, AvoidFailed: true, Max: 5}
				w.submit("j1", s)
				w.saved(19)
				first := w.at()
				records := w.task("j1").Checkpoints[:c.bad]
				w.vault.damage = func(b []byte) []byte {
					for _, r := range records {
						if bytes.Equal(rootOf(string(b)), r.Root) {
							return b[:len(b)-1]
						}
					}
					return b
				}
				first.lose()
				j := w.over("j1")
				lines := w.lines()
				last := lines[len(lines)-1]
				if j.State != JobDone || last[0] != c.first && last[0] != "tick 11" || len(lines) != 2+2*c.bad {
					t.Errorf("%s %q %v", j.State, j.Reason, lines)
				}
				first.reopen()
			})
		})
	}
}

// What cannot be fetched holds nothing up.
func TestCheckpointNotFetched(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice, testPrice}}, func(t *testing.T, w *town) {
		w.rules(func(c call) fate { return fate{lose: c.name == "outputs"} })
		w.submit("j1", ticking(40))
		w.await("three tries", func() bool { return w.calls("outputs") >= 3 })
		if n := w.holds(checkpointOwner("j1", 0)); len(w.task("j1").Checkpoints) != 0 {
			t.Errorf("%d held, %+v", n, w.task("j1"))
		}
		w.rules(nil)
		w.saved(1)
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("%s %q", j.State, j.Reason)
		}
	})
}

// A provider says why there is no checkpoint.
func TestCheckpointFails(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.shops[0].machine.breakStep("checkpoint", errors.New("the disk is full"))
		w.submit("j1", ticking(40))
		told := func() int {
			n := 0
			for _, text := range w.renter.store.eventTexts(EventNotice) {
				if strings.Contains(text, "no checkpoint of task 0: the disk is full") {
					n++
				}
			}
			return n
		}
		w.await("a notice", func() bool { return told() > 0 })
		w.pass(3 * testEvery / 2)
		if told() != 1 {
			t.Errorf("told %d times", told())
		}
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("%s %q", j.State, j.Reason)
		}
	})
}

// A task goes on where its processor's features are, however cheap others are.
func TestCheckpointPlaces(t *testing.T) {
	hosts := []sandbox.Portability{
		{Engine: "e1", CPU: []byte{3}},
		{Engine: "e1", CPU: []byte{1}}, // one feature less
		{Engine: "e2", CPU: []byte{7}},
		{Engine: "e1", CPU: []byte{7, 1}},
	}
	inTown(t, plan{prices: []uint64{1, 2, 3, testPrice, 1}, change: func(i int, cfg *ProviderConfig) {
		if i == 4 {
			cfg.Portability = nil // saves nothing, and gets nothing
			return
		}
		cfg.Portability = &hosts[i]
	}}, func(t *testing.T, w *town) {
		s := ticking(60)
		w.submit("j1", s)
		w.saved(9)
		if w.at() != w.shops[0] {
			t.Fatalf("it is at %s", w.at().name)
		}
		w.shops[0].lose()
		w.await("another provider", func() bool { return w.at() != nil })
		if w.at() != w.shops[3] {
			t.Errorf("it goes on at %s", w.at().name)
		}
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("%s %q", j.State, j.Reason)
		}
		w.shops[0].reopen()
	})
}

// A provider takes no lease that asks of checkpoints what its offer did not.
func TestCheckpointLeaseBeyondOffer(t *testing.T) {
	lease := func(every int64, restore []byte) *protocol.Lease {
		return &protocol.Lease{Spec: &protocol.Task{CheckpointEveryMs: every, Restore: restore}}
	}
	for name, c := range map[string]struct {
		l     *protocol.Lease
		o     *protocol.Offer
		wants bool
	}{
		"none":              {lease(0, nil), &protocol.Offer{}, false},
		"saved":             {lease(1000, nil), &protocol.Offer{Portability: &protocol.Portability{}}, false},
		"saved unasked":     {lease(1000, nil), &protocol.Offer{}, true},
		"restored":          {lease(1000, []byte("x")), &protocol.Offer{Portability: &protocol.Portability{Engine: "e"}}, false},
		"restored unasked":  {lease(1000, []byte("x")), &protocol.Offer{Portability: &protocol.Portability{}}, true},
		"restored, no word": {lease(0, []byte("x")), &protocol.Offer{}, true},
	} {
		if got := unasked(c.l, c.o); (got != "") != c.wants {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// A checkpoint's key is for one lease and opens one checkpoint.
func TestCheckpointKeys(t *testing.T) {
	renter, provider := keysOf(t, 100), keysOf(t, 1)
	j := &Job{ID: "j1", Nonce: newNonce()}
	record := &TaskRecord{Attempts: 3, Checkpoints: []CheckpointRecord{{Attempt: 1, Root: rootOf("x")}}}
	sealed, err := renter.sealCheckpoints(testNet, j, record, provider.id)
	if err != nil {
		t.Fatal(err)
	}
	lease := func(change func(*protocol.Lease)) protocol.Signed[*protocol.Lease] {
		l := &protocol.Lease{Job: "j1", Attempt: 3, Spec: &protocol.Task{CheckpointKey: sealed, Restore: rootOf("x")}}
		change(l)
		return protocol.Signed[*protocol.Lease]{Msg: l, From: renter.id}
	}
	keys, err := provider.openCheckpoints(testNet, lease(func(*protocol.Lease) {}))
	if err != nil {
		t.Fatal(err)
	}
	to, err := keys.recipient()
	if err != nil {
		t.Fatal(err)
	}
	opens := func(task, attempt int, data []byte) bool {
		secret, err := renter.checkpoint(j, task, attempt)
		if err != nil {
			t.Fatal(err)
		}
		id, _, err := identityOf(secret)
		if err != nil {
			t.Fatal(err)
		}
		_, err = decrypted(data, id)
		return err == nil
	}
	data := encrypted(t, "state", to)
	if !opens(0, 3, data) || opens(0, 2, data) || opens(1, 3, data) {
		t.Error("the key is not of the attempt alone")
	}
	if from, err := renter.checkpoint(j, 0, 1); err != nil || !bytes.Equal(from, keys.from) {
		t.Errorf("the key of the one to go on from: %v", err)
	}
	for name, change := range map[string]func(*protocol.Lease){
		"job":     func(l *protocol.Lease) { l.Job = "j2" },
		"task":    func(l *protocol.Lease) { l.Task = 1 },
		"attempt": func(l *protocol.Lease) { l.Attempt = 4 },
		"anew":    func(l *protocol.Lease) { l.Spec.Restore = nil },
		"cut":     func(l *protocol.Lease) { l.Spec.CheckpointKey = sealed[:len(sealed)-1] },
	} {
		if _, err := provider.openCheckpoints(testNet, lease(change)); !errors.Is(err, ErrNoKey) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	if _, err := keysOf(t, 2).openCheckpoints(testNet, lease(func(*protocol.Lease) {})); !errors.Is(err, ErrNoKey) {
		t.Errorf("another provider: %v", err)
	}
}

func TestCheckpointSpec(t *testing.T) {
	good := ticking(1).WithDefaults()
	good.Image = "tool"
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Spec){
		"too often": func(s *Spec) { s.Checkpoint.Every = time.Millisecond },
		"negative":  func(s *Spec) { s.Checkpoint.Every = -time.Hour },
		"gpu":       func(s *Spec) { s.GPUs.Count = 1 },
		"all gpus":  func(s *Spec) { s.GPUs.All = true },
		"outside":   func(s *Spec) { s.Network = "outbound" },
		"cache":     func(s *Spec) { s.Caches = []CacheSpec{{Key: "weights", To: "/w"}} },
	} {
		s := good
		change(&s)
		if err := s.Validate(); !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), "checkpoint") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
