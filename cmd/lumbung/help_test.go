package main

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// contract are the commands and flags of the design that exist by now.
var contract = map[string][]string{
	"up":   {"-d", "--role", "--public", "--bootstrap", "--network", "--listen", "--fake-gpu", "--cpus", "--memory", "--price-cpu", "--price-gpu", "--ipfs", "--home"},
	"down": nil, "status": {"-o"}, "doctor": {"--role"}, "netcheck": {"-o"}, "ping": {"-o"}, "id": {"-o"},
	"devnet": {"--providers", "--fake-gpu", "--seed"},
	"run":    {"--gpus", "--cpus", "--memory", "-e", "--secret", "--in", "--out", "-p", "--ready-http", "--ready-port", "--ready-within", "--idle-stop", "--stream", "--cache", "--array", "--parallel", "--retries", "--timeout", "--max-hourly", "--budget", "--on", "--name", "--workdir", "--network", "--checkpoint-every", "-d", "-y", "--dry-run", "-o"},
	"submit": {"-o"}, "quote": {"--gpus", "--max-hourly", "-o"}, "ps": {"-a", "-o"}, "inspect": {"-o"},
	"logs": {"-f", "--since", "--task"}, "events": {"-f", "-o"}, "wait": {"-o"}, "stop": {"-o"}, "get": {"-o"},
	"port": {"--task"}, "exec": {"-i", "-t", "--task"}, "offers": {"-o"},
	"image load": {"-o"}, "image from": {"-o", "--name"}, "image ls": {"-o"}, "image rm": nil,
	"add": {"-o", "-q"}, "cat": nil, "ls": {"-o"}, "pin": {"-o", "--rm", "--from"}, "pin ls": {"-o"}, "dag export": {"-o"}, "dag import": {"-o"}, "gc": {"-o", "--check"},
	"provider pause": {"-o"}, "provider resume": {"-o"}, "provider drain": {"-o"}, "drain": {"-o"}, "provider caches": {"-o", "--drop"}, "provider price": {"-o"},
	"wallet": {"-o"}, "ledger statement": {"-o"}, "completion": nil, "version": nil,
}

// later are what later issues bring.
var later = map[string][]string{
	"channel": nil, "checks": nil, "image push": nil, "ledger verify": nil, "ledger export": nil,
	"run": {"--nodes"},
}

func find(root *cobra.Command, path string) *cobra.Command {
	cmd, rest, err := root.Find(strings.Fields(path))
	if err != nil || len(rest) > 0 || cmd == root {
		return nil
	}
	return cmd
}

func hasFlag(cmd *cobra.Command, flag string) bool {
	if short, ok := strings.CutPrefix(flag, "-"); ok && !strings.HasPrefix(short, "-") {
		return cmd.Flags().ShorthandLookup(short) != nil
	}
	return cmd.Flag(strings.TrimPrefix(flag, "--")) != nil
}

func TestContract(t *testing.T) {
	root := newTestApp(t).root()
	for path, flags := range contract {
		cmd := find(root, path)
		if cmd == nil || cmd.Hidden || cmd.Short == "" {
			t.Errorf("%s is not there", path)
			continue
		}
		for _, f := range flags {
			if !hasFlag(cmd, f) {
				t.Errorf("%s has no %s", path, f)
			}
		}
	}
	for path, flags := range later {
		cmd := find(root, path)
		if cmd != nil && flags == nil {
			t.Errorf("%s is there too early", path)
		}
		for _, f := range flags {
			if hasFlag(cmd, f) {
				t.Errorf("%s has %s too early", path, f)
			}
		}
	}
}

func TestNoCommandBeyondTheContract(t *testing.T) {
	var walk func(cmd *cobra.Command, path string)
	walk = func(cmd *cobra.Command, path string) {
		for _, sub := range cmd.Commands() {
			at := strings.TrimSpace(path + " " + sub.Name())
			if sub.Hidden || sub.Name() == "help" {
				continue
			}
			if sub.HasSubCommands() {
				walk(sub, at)
			} else if _, ok := contract[at]; !ok {
				t.Errorf("%s is not in the contract", at)
			}
		}
	}
	walk(newTestApp(t).root(), "")
}

func TestHelpShows(t *testing.T) {
	a := newTestApp(t)
	if code := a.main([]string{"--help"}); code != 0 {
		t.Fatalf("code %d: %s", code, a.err.String())
	}
	help := a.out.String()
	for path := range contract {
		if word, _, _ := strings.Cut(path, " "); !strings.Contains(help, "\n  "+word+" ") {
			t.Errorf("help lacks %s", word)
		}
	}
	for path, flags := range later {
		if flags == nil && !strings.Contains(path, " ") && strings.Contains(help, "\n  "+path+" ") {
			t.Errorf("help has %s", path)
		}
	}
	if strings.Contains(help, "demo") {
		t.Error("help has demo")
	}
	if strings.Contains(help, "\x1b") {
		t.Error("escapes in help without a terminal")
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		a := newTestApp(t)
		if code := a.main([]string{"completion", shell}); code != 0 {
			t.Fatalf("%s: code %d: %s", shell, code, a.err.String())
		}
		script := a.out.String()
		if !strings.Contains(script, "lumbung") || len(script) < 1000 {
			t.Errorf("%s: script of %d bytes", shell, len(script))
		}
		bin, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		cmd := exec.CommandContext(t.Context(), bin, "-n")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s does not parse it: %v\n%s", shell, err, out)
		}
	}
}

func TestVersion(t *testing.T) {
	a := newTestApp(t)
	if code := a.main([]string{"version"}); code != 0 || !strings.HasPrefix(a.out.String(), "lumbung ") {
		t.Errorf("code %d, %q", code, a.out.String())
	}
}
