package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/node/client"
)

// play runs a command while script plays the node's part, from when the
// command watches.
func play(t *testing.T, a *testApp, n *fakeNode, script func(), args ...string) int {
	t.Helper()
	played := make(chan struct{})
	go func() {
		defer close(played)
		select {
		case <-n.began:
			script()
		case <-t.Context().Done():
		}
	}()
	code := a.main(args)
	select {
	case <-played:
	case <-t.Context().Done():
	}
	return code
}

func finishTask(n *fakeNode, i, code int) {
	n.task(i, func(t *client.Task) {
		t.State, t.ExitCode, t.Source, t.UsageMs, t.Charge = string(job.Done), code, "job", 2100, ledger.Units("usd", 1200)
		if code != 0 {
			t.State, t.Reason = string(job.Failed), "exited"
		}
	})
}

func endJob(n *fakeNode, state string, code int) {
	n.job(func(j *client.Job) { j.State, j.ExitCode, j.Spent = state, code, ledger.Units("usd", 1200) })
}

func TestRunFollowsToTheEnd(t *testing.T) {
	a := newTestApp(t)
	n := newFakeNode(t, a, 1)
	code := play(t, a, n, func() {
		for _, s := range []job.State{job.Proposed, job.Leased, job.Fetching, job.Running} {
			n.state(0, s)
		}
		n.log(0, streamOut, "hel")
		n.log(0, streamOut, "lo\n")
		n.log(0, streamErr, "warn\n")
		n.task(0, func(t *client.Task) { t.Outputs = []byte{1} })
		finishTask(n, 0, 0)
		endJob(n, job.JobDone, 0)
	}, "run", "--name", "x", "--out", "/out:frames", "img", "echo")
	if code != 0 {
		t.Errorf("code %d: %s", code, a.err.String())
	}
	if got := a.out.String(); got != "hello\n" {
		t.Errorf("stdout %q", got)
	}
	said := a.err.String()
	at := 0
	for _, part := range []string{"1 bid, best 0.40/h", "leased    on 12D3…MLvKXtf", "fetching", "running", "done      exit 0 in 2.1s, 0.0012 usd", "outputs: ", "job jabc done, 0.0012 usd"} {
		i := strings.Index(said[at:], strings.Replace(part, "12D3…MLvKXtf", peerText(aPeer), 1))
		if i < 0 {
			t.Fatalf("stderr lacks %q after the rest:\n%s", part, said)
		}
		at += i
	}
	if !strings.Contains(said, "warn\n") {
		t.Error("the job's stderr is lost")
	}
	wd, _ := os.Getwd()
	if n.gets != 1 || n.request.Dir != wd || n.request.Key == "" || n.request.Spec.Name != "x" {
		t.Errorf("gets %d, request %+v", n.gets, n.request)
	}
}

func TestRunExitsWithTheJobsCode(t *testing.T) {
	a := newTestApp(t)
	n := newFakeNode(t, a, 1)
	code := play(t, a, n, func() {
		n.state(0, job.Running)
		n.log(0, streamOut, "out\n")
		finishTask(n, 0, 127)
		endJob(n, job.JobFailed, 127)
	}, "run", "-o", "json", "img", "nosuch")
	if code != 127 {
		t.Errorf("code %d", code)
	}
	var o outcome
	if err := json.Unmarshal([]byte(a.out.String()), &o); err != nil {
		t.Fatalf("stdout is not one JSON value: %v\n%s", err, a.out.String())
	}
	if o.Code != 127 || o.ExitSource != "job" || !strings.Contains(o.Remedy, "no such file") || len(o.Tasks) != 1 {
		t.Errorf("outcome %+v", o)
	}
	if !strings.Contains(a.err.String(), "out\n") {
		t.Error("with -o json the job's output belongs on stderr")
	}
}

func TestRunJSONLines(t *testing.T) {
	a := newTestApp(t)
	n := newFakeNode(t, a, 1)
	play(t, a, n, func() {
		n.state(0, job.Running)
		n.log(0, streamErr, "x\n")
		finishTask(n, 0, 0)
		endJob(n, job.JobDone, 0)
	}, "run", "-o", "jsonl", "img", "c")
	types := map[string]int{}
	for line := range strings.Lines(a.out.String()) {
		var v map[string]any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		kind, _ := v["type"].(string)
		if kind == "log" && (v["stream"] != "stderr" || v["data"] != "x\n") {
			t.Errorf("log line %v", v)
		}
		types[kind]++
	}
	if types["task"] != 2 || types["log"] != 1 || types["job"] != 1 || types[""] != 1 {
		t.Errorf("lines by type: %v", types)
	}
}

func TestRunNothingPlaced(t *testing.T) {
	a := newTestApp(t)
	n := newFakeNode(t, a, 1)
	n.quote = client.Quote{Heard: 2, Reasons: map[string]int{"REASON_GPU_VRAM": 2}}
	for _, args := range [][]string{{"run", "img"}, {"run", "--dry-run", "img"}, {"quote", "img"}} {
		if code := a.main(args); code != 2 {
			t.Errorf("%v: code %d", args, code)
		}
	}
	if !strings.Contains(a.err.String(), "error: nothing could be placed: 2 providers heard it: 2 too little VRAM\n  try: ") {
		t.Errorf("stderr %q", a.err.String())
	}
	if n.request.Key != "" {
		t.Error("it was submitted")
	}
}

func TestRunGivenUpLater(t *testing.T) {
	a := newTestApp(t)
	n := newFakeNode(t, a, 1)
	code := play(t, a, n, func() {
		n.job(func(j *client.Job) { j.Heard, j.Unplaced = 3, map[string]int{"REASON_MEMORY": 3} })
		n.task(0, func(t *client.Task) {
			t.State, t.ExitCode, t.Source, t.Reason = string(job.Failed), 125, "lumbung", job.ReasonUnplaced
		})
		endJob(n, job.JobFailed, 125)
	}, "run", "img")
	if code != 2 {
		t.Errorf("code %d", code)
	}
	for _, part := range []string{"waiting: nothing could be placed: 3 providers heard it: 3 too little memory", "exit 2, by lumbung"} {
		if !strings.Contains(a.err.String(), part) {
			t.Errorf("stderr lacks %q: %s", part, a.err.String())
		}
	}
}

func TestRunDryAndDetached(t *testing.T) {
	a := newTestApp(t)
	n := newFakeNode(t, a, 1)
	if code := a.main([]string{"run", "--dry-run", "img"}); code != 0 || n.request.Key != "" {
		t.Errorf("code %d, request %+v", code, n.request)
	}
	if got := a.out.String(); !strings.Contains(got, aPeer) || !strings.Contains(got, "0.40/h") {
		t.Errorf("quote:\n%s", got)
	}
	a.out.b.Reset()
	if code := a.main([]string{"run", "-d", "img"}); code != 0 || a.out.String() != "jabc\n" {
		t.Errorf("code %d, stdout %q", code, a.out.String())
	}
}

func TestRunAsksOnATerminal(t *testing.T) {
	for answer, want := range map[string]bool{"y\n": true, "YES\n": true, "n\n": false, "\n": false} {
		a := newTestApp(t)
		a.inTTY, a.con.errTTY, a.in = true, true, strings.NewReader(answer)
		n := newFakeNode(t, a, 1)
		code := a.main([]string{"run", "-d", "img"})
		if got := n.request.Key != ""; got != want || (code == 0) != want {
			t.Errorf("%q: submitted %v, code %d", answer, got, code)
		}
		if !strings.Contains(a.err.String(), "submit it? [y/N]") {
			t.Errorf("not asked: %q", a.err.String())
		}
	}
}

func TestSignalWithoutTerminalCancels(t *testing.T) {
	a := newTestApp(t)
	n := newFakeNode(t, a, 1)
	n.onStop = func() {
		n.state(0, job.Cancelled)
		endJob(n, job.JobCancelled, 130)
	}
	code := play(t, a, n, func() {
		n.state(0, job.Running)
		a.signals <- os.Interrupt
	}, "run", "img")
	if code != 130 || n.stopped() != 1 {
		t.Errorf("code %d, %d stops", code, n.stopped())
	}
}

func TestFirstSignalDetachesSecondCancels(t *testing.T) {
	terminal := func(t *testing.T) (*testApp, *fakeNode) {
		a := newTestApp(t)
		a.inTTY, a.con.errTTY = true, true
		n := newFakeNode(t, a, 1)
		n.detail.Contracts = []client.Contract{{State: job.Running, Asset: "usd", Price: 3_600_000, UsageMs: 2000}}
		return a, n
	}
	t.Run("detach", func(t *testing.T) {
		a, n := terminal(t)
		a.second = 10 * time.Millisecond
		code := play(t, a, n, func() {
			n.state(0, job.Running)
			a.signals <- os.Interrupt
		}, "run", "-y", "img")
		if code != 0 || n.stopped() != 0 {
			t.Errorf("code %d, %d stops", code, n.stopped())
		}
		for _, part := range []string{"job jabc goes on, 0.002 usd so far", "lumbung stop jabc", "lumbung logs -f jabc"} {
			if !strings.Contains(a.err.String(), part) {
				t.Errorf("stderr lacks %q: %q", part, a.err.String())
			}
		}
	})
	t.Run("detach with JSON", func(t *testing.T) {
		a, n := terminal(t)
		a.second = 10 * time.Millisecond
		code := play(t, a, n, func() {
			n.state(0, job.Running)
			a.signals <- os.Interrupt
		}, "run", "-y", "-o", "json", "img")
		if v := verdictIn(t, a); code != 0 || v["code"] != 0.0 || v["exit_source"] != sourceLumbung || v["remedy"] != "lumbung logs -f jabc" {
			t.Errorf("code %d, %v", code, v)
		}
	})
	t.Run("cancel", func(t *testing.T) {
		a, n := terminal(t)
		n.onStop = func() {
			n.state(0, job.Cancelled)
			endJob(n, job.JobCancelled, 130)
		}
		code := play(t, a, n, func() {
			n.state(0, job.Running)
			n.log(0, streamOut, "before\n")
			awaitText(t, a.out, "before\n")
			a.signals <- os.Interrupt
			awaitText(t, a.err, "detached: ")
			n.log(0, streamOut, "between\n")
			a.signals <- os.Interrupt
		}, "run", "-y", "img")
		if code != 130 || n.stopped() != 1 {
			t.Errorf("code %d, %d stops", code, n.stopped())
		}
		if got := a.out.String(); got != "before\nbetween\n" {
			t.Errorf("each line once, but stdout is %q", got)
		}
	})
}

// boundedTest bounds what a test waits for.
func boundedTest(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// awaitText waits until something has been printed.
func awaitText(t *testing.T, on *screen, text string) {
	t.Helper()
	if err := poll(boundedTest(t), func() (bool, error) { return strings.Contains(on.String(), text), nil }); err != nil {
		t.Errorf("no %q in %q: %v", text, on.String(), err)
	}
}

// A job that is done and whose outputs cannot be written is one document, with
// lumbung's own code.
func TestOutputsThatCannotBeWritten(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		a := newTestApp(t)
		n := newFakeNode(t, a, 1)
		n.getErr = errors.New("no room on the disk")
		code := play(t, a, n, func() {
			n.task(0, func(t *client.Task) { t.Outputs = []byte{1} })
			finishTask(n, 0, 0)
			endJob(n, job.JobDone, 0)
		}, "run", "-o", format, "--out", "/out:frames", "img")
		if code != exitFailed {
			t.Errorf("%s: code %d", format, code)
		}
		if got := a.err.String(); strings.Count(got, "no room on the disk") != 1 || strings.Count(got, "try: lumbung get jabc DIR") != 1 {
			t.Errorf("%s: stderr %q", format, got)
		}
		if format == "text" {
			continue
		}
		v := verdictIn(t, a)
		if v["code"] != float64(exitFailed) || v["exit_source"] != sourceLumbung || v["remedy"] != "lumbung get jabc DIR" || v["state"] != job.JobDone {
			t.Errorf("%v", v)
		}
	}
}

func TestArrayOutputHasItsTask(t *testing.T) {
	a := newTestApp(t)
	n := newFakeNode(t, a, 2)
	play(t, a, n, func() {
		n.state(0, job.Running)
		n.state(1, job.Running)
		n.log(0, streamOut, "one\ntw")
		n.log(1, streamOut, "uno\n")
		n.log(0, streamOut, "o\nrest")
		finishTask(n, 0, 0)
		finishTask(n, 1, 0)
		endJob(n, job.JobDone, 0)
	}, "run", "--array", "1-2", "img")
	got := strings.Split(strings.TrimSuffix(a.out.String(), "\n"), "\n")
	want := map[string]bool{"[0] one": true, "[0] two": true, "[0] rest": true, "[1] uno": true}
	for _, line := range got {
		if !want[line] {
			t.Errorf("line %q", line)
		}
		delete(want, line)
	}
	if len(want) > 0 {
		t.Errorf("missing %v", want)
	}
	if !strings.Contains(a.err.String(), "task 1   running") {
		t.Errorf("stderr %q", a.err.String())
	}
}

func TestFileCommands(t *testing.T) {
	a := newTestApp(t)
	n := newFakeNode(t, a, 1)
	file := filepath.Join(t.TempDir(), "job.yaml")
	if err := os.WriteFile(file, []byte("version: 1\nimage: img\ncommand: [a]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := a.main([]string{"submit", file}); code != 0 || a.out.String() != "jabc\n" {
		t.Errorf("code %d, stdout %q, stderr %q", code, a.out.String(), a.err.String())
	}
	if n.request.Dir != filepath.Dir(file) || n.request.Spec.Image != "img" {
		t.Errorf("request %+v", n.request)
	}
	if code := a.main([]string{"quote", file}); code != 0 {
		t.Errorf("code %d: %s", code, a.err.String())
	}
	if err := os.WriteFile(file, []byte("version: 1\nimgae: img\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := a.main([]string{"submit", file}); code != 2 || !strings.Contains(a.err.String(), "image") {
		t.Errorf("code %d, stderr %q", code, a.err.String())
	}
	if code := a.main([]string{"submit", file + "x"}); code == 0 {
		t.Error("took a file that is not there")
	}
}

func TestWaitLogsPsEvents(t *testing.T) {
	a := newTestApp(t)
	n := newFakeNode(t, a, 1)
	n.log(0, streamOut, "text\n")
	n.log(0, streamErr, "oops\n")
	finishTask(n, 0, 3)
	endJob(n, job.JobFailed, 3)
	if code := a.main([]string{"wait", "jabc"}); code != 3 || a.out.String() != "failed\n" {
		t.Errorf("wait: code %d, %q", code, a.out.String())
	}
	a.out.b.Reset()
	if code := a.main([]string{"logs", "jabc"}); code != 0 || a.out.String() != "text\n" || !strings.Contains(a.err.String(), "oops\n") {
		t.Errorf("logs: code %d, %q", code, a.out.String())
	}
	a.out.b.Reset()
	if code := a.main([]string{"ps", "-a"}); code != 0 || !strings.Contains(a.out.String(), "jabc") || !strings.Contains(a.out.String(), "failed (3)") {
		t.Errorf("ps: code %d, %q", code, a.out.String())
	}
	a.out.b.Reset()
	if code := a.main([]string{"events"}); code != 0 || strings.Count(a.out.String(), "\n") != 2 {
		t.Errorf("events: code %d, %q", code, a.out.String())
	}
	a.out.b.Reset()
	if code := a.main([]string{"ledger", "statement"}); code != 0 || !strings.Contains(a.out.String(), "0.000005 usd") {
		t.Errorf("statement: code %d, %q", code, a.out.String())
	}
	if code := a.main([]string{"inspect", "nosuch"}); code != 125 {
		t.Errorf("inspect: code %d", code)
	}
	a.signals <- os.Interrupt
	if code := a.main([]string{"events", "-f"}); code != 130 {
		t.Errorf("events -f: code %d", code)
	}
}

func TestLogsAsJSON(t *testing.T) {
	a := newTestApp(t)
	n := newFakeNode(t, a, 1)
	n.log(0, streamOut, "text\n")
	n.log(0, streamErr, "oops\n")
	finishTask(n, 0, 3)
	endJob(n, job.JobFailed, 3)
	var records []logLine
	if code := a.main([]string{"logs", "-o", "json", "jabc"}); code != 0 {
		t.Errorf("logs -o json: code %d", code)
	}
	if err := json.Unmarshal([]byte(a.out.String()), &records); err != nil || len(records) != 2 {
		t.Errorf("logs -o json: %v, %q", err, a.out.String())
	} else if r := records[1]; records[0].Data != "text\n" || r.Data != "oops\n" || r.Stream != "stderr" || r.Seq != 2 || r.Time.IsZero() {
		t.Errorf("logs -o json: %+v", records)
	}
	a.out.b.Reset()
	if code := a.main([]string{"logs", "-f", "-o", "jsonl", "jabc"}); code != 0 || strings.Count(a.out.String(), "\n") != 2 {
		t.Errorf("logs -o jsonl: code %d, %q", code, a.out.String())
	}
	a.out.b.Reset()
	if code := a.main([]string{"logs", "-o", "json", "--task", "7", "jabc"}); code != 0 || a.out.String() != "[]\n" {
		t.Errorf("logs -o json of nothing: code %d, %q", code, a.out.String())
	}
	a.out.b.Reset()
	if code := a.main([]string{"logs", "-o", "json", "nosuch"}); code != exitFailed {
		t.Errorf("logs -o json of no job: code %d", code)
	}
	verdictIn(t, a)
}
