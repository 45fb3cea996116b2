package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lumbung-net/lumbung/job/sandbox/internal/portmux"
)

// Forwarder connects to the ports of one running container. It belongs to who
// asked for it, who closes it.
type Forwarder struct{ mux *portmux.Client }

// Forward starts the program that connects to a container's ports, inside it:
// the container has no network, and nothing of the host's but one stream. It
// takes a process of the job's and counts to its limits.
func (r *Runtime) Forward(ctx context.Context, id string) (*Forwarder, error) {
	dir, err := r.folder(id)
	if err != nil {
		return nil, err
	}
	st, err := readState(dir)
	if err != nil {
		return nil, err
	}
	if st.Phase != phaseRunning {
		return nil, fmt.Errorf("%w: %s", ErrNotRunning, id)
	}
	p, err := readPlan(dir)
	if err != nil {
		return nil, err
	}
	program, err := r.forwarder(ctx)
	if err != nil {
		return nil, err
	}
	f, err := startForwarder(ctx, dir, p, program)
	if err != nil {
		return nil, fmt.Errorf("reaching into %s: %w", id, err)
	}
	return f, nil
}

func startForwarder(ctx context.Context, dir string, p plan, program string) (*Forwarder, error) {
	exe, err := os.Open(program)
	if err != nil {
		return nil, err
	}
	defer func() { _ = exe.Close() }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = null.Close() }()
	ours, theirs, err := streamPair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	c, err := dialSentry(ctx, dir)
	if err != nil {
		_ = ours.Close()
		return nil, err
	}
	defer c.close()
	if err := c.run(p.UID, p.GID, []string{"lumbung-forwarder"}, exe, theirs, null, null); err != nil {
		_ = ours.Close()
		return nil, err
	}
	mux, err := portmux.NewClient(ours)
	if err != nil {
		_ = ours.Close()
		return nil, err
	}
	return &Forwarder{mux}, nil
}

// streamPair is a pair of connected Unix streams.
func streamPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "forwarder"), os.NewFile(uintptr(fds[1]), "forwarder")
	conn, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}

// Dial connects to a TCP port of the container's own loopback.
func (f *Forwarder) Dial(ctx context.Context, port uint16) (Conn, error) {
	c, err := f.mux.Dial(ctx, port)
	if errors.Is(err, portmux.ErrRefused) {
		return nil, fmt.Errorf("%w on port %d of the container", ErrNotListening, port)
	}
	if err != nil {
		return nil, fmt.Errorf("connecting into the container: %w", err)
	}
	return c, nil
}

// Ended is closed when the container is gone, or what connects inside it.
func (f *Forwarder) Ended() <-chan struct{} { return f.mux.Ended() }

// Close ends all connections.
func (f *Forwarder) Close() error { return f.mux.Close() }

// forwarder is the path of the program: beside a runsc that was given, or the
// one that this binary carries.
func (r *Runtime) forwarder(ctx context.Context) (string, error) {
	if asked := r.given(); asked != "" {
		beside := filepath.Join(filepath.Dir(asked), "forwarder")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	r.unpacking.Lock()
	defer r.unpacking.Unlock()
	return unpacked(ctx, filepath.Join(r.dir, "runtime"), "forwarder", embeddedForwarder())
}

func (r *Runtime) given() string {
	if r.asked != "" {
		return r.asked
	}
	return os.Getenv(EnvRunsc)
}
