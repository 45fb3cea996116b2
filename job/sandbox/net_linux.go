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
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What runsc/main.go and runsc/outbound say too.
const (
	netFeature = "net/1"
	netArg     = "lumbung-net"
	envNet     = "LUMBUNG_NET"
	netServer  = "10.89.0.1" // the container's name server
	linkFD     = 3           // in runsc's network process, and in "run"
)

const (
	// nobody is who the network of a root's container runs as.
	nobody = 65534
	// netEnd is how long the network may take to close its connections.
	netEnd = 10 * time.Second
	// maxReports bounds what is read of a network; each report is less than 100
	// bytes, five a second.
	maxReports = 1 << 36
)

// network is the process that is the container's way to the internet. It is the
// shim's child, and so as long there as the container, whatever the node does.
type network struct {
	cmd   *exec.Cmd
	stdin *os.File // it ends when this is closed
	link  *os.File // the container's end
	over  chan struct{}
	err   error // once over

	ending atomic.Bool // from here on it is no failure that it ends
}

// beginNetwork starts it. It shares the shim's limits.
func (s *shim) beginNetwork(ctx context.Context) (_ *network, err error) {
	if !s.plan.Spec.Outbound {
		return nil, nil
	}
	var mine []*os.File
	defer func() {
		for _, f := range mine {
			_ = f.Close()
		}
	}()
	ours, theirs, err := linkPair()
	if err != nil {
		return nil, err
	}
	n := &network{link: theirs, over: make(chan struct{})}
	mine = append(mine, ours)
	in, stdin, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, theirs.Close())
	}
	n.stdin, mine = stdin, append(mine, in)
	reports, out, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, theirs.Close(), stdin.Close())
	}
	mine = append(mine, out)
	n.cmd = exec.CommandContext(context.WithoutCancel(ctx), s.plan.Runsc, s.netArgs()...)
	n.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GOMAXPROCS=2"}
	n.cmd.Dir = "/"
	n.cmd.Stdin, n.cmd.Stdout, n.cmd.Stderr = in, out, os.Stderr
	n.cmd.ExtraFiles = []*os.File{ours}
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := n.cmd.Start(); err != nil {
		return nil, errors.Join(err, theirs.Close(), stdin.Close(), reports.Close())
	}
	go func() {
		defer close(n.over)
		s.readReports(reports)
		_ = reports.Close()
		n.err = n.cmd.Wait()
		if !n.ending.Load() {
			s.networkOver(n.err)
		}
	}()
	return n, nil
}

// netArgs carry the container's folder, so that the process is known for its own.
func (s *shim) netArgs() []string {
	args := []string{
		netArg, "--root=" + filepath.Join(s.dir, dirRunsc), "--resolv=" + s.plan.Resolv,
		fmt.Sprintf("--limit=%d", s.plan.Spec.NetBytes),
	}
	if !s.plan.User {
		args = append(args, fmt.Sprintf("--uid=%d", nobody))
	}
	return args
}

// linkPair is a pair of sockets that keep packets whole and in order, and let a
// sender wait for its receiver.
func linkPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	for _, fd := range fds {
		// More than the machine's default, where it lets us.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, linkBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, linkBuffer)
		}
	}
	return os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link"), nil
}

const linkBuffer = 4 << 20 // bytes on their way

// readReports keeps the counts until the network's output ends.
func (s *shim) readReports(r io.Reader) {
	dec := json.NewDecoder(io.LimitReader(r, maxReports))
	for {
		var rep struct {
			Up, Down uint64
			Over     bool
		}
		if dec.Decode(&rep) != nil {
			return
		}
		s.mu.Lock()
		s.usage.NetUp, s.usage.NetDown = rep.Up, rep.Down
		s.mu.Unlock()
		if rep.Over {
			s.exceed(Exceeded{Limit: LimitNet, Max: s.plan.Spec.NetBytes, Seen: rep.Up + rep.Down, At: time.Now()})
		}
	}
}

// networkOver ends a container whose network has failed: its program would wait
// for answers that cannot come. One that ends well was let go of.
func (s *shim) networkOver(err error) {
	if err == nil {
		return
	}
	s.mu.Lock()
	if s.failure == "" {
		s.failure = "the container's network failed: " + err.Error()
	}
	s.mu.Unlock()
	s.kill()
}

// end closes what is open and waits for the last counts.
func (n *network) end() {
	if n == nil {
		return
	}
	n.ending.Store(true)
	_ = n.link.Close()
	_ = n.stdin.Close()
	t := time.NewTimer(netEnd)
	defer t.Stop()
	select {
	case <-n.over:
	case <-t.C:
		_ = n.cmd.Process.Kill()
		<-n.over
	}
}
