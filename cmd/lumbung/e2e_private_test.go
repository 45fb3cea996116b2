//go:build e2e

package main

import (
	"bytes"
	"crypto/rand"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/node"
	"github.com/lumbung-net/lumbung/node/client"
)

// holding lists the files of a world's nodes, and their logs, that contain a
// text; "process N" is one whose arguments or environment do.
func (w *world) holding(t testing.TB, text string) []string {
	t.Helper()
	return w.holdingAny(t, text)
}

// holdingAny is holding of any of some texts.
func (w *world) holdingAny(t testing.TB, texts ...string) []string {
	t.Helper()
	var out []string
	look := func(path string) {
		raw, err := os.ReadFile(path)
		for _, text := range texts {
			if err == nil && bytes.Contains(raw, []byte(text)) {
				out = append(out, strings.TrimPrefix(path, w.dir+"/"))
				return
			}
		}
	}
	for _, n := range w.nodes {
		look(n.logName())
		must(t, filepath.WalkDir(n.home, func(p string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				look(p)
			}
			return nil // a file may go meanwhile
		}))
	}
	for _, p := range processesOf(w.dir) {
		for _, name := range []string{"cmdline", "environ"} {
			look(filepath.Join("/proc", strconv.Itoa(p.pid), name))
		}
	}
	return out
}

// A private job's files come to its provider and back, and what any node keeps
// of them shows neither content nor names; a node that fetched all blocks reads
// nothing.
func TestE2EPrivate(t *testing.T) {
	w := newWorld(t, worldOptions{providers: 1})
	third := w.join("third", node.RoleRenter)
	job := func(private bool) (client.JobDetail, string, string) {
		t.Helper()
		name, text := "name-"+rand.Text(), "text-"+rand.Text()
		dir := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(dir, "in", "sub"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "in", "sub", name), bytes.Repeat([]byte(text+"\n"), 100_000), 0o600))
		must(t, os.WriteFile(filepath.Join(dir, "in", "empty"), nil, 0o755))
		as := "open"
		flags := []string{"--in", "./in:/in", "--out", "/out:./back"}
		if private {
			as, flags = "sealed", append(flags, "--private")
		}
		flags = append(flags, "--name", as)
		r := w.renter.run(t, dir, flags, "copy", "/in", "/out")
		if r.code != 0 {
			t.Fatalf("%v", r)
		}
		for _, place := range []string{"back", "got"} {
			if place == "got" {
				if r := w.renter.cli(t, dir, "", "get", as, "got"); r.code != 0 {
					t.Fatalf("get: %v", r)
				}
			}
			if got := outFile(t, dir, place, "sub", name); got != strings.Repeat(text+"\n", 100_000) {
				t.Errorf("%s has %d bytes, and not those put in", place, len(got))
			}
			if got := outFile(t, dir, place, "empty"); got != "" {
				t.Errorf("%s: the empty file has %d bytes", place, len(got))
			}
		}
		return decode[client.JobDetail](t, w.renter.ok(t, "inspect", "-o", "json", as)), name, text
	}

	d, name, text := job(true)
	roots := [][]byte{d.Job.Inputs[0].CID, d.Tasks[0].Outputs}
	for _, raw := range roots {
		root, err := cid.Cast(raw)
		must(t, err)
		third.ok(t, "pin", root.String())
		if got := third.ok(t, "cat", root.String()); !strings.HasPrefix(got, "age-encryption.org/v1\n") || strings.Contains(got, text) {
			t.Errorf("a node that fetched %s reads %.40q", root, got)
		}
		r := w.renter.cli(t, w.dir, "", "cat", root.String())
		if r.code == 0 || !strings.Contains(r.err, "private job") {
			t.Errorf("cat of a private root: %v", r)
		}
		if r := w.renter.cli(t, w.dir, "", "ls", root.String()); r.code == 0 || !strings.Contains(r.err, "private job") {
			t.Errorf("ls of a private root: %v", r)
		}
		if r := w.renter.cli(t, w.dir, "", "get", root.String(), "raw"); r.code == 0 || !strings.Contains(r.err, "private job") {
			t.Errorf("get of a private root: %v", r)
		}
	}
	for what, secret := range map[string]string{"content": text, "name": name} {
		if where := w.holding(t, secret); len(where) > 0 {
			t.Errorf("the %s of a private file is in %v", what, where)
		}
	}
	left, err := os.ReadDir(filepath.Join(w.providers[0].home, "jobs"))
	if err != nil && !os.IsNotExist(err) || len(left) > 0 {
		t.Errorf("the provider keeps folders of jobs: %v %v", left, err)
	}

	// The same search finds what is not private.
	_, name, text = job(false)
	if len(w.holding(t, text)) < 2 || len(w.holding(t, name)) < 2 {
		t.Error("the search finds nothing even of a job that is not private")
	}
}
