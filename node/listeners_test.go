package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/node/api"
)

// pipeConn is one end of a TCP connection, as a container's port.
type pipeConn struct{ *net.TCPConn }

func (p pipeConn) Reset() error { return errors.Join(p.SetLinger(0), p.Close()) }

func TestListeners(t *testing.T) {
	var lc net.ListenConfig
	far, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0") // stands for the container
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = far.Close() }()
	l := newListeners(slog.New(slog.DiscardHandler), func(ctx context.Context, job string, task int, port uint16) (sandbox.Conn, error) {
		if job != "j1" || task != 0 || port != 80 {
			return nil, errors.New("nothing listens")
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", far.Addr().String())
		if err != nil {
			return nil, err
		}
		return pipeConn{c.(*net.TCPConn)}, nil
	})
	ports, err := l.Open("j1", []job.PortSpec{{Remote: 80}, {Remote: 81}})
	if err != nil {
		t.Fatal(err)
	}
	dial := func(i int) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(t.Context(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(ports[i].Local))))
	}
	near, err := dial(0)
	if err != nil {
		t.Fatal(err)
	}
	inside, err := far.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(near, "x"); err != nil {
		t.Fatal(err)
	}
	if b := make([]byte, 1); true {
		if _, err := io.ReadFull(inside, b); err != nil || b[0] != 'x' {
			t.Errorf("%q %v", b, err)
		}
	}
	// The reset may come before the dial has returned.
	if refused, err := dial(1); err == nil {
		if n, err := refused.Read(make([]byte, 1)); err == nil {
			t.Errorf("%d bytes from a port that nothing listens on", n)
		}
		_ = refused.Close()
	}

	// A port that is taken is told of with its remedy, and leaves nothing open.
	_, err = l.Open("j2", []job.PortSpec{{Remote: 1}, {Local: ports[0].Local, Remote: 2}})
	var told *api.Error
	if !errors.As(err, &told) || told.Code != "port_taken" || !strings.Contains(told.Remedy, "-p 2") {
		t.Errorf("%v", err)
	}
	l.Close("j2")

	l.Close("j1") // ends what is open, and waits for it
	if _, err := near.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlived its job")
	}
	_, _ = near.Close(), inside.Close()
	again, err := l.Open("j1", ports[:1]) // the same number is free again
	if err != nil || again[0] != ports[0] {
		t.Errorf("%v %v", again, err)
	}
	l.Close("j1")
}
