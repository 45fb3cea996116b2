//go:build e2e

package main

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/examples/pack"
	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/node/client"
)

// steady is a job that prints numbered lines, and leaves a file.
func steady(t *testing.T, count string) (job.Spec, string) {
	out := filepath.Join(t.TempDir(), "out")
	spec := program("lines", count, "20ms")
	spec.Outputs = []job.OutputSpec{{From: "/out", To: out}}
	return spec, out
}

// untilTold is a job like steady's that goes on until goOn.
func untilTold(t *testing.T) (job.Spec, string) {
	out := filepath.Join(t.TempDir(), "out")
	spec := program("until", "/out", "20ms")
	spec.Outputs = []job.OutputSpec{{From: "/out", To: out}}
	return spec, out
}

// goOn lets a job of untilTold come to its end, and returns how many lines it has
// printed.
func (n *testNode) goOn(t *testing.T, id, out string) (client.JobDetail, int) {
	t.Helper()
	n.touchGo(t, id)
	d := n.done(t, id)
	count, err := strconv.Atoi(outFile(t, out, "count"))
	must(t, err)
	return d, count
}

// touchGo lets a program go on that waits for a file named go. Its provider may
// have started a moment ago and not know its containers yet. Where it lets the
// program end, the container may be gone before the exec is.
func (n *testNode) touchGo(t *testing.T, id string) {
	t.Helper()
	must(t, poll(boundedBy(t, e2eWait), func() (bool, error) {
		r := n.cli(t, n.w.dir, "", "exec", id, "--", "/job", "touch", "/out/go")
		if r.code == 0 {
			return true, nil
		}
		t.Logf("exec: %v", r)
		d := n.detail(t, id)
		return d.Job.Over(), nil
	}))
}

// supervisors are the processes of containers that live from their start to
// their end: those that watch over them and the sandboxes' kernels. What else
// runs comes and goes.
func supervisors(containers []runningProcess) []int {
	var out []int
	for _, p := range containers {
		if strings.Contains(p.args, " "+sandbox.ShimArg+" ") || strings.Contains(p.args, " boot ") {
			out = append(out, p.pid)
		}
	}
	slices.Sort(out)
	return out
}

// once checks that a job of one task ran once, was paid once, and that both
// sides agree.
func (w *world) once(t *testing.T, d client.JobDetail) {
	t.Helper()
	if n := len(ran(d)); n != 1 {
		t.Errorf("it ran %d times: %+v", n, d.Contracts)
	}
	total := w.settled(t)
	if d.Job.Spent.IsZero() || d.Job.Spent.Cmp(total) != 0 {
		t.Errorf("the job cost %s, the journals say %s", d.Job.Spent, total)
	}
	s, err := w.renter.c.Statement(boundedBy(t, e2eWait), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if rows, sum := charged(t, s, d.Job.ID); rows != 1 || sum.Cmp(d.Job.Spent) != 0 {
		t.Errorf("%d charges of %s in all for a job that cost %s", rows, sum, d.Job.Spent)
	}
}

// The provider's node dies while the container runs: the container goes on, a
// new life of the node finds it, and the renter gets all of it.
func TestE2EProviderKilledWhileRunning(t *testing.T) {
	t.Parallel()
	// A heartbeat long enough for a busy machine to start a node within three.
	w := newWorld(t, worldOptions{providers: 1, heartbeat: 4 * time.Second})
	spec, out := untilTold(t)
	j := w.renter.submit(t, spec)
	w.renter.awaitLine(t, j.ID, "line 20")
	p := w.providers[0]
	before := supervisors(p.containers())
	p.kill()
	if after := supervisors(p.containers()); len(before) < 2 || !slices.Equal(after, before) {
		t.Fatalf("the container did not outlive its node: %v, then %v", before, after)
	}
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	d, count := w.renter.goOn(t, j.ID, out)
	wholeLog(t, w.renter.output(t, j.ID), count)
	w.once(t, d)
	p.idle(t)
}

// The renter dies at several points of a job's way. It takes the job up again
// where it stands.
func TestE2ERenterKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{providers: 2, heartbeat: 2 * time.Second})
	restart := func(t *testing.T) {
		t.Helper()
		w.renter.kill()
		if err := w.renter.start(); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("while running", func(t *testing.T) {
		spec, out := steady(t, "100")
		j := w.renter.submit(t, spec)
		w.renter.awaitLine(t, j.ID, "line 10")
		restart(t)
		w.whole(t, j.ID, out, 100)
	})
	t.Run("while fetching", func(t *testing.T) {
		spec, out := steady(t, "20")
		image := filepath.Join(t.TempDir(), "image")
		if err := packE2E(image, "large:latest", pack.File{Path: "/large", Mode: 0o644, Data: noise(96 << 20)}); err != nil {
			t.Fatal(err)
		}
		spec.Image = "oci:" + image
		j := w.renter.submit(t, spec)
		w.renter.awaitTask(t, j.ID, 0, job.Fetching)
		restart(t)
		w.whole(t, j.ID, out, 20)
	})
	t.Run("while saving", func(t *testing.T) {
		spec, out := steady(t, "20")
		j := w.renter.submit(t, spec)
		w.renter.awaitTask(t, j.ID, 0, job.Saving)
		restart(t)
		w.whole(t, j.ID, out, 20)
	})
	t.Run("away until after the end", func(t *testing.T) {
		spec, out := steady(t, "20")
		j := w.renter.submit(t, spec)
		w.renter.awaitTask(t, j.ID, 0, job.Running)
		p := w.by(t, w.renter.detail(t, j.ID).Tasks[0].Provider)
		w.renter.kill()
		p.await(t, "the provider's end of "+j.ID, func(e client.Event) bool {
			return e.Type == job.EventContract && e.Job == j.ID && e.State == string(job.Done)
		})
		if err := w.renter.start(); err != nil {
			t.Fatal(err)
		}
		w.whole(t, j.ID, out, 20)
	})
	t.Run("right after submitting", func(t *testing.T) {
		spec, out := steady(t, "20")
		j := w.renter.submit(t, spec)
		restart(t)
		w.whole(t, j.ID, out, 20)
	})
	t.Run("right after the result", func(t *testing.T) {
		spec, out := steady(t, "20")
		j := w.renter.submit(t, spec)
		w.renter.awaitTask(t, j.ID, 0, job.Done)
		restart(t)
		w.whole(t, j.ID, out, 20)
	})
	for _, p := range w.providers {
		p.idle(t)
	}
}

// whole waits for a job of `lines COUNT` and checks that it ran once and that
// nothing of it is lost.
func (w *world) whole(t *testing.T, id, out string, count int) {
	t.Helper()
	d := w.renter.done(t, id)
	wholeLog(t, w.renter.output(t, id), count)
	if n := len(ran(d)); n != 1 {
		t.Errorf("it ran %d times: %+v", n, d.Contracts)
	}
	// The node writes the outputs by itself; a life that ended before that left
	// it to `lumbung get`.
	w.renter.ok(t, "get", id)
	if got, want := outFile(t, out, "count"), strconv.Itoa(count); got != want {
		t.Errorf("the output says %q", got)
	}
	w.settled(t)
}

// Provider and container die together: the renter notices within three
// heartbeats, pays up to the last one, and has the task done elsewhere. The
// provider learns of it when it comes back.
func TestE2EProviderAndContainerGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{providers: 2, heartbeat: 4 * time.Second})
	spec, out := untilTold(t)
	j := w.renter.submit(t, spec)
	w.renter.awaitLine(t, j.ID, "line 1")
	must(t, poll(boundedBy(t, e2eWait), func() (bool, error) { // a heartbeat has told of work worth some money
		c := w.renter.detail(t, j.ID).Contracts[0]
		return !ledger.Charge(c.Asset, c.Price, c.UsageMs).IsZero(), nil
	}))
	first := w.renter.detail(t, j.ID).Tasks[0]
	dead := w.by(t, first.Provider)
	killed := time.Now()
	dead.kill()
	killAll(dead.containers())

	lost := w.renter.await(t, "the loss to be noticed", func(e client.Event) bool {
		return e.Type == job.EventTask && e.Job == j.ID && e.State == job.TaskQueued && e.Time.After(killed)
	})
	// The last heartbeat may have come right before the kill; the renter looks
	// four times a heartbeat, and the machine may be busy. It is before a fourth
	// heartbeat would have come.
	slack := w.heartbeat / 2
	if took := lost.Time.Sub(killed); took > 3*w.heartbeat+slack {
		t.Errorf("the loss was noticed after %s, heartbeats are %s apart", took, w.heartbeat)
	}
	w.renter.await(t, "the task to run elsewhere", func(e client.Event) bool {
		return e.Type == job.EventTask && e.Job == j.ID && e.State == string(job.Running) && e.Seq > lost.Seq
	})
	d, count := w.renter.goOn(t, j.ID, out)
	if d.Tasks[0].Provider == first.Provider {
		t.Errorf("the task ran on the dead provider again")
	}
	if len(d.Contracts) != 2 {
		t.Fatalf("%d leases, want 2: %+v", len(d.Contracts), d.Contracts)
	}
	for _, c := range d.Contracts {
		if c.Provider != first.Provider {
			continue
		}
		if c.State != job.Lost || !c.Booked {
			t.Errorf("the dead provider's lease is %s, booked %v", c.State, c.Booked)
		}
		// Metered up to the last heartbeat: never to when the loss was noticed.
		if ran := c.LastBeat.Sub(c.RunningAt).Milliseconds(); c.UsageMs <= 0 || c.UsageMs > ran+1000 {
			t.Errorf("%d ms booked; the last heartbeat came %d ms after the start", c.UsageMs, ran)
		}
		if c.LastBeat.After(killed.Add(slack)) {
			t.Errorf("a heartbeat came %s after the kill", c.LastBeat.Sub(killed))
		}
		if want := ledger.Charge(c.Asset, c.Price, c.UsageMs); c.Charge.Cmp(want) != 0 {
			t.Errorf("charged %s for %d ms, want %s", c.Charge, c.UsageMs, want)
		}
	}
	if count < 1 {
		t.Errorf("the output says %d", count)
	}
	if err := dead.start(); err != nil {
		t.Fatal(err)
	}
	w.settled(t)
	leases, err := dead.c.Contracts(boundedBy(t, e2eWait))
	if err != nil {
		t.Fatal(err)
	}
	if len(leases) != 1 || !leases[0].Booked {
		t.Errorf("the dead provider did not learn of the receipt: %+v", leases)
	}
	dead.idle(t)
}

// noise is content that no compression makes smaller, the same each time.
func noise(n int) []byte { return noiseOf(88172645463325252, n) }

// noiseOf is other noise for each seed, which is not 0.
func noiseOf(seed uint64, n int) []byte {
	b := make([]byte, n)
	x := seed
	for i := 0; i+8 <= n; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		for k := range 8 {
			b[i+k] = byte(x >> (8 * k))
		}
	}
	return b
}
