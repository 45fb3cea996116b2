package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/node/client"
)

const (
	execPing   = 10 * time.Second // between looks whether the client lives
	execLinger = 2 * time.Second  // that the client gets to take the last frame in
)

// exec upgrades the connection to frames and runs a command behind it.
func (s *Server) exec(ctx context.Context, w http.ResponseWriter, r *http.Request, ref string, req client.ExecRequest) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), client.ExecProtocol) {
		upgradeRequired(w, client.ExecProtocol)
		return
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeProblem(w, s.problem(fmt.Errorf("take the connection over: %w", err)))
		return
	}
	defer func() { _ = conn.Close() }()
	// The end of the node, which Shutdown does not bring to taken connections.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	const hello = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + client.ExecProtocol + "\r\n\r\n"
	if _, err := io.WriteString(conn, hello); err != nil {
		return
	}
	s.runExec(ctx, conn, buf.Reader, ref, req)
}

// runExec joins the frames of a connection with a command, to the end of both.
func (s *Server) runExec(ctx context.Context, conn net.Conn, r *bufio.Reader, ref string, req client.ExecRequest) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e := &execConn{conn: conn, size: make(chan Size, 1)}
	stdin, feed := io.Pipe()
	var reading, pinging sync.WaitGroup
	reading.Go(func() {
		err := e.receive(r, feed)
		_ = feed.CloseWithError(err)
		cancel() // the client is gone
	})
	pinging.Go(func() { e.pingUntil(ctx, execPing, cancel) })
	code, err := s.callExec(ctx, ref, req, ExecIO{
		Stdin: stdin, Stdout: frameWriter{e, client.FrameStdout}, Stderr: frameWriter{e, client.FrameStderr}, Resize: e.size,
	})
	cancel()
	pinging.Wait()
	_ = stdin.Close() // input that is still coming is passed over
	if err != nil {
		raw, encErr := json.Marshal(s.problem(err))
		if encErr == nil {
			_ = e.send(client.FrameError, raw)
		}
	} else {
		_ = e.send(client.FrameExit, client.EncodeExit(code))
	}
	// Closing with input unread would take the last frame away from a TCP client.
	if conn.SetReadDeadline(time.Now().Add(execLinger)) != nil {
		_ = conn.Close()
	}
	reading.Wait()
}

// callExec keeps a panic of the backend from skipping the waits above.
func (s *Server) callExec(ctx context.Context, ref string, req client.ExecRequest, tty ExecIO) (code int, err error) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("exec panicked", "job", ref, "panic", fmt.Sprint(v))
			err = fmt.Errorf("the node failed at exec in job %s", ref)
		}
	}()
	return s.opt.Backend.Exec(ctx, ref, req, tty)
}

// execConn is the node's end of an exec connection.
type execConn struct {
	conn  net.Conn
	write sync.Mutex
	size  chan Size
}

func (e *execConn) send(t client.FrameType, data []byte) error {
	e.write.Lock()
	defer e.write.Unlock()
	return client.WriteFrame(e.conn, t, data)
}

// receive hands input and sizes on until the client is gone, and says why.
func (e *execConn) receive(r *bufio.Reader, stdin *io.PipeWriter) error {
	var buf []byte
	for {
		t, data, err := client.ReadFrame(r, &buf)
		if err != nil {
			return fmt.Errorf("the client of exec left: %w", err)
		}
		switch t {
		case client.FrameStdin:
			// A command that reads no more, or has ended, leaves input over.
			_, _ = stdin.Write(data)
		case client.FrameStdinEOF:
			_ = stdin.Close()
		case client.FrameResize:
			rows, cols := client.DecodeSize(data)
			e.resize(Size{Rows: rows, Cols: cols})
		default:
			return fmt.Errorf("type %d from a client: %w", t, client.ErrFrame)
		}
	}
}

// resize replaces a size that nobody has taken yet.
func (e *execConn) resize(size Size) {
	for {
		select {
		case e.size <- size:
			return
		default:
		}
		select {
		case <-e.size:
		default:
		}
	}
}

// pingUntil finds out that a client is gone while its input waits for the
// command, when nobody reads the connection.
func (e *execConn) pingUntil(ctx context.Context, every time.Duration, gone func()) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if e.send(client.FramePing, nil) != nil {
				gone()
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// frameWriter writes output as frames.
type frameWriter struct {
	conn *execConn
	kind client.FrameType
}

func (w frameWriter) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		part := p[:min(len(p), client.MaxFrame)]
		if err := w.conn.send(w.kind, part); err != nil {
			return n, fmt.Errorf("the client of exec left: %w", err)
		}
		n += len(part)
		p = p[len(part):]
	}
	return n, nil
}
