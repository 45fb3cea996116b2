package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

func shell() client.ExecRequest {
	return client.ExecRequest{Task: 2, Command: []string{"sh", "-c", "cat"}, TTY: true, Rows: 24, Cols: 80}
}

func TestExecBothWays(t *testing.T) {
	r := start(t)
	in := bytes.Repeat([]byte("some input\x00\xff\n"), 50_000)
	r.fake.hooks.exec = func(ctx context.Context, req client.ExecRequest, tty ExecIO) (int, error) {
		if req.Task != 2 || !req.TTY || req.Rows != 24 || req.Cols != 80 {
			return 0, fmt.Errorf("request %+v", req)
		}
		// Input ends, and output still flows after it.
		n, err := io.Copy(tty.Stdout, tty.Stdin)
		if err != nil {
			return 0, err
		}
		size := <-tty.Resize
		_, err = fmt.Fprintf(tty.Stderr, "%d bytes on %dx%d", n, size.Rows, size.Cols)
		return -7, err
	}
	resize := make(chan [2]int, 1)
	resize <- [2]int{50, 132}
	var out, errs bytes.Buffer
	code, err := r.Exec(t.Context(), "j", shell(), bytes.NewReader(in), &out, &errs, resize)
	if err != nil || code != -7 {
		t.Fatalf("%d %v", code, err)
	}
	if !bytes.Equal(out.Bytes(), in) {
		t.Errorf("%d bytes came back of %d", out.Len(), len(in))
	}
	if want := fmt.Sprintf("%d bytes on 50x132", len(in)); errs.String() != want {
		t.Errorf("stderr %q, want %q", errs.String(), want)
	}
	if c := r.fake.lastCall(); c != "exec j [sh -c cat]" {
		t.Errorf("the backend heard %q", c)
	}
}

func TestExecWithoutInput(t *testing.T) {
	r := start(t)
	r.fake.hooks.exec = func(_ context.Context, _ client.ExecRequest, tty ExecIO) (int, error) {
		raw, err := io.ReadAll(tty.Stdin)
		return len(raw), err
	}
	code, err := r.Exec(t.Context(), "j", shell(), nil, nil, nil, nil)
	if code != 0 || err != nil {
		t.Errorf("%d %v", code, err)
	}
}

// endless is input that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestExecEndsWhileInputFlows(t *testing.T) {
	r := start(t)
	r.fake.hooks.exec = func(_ context.Context, _ client.ExecRequest, tty ExecIO) (int, error) {
		_, err := io.ReadFull(tty.Stdin, make([]byte, 10))
		return 3, err
	}
	code, err := r.Exec(t.Context(), "j", shell(), endless{}, nil, nil, nil)
	if code != 3 || err != nil {
		t.Errorf("%d %v", code, err)
	}
}

func TestExecFails(t *testing.T) {
	r := start(t)
	r.fake.failWith(fmt.Errorf("job j: %w", job.ErrNotFound))
	_, err := r.Exec(t.Context(), "j", shell(), nil, nil, nil, nil)
	if p := problemIn(t, err); p.Code != "not_found" || p.Detail != "job j: not found" {
		t.Errorf("%+v", p)
	}
	r.fake.failWith(nil)
	r.fake.hooks.exec = func(context.Context, client.ExecRequest, ExecIO) (int, error) { panic("a secret") }
	_, err = r.Exec(t.Context(), "j", shell(), nil, nil, nil, nil)
	if p := problemIn(t, err); p.Code != "internal" || strings.Contains(p.Detail, "secret") {
		t.Errorf("%+v", p)
	}
}

func TestExecCancelled(t *testing.T) {
	for name, stdin := range map[string]io.Reader{"idle": nil, "input waits": endless{}} {
		t.Run(name, func(t *testing.T) {
			r := start(t)
			began, ended := make(chan struct{}), make(chan struct{})
			r.fake.hooks.exec = func(ctx context.Context, _ client.ExecRequest, tty ExecIO) (int, error) {
				defer close(ended)
				close(began)
				if stdin == nil {
					<-ctx.Done()
					return 0, ctx.Err()
				}
				// Takes no input; finds out by its output.
				for {
					if _, err := tty.Stdout.Write([]byte("tick")); err != nil {
						return 0, err
					}
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var once sync.Once
			go func() { <-began; once.Do(cancel) }()
			if _, err := r.Exec(ctx, "j", shell(), stdin, nil, nil, nil); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			<-ended
		})
	}
}

func TestExecEndsWithTheNode(t *testing.T) {
	r := start(t)
	began := make(chan struct{})
	r.fake.hooks.exec = func(ctx context.Context, _ client.ExecRequest, _ ExecIO) (int, error) {
		close(began)
		<-ctx.Done()
		return 0, ctx.Err()
	}
	done := make(chan error, 1)
	go func() {
		_, err := r.Exec(t.Context(), "j", shell(), nil, nil, nil, nil)
		done <- err
	}()
	<-began
	r.stop()
	if err := <-done; err == nil {
		t.Error("exec outlived the node")
	}
}

// A connection that sends what is no frame ends its command.
func TestExecHostileFrames(t *testing.T) {
	r := start(t)
	for name, raw := range map[string]string{
		"unknown type":   "\x63\x00\x00\x00\x00",
		"node's frame":   "\x02\x00\x00\x00\x01x",
		"too long":       "\x01\xff\xff\xff\xff",
		"short resize":   "\x04\x00\x00\x00\x01x",
		"cut off":        "\x01\x00\x00",
		"cut off inside": "\x01\x00\x00\x00\x09abc",
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			r.fake.hooks.exec = func(ctx context.Context, _ client.ExecRequest, tty ExecIO) (int, error) {
				_, err := io.Copy(io.Discard, tty.Stdin)
				<-ctx.Done()
				ended <- err
				return 0, ctx.Err()
			}
			conn := dialRaw(t, r.server.SocketPath())
			const body = `{"command":["a"]}`
			_, err := fmt.Fprintf(conn, "POST /v1/jobs/j/exec HTTP/1.1\r\nHost: lumbung\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
				client.ExecProtocol, len(body), body)
			if err != nil {
				t.Fatal(err)
			}
			// Before it has taken the connection over, net/http takes a half-closed
			// one for a client that left.
			resp := must(http.ReadResponse(bufio.NewReader(conn), nil))(t)
			if resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatal(resp.Status)
			}
			if _, err := io.WriteString(conn, raw); err != nil {
				t.Fatal(err)
			}
			if err := closeWrite(conn); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; err == nil {
				t.Error("the command's input ended as if it was whole")
			}
			_, _ = io.Copy(io.Discard, conn)
		})
	}
}
