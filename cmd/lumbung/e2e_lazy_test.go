//go:build e2e

package main

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

// lazyFiles is how many MiB-sized files the image of a job has that begins
// before it is whole.
const lazyFiles = 40

func lazyImage(t testing.TB, count int) (dir string, sums map[string][32]byte) {
	t.Helper()
	dir, sums = filepath.Join(t.TempDir(), "root"), map[string][32]byte{}
	must(t, os.MkdirAll(filepath.Join(dir, "data"), 0o755))
	raw, err := os.ReadFile(e2e.program)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "job"), raw, 0o755))
	all := noise(count << 20)
	for i := range count {
		name, body := strconv.Itoa(i), all[i<<20:(i+1)<<20]
		sums[name] = sha256.Sum256(body)
		must(t, os.WriteFile(filepath.Join(dir, "data", name), body, 0o644))
	}
	return dir, sums
}

// arriving lists the images that come in at a provider while containers run on
// them, and those that are whole.
func (n *testNode) arriving(t testing.TB) (arriving, whole []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.home, "rootfs"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		switch {
		case e.IsDir() && filepath.Ext(e.Name()) == ".lazy":
			arriving = append(arriving, e.Name())
		case e.IsDir():
			whole = append(whole, e.Name())
		}
	}
	return arriving, whole
}

// A container starts while most of its image is still with the renter, and reads
// all of it as it arrives, over a death of its provider's node.
func TestE2EStartsBeforeItsImageIsWhole(t *testing.T) {
	w := newWorld(t, worldOptions{providers: 1, heartbeat: 4 * time.Second})
	p := w.providers[0]
	slow := w.join("slow", "renter", "--upload-rate", "1MB")
	must(t, slow.sees(p))
	dir, sums := lazyImage(t, lazyFiles)
	ctx := boundedBy(t, 5*time.Minute)
	_, err := slow.c.LoadImage(ctx, client.PathRequest{Path: dir, Name: "lazy"}, nil)
	must(t, err)
	out := filepath.Join(t.TempDir(), "out")
	spec := program("copy", "/data", "/out/data")
	spec.Image, spec.Outputs = "lazy", []job.OutputSpec{{From: "/out", To: out}}
	j := slow.submit(t, spec)
	slow.awaitTask(t, j.ID, 0, job.Running)
	if arriving, whole := p.arriving(t); len(arriving) != 1 || len(whole) != 0 {
		t.Errorf("it runs, and there arrive %q and are whole %q", arriving, whole)
	}
	p.kill()
	must(t, p.start())
	slow.done(t, j.ID)
	for name, want := range sums {
		if got := sha256.Sum256([]byte(outFile(t, out, "data", name))); got != want {
			t.Errorf("%s is not what is in the image", name)
		}
	}
	again := program("noop")
	again.Image = "lazy"
	slow.done(t, slow.submit(t, again).ID)
}
