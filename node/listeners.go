package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/node/api"
)

// maxPortConns bounds the connections to the ports of one job at a time.
const maxPortConns = 256

// listeners are the ports of this machine that lead into jobs' containers. It is
// the renter's PortKeeper.
type listeners struct {
	connect func(ctx context.Context, job string, task int, port uint16) (sandbox.Conn, error)
	log     *slog.Logger

	mu   sync.Mutex
	jobs map[string]*jobPorts
}

// jobPorts are the listeners of one job, with what came over them.
type jobPorts struct {
	stop  context.CancelFunc
	group sync.WaitGroup
}

func newListeners(log *slog.Logger, connect func(context.Context, string, int, uint16) (sandbox.Conn, error)) *listeners {
	return &listeners{connect: connect, log: log, jobs: map[string]*jobPorts{}}
}

// Open implements job.PortKeeper.
func (l *listeners) Open(id string, ports []job.PortSpec) ([]job.PortSpec, error) {
	ctx, cancel := context.WithCancel(context.Background())
	p := &jobPorts{stop: cancel}
	out := make([]job.PortSpec, len(ports))
	open := make([]net.Listener, 0, len(ports))
	var lc net.ListenConfig
	for i, port := range ports {
		ln, err := lc.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port.Local))))
		if err != nil {
			cancel()
			for _, ln := range open {
				_ = ln.Close()
			}
			return nil, portTaken(port, err)
		}
		open = append(open, ln)
		out[i] = job.PortSpec{Local: uint16(ln.Addr().(*net.TCPAddr).Port), Remote: port.Remote} //nolint:gosec // a port
	}
	slots := make(chan struct{}, maxPortConns)
	for i, ln := range open {
		p.group.Go(func() { l.serve(ctx, ln, id, out[i], slots, &p.group) })
	}
	l.mu.Lock()
	l.jobs[id] = p
	l.mu.Unlock()
	return out, nil
}

func portTaken(port job.PortSpec, err error) error {
	return &api.Error{
		Status: http.StatusConflict, Code: "port_taken", Err: fmt.Errorf("port %d of this machine: %w", port.Local, err),
		Remedy: fmt.Sprintf("choose another local port, or none: -p %d", port.Remote),
	}
}

// Close implements job.PortKeeper: it ends the connections too, and waits.
func (l *listeners) Close(id string) {
	l.mu.Lock()
	p := l.jobs[id]
	delete(l.jobs, id)
	l.mu.Unlock()
	if p == nil {
		return
	}
	p.stop()
	p.group.Wait()
}

func (l *listeners) serve(ctx context.Context, ln net.Listener, id string, port job.PortSpec, slots chan struct{}, group *sync.WaitGroup) {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			l.log.Error("accept for a job's port", "job", id, "port", port.Local, "err", err)
			select { // out of descriptors, for a moment
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		group.Go(func() {
			defer func() { <-slots }()
			l.join(ctx, conn.(*net.TCPConn), id, port)
		})
	}
}

// join leads one connection into the container, or resets it where there is
// none: a caller sees "connection refused" or "reset", as it would of a server
// that is not up yet.
func (l *listeners) join(ctx context.Context, conn *net.TCPConn, id string, port job.PortSpec) {
	far, err := l.connect(ctx, id, 0, port.Remote)
	if err != nil {
		l.log.Info("a port was not reached", "job", id, "port", port.Remote, "err", err)
		_ = conn.SetLinger(0)
		_ = conn.Close()
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = far.Reset(); _ = conn.Close() })
	defer stop()
	sandbox.Join(conn, far)
}
