//go:build e2e

package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

// run is `lumbung run` of the test program, with flags before the image.
func (n *testNode) run(t testing.TB, dir string, flags []string, command ...string) result {
	t.Helper()
	args := append([]string{"run", "-y", "--memory", "256MB", "--disk", "256MB"}, flags...)
	args = append(append(args, "oci:"+e2e.image, "/job"), command...)
	return n.cli(t, dir, "", args...)
}

// verdictOf is what -o json says of a run.
type verdictOf struct {
	Job        string `json:"job"`
	State      string `json:"state"`
	ExitSource string `json:"exit_source"`
	Code       int    `json:"code"`
	Remedy     string `json:"remedy"`
	Error      string `json:"error"`
}

func TestE2ERunExitCodes(t *testing.T) {
	w := sharedNet.get(t)
	for _, c := range []struct {
		name    string
		flags   []string
		command []string
		code    int
		source  string
	}{
		{"0", nil, []string{"/job", "exit", "0"}, 0, "job"},
		{"3", nil, []string{"/job", "exit", "3"}, 3, "job"},
		{"not executable", nil, []string{"/notes"}, 126, ""},
		{"not found", nil, []string{"/none"}, 127, ""},
		{"timeout", []string{"--timeout", "1s"}, []string{"/job", "tick"}, 124, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"run", "-y", "-o", "json", "--memory", "256MB", "--disk", "256MB"}, c.flags...)
			args = append(append(args, "oci:"+e2e.image), c.command...)
			r := w.renter.cli(t, t.TempDir(), "", args...)
			if r.code != c.code {
				t.Fatalf("want %d: %v", c.code, r)
			}
			v := decode[verdictOf](t, r.out)
			if v.Code != c.code || v.ExitSource == "" || c.source != "" && v.ExitSource != c.source {
				t.Errorf("%+v", v)
			}
			if (v.Remedy == "") != (c.code == 0) {
				t.Errorf("remedy %q of exit %d", v.Remedy, c.code)
			}
		})
	}
}

// TestE2ELimitIsNamed has a job killed for its memory: run, inspect and logs say
// which limit it was, with its figure and the time.
func TestE2ELimitIsNamed(t *testing.T) {
	w := sharedNet.get(t)
	r := w.renter.cli(t, t.TempDir(), "", "run", "-y", "-o", "json", "--memory", "64MiB", "--disk", "256MB", "oci:"+e2e.image, "/job", "eat")
	v := decode[verdictOf](t, r.out)
	if r.code != 137 || v.Code != 137 || v.ExitSource != "job" || !strings.Contains(v.Remedy, "--memory") {
		t.Errorf("%v", r)
	}
	sentence := regexp.MustCompile(`memory limit 64 MiB exceeded at \d\d:\d\d:\d\d UTC`)
	said := map[string]string{"run": r.err}
	for _, command := range []string{"inspect", "logs"} {
		r := w.renter.cli(t, t.TempDir(), "", command, v.Job)
		if r.code != 0 {
			t.Errorf("%s: %v", command, r)
		}
		said[command] = r.out + r.err
	}
	for command, text := range said {
		if !sentence.MatchString(text) {
			t.Errorf("%s does not say it:\n%s", command, text)
		}
	}
}

func TestE2ERunStreamsAndEnvironment(t *testing.T) {
	w := sharedNet.get(t)
	r := w.renter.run(t, t.TempDir(), nil, "say", "hello", "there")
	if r.code != 0 || r.out != "hello there\n" || !strings.Contains(r.err, "to stderr\n") {
		t.Errorf("say: %v", r)
	}
	if r := w.renter.run(t, t.TempDir(), []string{"-e", "COLOUR=blue"}, "env", "COLOUR"); r.out != "blue\n" {
		t.Errorf("-e: %v", r)
	}
	if r := w.renter.run(t, t.TempDir(), nil, "env", "FROM_IMAGE"); r.out != "yes\n" {
		t.Errorf("the image's environment: %v", r)
	}
}

func TestE2ERunFiles(t *testing.T) {
	w := sharedNet.get(t)
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"in/a": 0o644, "in/deep/b": 0o755, "single": 0o600} {
		name = filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		must(t, os.WriteFile(name, []byte(filepath.Base(name)), mode))
	}
	r := w.renter.run(t, dir, []string{"--in", "./in:/in"}, "ls", "/in")
	if want := "/in/a 644 a\n/in/deep/b 755 b\n"; r.out != want {
		t.Errorf("--in folder: want %q: %v", want, r)
	}
	if r := w.renter.run(t, dir, []string{"--in", "single:/data/single"}, "cat", "/data/single"); r.out != "single" {
		t.Errorf("--in file: %v", r)
	}
	r = w.renter.run(t, dir, []string{"--out", "/out:./back", "--name", "writer"}, "write", "/out")
	if r.code != 0 {
		t.Fatalf("--out: %v", r)
	}
	checkWritten(t, filepath.Join(dir, "back"))
	if r := w.renter.cli(t, dir, "", "get", "writer", "elsewhere"); r.code != 0 {
		t.Fatalf("get: %v", r)
	}
	checkWritten(t, filepath.Join(dir, "elsewhere"))
	// Outputs of a failed job are kept too.
	r = w.renter.run(t, dir, []string{"--out", "/out:./failed", "--name", "failing"}, "fail", "/out", "8")
	if r.code != 8 {
		t.Errorf("%v", r)
	}
	checkWritten(t, filepath.Join(dir, "failed"))
	if d := w.renter.detail(t, "failing"); d.Job.State != job.JobFailed {
		t.Errorf("the job is %s", d.Job.State)
	}
	if r := w.renter.cli(t, dir, "", "get", "failing", "again"); r.code != 0 {
		t.Errorf("get of a failed job: %v", r)
	}
	checkWritten(t, filepath.Join(dir, "again"))
}

func checkWritten(t *testing.T, dir string) {
	t.Helper()
	for name, mode := range map[string]os.FileMode{"plain": 0o644, "tool": 0o755, "sub/secret": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if info.Mode().Perm() != mode || outFile(t, dir, name) != filepath.Base(name)+"\n" {
			t.Errorf("%s has mode %o and content %q", name, info.Mode().Perm(), outFile(t, dir, name))
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// detached submits with -d and returns the job's id.
func (n *testNode) detached(t testing.TB, flags []string, command ...string) string {
	t.Helper()
	r := n.run(t, n.w.dir, append([]string{"-d"}, flags...), command...)
	if r.code != 0 {
		t.Fatalf("run -d: %v", r)
	}
	return strings.TrimSpace(r.out)
}

func TestE2EFollowAndStop(t *testing.T) {
	w := sharedNet.get(t)
	t.Run("logs -f", func(t *testing.T) {
		id := w.renter.detached(t, nil, "lines", "40", "20ms")
		wholeLog(t, w.renter.ok(t, "logs", "-f", id), 40)
		if again := w.renter.ok(t, "logs", id); !strings.HasSuffix(again, "line 40\n") {
			t.Errorf("logs outlive the job: %q", again)
		}
	})
	t.Run("exec", func(t *testing.T) {
		id := w.renter.detached(t, nil, "polite")
		w.renter.awaitLine(t, id, "waiting")
		if r := w.renter.cli(t, w.dir, "through stdin", "exec", "-i", id, "--", "/job", "cat"); r.code != 0 || r.out != "through stdin" {
			t.Errorf("exec -i: %v", r)
		}
		if r := w.renter.cli(t, w.dir, "", "exec", id, "--", "/job", "exit", "5"); r.code != 5 {
			t.Errorf("exec exits with the command's code: %v", r)
		}
		if r := w.renter.cli(t, w.dir, "", "exec", id, "--", "/none"); r.code != 127 {
			t.Errorf("exec of no program: %v", r)
		}
		if ps := w.renter.ok(t, "ps", "-q"); !strings.Contains(ps, id) {
			t.Errorf("ps -q without %s: %s", id, ps)
		}
		w.renter.ok(t, "stop", "--grace", "20s", id)
		d := w.renter.over(t, id)
		if d.Job.State != job.JobCancelled || !strings.Contains(w.renter.output(t, id), "asked to stop\n") {
			t.Errorf("stopped with grace: %s, output %q", d.Job.State, w.renter.output(t, id))
		}
		if ps := w.renter.ok(t, "ps", "-q"); strings.Contains(ps, id) {
			t.Errorf("ps shows a job that is over: %s", ps)
		}
		if ps := w.renter.ok(t, "ps", "-a"); !strings.Contains(ps, id) {
			t.Errorf("ps -a does not show it: %s", ps)
		}
		if r := w.renter.cli(t, w.dir, "", "wait", id); r.code != exitInterrupt {
			t.Errorf("wait of a cancelled job: %v", r)
		}
	})
	t.Run("grace runs out", func(t *testing.T) {
		id := w.renter.detached(t, nil, "stubborn")
		w.renter.awaitLine(t, id, "waiting")
		began := time.Now()
		w.renter.ok(t, "stop", "--grace", "1s", id)
		if took := time.Since(began); took < time.Second || took > 15*time.Second {
			t.Errorf("stopping took %s", took)
		}
	})
	t.Run("wait and inspect", func(t *testing.T) {
		id := w.renter.detached(t, []string{"--name", "waited"}, "exit", "4")
		if r := w.renter.cli(t, w.dir, "", "wait", id); r.code != 4 {
			t.Errorf("wait: %v", r)
		}
		d := decode[client.JobDetail](t, w.renter.ok(t, "inspect", "-o", "json", "waited"))
		if d.Job.ID != id || len(d.Contracts) != 1 || d.Tasks[0].ExitCode != 4 {
			t.Errorf("inspect: %+v", d)
		}
		if text := w.renter.ok(t, "inspect", id); !strings.Contains(text, "exit") || !strings.Contains(text, id) {
			t.Errorf("inspect:\n%s", text)
		}
	})
}

// SIGINT without a terminal cancels the job, and the provider is free again.
func TestE2EInterrupt(t *testing.T) {
	w := sharedNet.get(t)
	ctx, cancel := context.WithTimeout(t.Context(), e2eWait)
	defer cancel()
	cmd := w.renter.command(ctx, w.dir, "run", "-y", "--name", "interrupted", "--memory", "256MB", "--disk", "256MB", "oci:"+e2e.image, "/job", "polite")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	must(t, cmd.Start())
	err := poll(ctx, func() (bool, error) {
		jobs, err := w.renter.c.Jobs(ctx, false)
		for _, j := range jobs {
			if j.Spec.Name == "interrupted" {
				return true, nil
			}
		}
		return false, err
	})
	must(t, err)
	w.renter.awaitLine(t, "interrupted", "waiting")
	must(t, cmd.Process.Signal(syscall.SIGINT))
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupt {
		t.Errorf("exit %d\n%s\n%s", code, &out, &errs)
	}
	if d := w.renter.over(t, "interrupted"); d.Job.State != job.JobCancelled {
		t.Errorf("the job is %s", d.Job.State)
	}
	for _, p := range w.providers {
		p.idle(t)
	}
}

func TestE2EArray(t *testing.T) {
	w := sharedNet.get(t)
	// 1-8 in chunks of two are four tasks, of which two fail.
	flags := []string{"--array", "1-8:2", "--parallel", "2", "--max-failed", "2", "--name", "array"}
	if r := w.renter.run(t, w.dir, flags, "odd"); r.code != 0 {
		t.Fatalf("an array that bears its failures: %v", r)
	}
	d := w.renter.detail(t, "array")
	for i, tk := range d.Tasks {
		want := map[bool]string{true: string(job.Failed), false: string(job.Done)}[i%2 == 1]
		if tk.State != want || tk.First != 2*i+1 || tk.Last != 2*i+2 {
			t.Errorf("task %d: %+v", i, tk)
		}
		said := "index " + strconv.Itoa(i) + " first " + strconv.Itoa(tk.First) + " last " + strconv.Itoa(tk.Last)
		if out := w.renter.output(t, "array"); !strings.Contains(out, said) {
			t.Errorf("no %q in %q", said, out)
		}
	}
	if r := w.renter.run(t, w.dir, []string{"--array", "0-3"}, "odd"); r.code != 9 {
		t.Errorf("an array that bears none: %v", r)
	}
	// One retry is a second attempt, on another provider.
	r := w.renter.run(t, w.dir, []string{"--retries", "1", "--name", "retried"}, "exit", "6")
	if r.code != 6 {
		t.Errorf("%v", r)
	}
	d = w.renter.detail(t, "retried")
	if len(d.Contracts) != 2 || d.Contracts[0].Provider == d.Contracts[1].Provider {
		t.Errorf("one retry, elsewhere: %+v", d.Contracts)
	}
}
