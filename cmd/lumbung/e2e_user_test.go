//go:build e2e

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lumbung-net/lumbung/node/client"
)

// nobodysID is a user and group that owns nothing on this machine.
const nobodysID = 61_789

// ofOrdinaryUser makes a folder for a network whose nodes belong to an ordinary
// user, and the options for that.
func ofOrdinaryUser(t *testing.T) worldOptions {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("the tests run as an ordinary user already: every other test covers this")
	}
	// t.TempDir lies below a folder that only root may enter, and the binary may.
	dir, err := os.MkdirTemp("", "lb-user-") //nolint:usetesting // see above
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	bin := filepath.Join(dir, "lumbung")
	if out, err := exec.CommandContext(t.Context(), "cp", e2e.bin, bin).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	net := filepath.Join(dir, "net")
	must(t, os.Mkdir(net, 0o755))
	must(t, os.Chown(net, nobodysID, nobodysID))
	return worldOptions{dir: net, providers: 1, bin: bin, as: &syscall.Credential{Uid: nobodysID, Gid: nobodysID}}
}

// The whole of a small run where every node belongs to an ordinary user.
func TestE2EOrdinaryUser(t *testing.T) {
	o := ofOrdinaryUser(t)
	w, net := newWorld(t, o), o.dir
	p := w.providers[0]
	if r := p.cli(t, net, "", "doctor", "--role", "provider"); r.code != 0 {
		t.Errorf("doctor: %v", r)
	}
	r := w.renter.run(t, net, []string{"--out", "/out:./back", "--name", "mine"}, "write", "/out")
	if r.code != 0 {
		t.Fatalf("run: %v", r)
	}
	checkWritten(t, filepath.Join(net, "back"))
	if info, err := os.Stat(filepath.Join(net, "back", "plain")); err != nil || info.Sys().(*syscall.Stat_t).Uid != nobodysID {
		t.Errorf("the outputs belong to somebody else: %v, %v", info, err)
	}
	if r := w.renter.run(t, net, nil, "exit", "3"); r.code != 3 {
		t.Errorf("exit 3: %v", r)
	}
	if r := w.renter.run(t, net, []string{"--cpus", "4"}, "lines", "40", "20ms"); r.code != 0 { // long enough to cost something
		t.Errorf("lines: %v", r)
	}
	id := w.renter.detached(t, nil, "polite")
	w.renter.awaitLine(t, id, "waiting")
	if r := w.renter.cli(t, net, "typed", "exec", "-i", id, "--", "/job", "cat"); r.code != 0 || r.out != "typed" {
		t.Errorf("exec: %v", r)
	}
	w.renter.ok(t, "stop", id)
	if !strings.Contains(w.renter.output(t, id), "asked to stop") {
		t.Errorf("not asked to stop: %q", w.renter.output(t, id))
	}
	s := decode[client.Status](t, p.ok(t, "status", "-o", "json"))
	if s.Provider == nil || s.Provider.Sandbox == "" {
		t.Errorf("%+v", s)
	}
	p.idle(t)
	w.settled(t)
}
