//go:build e2e

package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

// aService is a job of the test program that is ready when it is told.
func aService(t *testing.T) (job.Spec, string) {
	out := filepath.Join(t.TempDir(), "out")
	spec := program("service", "/out")
	spec.Outputs = []job.OutputSpec{{From: "/out", To: out}}
	spec.Ports = []job.PortSpec{{Remote: 8080}}
	spec.Ready = &job.ReadySpec{HTTP: "/health"}
	return spec, out
}

// serviceWorld is a network with a provider whose every millisecond costs, and
// which may be away for a while.
func serviceWorld(t *testing.T) *world {
	t.Helper()
	return newWorld(t, worldOptions{providers: 1, heartbeat: 15 * time.Second, args: func(int) []string { return []string{"--price-cpu", "3.60"} }})
}

// A service is not billed before it is ready, over a restart of its provider's
// node too, and is from then on.
func TestE2EReady(t *testing.T) {
	t.Parallel()
	w := serviceWorld(t)
	p := w.providers[0]
	spec, _ := aService(t)
	j := w.renter.submit(t, spec)
	w.renter.awaitTask(t, j.ID, 0, job.Starting)
	w.renter.awaitLine(t, j.ID, "serving") // output flows before it is ready
	if ps := w.renter.ok(t, "ps"); !strings.Contains(ps, "1 starting") {
		t.Errorf("ps says\n%s", ps)
	}
	if text := w.renter.ok(t, "inspect", j.ID); !strings.Contains(text, "when GET /health on port 8080 is answered") || !strings.Contains(text, "starting") {
		t.Errorf("inspect says\n%s", text)
	}
	p.kill()
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	d := w.renter.detail(t, j.ID)
	if c := d.Contracts[0]; len(d.Contracts) != 1 || c.State != job.Starting || c.UsageMs != 0 || !c.RunningAt.IsZero() || !d.Job.Spent.IsZero() {
		t.Fatalf("before it is ready: %+v", c)
	}
	w.renter.touchGo(t, j.ID)
	w.renter.awaitTask(t, j.ID, 0, job.Running)
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", d.Job.Spec.Ports[0].Local))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "here\n" {
		t.Errorf("%q %v", body, err)
	}
	w.renter.ok(t, "stop", j.ID)
	d = w.renter.over(t, j.ID)
	c := d.Contracts[0]
	if d.Job.State != job.JobCancelled || c.UsageMs <= 0 || c.UsageMs > c.EndedAt.Sub(c.StartingAt).Milliseconds() {
		t.Errorf("job %s, %d ms", d.Job.State, c.UsageMs)
	}
	if x := d.Times[0]; len(d.Times) != 1 || x.Quoting <= 0 || x.Fetching <= 0 || x.Starting <= 0 || x.Running <= 0 || x.Total > d.Job.Ended.Sub(d.Job.Created)+time.Millisecond {
		t.Errorf("its time went to %+v", d.Times)
	}
	if c.Took.Prepare <= 0 { // which a restart of its node does not forget
		t.Errorf("its provider says that it took %+v", c.Took)
	}
	if text := w.renter.ok(t, "inspect", j.ID); !strings.Contains(text, "PREPARING") || !strings.Contains(text, spanText(d.Times[0].Starting)) {
		t.Errorf("inspect says\n%s", text)
	}
	e := p.await(t, "the provider's end", func(e client.Event) bool {
		return e.Type == job.EventContract && e.Job == j.ID && e.State == string(job.Cancelled)
	})
	theirs := decode[job.Contract](t, string(e.Data))
	if ran := theirs.EndedAt.Sub(theirs.RunningAt).Milliseconds(); theirs.UsageMs != c.UsageMs || c.UsageMs > ran {
		t.Errorf("%d ms were billed of %d ms since it was ready", c.UsageMs, ran)
	}
	if before := theirs.RunningAt.Sub(theirs.StartingAt); before <= 0 {
		t.Errorf("it took %s to be ready", before)
	}
	if sum := w.settled(t); sum.IsZero() || sum.Cmp(d.Job.Spent) != 0 {
		t.Errorf("%s were booked, the job cost %s", sum, d.Job.Spent)
	}
	p.idle(t)
}

// A service that is never ready fails, says so, and costs nothing.
func TestE2ENeverReady(t *testing.T) {
	t.Parallel()
	w := serviceWorld(t)
	r := w.renter.cli(t, w.dir, "", "run", "-y", "--memory", "256MB", "--disk", "256MB", "-p", "0:8080", "--ready-http", "/health", "--ready-within", "3s", "--out", "/out", "oci:"+e2e.image, "/job", "service", "/out")
	if r.code != 124 || !strings.Contains(r.err, "starting") || !strings.Contains(r.err, "not ready within 3s") || !strings.Contains(r.err, "status 503") || !strings.Contains(r.err, "--ready-within") {
		t.Errorf("%v", r)
	}
	jobs, err := w.renter.c.Jobs(boundedBy(t, e2eWait), true)
	if err != nil || len(jobs) != 1 {
		t.Fatal(jobs, err)
	}
	d := w.renter.detail(t, jobs[0].ID)
	task := d.Tasks[0]
	if x := task.Exceeded; d.Job.State != job.JobFailed || x == nil || x.Limit != job.LimitReady || x.Max != 3000 || x.Seen < 3000 || len(task.Outputs) == 0 {
		t.Errorf("job %s, %+v, exceeded %+v", d.Job.State, task, x)
	}
	if !d.Job.Spent.IsZero() || task.UsageMs != 0 {
		t.Errorf("the job cost %s for %d ms", d.Job.Spent, task.UsageMs)
	}
	w.providers[0].idle(t)
	for _, n := range []*testNode{w.renter, w.providers[0]} {
		s, err := n.c.Statement(boundedBy(t, e2eWait), time.Time{})
		if err != nil || slices.ContainsFunc(s.Rows, func(r client.StatementRow) bool { return !r.Charge.IsZero() }) {
			t.Errorf("%s has booked %+v, %v", n.name, s.Rows, err)
		}
	}
}

// A service is over when nobody has been connected to it for a while, and not
// while somebody is.
func TestE2EIdleStop(t *testing.T) {
	t.Parallel()
	w := serviceWorld(t)
	out := filepath.Join(t.TempDir(), "out")
	spec := program("service", "/out")
	spec.Outputs = []job.OutputSpec{{From: "/out", To: out}}
	spec.Ports, spec.IdleStop = []job.PortSpec{{Remote: 8080}}, job.MinIdleStop
	j := w.renter.submit(t, spec)
	w.renter.awaitLine(t, j.ID, "serving")
	w.renter.touchGo(t, j.ID)
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.renter.detail(t, j.ID).Job.Spec.Ports[0].Local))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	answer := make([]byte, 12)
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "HTTP/1.1 200" {
		t.Fatalf("%q %v", answer, err)
	}
	left := time.Now()
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	d := w.renter.over(t, j.ID)
	if d.Job.State != job.JobDone || d.Job.ExitCode != 0 || d.Job.Reason != "idle for 10s: no connection to its ports" || time.Since(left) < job.MinIdleStop {
		t.Errorf("job %s, exit %d, %q, %s after the last connection", d.Job.State, d.Job.ExitCode, d.Job.Reason, time.Since(left))
	}
	if text := outFile(t, out, "go"); text != "" {
		t.Errorf("the output is %q", text)
	}
	if sum := w.settled(t); sum.IsZero() || sum.Cmp(d.Job.Spent) != 0 || d.Tasks[0].UsageMs < job.MinIdleStop.Milliseconds() {
		t.Errorf("%s were booked, the job cost %s for %d ms", sum, d.Job.Spent, d.Tasks[0].UsageMs)
	}
	w.providers[0].idle(t)
}
