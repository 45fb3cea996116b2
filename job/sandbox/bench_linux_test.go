package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The benchmarks of this package run one program by several ways in turn, so
// that a busy machine is unkind to all of them, and tell medians: by this
// package, by the bare commands of runsc and runc, and on the host.

// way runs the test program with steps, and tells how long its first output
// took and all of it.
type way struct {
	name string
	run  func(steps ...string) (first time.Duration, out string)
}

// newBenchEnv supervises by the lumbung that was built, if there is one: it is
// larger than the tests.
func newBenchEnv(b *testing.B) *env {
	b.Helper()
	e := newEnv(b)
	if bin, err := filepath.Abs("../../build/lumbung"); err == nil {
		if _, err := os.Stat(bin); err == nil {
			e.r.shim = bin
		}
	}
	_, err := e.r.Ready(b.Context())
	must(b, err)
	return e
}

// ways are those that this machine has.
func (e *env) ways(b *testing.B, prepared *[]time.Duration) []way {
	b.Helper()
	all := []way{{"ours", e.ours(b, e.image, prepared)}, {"runsc", e.bareRunsc(b)}}
	if runc, err := exec.LookPath("runc"); err != nil {
		b.Log("no runc on the PATH: it is not compared")
	} else if os.Geteuid() == 0 {
		all = append(all, way{"runc", e.bareRunc(b, runc)})
	}
	return append(all, way{"host", e.host(b)})
}

// ours is Prepare to the first record of the log. What Prepare alone took is added
// to prepared, if there is one.
func (e *env) ours(b *testing.B, image string, prepared *[]time.Duration) func(...string) (time.Duration, string) {
	return func(steps ...string) (time.Duration, string) {
		s := e.spec(steps...)
		s.Rootfs = image
		began := time.Now()
		must(b, e.r.Prepare(b.Context(), s))
		if prepared != nil {
			*prepared = append(*prepared, time.Since(began))
		}
		_, err := e.r.Start(b.Context(), s.ID, nil)
		must(b, err)
		log, err := e.r.Logs(s.ID)
		must(b, err)
		_, _, _, err = log.Next(b.Context(), 1, 1<<20)
		first := time.Since(began)
		must(b, errors.Join(err, log.Close()))
		if x := e.wait(s.ID); x.Code != 0 {
			b.Fatalf("%+v", x)
		}
		out := e.output(s.ID)
		must(b, e.r.Remove(b.Context(), s.ID))
		return first, out
	}
}

// command is a way by a command, in a group like that of a container of ours, so
// that it gets as much of a busy machine.
func (e *env) command(b *testing.B, make func(steps []string) *exec.Cmd) func(...string) (time.Duration, string) {
	var group *cgroup
	if !e.r.user {
		e.n++
		name := cgroupName(filepath.Join(e.r.jobs, fmt.Sprintf("c%d", e.n)))
		s := e.spec().withDefaults()
		group, _ = makeCgroup(name, s, sentryRoom(s)) // without one all are alike too
		b.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), testWait)
			defer cancel()
			must(b, removeCgroup(ctx, name))
		})
	}
	return func(steps ...string) (time.Duration, string) {
		cmd := make(steps)
		out, err := cmd.StdoutPipe()
		must(b, err)
		var complaint strings.Builder
		cmd.Stderr = &complaint
		began := time.Now()
		must(b, group.start(cmd, func() {}))
		var head [1]byte
		_, err = io.ReadFull(out, head[:])
		first := time.Since(began)
		rest, _ := io.ReadAll(out)
		if err = errors.Join(err, cmd.Wait()); err != nil {
			b.Fatalf("%v: %v: %s", cmd.Args, err, complaint.String())
		}
		return first, string(head[:]) + string(rest)
	}
}

// bareBundle writes a bundle of the test program with steps.
func (e *env) bareBundle(b *testing.B, dir, root string, steps []string) {
	b.Helper()
	s := e.spec(steps...)
	spec := ociSpec(dir, s.withDefaults(), identity{home: "/"}, false)
	spec.Version, spec.Root.Path = "1.0.2", root
	must(b, boundRlimits(spec.Process, plan{}))
	data, err := json.Marshal(spec)
	must(b, err)
	must(b, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600))
}

func (e *env) bareRunsc(b *testing.B) func(...string) (time.Duration, string) {
	runsc, err := e.r.Ready(b.Context())
	must(b, err)
	dir := b.TempDir()
	must(b, os.Mkdir(filepath.Join(dir, dirUpper), 0o700))
	args := []string{"--root=" + filepath.Join(dir, dirRunsc), "--network=none", "--ignore-cgroups", "--host-settings=ignore"}
	if e.r.user {
		args = append(args, "--rootless")
	}
	args = append(args, fmt.Sprintf("--overlay2=root:dir=%s,size=%d", filepath.Join(dir, dirUpper), 64<<20), "run", "--bundle="+dir, cid)
	b.Cleanup(func() { // runsc pins a network namespace beside its state
		_ = exec.CommandContext(context.Background(), "umount", filepath.Join(dir, dirRunsc, "null-netns")).Run()
	})
	return e.command(b, func(steps []string) *exec.Cmd {
		e.bareBundle(b, dir, e.image, steps)
		return exec.CommandContext(b.Context(), runsc, args...)
	})
}

func (e *env) bareRunc(b *testing.B, runc string) func(...string) (time.Duration, string) {
	dir := b.TempDir()
	root := filepath.Join(dir, dirRoot)
	must(b, os.CopyFS(root, os.DirFS(e.image)))
	must(b, os.Chmod(filepath.Join(root, "job"), 0o755))
	return e.command(b, func(steps []string) *exec.Cmd {
		e.bareBundle(b, dir, root, steps)
		return exec.CommandContext(b.Context(), runc, "--root="+filepath.Join(dir, dirRunsc), "run", "--bundle="+dir, "bench-"+strconv.Itoa(os.Getpid()))
	})
}

func (e *env) host(b *testing.B) func(...string) (time.Duration, string) {
	dir := b.TempDir()
	return e.command(b, func(steps []string) *exec.Cmd {
		cmd := exec.CommandContext(b.Context(), filepath.Join(e.image, "job"), steps...)
		cmd.Dir = dir
		return cmd
	})
}

// inTurn runs each way once a round after one that does not count, and gives the
// median of what it tells.
func inTurn(rounds int, ways []way, measure func(way) time.Duration) map[string]time.Duration {
	all := map[string][]time.Duration{}
	for i := range rounds + 1 {
		for _, w := range ways {
			if d := measure(w); i > 0 {
				all[w.name] = append(all[w.name], d)
			}
		}
	}
	medians := map[string]time.Duration{}
	for name, list := range all {
		slices.Sort(list)
		medians[name] = list[len(list)/2]
	}
	return medians
}

func report(b *testing.B, medians map[string]time.Duration) {
	b.Helper()
	for name, d := range medians {
		b.ReportMetric(d.Seconds(), name+"-s")
		if name != "ours" {
			b.ReportMetric(medians["ours"].Seconds()/d.Seconds(), "x-"+name)
		}
	}
	b.ReportMetric(0, "ns/op")
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// starts are rounds where a start is measured, works where a whole program is.
const starts, works = 15, 7

// BenchmarkStart is from nothing but a cached image to the first output.
func BenchmarkStart(b *testing.B) {
	e := newBenchEnv(b)
	var prepared []time.Duration
	ways := e.ways(b, &prepared)
	for b.Loop() {
		m := inTurn(starts, ways, func(w way) time.Duration {
			first, _ := w.run("echo", "x")
			return first
		})
		report(b, m)
		slices.Sort(prepared)
		b.ReportMetric(millis(prepared[len(prepared)/2]), "ms-of-it-preparing")
		b.ReportMetric(millis(m["ours"]-m["runsc"]), "ms-over-runsc(<30)")
	}
}

// BenchmarkStartFiles is the same of an image of 2,000 files beside one of three.
func BenchmarkStartFiles(b *testing.B) {
	e := newBenchEnv(b)
	image := func(files int) string {
		dir := filepath.Join(e.base, strconv.Itoa(files))
		must(b, os.CopyFS(dir, os.DirFS(e.image)))
		must(b, os.Chmod(filepath.Join(dir, "job"), 0o755))
		for i := range files - 1 {
			at := filepath.Join(dir, "usr", strconv.Itoa(i/100))
			must(b, os.MkdirAll(at, 0o755))
			must(b, os.WriteFile(filepath.Join(at, strconv.Itoa(i)), []byte(strings.Repeat("x", 4096)), 0o644))
		}
		return dir
	}
	ways := []way{{"3", e.ours(b, image(3), nil)}, {"2000", e.ours(b, image(2000), nil)}}
	for b.Loop() {
		m := inTurn(starts, ways, func(w way) time.Duration {
			first, _ := w.run("echo", "x")
			return first
		})
		b.ReportMetric(m["2000"].Seconds(), "s-of-2000-files")
		b.ReportMetric(m["3"].Seconds(), "s-of-3-files")
		b.ReportMetric(m["2000"].Seconds()/m["3"].Seconds(), "x-3-files(<=1.1)")
		b.ReportMetric(0, "ns/op")
	}
}

// benchWork is a program that measures itself, so without its start.
func benchWork(b *testing.B, kind string) {
	e := newBenchEnv(b)
	ways := e.ways(b, nil)
	for b.Loop() {
		report(b, inTurn(works, ways, func(w way) time.Duration {
			_, out := w.run("work", kind)
			n, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
			must(b, err)
			return time.Duration(n)
		}))
	}
}

// BenchmarkCPUBound hashes.
func BenchmarkCPUBound(b *testing.B) { benchWork(b, "cpu") }

// BenchmarkSyscallBound asks the kernel for what costs it nothing.
func BenchmarkSyscallBound(b *testing.B) { benchWork(b, "syscalls") }

// BenchmarkFileBound makes, reads and removes small files in the writable layer.
func BenchmarkFileBound(b *testing.B) { benchWork(b, "files") }
