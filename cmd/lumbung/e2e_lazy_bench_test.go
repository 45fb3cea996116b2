//go:build e2e && linux

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node"
	"github.com/lumbung-net/lumbung/node/client"
)

// farProvider is a network of a renter and a provider with 100 Mbit/s and 40 ms
// of round trip between them, and no other way.
func farProvider(b *testing.B, args ...string) (*world, *line) {
	b.Helper()
	l := newLine(b, 40*time.Millisecond, 12.5e6)
	w := &world{t: b, dir: b.TempDir(), network: "test-e2e", heartbeat: 4 * time.Second, bin: e2e.bin}
	b.Cleanup(func() {
		if b.Failed() {
			w.tell(b.Log)
		}
		if err := w.end(); err != nil {
			b.Error(err)
		}
	})
	join := func(end *lineEnd, name, role string, args ...string) *testNode {
		n, err := w.add(name, role, args)
		must(b, err)
		n.ip = end.ip
		if w.boot == nil {
			w.boot = n
		}
		must(b, end.in(n.start))
		return n
	}
	near, far := &l.ends[0], &l.ends[1]
	join(near, "boot", node.RoleBootstrap)
	w.renter = join(near, "renter", node.RoleRenter)
	w.providers = []*testNode{join(far, "p0", node.RoleProvider, append([]string{"--cpus", "8", "--memory", "16GB", "--disk", "40GB"}, args...)...)}
	must(b, w.renter.sees(w.providers[0]))
	return w, l
}

// smallProgram is a program of a large image, which prints begun.
type smallProgram struct {
	name    string
	command []string
}

// begun is the line that the programs print.
const begun = "begun"

// bigImage is the folder that LUMBUNG_BENCH_ROOTFS names, of a real system, or
// else one of about a gigabyte in many files (LUMBUNG_BENCH_MIB says another
// size), with programs that read few of them.
func bigImage(b *testing.B) (dir string, programs []smallProgram) {
	b.Helper()
	if dir = os.Getenv("LUMBUNG_BENCH_ROOTFS"); dir != "" {
		programs = []smallProgram{{"echo", []string{"/bin/echo", begun}}}
		if _, err := os.Stat(filepath.Join(dir, "usr/bin/python3")); err == nil {
			programs = append(programs, smallProgram{"python3", []string{"/usr/bin/python3", "-c", "import json; print('" + begun + "')"}})
		}
		return dir, programs
	}
	mib := 1024
	if v := os.Getenv("LUMBUNG_BENCH_MIB"); v != "" {
		n, err := strconv.Atoi(v)
		must(b, err)
		mib = n
	}
	dir = filepath.Join(b.TempDir(), "root")
	raw, err := os.ReadFile(e2e.program)
	must(b, err)
	must(b, os.MkdirAll(filepath.Join(dir, "etc"), 0o755))
	must(b, os.WriteFile(filepath.Join(dir, "job"), raw, 0o755))
	must(b, os.WriteFile(filepath.Join(dir, "etc", "hello"), []byte(begun+"\n"), 0o644))
	src, body := rand.NewChaCha8([32]byte{3}), make([]byte, 64<<10)
	for i := range mib << 20 / len(body) {
		_, _ = src.Read(body) // it never fails
		folder := filepath.Join(dir, "usr", fmt.Sprintf("d%03d", i/100))
		must(b, os.MkdirAll(folder, 0o755))
		must(b, os.WriteFile(filepath.Join(folder, fmt.Sprintf("f%05d", i)), body, 0o644))
	}
	last := filepath.Join("/usr", "d000", "f00099")
	must(b, os.WriteFile(filepath.Join(dir, last), []byte("read last\n"+begun+"\n"), 0o644))
	return dir, []smallProgram{{"generated", []string{"/job", "cat", "/etc/hello", last}}}
}

// start is how long a job took to its first line, what the renter's end had sent
// by then, and what its image has.
type start struct {
	took        time.Duration
	sent, image int64
}

// firstLine submits a job of an image that the provider has nothing of.
func firstLine(b *testing.B, image string, p smallProgram, args ...string) start {
	b.Helper()
	w, l := farProvider(b, args...)
	im, err := w.renter.c.LoadImage(b.Context(), client.PathRequest{Path: image, Name: "big"}, nil)
	must(b, err)
	before, began := l.sent[0].Load(), time.Now()
	j := w.renter.submit(b, job.Spec{Image: "big", Command: p.command})
	var text strings.Builder
	err = w.renter.c.Logs(boundedBy(b, 10*time.Minute), j.ID, client.LogQuery{Task: client.AllTasks, Follow: true}, func(_ int, r client.LogRecord) error {
		if text.Write(r.Data); strings.Contains(text.String(), begun+"\n") {
			return errOver
		}
		return nil
	})
	if !errors.Is(err, errOver) {
		b.Fatalf("waiting for the first output: %v; so far: %s", err, text.String())
	}
	return start{time.Since(began), l.sent[0].Load() - before, int64(im.Size)}
}

// BenchmarkE2EStartBeforeWhole compares how long a job takes to its first output
// when its image must be whole before and when it need not, between two nodes
// with 100 Mbit/s and 40 ms of round trip between them.
func BenchmarkE2EStartBeforeWhole(b *testing.B) {
	dir, programs := bigImage(b)
	for _, p := range programs {
		b.Run(p.name, func(b *testing.B) {
			var whole, lazy start
			for b.Loop() {
				all, some := firstLine(b, dir, p, "--whole-images"), firstLine(b, dir, p)
				whole.took, whole.sent, whole.image = whole.took+all.took, whole.sent+all.sent, all.image
				lazy.took, lazy.sent = lazy.took+some.took, lazy.sent+some.sent
			}
			n := float64(b.N)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(whole.image)/(1<<20), "MiB-image")
			b.ReportMetric(whole.took.Seconds()/n, "whole-s")
			b.ReportMetric(lazy.took.Seconds()/n, "lazy-s")
			b.ReportMetric(float64(whole.sent)/n/(1<<20), "whole-MiB-sent")
			b.ReportMetric(float64(lazy.sent)/n/(1<<20), "lazy-MiB-sent")
			b.ReportMetric(whole.took.Seconds()/lazy.took.Seconds(), "times-sooner(>=5)")
		})
	}
}
