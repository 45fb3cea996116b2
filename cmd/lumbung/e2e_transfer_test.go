//go:build e2e

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

// mostRSS is what a node may have resident while a large image passes through
// it.
const mostRSS = 300 << 20

// largeRoot makes a plain rootfs tar-less image: a folder with the program and
// so many bytes that nothing compresses, spread over files.
func largeRoot(t testing.TB, size int64) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "root")
	must(t, os.MkdirAll(dir, 0o755))
	raw, err := os.ReadFile(e2e.program)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "job"), raw, 0o755))
	const piece = 64 << 20
	block := noise(piece)
	for i := int64(0); i*piece < size; i++ {
		block[0], block[piece-1] = byte(i), byte(i>>8) // no two files are the same
		for k := 0; k < piece; k += 64 << 10 {
			block[k] = byte(i) // and no two chunks
		}
		must(t, os.WriteFile(filepath.Join(dir, "data"+num(uint64(i))), block[:min(piece, size-i*piece)], 0o644))
	}
	return dir
}

// wholeImages lets a job begin when its image is fetched, which is what these
// tests are about.
func wholeImages(int) []string { return []string{"--whole-images"} }

// A large image passes from renter to provider; neither holds much of it in
// memory.
func TestE2ELargeImage(t *testing.T) {
	size := int64(256 << 20)
	if os.Getenv("LUMBUNG_LONG") != "" {
		size = 4 << 30
	}
	w := newWorld(t, worldOptions{providers: 1, heartbeat: 4 * time.Second, args: wholeImages})
	root := largeRoot(t, size)
	began := time.Now()
	ctx := boundedBy(t, 20*time.Minute)
	im, err := w.renter.c.LoadImage(ctx, client.PathRequest{Path: root, Name: "large"}, nil)
	must(t, err)
	imported := time.Now()
	if im.Size < uint64(size) {
		t.Fatalf("the image has %d bytes", im.Size)
	}
	spec := program("noop")
	spec.Image = "large"
	j := w.renter.submit(t, spec)
	d, err := w.renter.c.WaitJob(ctx, j.ID)
	must(t, err)
	if d.Job.State != job.JobDone {
		t.Fatalf("%s: %s", d.Job.State, d.Job.Reason)
	}
	c := d.Contracts[0]
	mib := float64(size) / (1 << 20)
	t.Logf("%.0f MiB: import %.0f MiB/s, fetch and unpack %.0f MiB/s", mib, mib/imported.Sub(began).Seconds(), mib/c.RunningAt.Sub(c.FetchingAt).Seconds())
	for _, n := range []*testNode{w.renter, w.providers[0]} {
		peak := vmHWM(t, n.cmd.Process.Pid)
		t.Logf("%s: at most %d MiB resident", n.name, peak>>20)
		if peak > mostRSS {
			t.Errorf("%s had %d MiB resident, over %d", n.name, peak>>20, mostRSS>>20)
		}
	}
}

// A provider killed in the middle of a fetch keeps what it has: the next life
// fetches the rest alone.
func TestE2EFetchResumes(t *testing.T) {
	const size = 512 << 20
	w := newWorld(t, worldOptions{providers: 1, heartbeat: 4 * time.Second, args: wholeImages})
	p := w.providers[0]
	// Slow enough to be met in the middle.
	slow := w.join("slow", "renter", "--upload-rate", "64MB")
	must(t, slow.sees(p))
	ctx := boundedBy(t, 5*time.Minute)
	root := largeRoot(t, size)
	_, err := slow.c.LoadImage(ctx, client.PathRequest{Path: root, Name: "large"}, nil)
	must(t, err)
	spec := program("noop")
	spec.Image = "large"
	j := slow.submit(t, spec)
	// In the middle: half of it is there. The store makes what it has durable at
	// least every 128 MiB.
	const unsynced = 128 << 20
	var had uint64
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	shown := false
	for had < size/2 {
		select {
		case <-ctx.Done():
			t.Fatal("the fetch does not get ahead")
		case <-look.C:
		}
		s, err := p.c.Status(ctx)
		must(t, err)
		had = s.Store.Bytes
		if !shown && had > size/8 {
			shown = true
			transferShown(t, p, slow, size)
		}
	}
	p.kill()
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	s, err := p.c.Status(ctx)
	must(t, err)
	t.Logf("%d MiB were there before the kill, %d MiB after", had>>20, s.Store.Bytes>>20)
	if s.Store.Bytes >= size {
		t.Fatalf("the fetch was over before the kill: nothing to resume")
	}
	kept := s.Store.Bytes
	if kept+unsynced+size/16 < had {
		t.Errorf("of %d bytes only %d outlived the kill", had, kept)
	}
	before := written(t, slow.cmd.Process.Pid)
	d, err := slow.c.WaitJob(ctx, j.ID)
	must(t, err)
	if d.Job.State != job.JobDone {
		t.Fatalf("%s: %s", d.Job.State, d.Job.Reason)
	}
	sent, missing := written(t, slow.cmd.Process.Pid)-before, size-kept
	t.Logf("%d MiB were sent after the kill, %d MiB were missing", sent>>20, missing>>20)
	// Some of it was taken in between the two counts, and the renter writes its
	// database too.
	if sent > missing+size/10 || sent < missing/2 {
		t.Errorf("%d bytes were sent for %d that were missing", sent, missing)
	}
}

// transferShown looks at how both ends of a transfer tell of it.
func transferShown(t *testing.T, to, from *testNode, size uint64) {
	t.Helper()
	for _, c := range []struct {
		n     *testNode
		dir   string
		words string
	}{
		{to, "in", `(?m)^fetching +bafy\S+ from 1 peer: [0-9.]+ MB of [0-9.]+ MB, [0-9.]+ [kM]?B/s, [0-9hms]+ left$`},
		{from, "out", `(?m)^serving +bafy\S+ to ` + regexp.QuoteMeta(peerText(to.id.PeerID)) + `: [0-9.]+ MB, [0-9.]+ [kM]?B/s$`},
	} {
		var moving []client.Transfer
		for _, x := range decode[client.Status](t, c.n.ok(t, "status", "-o", "json")).Transfers {
			if x.Direction == c.dir {
				moving = append(moving, x)
			}
		}
		if len(moving) != 1 {
			t.Errorf("%s: %d transfers %s: %+v", c.n.name, len(moving), c.dir, moving)
			continue
		}
		x := moving[0]
		if x.Bytes == 0 || x.Bytes > size+size/8 || x.Rate == 0 || x.Peers != 1 || x.Root == "" {
			t.Errorf("%s: %+v", c.n.name, x)
		}
		if c.dir == "in" && (x.Total < size || x.ETA <= 0) || c.dir == "out" && x.Peer != to.id.PeerID {
			t.Errorf("%s: %+v", c.n.name, x)
		}
		if text := c.n.ok(t, "status"); !regexp.MustCompile(c.words).MatchString(text) {
			t.Errorf("%s: no %s in\n%s", c.n.name, c.words, text)
		}
	}
}

// An input that has not changed does not move again, as the bytes that the
// renter sends tell. One of a private job does: it is encrypted anew.
func TestE2EUnchangedInputMovesNothing(t *testing.T) {
	const size = 32 << 20
	w := newWorld(t, worldOptions{providers: 1, heartbeat: 4 * time.Second})
	file := filepath.Join(t.TempDir(), "input")
	must(t, os.WriteFile(file, noiseOf(15, size), 0o644))
	moved := func(private bool) uint64 {
		t.Helper()
		before := written(t, w.renter.cmd.Process.Pid)
		spec := program("noop")
		spec.Inputs, spec.Private = []job.InputSpec{{From: file, To: "/in"}}, private
		w.renter.done(t, w.renter.submit(t, spec).ID)
		return written(t, w.renter.cmd.Process.Pid) - before
	}
	// What is written to the store and the database counts too.
	const little = size / 8
	if n := moved(false); n < 2*size-little {
		t.Errorf("the first run: %d bytes stored and sent for an input of %d", n, size)
	}
	if n := moved(false); n > little {
		t.Errorf("a second run: %d bytes for an unchanged input of %d", n, size)
	}
	must(t, os.WriteFile(file, noiseOf(16, size), 0o644))
	if n := moved(false); n < 2*size-little {
		t.Errorf("changed: %d bytes for an input of %d", n, size)
	}
	for range 2 {
		if n := moved(true); n < size {
			t.Errorf("private: %d bytes for an input of %d", n, size)
		}
	}
}

// written is how many bytes a process has written to files and connections so
// far: what it sends over TCP is in it.
func written(t testing.TB, pid int) uint64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	must(t, err)
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "wchar: "); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(rest), 10, 64)
			must(t, err)
			return n
		}
	}
	t.Fatalf("process %d does not count what it writes", pid)
	return 0
}
