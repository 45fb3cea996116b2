// Package portmux carries many TCP connections into a container over one Unix
// stream. It hides the multiplexer (yamux) and the two bytes that name a port.
//
// The far end is a program in the container, which its job may replace: what
// comes from it is hostile. It can open no stream, a stream of it can have no
// more than a window on the way, and what it answers is one byte.
package portmux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-yamux/v5"
)

// Errors of Dial.
var (
	// ErrRefused says that nothing listens on the port.
	ErrRefused = errors.New("connection refused")
	// ErrBusy says that the container has as many connections as it may.
	ErrBusy = errors.New("too many connections")
)

// MaxConns bounds the connections of one container at a time.
const MaxConns = 512

const (
	window   = 256 << 10 // bytes a stream on the way, yamux's least
	answered = byte(1)
	refused  = byte(2)
)

func config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false // the stream does not cross a network
	c.MeasureRTTInterval = 24 * time.Hour
	c.ConnectionWriteTimeout = time.Minute
	c.InitialStreamWindowSize, c.MaxStreamWindowSize = window, window
	c.MaxIncomingStreams = MaxConns
	c.LogOutput = io.Discard
	return c
}

// Client is the side outside.
type Client struct {
	session *yamux.Session
	mu      sync.Mutex
	open    int
}

// NewClient takes conn over; Close closes it.
func NewClient(conn net.Conn) (*Client, error) {
	c := config()
	c.MaxIncomingStreams = 0
	session, err := yamux.Client(conn, c, nil)
	if err != nil {
		return nil, err
	}
	return &Client{session: session}, nil
}

// Close ends every connection and waits for nothing.
func (c *Client) Close() error { return c.session.Close() }

// Ended is closed when no connection can be made any more.
func (c *Client) Ended() <-chan struct{} { return c.session.CloseChan() }

// Conn is one connection: CloseWrite ends one direction.
type Conn struct {
	*yamux.Stream
	done func()
}

// Close ends both directions.
func (c Conn) Close() error {
	defer c.done()
	return c.Stream.Close()
}

// Reset ends both directions at once, whatever is on the way.
func (c Conn) Reset() error {
	defer c.done()
	return c.Stream.Reset()
}

// Dial connects to a port of the container's loopback.
func (c *Client) Dial(ctx context.Context, port uint16) (Conn, error) {
	c.mu.Lock()
	busy := c.open >= MaxConns
	if !busy {
		c.open++
	}
	c.mu.Unlock()
	if busy {
		return Conn{}, fmt.Errorf("port %d: %w: %d", port, ErrBusy, MaxConns)
	}
	done := sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.open--
	})
	st, err := c.dial(ctx, port)
	if err != nil {
		done()
		return Conn{}, fmt.Errorf("port %d: %w", port, err)
	}
	return Conn{st, done}, nil
}

func (c *Client) dial(ctx context.Context, port uint16) (*yamux.Stream, error) {
	st, err := c.session.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = st.Reset() })
	err = ask(st, port)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = st.Reset()
		return nil, err
	}
	return st, nil
}

// ask names the port and hears whether it is there.
func ask(st *yamux.Stream, port uint16) error {
	if _, err := st.Write(binary.BigEndian.AppendUint16(nil, port)); err != nil {
		return err
	}
	var a [1]byte
	if _, err := io.ReadFull(st, a[:]); err != nil {
		return err
	}
	if a[0] != answered {
		return ErrRefused
	}
	return nil
}

// dialTimeout bounds a connection within one machine.
const dialTimeout = 10 * time.Second

// Serve connects what comes over conn to the loopback it runs on, until conn
// ends.
func Serve(conn net.Conn) error {
	session, err := yamux.Server(conn, config(), nil)
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		st, err := session.AcceptStream()
		if err != nil {
			return err
		}
		wg.Go(func() { serve(st) })
	}
}

func serve(st *yamux.Stream) {
	_ = st.SetReadDeadline(time.Now().Add(dialTimeout))
	var b [2]byte
	if _, err := io.ReadFull(st, b[:]); err != nil {
		_ = st.Reset()
		return
	}
	_ = st.SetReadDeadline(time.Time{})
	to, err := dialLoopback(binary.BigEndian.Uint16(b[:]))
	if err != nil {
		_, _ = st.Write([]byte{refused})
		_ = st.Close()
		return
	}
	if _, err := st.Write([]byte{answered}); err != nil {
		_ = to.Close()
		_ = st.Reset()
		return
	}
	Join(st, to.(*net.TCPConn))
}

func dialLoopback(port uint16) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	var last error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := d.DialContext(context.Background(), "tcp", net.JoinHostPort(host, fmt.Sprint(port)))
		if err == nil {
			return conn, nil
		}
		last = err
	}
	return nil, last
}

// Half is a connection whose directions end apart.
type Half interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// resetter is a connection that can be ended at once.
type resetter interface{ Reset() error }

// Join copies both ways until both directions have ended, or one has broken,
// and closes both ends. The end of one direction is passed on alone. It returns
// the bytes that went from a to b and from b to a.
func Join(a, b Half) (there, back int64) {
	var wg sync.WaitGroup
	broken := sync.OnceFunc(func() { end(a); end(b) })
	copyHalf := func(n *int64, to, from Half) {
		var err error
		if *n, err = io.Copy(onlyWrite{to}, onlyRead{from}); err == nil {
			err = to.CloseWrite()
		}
		if err != nil {
			broken()
		}
	}
	wg.Go(func() { copyHalf(&there, b, a) })
	wg.Go(func() { copyHalf(&back, a, b) })
	wg.Wait()
	_ = a.Close()
	_ = b.Close()
	return there, back
}

// end breaks a connection, in the way that tells its far side where there is one.
func end(c Half) {
	switch c := c.(type) {
	case resetter:
		_ = c.Reset()
	case *net.TCPConn:
		_ = c.SetLinger(0) // as a reset
		_ = c.Close()
	default:
		_ = c.Close()
	}
}

// onlyRead and onlyWrite keep io.Copy from taking short cuts whose buffers are
// not bounded here.
type (
	onlyRead  struct{ io.Reader }
	onlyWrite struct{ io.Writer }
)
