package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lumbung-net/lumbung/job/sandbox/internal/portmux"
)

// runByShim runs an exec by the shim of an OCI runtime's container.
func (x *execution) runByShim(ctx context.Context) (int, error) {
	if err := x.writeProcess(); err != nil {
		return CodeSandbox, err
	}
	inside, finish, err := x.streams()
	if err != nil {
		return CodeSandbox, err
	}
	conn, err := askWith(ctx, x.dir, request{Op: "exec", Folder: x.tmp}, inside)
	closeAll(inside)
	if err != nil {
		_ = finish(nil)
		return CodeSandbox, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var rest bytes.Buffer
	var a execAnswer
	console, err := readAnswer(conn, &rest, &a)
	if console != nil {
		master, merr := pollable(console)
		if merr != nil {
			_ = finish(nil)
			return CodeSandbox, merr
		}
		relayed := x.relay(master)
		finish = func(error) error { return relayed() }
	}
	if err == nil && !a.Ended {
		_, err = readAnswer(conn, &rest, &a)
	}
	copyErr := finish(err)
	switch {
	case ctx.Err() != nil:
		return codeSignal + int(unix.SIGKILL), context.Cause(ctx)
	case err != nil:
		return CodeSandbox, fmt.Errorf("the container's supervisor: %w", err)
	case a.Error != "":
		return CodeSandbox, errors.New(a.Error)
	case a.Code != 0:
		return a.Code, nil
	}
	return 0, copyErr
}

// pollable is a file of which a read can be interrupted, in place of f.
func pollable(f *os.File) (*os.File, error) {
	defer func() { _ = f.Close() }()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil //nolint:gosec // a descriptor
}

// streams makes the program's ends of its three streams, and copies what goes
// over them until finish is called at its end; none for a terminal.
func (x *execution) streams() (inside []*os.File, finish func(error) error, err error) {
	if x.spec.TTY {
		return nil, func(error) error { return nil }, nil
	}
	var outside []*os.File
	for i := range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(append(inside, outside...))
			return nil, nil, err
		}
		if i == 0 {
			r, w = w, r // the program reads from the first
		}
		inside, outside = append(inside, w), append(outside, r)
	}
	var out sync.WaitGroup
	for i, dst := range []io.Writer{x.spec.Stdout, x.spec.Stderr} {
		if dst == nil {
			dst = io.Discard
		}
		out.Go(func() { _, _ = io.Copy(dst, outside[i+1]) })
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if x.spec.Stdin != nil {
			_, _ = io.Copy(outside[0], x.spec.Stdin)
		}
		_ = outside[0].Close()
	}()
	return inside, func(error) error {
		// What the program left running inside may hold its output open.
		late := time.AfterFunc(execDelay, func() {
			_ = errors.Join(outside[1].SetReadDeadline(time.Unix(1, 0)), outside[2].SetReadDeadline(time.Unix(1, 0)))
		})
		out.Wait()
		late.Stop()
		_ = outside[0].Close()
		if x.spec.Stdin != nil {
			releaseReader(x.spec.Stdin, done)
		}
		closeAll(outside[1:])
		return nil
	}, nil
}

// askWith sends a request with files to a container's shim.
func askWith(ctx context.Context, dir string, req request, files []*os.File) (*net.UnixConn, error) {
	c, err := dialUnix(ctx, filepath.Join(dir, fileSocket))
	if err != nil {
		return nil, fmt.Errorf("%w: its supervisor does not answer: %w", ErrNotRunning, err)
	}
	conn := c.(*net.UnixConn)
	data, err := json.Marshal(req)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	_ = conn.SetWriteDeadline(time.Now().Add(controlTimeout))
	if _, _, err := conn.WriteMsgUnix(append(data, '\n'), unix.UnixRights(fds...), nil); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// shimPorts reaches the ports of an OCI runtime's container by its shim: nothing
// of ours runs inside.
type shimPorts struct {
	dir   string
	ended chan struct{} // closed by Close, or by the end of the container
	close func()

	mu   sync.Mutex
	open map[*shimConn]bool
}

func newShimPorts(dir string) *shimPorts {
	ctx, cancel := context.WithCancel(context.Background())
	f := &shimPorts{dir: dir, ended: make(chan struct{}), close: cancel, open: map[*shimConn]bool{}}
	go func() {
		defer close(f.ended)
		_, _ = watchShim(ctx, dir, func() (bool, error) {
			st, err := readState(dir)
			return st.Phase == phaseExited, err
		})
		f.mu.Lock()
		all := f.open
		f.open = nil
		f.mu.Unlock()
		for c := range all {
			_ = c.Reset()
		}
	}()
	return f
}

func (f *shimPorts) Ended() <-chan struct{} { return f.ended }

// Close ends all connections.
func (f *shimPorts) Close() error {
	f.close()
	<-f.ended
	return nil
}

// Dial connects; portmux.ErrBusy and ErrRefused are as a forwarder's.
func (f *shimPorts) Dial(ctx context.Context, port uint16) (Conn, error) {
	c := &shimConn{from: f}
	f.mu.Lock()
	over, busy := f.open == nil, len(f.open) >= portmux.MaxConns
	if !over && !busy {
		f.open[c] = true // its place
	}
	f.mu.Unlock()
	switch {
	case over:
		return nil, ErrNotRunning
	case busy:
		return nil, fmt.Errorf("port %d: %w: %d", port, portmux.ErrBusy, portmux.MaxConns)
	}
	conn, err := dialByShim(ctx, f.dir, port)
	if err != nil {
		f.forget(c)
		return nil, err
	}
	c.mu.Lock()
	c.TCPConn = conn
	gone := c.gone
	c.mu.Unlock()
	if gone {
		return nil, errors.Join(ErrNotRunning, conn.Close())
	}
	return c, nil
}

func (f *shimPorts) forget(c *shimConn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, c)
}

func dialByShim(ctx context.Context, dir string, port uint16) (*net.TCPConn, error) {
	conn, err := askWith(ctx, dir, request{Op: "dial", Port: port}, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var a answer
	file, err := readAnswer(conn, &bytes.Buffer{}, &a)
	if file != nil {
		defer func() { _ = file.Close() }()
	}
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, err
	case a.Refused:
		return nil, portmux.ErrRefused
	case a.Error != "":
		return nil, errors.New(a.Error)
	case file == nil:
		return nil, errors.New("its supervisor sent no connection")
	}
	got, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	tcp, is := got.(*net.TCPConn)
	if !is {
		return nil, errors.Join(errors.New("its supervisor sent no TCP connection"), got.Close())
	}
	return tcp, nil
}

// shimConn is a connection of the container's own loopback.
type shimConn struct {
	*net.TCPConn
	from *shimPorts
	mu   sync.Mutex
	gone bool // reset before it was there
}

func (c *shimConn) Close() error {
	c.from.forget(c)
	return c.TCPConn.Close()
}

// Reset ends both directions at once.
func (c *shimConn) Reset() error {
	c.from.forget(c)
	c.mu.Lock()
	c.gone = true
	conn := c.TCPConn
	c.mu.Unlock()
	if conn == nil {
		return nil
	}
	return errors.Join(conn.SetLinger(0), conn.Close())
}
