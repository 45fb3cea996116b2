package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// Exec runs a command in the container of a task and returns its exit code.
// stdin, stdout, stderr and resize may be nil; a size is {rows, columns}. A Read
// of stdin that still blocks when the command has ended is left behind: close
// stdin to end it.
func (c *Client) Exec(ctx context.Context, ref string, r ExecRequest, stdin io.Reader, stdout, stderr io.Writer, resize <-chan [2]int) (int, error) {
	path, err := jobPath(ref, "/exec")
	if err != nil {
		return 0, err
	}
	resp, err := c.send(ctx, http.MethodPost, path, nil, r, http.Header{"Connection": {"Upgrade"}, "Upgrade": {ExecProtocol}})
	if err != nil {
		return 0, err
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || resp.StatusCode != http.StatusSwitchingProtocols {
		_ = resp.Body.Close()
		return 0, fmt.Errorf("exec in job %s: the node at %s did not switch to %s", ref, c.where, ExecProtocol)
	}
	s := &execSession{conn: conn, done: make(chan struct{}), out: orDiscard(stdout), err: orDiscard(stderr)}
	stop := context.AfterFunc(ctx, s.end)
	defer stop()
	defer s.end()
	go s.sendStdin(stdin)
	var wg sync.WaitGroup
	wg.Go(func() { s.sendSizes(resize) })
	defer wg.Wait()
	defer s.end() // before Wait
	code, err := s.receive()
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	var p *Problem
	if err != nil && !errors.As(err, &p) {
		err = fmt.Errorf("exec in job %s: %w", ref, err)
	}
	return code, err
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

type execSession struct {
	conn     io.ReadWriteCloser
	out, err io.Writer

	write sync.Mutex // one frame at a time
	once  sync.Once
	done  chan struct{}
}

// end closes the connection, which ends whoever reads or writes it.
func (s *execSession) end() {
	s.once.Do(func() {
		close(s.done)
		_ = s.conn.Close()
	})
}

func (s *execSession) send(t FrameType, data []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	return WriteFrame(s.conn, t, data)
}

func (s *execSession) over() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *execSession) sendStdin(stdin io.Reader) {
	buf := make([]byte, 32<<10)
	for stdin != nil && !s.over() {
		n, err := stdin.Read(buf)
		if n > 0 && s.send(FrameStdin, buf[:n]) != nil {
			return
		}
		if err != nil {
			break
		}
	}
	// When this fails, receive finds the same broken connection and says so.
	_ = s.send(FrameStdinEOF, nil)
}

func (s *execSession) sendSizes(resize <-chan [2]int) {
	for {
		select {
		case size, ok := <-resize:
			if !ok {
				return
			}
			if s.send(FrameResize, EncodeSize(size[0], size[1])) != nil {
				return
			}
		case <-s.done:
			return
		}
	}
}

// receive passes output on until the last frame.
func (s *execSession) receive() (int, error) {
	r := bufio.NewReaderSize(s.conn, MaxFrame)
	var buf []byte
	for {
		t, data, err := ReadFrame(r, &buf)
		if err != nil {
			return 0, fmt.Errorf("the connection broke before the command ended: %w", err)
		}
		switch t {
		case FrameStdout:
			_, err = s.out.Write(data)
		case FrameStderr:
			_, err = s.err.Write(data)
		case FrameExit:
			return DecodeExit(data), nil
		case FrameError:
			p := &Problem{}
			if err := json.Unmarshal(data, p); err != nil {
				return 0, fmt.Errorf("%w: problem: %w", ErrFrame, err)
			}
			return 0, p
		case FramePing:
		default:
			err = fmt.Errorf("type %d from the node: %w", t, ErrFrame)
		}
		if err != nil {
			return 0, err
		}
	}
}
