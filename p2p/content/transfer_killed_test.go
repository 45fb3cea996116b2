//go:build unix

package content_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"

	"github.com/lumbung-net/lumbung/p2p/content"
)

// A receiver that is a process of its own: this test binary with childEnv set,
// so that it can be killed, and its memory told from the sender's.
const childEnv = "LUMBUNG_BENCH_CHILD"

func init() {
	spec := os.Getenv(childEnv)
	if spec == "" {
		return
	}
	if err := childMain(spec); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// childSpec says what a receiver is to do.
type childSpec struct {
	Dir    string // its store
	Root   string
	From   peer.AddrInfo
	KillAt uint64 // have that many bytes, and die by SIGKILL
}

// childReport is what a receiver tells, the last it does.
type childReport struct {
	Received, Have uint64
	Idle, Most     uint64 // resident, in bytes: before the fetch, and ever
}

func (r childReport) print() { _ = json.NewEncoder(os.Stdout).Encode(r) }

func childMain(text string) error {
	var spec childSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	root, err := cid.Decode(spec.Root)
	if err != nil {
		return err
	}
	s, err := content.Open(spec.Dir, content.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	h, err := benchHost()
	if err != nil {
		return errors.Join(err, s.Close())
	}
	h.Peerstore().AddAddrs(spec.From.ID, spec.From.Addrs, peerstore.PermanentAddrTTL)
	ctx := context.Background()
	err = h.Connect(ctx, spec.From)
	var report childReport
	if err == nil {
		report.Idle = resident("VmRSS:")
		e := content.NewExchange(s, &node{h: h, s: s}, content.ExchangeOptions{})
		err = e.Fetch(ctx, root, content.FetchOptions{Peers: []string{spec.From.ID.String()}, Progress: func(p content.FetchProgress) {
			report.Received, report.Have = p.Received, p.HaveBytes
			if spec.KillAt > 0 && p.HaveBytes >= spec.KillAt {
				report.print()
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // it takes the kernel a moment
			}
		}})
	}
	report.Most = resident("VmHWM:")
	report.print()
	return errors.Join(err, h.Close(), s.Close())
}

// resident is a line of this process's status, in bytes; 0 where there is none.
func resident(field string) uint64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if rest, found := strings.CutPrefix(line, field); found {
			kib, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// receive runs a receiver to its end, and returns its last words and the
// processor time it took.
func receive(b *testing.B, dir string, from *node, root cid.Cid, killAt uint64) (childReport, time.Duration) {
	b.Helper()
	self, err := os.Executable()
	ok(b, err)
	spec, err := json.Marshal(childSpec{dir, root.String(), peer.AddrInfo{ID: from.h.ID(), Addrs: from.h.Addrs()}, killAt})
	ok(b, err)
	cmd := exec.CommandContext(b.Context(), self)
	cmd.Env = append(os.Environ(), childEnv+"="+string(spec))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if killAt == 0 {
		ok(b, err)
	} else if status, is := cmd.ProcessState.Sys().(syscall.WaitStatus); !is || status.Signal() != syscall.SIGKILL {
		b.Fatalf("the receiver was to die at %d bytes: %v", killAt, cmd.ProcessState)
	}
	var r childReport
	ok(b, json.Unmarshal(out, &r))
	return r, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

// BenchmarkTransferKilled has a receiver die by SIGKILL at half of a file, and
// another go on with its store. Repeated is what the two were sent of blocks
// beyond what there is; sent-again has in it what was on its way too.
func BenchmarkTransferKilled(b *testing.B) {
	s, root := bigFile(b, content.BenchBytes(b, 1))
	size := dagBytes(b, s, root)
	var ours cost
	var repeated, again float64
	for b.Loop() {
		from := newNode(b, s, content.ExchangeOptions{})
		dir := b.TempDir()
		warm(b, int64(size))
		ours.add(func() {
			first, used := receive(b, dir, from, root, size/2)
			rest, more := receive(b, dir, from, root, 0)
			ours.cpu += used + more
			if rest.Have < size {
				b.Fatalf("it has %d of %d bytes", rest.Have, size)
			}
			repeated += float64(first.Received+rest.Received) - float64(size)
		})
		again += float64(from.sent.Load()) - float64(size)
	}
	n := float64(b.N) * float64(size) / 100
	b.ReportMetric(0, "ns/op")
	ours.report(b, "ours", size)
	b.ReportMetric(repeated/n, "repeated-%(<1)")
	b.ReportMetric(again/n, "sent-again-%")
}

// BenchmarkTransferMemory tells how much more a receiver has resident, at most,
// than before a fetch.
func BenchmarkTransferMemory(b *testing.B) {
	if runtime.GOOS != "linux" {
		b.Skip("reads /proc")
	}
	s, root := bigFile(b, content.BenchBytes(b, 1))
	size := dagBytes(b, s, root)
	var ours cost
	var idle, most uint64
	for b.Loop() {
		from := newNode(b, s, content.ExchangeOptions{})
		dir := b.TempDir()
		warm(b, int64(size))
		ours.add(func() {
			r, used := receive(b, dir, from, root, 0)
			ours.cpu += used
			idle, most = max(idle, r.Idle), max(most, r.Most)
		})
	}
	b.ReportMetric(0, "ns/op")
	ours.report(b, "ours", size)
	b.ReportMetric(float64(idle)/(1<<20), "idle-MiB")
	b.ReportMetric(float64(most-idle)/(1<<20), "over-idle-MiB(<=64)")
}
