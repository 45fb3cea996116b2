//go:build e2e

package main

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

// lone is the binary used by itself, outside of a network of the tests.
func lone(t *testing.T) *testNode {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), bin: e2e.bin}
	n := &testNode{w: w, name: "lone", home: filepath.Join(w.dir, "home")}
	t.Cleanup(func() { killAll(processesOf(w.dir)) })
	return n
}

// gone checks that nothing is left of what ran below a folder: no process, no
// mount, no socket.
func gone(t *testing.T, dir string) {
	t.Helper()
	if left := processesOf(dir); len(left) > 0 {
		t.Errorf("processes left behind: %v", left)
	}
	if left := mountsBelow(dir); len(left) > 0 {
		t.Errorf("mounts left behind: %v", left)
	}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type()&fs.ModeSocket != 0 {
			t.Errorf("socket left behind: %s", path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	must(t, err)
}

// The README's first command leaves one node running, however -d is spelled.
func TestE2EUpDetached(t *testing.T) {
	t.Parallel()
	for _, detach := range []string{"-d", "--detach=1"} {
		t.Run(detach, func(t *testing.T) {
			n := lone(t)
			up := []string{"up", detach, "--network", "test-lone", "--listen", "/ip4/127.0.0.1/tcp/0"}
			if r := n.cli(t, n.w.dir, "", up...); r.code != 0 || !strings.Contains(r.out, "test-lone") || !strings.Contains(r.err, "the node is up: process ") {
				t.Fatalf("up: %v", r)
			}
			s := decode[client.Status](t, n.ok(t, "status", "-o", "json"))
			if running := processesOf(n.home); len(running) != 1 || running[0].pid != s.PID || s.Home != n.home {
				t.Errorf("process %d of %s answers; there run %v", s.PID, s.Home, running)
			}
			if r := n.cli(t, n.w.dir, "", up...); r.code != exitFailed || !strings.Contains(r.err, "runs already") {
				t.Errorf("up again: %v", r)
			}
			if r := n.cli(t, n.w.dir, "", "ps"); r.code != 0 {
				t.Errorf("ps: %v", r)
			}
			n.ok(t, "down")
			gone(t, n.w.dir)
			if r := n.cli(t, n.w.dir, "", "status"); r.code != exitFailed || !strings.Contains(r.err, "lumbung up -d") {
				t.Errorf("status afterwards: %v", r)
			}
		})
	}
}

// attended is a command that runs on while a test looks at what it says.
type attended struct {
	cmd  *exec.Cmd
	out  bytes.Buffer
	errs *screen
	done chan struct{}
}

// begin runs a command whose temporary files lie below the world's folder.
func (n *testNode) begin(t *testing.T, args ...string) *attended {
	t.Helper()
	a := &attended{errs: &screen{}, done: make(chan struct{})}
	a.cmd = n.command(boundedBy(t, 2*e2eWait), n.w.dir, args...)
	a.cmd.Env = append(a.cmd.Env, "TMPDIR="+filepath.Join(n.w.dir, "tmp"))
	must(t, os.MkdirAll(filepath.Join(n.w.dir, "tmp"), 0o755))
	a.cmd.Stdout, a.cmd.Stderr = &a.out, a.errs
	must(t, a.cmd.Start())
	go func() {
		defer close(a.done)
		_ = a.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = a.cmd.Process.Kill()
		<-a.done
	})
	return a
}

// says waits until the command has said something.
func (a *attended) says(t *testing.T, text string) {
	t.Helper()
	err := poll(boundedBy(t, e2eWait), func() (bool, error) {
		if strings.Contains(a.errs.String(), text) {
			return true, nil
		}
		select {
		case <-a.done:
			return false, errors.New("it has ended")
		default:
			return false, nil
		}
	})
	if err != nil {
		t.Fatalf("waiting for %q: %v; so far:\n%s", text, err, a.errs)
	}
}

// interrupted sends ^C and waits for the end.
func (a *attended) interrupted(t *testing.T) int {
	t.Helper()
	must(t, a.cmd.Process.Signal(syscall.SIGINT))
	select {
	case <-a.done:
	case <-boundedBy(t, e2eWait).Done():
		t.Fatalf("^C does not end it:\n%s", a.errs)
	}
	return a.cmd.ProcessState.ExitCode()
}

// temporary lists what is left of the temporary files.
func (n *testNode) temporary(t *testing.T) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(n.w.dir, "tmp", "*"))
	must(t, err)
	return left
}

// ^C ends a devnet with all that runs on it, and it leaves nothing.
func TestE2EDevnetInterrupted(t *testing.T) {
	t.Parallel()
	n := lone(t)
	a := n.begin(t, "devnet", "--providers", "2", "--cpus", "1")
	a.says(t, "^C stops everything")
	_, home, _ := strings.Cut(a.errs.String(), "export LUMBUNG_HOME=")
	n.home, _, _ = strings.Cut(home, "\n")
	c, err := client.New(n.home)
	must(t, err)
	defer func() { _ = c.Close() }()
	n.c = c
	j := n.submit(t, program("polite"))
	n.awaitLine(t, j.ID, "waiting")
	if nodes := processesOf(filepath.Join(n.w.dir, "tmp")); len(nodes) < 5 { // the container's too
		t.Errorf("running: %v", nodes)
	}
	if code := a.interrupted(t); code != 0 {
		t.Errorf("exit %d:\n%s", code, a.errs)
	}
	gone(t, n.w.dir)
	if left := n.temporary(t); len(left) > 0 {
		t.Errorf("files left behind: %v", left)
	}
}

// In `lumbung devnet | tee log` ^C ends tee too: what nobody reads holds nothing up.
func TestE2EDevnetUnread(t *testing.T) {
	t.Parallel()
	n := lone(t)
	dir := filepath.Join(n.w.dir, "net")
	cmd := n.command(boundedBy(t, 2*e2eWait), n.w.dir, "devnet", "--providers", "1", "--cpus", "1", "--dir", dir)
	r, w, err := os.Pipe()
	must(t, err)
	cmd.Stdout, cmd.Stderr = w, w
	must(t, cmd.Start())
	must(t, w.Close())
	lines := bufio.NewScanner(r)
	for lines.Scan() && !strings.Contains(lines.Text(), "^C stops everything") {
	}
	must(t, r.Close())
	must(t, cmd.Process.Signal(syscall.SIGINT))
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	gone(t, n.w.dir)
}

// A devnet that is killed takes its nodes and their jobs with it.
func TestE2EDevnetKilled(t *testing.T) {
	t.Parallel()
	n := lone(t)
	dir := filepath.Join(n.w.dir, "net")
	a := n.begin(t, "devnet", "--providers", "1", "--cpus", "1", "--dir", dir)
	a.says(t, "^C stops everything")
	must(t, a.cmd.Process.Kill())
	<-a.done
	err := poll(boundedBy(t, e2eWait), func() (bool, error) { return len(processesOf(dir)) == 0, nil })
	if err != nil {
		t.Errorf("left running: %v", processesOf(dir))
	}
	gone(t, dir)
}

// ^C in the middle of the demo's job ends all of it.
func TestE2EDemoInterrupted(t *testing.T) {
	t.Parallel()
	n := lone(t)
	a := n.begin(t, "demo", "--out", filepath.Join(n.w.dir, "demo.png"), "--tiles", filepath.Join(filepath.Dir(e2e.bin), "tiles"))
	a.says(t, string(job.Running)+"   on ")
	if code := a.interrupted(t); code != exitInterrupt {
		t.Errorf("exit %d:\n%s", code, a.errs)
	}
	if !strings.Contains(a.errs.String(), "stopped everything; ") {
		t.Errorf("it does not say how long it took:\n%s", a.errs)
	}
	gone(t, n.w.dir)
	if left := n.temporary(t); len(left) > 0 {
		t.Errorf("files left behind: %v", left)
	}
	if _, err := os.Stat(filepath.Join(n.w.dir, "demo.png")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a picture that was never finished: %v", err)
	}
}
