package outbound

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// Arg is the first argument that makes the program this process.
const Arg = "lumbung-net"

// LinkFD is the descriptor of the link.
const LinkFD = 3

const (
	reportEvery = 200 * time.Millisecond
	maxMemory   = 256 << 20 // that the collector works towards
)

// Main runs the network of one container until its standard input ends or the
// container has let go of the link. It writes a Report to its standard output
// when the counts have changed, and one at last.
func Main(args []string) int {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	debug.SetMemoryLimit(maxMemory)
	fs := flag.NewFlagSet(Arg, flag.ContinueOnError)
	limit := fs.Uint64("limit", 0, "bytes both ways")
	resolv := fs.String("resolv", "/etc/resolv.conf", "the machine's resolv.conf")
	uid := fs.Int("uid", -1, "user and group to become")
	_ = fs.String("root", "", "names the container in the list of processes")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	runtime.LockOSThread() // the one that hears of the parent's death
	err := dropPrivileges(*uid)
	if err == nil { // which a change of user makes the kernel forget
		err = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "network:", err)
		return 1
	}
	if err := run(os.Stdin, os.Stdout, *limit, *resolv); err != nil {
		fmt.Fprintln(os.Stderr, "network:", err)
		return 1
	}
	return 0
}

func run(in io.Reader, out io.Writer, limit uint64, resolv string) error {
	m := NewMeter(limit)
	n, err := New(Options{FD: LinkFD, Meter: m, Resolv: resolv, Own: Own, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	err = reports(ctx, n, out)
	n.Close()
	return err
}

// reports tells how it stands until ctx ends or the container is gone.
func reports(ctx context.Context, n *Network, out io.Writer) error {
	enc := json.NewEncoder(out)
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	last := n.Meter.Report()
	over := n.Meter.Over()
	if err := enc.Encode(last); err != nil { // it is ready
		return err
	}
	for {
		done := false
		select {
		case <-ctx.Done():
			done = true
		case <-n.Gone():
			done = true
		case <-over:
			over = nil
		case <-tick.C:
		}
		now := n.Meter.Report()
		if now != last || done {
			if err := enc.Encode(now); err != nil {
				return err
			}
			last = now
		}
		if done {
			return nil
		}
	}
}
