package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lumbung-net/lumbung/job/sandbox/internal/portmux"
)

// Forwarder connects to the ports of one running container. It belongs to who
// asked for it, who closes it.
type Forwarder struct{ ports ports }

// ports is a way to those of one container.
type ports interface {
	// Dial fails with portmux.ErrRefused where nothing listens.
	Dial(ctx context.Context, port uint16) (Conn, error)
	Ended() <-chan struct{}
	Close() error
}

// insidePorts are reached by a program inside.
type insidePorts struct{ *portmux.Client }

func (p insidePorts) Dial(ctx context.Context, port uint16) (Conn, error) {
	c, err := p.Client.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Forward starts the program that connects to a container's ports, inside it:
// the container has no network, and nothing of the host's but one stream. It
// takes a process of the job's and counts to its limits. Under an OCI runtime
// the shim connects instead.
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
	if p.OCI != "" {
		return &Forwarder{newShimPorts(dir)}, nil
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
	link := streamPair
	if p.Spec.Savable {
		link = pipePair
	}
	ours, theirs, err := link()
	if err != nil {
		return nil, err
	}
	defer closeAll(theirs)
	c, err := dialSentry(ctx, dir)
	if err != nil {
		_ = ours.Close()
		return nil, err
	}
	defer c.close()
	if err := runForwarder(c, p, program, theirs); err != nil {
		_ = ours.Close()
		return nil, err
	}
	mux, err := portmux.NewClient(ours)
	if err != nil {
		_ = ours.Close()
		return nil, err
	}
	return &Forwarder{insidePorts{mux}}, nil
}

// runForwarder starts the program from a file outside, or in a savable container
// from the one inside.
func runForwarder(c *sentry, p plan, program string, files []*os.File) error {
	if p.Spec.Savable {
		return c.run(p.UID, p.GID, []string{path.Join(SavableDir, fileForwarder)}, nil, files...)
	}
	exe, err := os.Open(program)
	if err != nil {
		return err
	}
	defer func() { _ = exe.Close() }()
	return c.run(p.UID, p.GID, []string{"lumbung-forwarder"}, exe, files...)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// streamPair is a pair of connected Unix streams: one is this process's, the
// other the program's first descriptor.
func streamPair() (net.Conn, []*os.File, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		_ = null.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "forwarder"), []*os.File{os.NewFile(uintptr(fds[1]), "forwarder"), null, null}
	conn, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		closeAll(theirs)
		return nil, nil, err
	}
	return conn, theirs, nil
}

// pipePair is two pipes: their far ends are the program's first descriptors, and
// block; see portmux.Pipes.
func pipePair() (net.Conn, []*os.File, error) {
	theirIn, ourOut, err := halfBlocking(1)
	if err != nil {
		return nil, nil, err
	}
	ourIn, theirOut, err := halfBlocking(0)
	if err != nil {
		closeAll([]*os.File{theirIn, ourOut})
		return nil, nil, err
	}
	return portmux.Pipes(ourIn, ourOut), []*os.File{theirIn, theirOut}, nil
}

// halfBlocking is a pipe of which one end does not block: this process's.
func halfBlocking(ours int) (in, out *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	err = unix.SetNonblock(fds[ours], true)
	in, out = os.NewFile(uintptr(fds[0]), "forwarder"), os.NewFile(uintptr(fds[1]), "forwarder")
	if err != nil {
		closeAll([]*os.File{in, out})
	}
	return in, out, err
}

// Dial connects to a TCP port of the container's own loopback.
func (f *Forwarder) Dial(ctx context.Context, port uint16) (Conn, error) {
	c, err := f.ports.Dial(ctx, port)
	if errors.Is(err, portmux.ErrRefused) {
		return nil, fmt.Errorf("%w on port %d of the container", ErrNotListening, port)
	}
	if err != nil {
		return nil, fmt.Errorf("connecting into the container: %w", err)
	}
	return c, nil
}

// Ended is closed when the container is gone, or what connects inside it.
func (f *Forwarder) Ended() <-chan struct{} { return f.ports.Ended() }

// Close ends all connections.
func (f *Forwarder) Close() error { return f.ports.Close() }

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
