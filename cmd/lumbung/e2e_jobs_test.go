//go:build e2e

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/node/client"
)

// bounded gives a test's wait its end.
func boundedBy(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// submit hands the test program over as a job.
func (n *testNode) submit(t testing.TB, spec job.Spec) client.Job {
	t.Helper()
	if spec.Image == "" {
		spec.Image = "oci:" + e2e.image
	}
	if spec.Memory == 0 {
		spec.Memory = 256 << 20
	}
	if spec.Disk == 0 {
		spec.Disk = 256 << 20
	}
	req, err := submission(spec.WithDefaults(), n.w.dir)
	if err != nil {
		t.Fatal(err)
	}
	j, err := n.c.Submit(boundedBy(t, e2eWait), req, nil)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// program is a job that runs a mode of the test program.
func program(args ...string) job.Spec {
	return job.Spec{Command: append([]string{"/job"}, args...)}
}

// await reads the node's events from the first on until one is as wanted.
func (n *testNode) await(t testing.TB, what string, is func(client.Event) bool) client.Event {
	t.Helper()
	var found client.Event
	err := n.c.Events(boundedBy(t, e2eWait), 0, func(e client.Event) error {
		if is(e) {
			found = e
			return errOver
		}
		return nil
	})
	if !errors.Is(err, errOver) {
		t.Fatalf("%s: waiting for %s: %v", n.name, what, err)
	}
	return found
}

// awaitTask waits until a task has been in a state.
func (n *testNode) awaitTask(t testing.TB, id string, task int, state job.State) client.Event {
	t.Helper()
	return n.await(t, fmt.Sprintf("task %d of %s to be %s", task, id, state), func(e client.Event) bool {
		return e.Type == job.EventTask && e.Job == id && e.Task == task && e.State == string(state)
	})
}

// awaitLine waits until a job has printed a line.
func (n *testNode) awaitLine(t testing.TB, id, line string) {
	t.Helper()
	p := logReader{}
	err := n.c.Logs(boundedBy(t, e2eWait), id, client.LogQuery{Task: client.AllTasks, Follow: true}, func(_ int, r client.LogRecord) error {
		p.text.Write(r.Data)
		if strings.Contains(p.text.String(), line+"\n") {
			return errOver
		}
		return nil
	})
	if !errors.Is(err, errOver) {
		t.Fatalf("%s: waiting for %q: %v; so far: %s", n.name, line, err, p.text.String())
	}
}

type logReader struct{ text strings.Builder }

// output is what a job has printed on stdout and stderr so far.
func (n *testNode) output(t testing.TB, id string) string {
	t.Helper()
	var p logReader
	err := n.c.Logs(boundedBy(t, e2eWait), id, client.LogQuery{Task: client.AllTasks}, func(_ int, r client.LogRecord) error {
		if r.Stream != streamRemark {
			p.text.Write(r.Data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return p.text.String()
}

// detail is all there is to know of a job.
func (n *testNode) detail(t testing.TB, id string) client.JobDetail {
	t.Helper()
	d, err := n.c.Job(boundedBy(t, e2eWait), id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// over waits for a job's end.
func (n *testNode) over(t testing.TB, id string) client.JobDetail {
	t.Helper()
	d, err := n.c.WaitJob(boundedBy(t, e2eWait), id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// done waits for a job's end, which must be a good one.
func (n *testNode) done(t testing.TB, id string) client.JobDetail {
	t.Helper()
	d := n.over(t, id)
	if d.Job.State != job.JobDone || d.Job.ExitCode != 0 {
		t.Fatalf("job %s is %s, exit %d: %s", id, d.Job.State, d.Job.ExitCode, d.Job.Reason)
	}
	return d
}

var idLine = regexp.MustCompile(`(?m)^id [A-Z0-9]+$`)

// wholeLog checks the output of `lines COUNT`: begun once, no line missing, none
// twice.
func wholeLog(t testing.TB, text string, count int) {
	t.Helper()
	if ids := idLine.FindAllString(text, -1); len(ids) != 1 {
		t.Errorf("the program began %d times: %v", len(ids), ids)
	}
	var want strings.Builder
	for i := 1; i <= count; i++ {
		fmt.Fprintln(&want, "line", i)
	}
	_, got, _ := strings.Cut(text, "\n")
	if got != want.String() {
		t.Errorf("the log has a gap: %d lines of %d:\n%s", strings.Count(got, "\n"), count, text)
	}
}

// ran lists the leases of a job that came to run. Of one that ended while its
// renter was away the renter knows only for how long.
func ran(d client.JobDetail) []client.Contract {
	return slices.DeleteFunc(slices.Clone(d.Contracts), func(c client.Contract) bool { return c.RunningAt.IsZero() && c.UsageMs == 0 })
}

// by is the provider of a peer id.
func (w *world) by(t testing.TB, peer string) *testNode {
	t.Helper()
	for _, p := range w.providers {
		if p.id.PeerID == peer {
			return p
		}
	}
	t.Fatalf("no provider of the network is %q", peer)
	return nil
}

// settled waits until the journals of the renter and its providers agree to the
// unit, and returns what was charged.
func (w *world) settled(t testing.TB) ledger.Amount {
	t.Helper()
	ctx := boundedBy(t, e2eWait)
	var total ledger.Amount
	var last error
	err := poll(ctx, func() (bool, error) {
		books := map[string]client.Statement{}
		var providers []string
		for _, n := range append([]*testNode{w.renter}, w.providers...) {
			if !n.runs() {
				continue
			}
			s, err := n.c.Statement(ctx, time.Time{})
			if err != nil {
				return false, err
			}
			books[n.id.PeerID] = s
			if n != w.renter {
				providers = append(providers, n.id.PeerID)
			}
		}
		total, last = agree(books, w.renter.id.PeerID, providers)
		return last == nil, nil
	})
	if err != nil {
		t.Fatalf("the statements do not agree: %v (%v)", last, err)
	}
	return total
}

// idle waits until a provider has all of its capacity back.
func (n *testNode) idle(t testing.TB) {
	t.Helper()
	ctx := boundedBy(t, e2eWait)
	var s client.Status
	err := poll(ctx, func() (bool, error) {
		var err error
		s, err = n.c.Status(ctx)
		if err != nil {
			return false, err
		}
		p := s.Provider
		return p.Leases == 0 && p.CPUFree == p.CPUMillis && p.MemFree == p.Memory && len(n.containers()) == 0, nil
	})
	if err != nil {
		t.Fatalf("%s did not get its capacity back: %+v, containers %v: %v", n.name, s.Provider, n.containers(), err)
	}
}

// outFile reads a file of a job's outputs.
func outFile(t testing.TB, dir string, parts ...string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(append([]string{dir}, parts...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// charged sums a journal's rows of one job.
func charged(t testing.TB, s client.Statement, id string) (rows int, sum ledger.Amount) {
	t.Helper()
	sum = ledger.Units(job.Asset, 0)
	for _, r := range s.Rows {
		if r.Job != id {
			continue
		}
		rows++
		var err error
		if sum, err = sum.Add(r.Charge); err != nil {
			t.Fatal(err)
		}
	}
	return rows, sum
}

// vmHWM is the most memory that a process has had resident, in bytes.
func vmHWM(t testing.TB, pid int) uint64 {
	t.Helper()
	return statusField(t, pid, "VmHWM:")
}

func statusField(t testing.TB, pid int, name string) uint64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(raw), "\n") {
		if rest, ok := strings.CutPrefix(line, name); ok {
			kb, err := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatalf("process %d has no %s", pid, name)
	return 0
}
