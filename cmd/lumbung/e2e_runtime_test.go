//go:build e2e

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/node/client"
)

// A provider whose operator chose runc says so, and its jobs run, are entered
// and outlive their node as under gVisor.
func TestE2EOCIRuntime(t *testing.T) {
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("no runc on the PATH (Debian: apt-get install runc)")
	}
	if os.Getuid() != 0 {
		t.Skip("root runs it; as an ordinary user the sandbox's own tests do")
	}
	dir := t.TempDir()
	w := newWorld(t, worldOptions{providers: 1, heartbeat: 4 * time.Second, args: func(int) []string { return []string{"--runtime", "runc", "--allow-unheld"} }})
	p := w.providers[0]
	s := decode[client.Status](t, p.ok(t, "status", "-o", "json"))
	if s.Provider == nil || !strings.Contains(s.Provider.Sandbox, "runc") || !strings.Contains(s.Provider.Sandbox, "weaker than gVisor") {
		t.Errorf("status: %+v", s.Provider)
	}
	if r := p.cli(t, dir, "", "doctor", "--role", "provider", "--runtime", "runc"); r.code != 0 || !strings.Contains(r.out, "weaker than gVisor") {
		t.Errorf("doctor: %v", r)
	}
	r := w.renter.run(t, dir, []string{"--out", "/out:./back", "--name", "mine"}, "write", "/out")
	if r.code != 0 {
		t.Fatalf("run: %v", r)
	}
	checkWritten(t, filepath.Join(dir, "back"))
	if r := w.renter.run(t, dir, []string{"--cpus", "4"}, "lines", "40", "20ms"); r.code != 0 { // long enough to cost something
		t.Errorf("lines: %v", r)
	}
	id := w.renter.detached(t, nil, "polite")
	w.renter.awaitLine(t, id, "waiting")
	p.kill()
	must(t, p.start())
	must(t, poll(boundedBy(t, e2eWait), func() (bool, error) { // it may not know its containers yet
		r := w.renter.cli(t, dir, "typed", "exec", "-i", id, "--", "/job", "cat")
		if r.code != 0 {
			t.Logf("exec: %v", r)
			return false, nil
		}
		if r.out != "typed" {
			t.Errorf("exec: %v", r)
		}
		return true, nil
	}))
	w.renter.ok(t, "stop", id)
	if !strings.Contains(w.renter.output(t, id), "asked to stop") {
		t.Errorf("not asked to stop: %q", w.renter.output(t, id))
	}
	p.idle(t)
	w.settled(t)
}
