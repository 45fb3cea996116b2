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
)

// The shim's control socket takes one JSON request a connection. "watch" is
// answered by one byte now and after each change (a log record, the exit); the
// connection ends when the shim does. "supply" is followed by lines of lazyNews
// one way and of lazyDone the other. "exec" and "dial" are of OCI runtimes: see
// execAnswer; a descriptor comes with their answer. The rest is answered by a
// JSON answer.
type request struct {
	Op     string        `json:"op"` // watch, supply, stop, kill, usage, checkpoint, exec, dial
	Grace  time.Duration `json:"grace,omitempty"`
	Dir    string        `json:"dir,omitempty"`    // of a checkpoint: an empty host folder
	End    bool          `json:"end,omitempty"`    // of a checkpoint: end the container with it
	Folder string        `json:"folder,omitempty"` // of an exec: what is to run
	Port   uint16        `json:"port,omitempty"`   // of a dial
}

type answer struct {
	Error   string `json:"error,omitempty"`
	Refused bool   `json:"refused,omitempty"` // of a dial: nothing listens
	Usage   Usage  `json:"usage"`
}

const (
	maxControlConns = 128
	controlTimeout  = 5 * time.Second
	maxControl      = 64 << 10
)

// hub tells watchers that something changed, without waiting for any of them.
type hub struct {
	mu       sync.Mutex
	watchers map[chan struct{}]bool
}

func (h *hub) changed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch := range h.watchers {
		select {
		case ch <- struct{}{}:
		default: // told already, has not looked yet
		}
	}
}

func (h *hub) watch() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	ch <- struct{}{}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watchers == nil {
		h.watchers = map[chan struct{}]bool{}
	}
	h.watchers[ch] = true
	return ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.watchers, ch)
	}
}

// control serves the socket until ctx ends; it returns when every connection
// is closed.
type control struct {
	hub   *hub
	stop  func(ctx context.Context, grace time.Duration) error
	kill  func()
	usage func() Usage
	save  func(ctx context.Context, dir string, end bool) error
	lazy  *arrivals // nil where the image is whole
	// inside is nil where the node reaches into the container by itself.
	inside insider
}

func (c *control) serve(ctx context.Context, l net.Listener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	slots := make(chan struct{}, maxControlConns)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			if waitChange(ctx, 10*time.Millisecond) != nil { // out of descriptors
				return
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			c.handle(ctx, conn)
		})
	}
}

func (c *control) handle(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(controlTimeout))
	unixConn, is := conn.(*net.UnixConn)
	if !is {
		return
	}
	req, files, dec, err := readRequest(unixConn)
	defer func() { closeAll(files) }()
	if err != nil {
		return
	}
	switch {
	case req.Op == "exec" && c.inside != nil:
		c.inside.exec(ctx, unixConn, req.Folder, files)
		return
	case req.Op == "dial" && c.inside != nil:
		c.dial(ctx, unixConn, req.Port)
		return
	case req.Op == "watch":
		c.watch(ctx, cancel, conn)
		return
	case req.Op == "supply" && c.lazy != nil:
		_ = conn.SetDeadline(time.Time{})
		c.lazy.supplied(ctx, cancel, conn, io.MultiReader(dec.Buffered(), conn))
		return
	}
	var a answer
	switch req.Op {
	case "stop":
		if err := c.stop(ctx, req.Grace); err != nil {
			a.Error = err.Error()
		}
	case "kill":
		c.kill()
	case "usage":
		a.Usage = c.usage()
	case "checkpoint":
		if err := c.save(ctx, req.Dir, req.End); err != nil {
			a.Error = err.Error()
		} else if req.End {
			defer c.kill()
		}
	default:
		a.Error = "unknown request " + req.Op
	}
	_ = conn.SetDeadline(time.Now().Add(controlTimeout))
	_ = json.NewEncoder(conn).Encode(a)
}

// readRequest reads what is asked, with the descriptors that came along.
func readRequest(conn *net.UnixConn) (req request, files []*os.File, dec *json.Decoder, err error) {
	buf := make([]byte, 4096)
	n, files, err := receive(conn, buf)
	if err != nil {
		return req, files, nil, err
	}
	dec = json.NewDecoder(io.MultiReader(bytes.NewReader(buf[:n]), io.LimitReader(conn, maxControl)))
	err = dec.Decode(&req)
	return req, files, dec, err
}

// dial answers with a connection to a port inside.
func (c *control) dial(ctx context.Context, conn *net.UnixConn, port uint16) {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	go func() { // it ends with the connection
		_, _ = io.Copy(io.Discard, conn)
		cancel() // nobody waits
	}()
	var a answer
	f, err := c.inside.dial(ctx, port)
	switch {
	case errors.Is(err, ErrNotListening):
		a.Refused = true
	case err != nil:
		a.Error = boundedText(err.Error())
	default:
		defer func() { _ = f.Close() }()
	}
	_ = sendAnswer(conn, a, f)
}

func (c *control) watch(ctx context.Context, cancel func(), conn net.Conn) {
	ch, done := c.hub.watch()
	defer done()
	_ = conn.SetDeadline(time.Time{})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { // notices a watcher that leaves
		_, _ = io.Copy(io.Discard, conn)
		cancel()
	})
	defer func() { _ = conn.Close() }()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ch:
		}
		_ = conn.SetWriteDeadline(time.Now().Add(controlTimeout))
		if _, err := conn.Write([]byte{'.'}); err != nil {
			return
		}
	}
}

// ask sends one request to the shim of the container in dir.
func ask(ctx context.Context, dir string, req request) (answer, error) {
	var a answer
	conn, err := dialShim(ctx, dir, req)
	if err != nil {
		return a, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := json.NewDecoder(io.LimitReader(conn, maxControl)).Decode(&a); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return a, fmt.Errorf("supervisor of %s to %q: %w", filepath.Base(dir), req.Op, err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("supervisor of %s to %q: %s", filepath.Base(dir), req.Op, a.Error)
	}
	return a, nil
}

func dialShim(ctx context.Context, dir string, req request) (net.Conn, error) {
	conn, err := dialUnix(ctx, filepath.Join(dir, fileSocket))
	if err != nil {
		return nil, err
	}
	_ = conn.SetWriteDeadline(time.Now().Add(controlTimeout))
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// watchShim calls look now and after every change, until look says it is
// satisfied, the shim ends (then true) or ctx does.
func watchShim(ctx context.Context, dir string, look func() (bool, error)) (ended bool, err error) {
	conn, err := dialShim(ctx, dir, request{Op: "watch"})
	if err != nil {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		return true, nil // nobody listens
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var buf [64]byte
	for {
		if done, err := look(); done || err != nil {
			return false, err
		}
		if _, err := conn.Read(buf[:]); err != nil {
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
			return true, nil
		}
	}
}
