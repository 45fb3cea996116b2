//go:build e2e

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"golang.org/x/sync/errgroup"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/node"
	"github.com/lumbung-net/lumbung/node/client"
)

// median of what fn takes, over so many runs.
func median(runs int, fn func() time.Duration) time.Duration {
	all := make([]time.Duration, 0, runs)
	for range runs {
		all = append(all, fn())
	}
	slices.Sort(all)
	return all[runs/2]
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// floor runs the test program as a container by the sandbox package alone, and
// tells how long it takes to its first output and to its end.
type floor struct {
	rt     *sandbox.Runtime
	rootfs string
	n      int
}

func newFloor(b *testing.B) *floor {
	b.Helper()
	dir := b.TempDir()
	f := &floor{rootfs: filepath.Join(dir, "rootfs")}
	must(b, os.MkdirAll(f.rootfs, 0o755))
	raw, err := os.ReadFile(e2e.program)
	must(b, err)
	must(b, os.WriteFile(filepath.Join(f.rootfs, "job"), raw, 0o755))
	f.rt, err = sandbox.New(sandbox.Options{Dir: filepath.Join(dir, "sandbox"), Shim: e2e.bin, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	must(b, err)
	_, err = f.rt.Ready(b.Context())
	must(b, err)
	return f
}

func (f *floor) run(b *testing.B) (first, end time.Duration) {
	b.Helper()
	f.n++
	ctx, id := b.Context(), fmt.Sprintf("floor%d", f.n)
	began := time.Now()
	must(b, f.rt.Prepare(ctx, sandbox.Spec{ID: id, Rootfs: f.rootfs, Args: []string{"/job", "say", "x"}, MemoryBytes: 256 << 20, DiskBytes: 256 << 20}))
	_, err := f.rt.Start(ctx, id, nil)
	must(b, err)
	log, err := f.rt.Logs(id)
	must(b, err)
	_, _, _, err = log.Next(ctx, 1, 1<<20)
	must(b, err)
	first = time.Since(began)
	exit, err := f.rt.Wait(ctx, id)
	must(b, err)
	end = time.Since(began)
	if exit.Code != 0 {
		b.Fatalf("%+v", exit)
	}
	must(b, log.Close())
	must(b, f.rt.Remove(ctx, id))
	return first, end
}

// noop submits a job of a cached image and follows it by the API.
func noop(b *testing.B, n *testNode) (first, end time.Duration) {
	b.Helper()
	spec := program("say", "x")
	spec.Image = "bench"
	last, err := n.c.LastEvent(b.Context())
	must(b, err)
	began := time.Now()
	j := n.submit(b, spec)
	ctx, cancel := context.WithTimeout(b.Context(), e2eWait)
	defer cancel()
	logged := make(chan time.Duration, 1)
	go func() {
		var at time.Duration
		_ = n.c.Logs(ctx, j.ID, client.LogQuery{Task: client.AllTasks, Follow: true}, func(int, client.LogRecord) error {
			if at == 0 {
				at = time.Since(began)
			}
			return nil
		})
		logged <- at
	}()
	err = n.c.Events(ctx, last, func(e client.Event) error {
		if e.Type == job.EventJob && e.Job == j.ID && e.State == job.JobDone {
			end = time.Since(began)
			return errOver
		}
		if e.Type == job.EventJob && e.Job == j.ID && e.State == job.JobFailed {
			return fmt.Errorf("job %s: %s", j.ID, e.Text)
		}
		return nil
	})
	if err != errOver { //nolint:errorlint // it comes back as it was given
		b.Fatal(err)
	}
	return <-logged, end
}

// BenchmarkE2ENoop is a job that does nothing, of an image that the provider
// has, beside the same container started by the sandbox package alone.
func BenchmarkE2ENoop(b *testing.B) {
	w := newWorld(b, worldOptions{providers: 1})
	_, err := w.renter.c.LoadImage(b.Context(), client.PathRequest{Path: e2e.image, Name: "bench"}, nil)
	must(b, err)
	noop(b, w.renter) // the provider has the image from here on
	f := newFloor(b)
	f.run(b)
	const runs = 15
	var jobFirst, jobEnd, floorFirst, floorEnd []time.Duration
	for b.Loop() {
		for range runs { // in turn, so that a busy machine is unkind to both
			first, end := f.run(b)
			floorFirst, floorEnd = append(floorFirst, first), append(floorEnd, end)
			first, end = noop(b, w.renter)
			jobFirst, jobEnd = append(jobFirst, first), append(jobEnd, end)
		}
	}
	mid := func(all []time.Duration) float64 {
		slices.Sort(all)
		return millis(all[len(all)/2])
	}
	b.ReportMetric(mid(jobFirst), "ms/first-output")
	b.ReportMetric(mid(jobEnd), "ms/result")
	b.ReportMetric(mid(floorFirst), "ms/floor-first-output")
	b.ReportMetric(mid(floorEnd), "ms/floor-result")
	b.ReportMetric(mid(jobEnd)-mid(floorEnd), "ms/over-floor(<=150)")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkE2EThroughput is one array of jobs that do nothing, over three
// providers, beside as many containers, as many at a time, by the sandbox
// package alone.
func BenchmarkE2EThroughput(b *testing.B) {
	w := newWorld(b, worldOptions{providers: 3})
	_, err := w.renter.c.LoadImage(b.Context(), client.PathRequest{Path: e2e.image, Name: "bench"}, nil)
	must(b, err)
	f := newFloor(b)
	f.run(b)
	const tasks, atOnce = 60, 3 * 8 // what the providers have cores for
	var took, alone time.Duration
	for b.Loop() {
		spec := program("say", "x")
		spec.Image = "bench"
		spec.Array = &job.Array{First: 1, Last: tasks, Chunk: 1}
		began := time.Now()
		j := w.renter.submit(b, spec)
		w.renter.done(b, j.ID)
		took += time.Since(began)
		alone += f.many(b, tasks, atOnce)
	}
	b.ReportMetric(float64(tasks*b.N)/took.Seconds(), "jobs/s")
	b.ReportMetric(float64(tasks*b.N)/alone.Seconds(), "floor-containers/s")
	b.ReportMetric(alone.Seconds()/took.Seconds(), "of-floor")
	b.ReportMetric(0, "ns/op")
}

// many runs so many containers, atOnce side by side.
func (f *floor) many(b *testing.B, count, atOnce int) time.Duration {
	b.Helper()
	began := time.Now()
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(atOnce)
	for i := range count {
		group.Go(func() error {
			id := fmt.Sprintf("many%d-%d", f.n, i)
			err := f.rt.Prepare(ctx, sandbox.Spec{ID: id, Rootfs: f.rootfs, Args: []string{"/job", "say", "x"}, MemoryBytes: 256 << 20, DiskBytes: 256 << 20})
			if err == nil {
				_, err = f.rt.Start(ctx, id, nil)
			}
			if err == nil {
				_, err = f.rt.Wait(ctx, id)
			}
			return errors.Join(err, f.rt.Remove(context.WithoutCancel(ctx), id))
		})
	}
	must(b, group.Wait())
	f.n++
	return time.Since(began)
}

// BenchmarkE2ETransfer imports an image of 256 MiB and moves it to a provider,
// beside a bare libp2p stream over TCP and TLS.
func BenchmarkE2ETransfer(b *testing.B) {
	const size = 256 << 20
	root := largeRoot(b, size)
	var imported, moved, bare time.Duration
	for b.Loop() {
		w := newWorld(b, worldOptions{providers: 1, heartbeat: 4 * time.Second})
		began := time.Now()
		im, err := w.renter.c.LoadImage(b.Context(), client.PathRequest{Path: root, Name: "large"}, nil)
		must(b, err)
		imported += time.Since(began)
		bare += bareStream(b, size)
		began = time.Now()
		_, err = w.providers[0].c.Pin(b.Context(), client.PinRequest{CID: im.CID}, nil)
		must(b, err)
		moved += time.Since(began)
	}
	mib := float64(size>>20) * float64(b.N)
	b.ReportMetric(mib/imported.Seconds(), "MiB/s-import")
	b.ReportMetric(mib/moved.Seconds(), "MiB/s-transfer")
	b.ReportMetric(mib/bare.Seconds(), "MiB/s-bare-stream")
	b.ReportMetric(bare.Seconds()/moved.Seconds(), "transfer/bare")
	b.ReportMetric(0, "ns/op")
}

// bareStream is how long so many bytes take over one libp2p stream.
func bareStream(b *testing.B, size int64) time.Duration {
	b.Helper()
	plain := func() host.Host {
		h, err := libp2p.New(libp2p.NoTransports, libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(libp2ptls.ID, libp2ptls.New),
			libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay())
		must(b, err)
		return h
	}
	from, to := plain(), plain()
	defer func() { _ = from.Close() }()
	defer func() { _ = to.Close() }()
	got := make(chan int64, 1)
	to.SetStreamHandler("/bench/1", func(s network.Stream) {
		n, _ := io.Copy(io.Discard, s)
		got <- n
		_ = s.Close()
	})
	must(b, from.Connect(b.Context(), peer.AddrInfo{ID: to.ID(), Addrs: to.Addrs()}))
	block := noise(1 << 20)
	began := time.Now()
	s, err := from.NewStream(b.Context(), to.ID(), "/bench/1")
	must(b, err)
	for left := size; left > 0; left -= int64(len(block)) {
		_, err := s.Write(block)
		must(b, err)
	}
	must(b, s.CloseWrite())
	if n := <-got; n != size {
		b.Fatalf("%d of %d bytes arrived", n, size)
	}
	return time.Since(began)
}

// BenchmarkE2EStart is the time from exec until the API answers, of a node that
// has run before.
func BenchmarkE2EStart(b *testing.B) {
	w := newWorld(b, worldOptions{providers: 1})
	var figures []float64
	for b.Loop() {
		for _, n := range []*testNode{w.providers[0], w.renter} {
			figures = append(figures, millis(median(7, func() time.Duration {
				n.kill()
				began := time.Now()
				must(b, n.launch())
				look := time.NewTicker(time.Millisecond)
				defer look.Stop()
				for {
					if s, err := n.c.Status(b.Context()); err == nil && s.PID == n.cmd.Process.Pid {
						return time.Since(began)
					}
					select {
					case <-n.exited:
						b.Fatal(n.log())
					case <-look.C:
					}
				}
			})))
		}
	}
	b.ReportMetric(figures[0], "ms/provider")
	b.ReportMetric(figures[1], "ms/renter")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkE2EIdleMemory is what each role has resident once it has settled: when
// two looks that are apart differ by little.
func BenchmarkE2EIdleMemory(b *testing.B) {
	w := newWorld(b, worldOptions{providers: 2})
	for b.Loop() {
		w.settleDown(b)
	}
	for _, n := range []*testNode{w.boot, w.providers[0], w.renter} {
		bound := ""
		if n.role == node.RoleProvider {
			bound = "(<=80)"
		}
		b.ReportMetric(float64(statusField(b, n.cmd.Process.Pid, "VmRSS:"))/(1<<20), "MiB/"+n.role+bound)
		b.ReportMetric(float64(statusField(b, n.cmd.Process.Pid, "RssAnon:"))/(1<<20), "MiB-anon/"+n.role)
	}
	b.ReportMetric(0, "ns/op")
}

// settleDown waits until no node's memory has moved by a megabyte for two
// seconds.
func (w *world) settleDown(b *testing.B) {
	look := time.NewTicker(2 * time.Second)
	defer look.Stop()
	ctx := boundedBy(b, 3*time.Minute)
	last := map[string]uint64{}
	for still := 0; still < 3; {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		still++
		for _, n := range w.nodes {
			now := statusField(b, n.cmd.Process.Pid, "VmRSS:")
			if was := last[n.name]; now > was+1<<20 || was > now+1<<20 {
				still = 0
			}
			last[n.name] = now
		}
	}
}
