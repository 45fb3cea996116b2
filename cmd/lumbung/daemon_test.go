package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/node/client"
)

func TestSecondUpSaysWhoHoldsTheHome(t *testing.T) {
	a := newTestApp(t)
	n := newFakeNode(t, a, 1)
	n.status = client.Status{PID: 4711, PeerID: aPeer}
	for _, args := range [][]string{{"up"}, {"up", "-d"}} {
		if code := a.main(args); code != 125 {
			t.Errorf("%v: code %d", args, code)
		}
	}
	if got := a.err.String(); !strings.Contains(got, "process 4711") || !strings.Contains(got, aPeer) || !strings.Contains(got, "lumbung down") {
		t.Errorf("stderr %q", got)
	}
}

func TestDetachedNodeDoesNotDetachAgain(t *testing.T) {
	for _, d := range []string{"-d", "--detach", "-d=true", "--detach=true", "-d=1", "--detach=1", "--detach=True", "-d=TRUE", "--detach=t"} {
		for _, line := range [][]string{
			{d, "--home", "x", "--role=provider", "--log-file", "old"},
			{"--home", "x", "--role", "provider", d},
		} {
			before := slices.Clone(line)
			cmd := newTestApp(t).upCmd()
			cmd.Flags().String("home", "", "")
			if err := cmd.ParseFlags(detachedArgs(line, "new")); err != nil {
				t.Fatalf("%s: %v", d, err)
			}
			got := func(name string) string { return cmd.Flags().Lookup(name).Value.String() }
			if got("detach") != "false" || got("home") != "x" || got("log-file") != "new" || !strings.Contains(got("role"), "provider") {
				t.Errorf("%q: detach %s, home %s, log-file %s, role %s", line, got("detach"), got("home"), got("log-file"), got("role"))
			}
			if !slices.Equal(line, before) {
				t.Errorf("%q became %q", before, line)
			}
		}
	}
}

func TestAlive(t *testing.T) {
	if !alive(os.Getpid()) {
		t.Error("this process is taken for dead")
	}
	sh, err := exec.LookPath("true")
	if err != nil {
		t.Skip("no true(1) here")
	}
	cmd := exec.CommandContext(t.Context(), sh)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = out.Read(make([]byte, 1)) // its end closes the pipe
	err = poll(t.Context(), func() (bool, error) { return !alive(cmd.Process.Pid), nil })
	if err != nil {
		t.Errorf("an ended process that nobody waited for is taken for alive: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if alive(cmd.Process.Pid) {
		t.Error("a process that is gone is taken for alive")
	}
}

func TestLastWords(t *testing.T) {
	name := filepath.Join(t.TempDir(), "node.log")
	old := "error: of an earlier life\n"
	text := old + "level=INFO msg=x\nerror: the disk is full\n  try: make room\n"
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &process{logFile: name, from: int64(len(old))}
	if v := judge(p.lastWords()); v.Error != "the node did not start: the disk is full" || v.Remedy != "make room" {
		t.Errorf("got %+v", v)
	}
	p.from, p.err = int64(len(text)), errors.New("exit status 3")
	if v := judge(p.lastWords()); !strings.Contains(v.Error, "exit status 3") || !strings.Contains(v.Remedy, name) {
		t.Errorf("got %+v", v)
	}
}

func TestLogIsRotated(t *testing.T) {
	name := filepath.Join(t.TempDir(), "node.log")
	l, err := openLog(name)
	if err != nil {
		t.Fatal(err)
	}
	l.max = 100
	stderr, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 25 {
		if _, err := fmt.Fprintf(l, "line %03d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stderr.WriteString("panic\n"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Close(), stderr.Close()); err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(name + ".1")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(before), "line 021\n") || string(now) != "line 022\nline 023\nline 024\npanic\n" {
		t.Errorf("before %q\nnow %q", before, now)
	}
	if strings.Contains(string(now), "\x00") {
		t.Error("a hole where the log was emptied")
	}
}

func TestStatementsAgree(t *testing.T) {
	row := func(peer, lease string, units uint64) client.StatementRow {
		return client.StatementRow{Peer: peer, Lease: lease, Usage: 10, Charge: ledger.Units("usd", units)}
	}
	books := func() map[string]client.Statement {
		return map[string]client.Statement{
			"R": {Rows: []client.StatementRow{row("A", "1", 5), row("B", "2", 7)}, Owed: ledger.Units("usd", 12)},
			"A": {Rows: []client.StatementRow{row("R", "1", 5)}},
			"B": {Rows: []client.StatementRow{row("R", "2", 7)}},
		}
	}
	if total, err := agree(books(), "R", []string{"A", "B"}); err != nil || total.Lo != 12 {
		t.Errorf("total %v, %v", total, err)
	}
	for name, spoil := range map[string]func(map[string]client.Statement){
		"one unit off":    func(b map[string]client.Statement) { b["A"].Rows[0].Charge.Lo++ },
		"usage differs":   func(b map[string]client.Statement) { b["A"].Rows[0].Usage++ },
		"missing there":   func(b map[string]client.Statement) { b["B"] = client.Statement{} },
		"missing here":    func(b map[string]client.Statement) { s := b["R"]; s.Rows = s.Rows[:1]; s.Owed.Lo = 5; b["R"] = s },
		"with a stranger": func(b map[string]client.Statement) { b["A"].Rows[0].Peer = "X" },
		"wrong total":     func(b map[string]client.Statement) { s := b["R"]; s.Owed.Lo = 13; b["R"] = s },
		"empty":           func(b map[string]client.Statement) { clear(b) },
	} {
		b := books()
		spoil(b)
		if _, err := agree(b, "R", []string{"A", "B"}); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
}

func TestDemoInTime(t *testing.T) {
	for _, c := range []struct {
		took, within time.Duration
		fine         bool
	}{
		{time.Hour, 0, true},
		{time.Minute, time.Minute, true},
		{61 * time.Second, time.Minute, false},
	} {
		if err := inTime(c.took, c.within); (err == nil) != c.fine {
			t.Errorf("%s within %s: %v", c.took, c.within, err)
		}
	}
}

func TestDevnetPlanAndKeys(t *testing.T) {
	a := newTestApp(t)
	ids := map[string][]byte{}
	for range 2 {
		d := &devnet{a: a.app, dir: t.TempDir(), network: "devnet-x", o: devnetOptions{providers: 2, seed: "x", fakeGPU: "rtx4090", cpus: 2, memory: "1GB"}}
		d.plan()
		if len(d.providers()) != 2 || d.renter().name != "renter" || d.bootstrap().name != "bootstrap" {
			t.Fatalf("plan %v", d.nodes)
		}
		for _, n := range d.nodes {
			if err := d.identity(n); err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(filepath.Join(n.home, "identity.key"))
			if err != nil {
				t.Fatal(err)
			}
			if before, ok := ids[n.name]; ok && !slices.Equal(before, raw) {
				t.Errorf("%s has another key with the same seed", n.name)
			}
			ids[n.name] = raw
			// What devnet passes must be what up takes.
			args := d.args(n, []string{addrA})
			if code := a.main(append(args, "--help")); code != 0 {
				t.Errorf("up %v: code %d: %s", args, code, a.err.String())
			}
		}
	}
	if slices.Equal(ids["provider1"], ids["provider2"]) {
		t.Error("two nodes share a key")
	}
}

func TestPlainEnvHidesTheCallersSettings(t *testing.T) {
	t.Setenv("LUMBUNG_BOOTSTRAP", addrA)
	t.Setenv("LUMBUNG_RUNSC", "/x/runsc")
	if got := plainEnv(); !slices.Equal(got, []string{"LUMBUNG_BOOTSTRAP="}) {
		t.Errorf("got %q", got)
	}
}

func TestFindTiles(t *testing.T) {
	if _, err := findTiles(filepath.Join(t.TempDir(), "none")); err == nil || judge(err).Remedy == "" {
		t.Errorf("error %v", err)
	}
	file := filepath.Join(t.TempDir(), "tiles")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := findTiles(file); err != nil || got != file {
		t.Errorf("%q, %v", got, err)
	}
}
