//go:build e2e

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

// What a running job has put out is at its renter's while it waits to be told
// to go on, and the rest when it has.
func TestE2EStreamedOutputs(t *testing.T) {
	w := sharedNet.get(t)
	dir := t.TempDir()
	spec := program("stages", "/out")
	spec.Outputs = []job.OutputSpec{{From: "/out", To: filepath.Join(dir, "out"), Stream: true}}
	j := w.renter.submit(t, spec)
	w.renter.awaitLine(t, j.ID, "stage 1")
	w.renter.await(t, "the first file", func(e client.Event) bool {
		if e.Type != job.EventOutput || e.Job != j.ID {
			return false
		}
		// The event comes before the file is written where the job wants it.
		r := w.renter.cli(t, dir, "", "get", j.ID, filepath.Join(dir, "now"))
		raw, err := os.ReadFile(filepath.Join(dir, "now", "stage1"))
		return r.code == 0 && strings.Contains(r.err, "not over") && err == nil && string(raw) == "one\n"
	})
	if d := w.renter.detail(t, j.ID); d.Tasks[0].State != string(job.Running) {
		t.Errorf("the task is %s", d.Tasks[0].State)
	}
	w.renter.touchGo(t, j.ID)
	w.renter.done(t, j.ID)
	for name, want := range map[string]string{"stage1": "one\n", "stage2": "two\n"} {
		if got := outFile(t, dir, "out", name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// A named folder stays on its provider for the same renter's next job.
func TestE2ECaches(t *testing.T) {
	w := sharedNet.get(t)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "weights"), []byte("weights\n"), 0o644))
	root := strings.TrimSpace(w.renter.ok(t, "add", "-q", filepath.Join(dir, "weights")))
	p := w.providers[1]
	run := func(args ...string) result {
		t.Helper()
		return w.renter.cli(t, dir, "", append([]string{
			"run", "-y", "--memory", "256MB", "--disk", "256MB", "--on", p.id.PeerID,
			"--cache", "mine:/cache", "--cache", "cid:" + root + ":/w", "oci:" + e2e.image, "/job",
		}, args...)...)
	}
	if r := run("touch", "/cache/first"); r.code != 0 {
		t.Fatalf("%v", r)
	}
	if r := run("ls", "/cache"); r.code != 0 || !strings.Contains(r.out, "/cache/first") {
		t.Errorf("the next job: %v", r)
	}
	if r := run("cat", "/w"); r.code != 0 || r.out != "weights\n" {
		t.Errorf("content by its CID: %v", r)
	}
	if r := run("touch", "/w"); r.code == 0 {
		t.Errorf("content by its CID can be written: %v", r)
	}
	p.idle(t)
	caches := decode[[]client.Cache](t, p.ok(t, "provider", "caches", "-o", "json"))
	if len(caches) != 2 {
		t.Fatalf("%+v", caches)
	}
	for _, c := range caches {
		if own := c.Key == "mine"; own != (c.Renter == w.renter.id.PeerID) || c.InUse != 0 || c.Bytes == 0 {
			t.Errorf("%+v", c)
		}
	}
	p.ok(t, "provider", "caches", "--drop", "idle")
	if left := decode[[]client.Cache](t, p.ok(t, "provider", "caches", "-o", "json")); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
}

// Folders in DAGs, here and on another node.
func TestE2EPathsInDAGs(t *testing.T) {
	w := sharedNet.get(t)
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "tree", "deep"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "tree", "deep", "file"), []byte("deep\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "tree", "large"), noise(9<<20), 0o644))
	two := decode[[]addedPath](t, w.renter.ok(t, "add", "-o", "json", filepath.Join(dir, "tree"), filepath.Join(dir, "tree", "deep", "file")))
	if len(two) != 2 || two[0].Files != 2 {
		t.Fatalf("%+v", two)
	}
	root := two[0].CID
	stdin := w.renter.cli(t, dir, "deep\n", "add", "-q", "-")
	if strings.TrimSpace(stdin.out) != two[1].CID {
		t.Errorf("from stdin %v, from a file %s", stdin, two[1].CID)
	}
	for _, n := range []*testNode{w.renter, w.providers[0]} {
		list := decode[[]client.DirEntry](t, n.ok(t, "ls", "-o", "json", root))
		if len(list) != 2 || list[0].Kind != "folder" || list[1].Size != 9<<20 {
			t.Errorf("%s: %+v", n.name, list)
		}
		if got := n.ok(t, "cat", root+"/deep/file"); got != "deep\n" {
			t.Errorf("%s: %q", n.name, got)
		}
		r := n.cli(t, dir, "", "ls", root+"/deep/none/x")
		if r.code == 0 || !strings.Contains(r.err, `no "none" in folder `+root+"/deep") {
			t.Errorf("%s: %v", n.name, r)
		}
		to := filepath.Join(dir, n.name)
		n.ok(t, "get", root+"/deep", to)
		if got := outFile(t, to, "file"); got != "deep\n" {
			t.Errorf("%s: %q", n.name, got)
		}
	}
}
