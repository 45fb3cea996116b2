package node

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/node/api"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/protocol"
)

const (
	execStart  = 10 * time.Second // that the first message of an exec stream may take
	execPing   = 10 * time.Second // between looks whether the renter is there
	execLinger = 10 * time.Second // that the renter gets to take the last frame in
)

// exec runs a command at the provider of a lease: one signed request, then
// client's exec frames both ways on the same stream.
func (n *Node) exec(ctx context.Context, to peer.ID, lease protocol.MsgID, r client.ExecRequest, tty api.ExecIO) (int, error) {
	req, err := protocol.Sign(n.signer, &protocol.ExecRequest{
		LeaseId: lease[:], AtMs: n.now().UnixMilli(), Command: r.Command, Tty: r.TTY, Rows: uint32(r.Rows), Cols: uint32(r.Cols),
	})
	if err != nil {
		return 0, err
	}
	st, err := n.host.OpenStream(ctx, to, routeExec)
	if err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = st.Reset() })
	defer stop()
	if _, err := st.Write(binary.AppendUvarint(nil, uint64(len(req.Raw)))); err != nil {
		return 0, fmt.Errorf("exec at peer %s: %w", to, err)
	}
	if _, err := st.Write(req.Raw); err != nil {
		return 0, fmt.Errorf("exec at peer %s: %w", to, err)
	}
	code, err := n.joinExec(ctx, st, func() { _ = st.Reset() }, tty)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return 0, fmt.Errorf("exec at peer %s: %w", to, err)
	}
	return code, nil
}

// joinExec joins an exec stream with a client's terminal until the command ends
// or the stream breaks, and resets the stream.
func (n *Node) joinExec(ctx context.Context, st io.ReadWriter, reset func(), tty api.ExecIO) (int, error) {
	w := &frameWriter{w: st}
	ctx, endSending := context.WithCancel(ctx)
	var sizes sync.WaitGroup
	sizes.Go(func() { sendSizes(ctx, w, tty.Resize) })
	// Stdin ends when the client's connection does, which the return brings on:
	// only Close can wait for its end.
	n.senders.Go(func() { sendStdin(w, tty.Stdin) })
	code, err := receiveExec(st, tty)
	endSending()
	reset()
	sizes.Wait()
	return code, err
}

// frameWriter lets several goroutines write frames to one stream.
type frameWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frameWriter) send(t client.FrameType, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return client.WriteFrame(f.w, t, data)
}

// out is an io.Writer whose bytes go out as frames of one type.
type out struct {
	f *frameWriter
	t client.FrameType
}

func (o out) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, client.MaxFrame)
		if err := o.f.send(o.t, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

func sendStdin(w *frameWriter, stdin io.Reader) {
	if stdin != nil {
		_, _ = io.Copy(out{w, client.FrameStdin}, stdin) // a broken stream shows where it is read
	}
	_ = w.send(client.FrameStdinEOF, nil)
}

func sendSizes(ctx context.Context, w *frameWriter, sizes <-chan api.Size) {
	for {
		select {
		case <-ctx.Done():
			return
		case s, ok := <-sizes:
			if !ok || w.send(client.FrameResize, client.EncodeSize(s.Rows, s.Cols)) != nil {
				return
			}
		}
	}
}

func receiveExec(st io.Reader, tty api.ExecIO) (int, error) {
	r := bufio.NewReader(st)
	var buf []byte
	for {
		t, data, err := client.ReadFrame(r, &buf)
		if err != nil {
			return 0, fmt.Errorf("the stream broke before the command ended: %w", err)
		}
		switch t {
		case client.FrameStdout:
			_, err = tty.Stdout.Write(data)
		case client.FrameStderr:
			_, err = tty.Stderr.Write(data)
		case client.FrameExit:
			return client.DecodeExit(data), nil
		case client.FrameError:
			var p client.Problem
			if err := json.Unmarshal(data, &p); err != nil {
				return 0, fmt.Errorf("%w: problem: %w", client.ErrFrame, err)
			}
			return 0, &p
		case client.FramePing:
		default:
			err = fmt.Errorf("type %d from the provider: %w", t, client.ErrFrame)
		}
		if err != nil {
			return 0, err
		}
	}
}

// handleExec serves a renter's exec in the container of its lease.
func (n *Node) handleExec(ctx context.Context, from peer.ID, st network.Stream) error {
	r := bufio.NewReader(st)
	_ = st.SetReadDeadline(time.Now().Add(execStart))
	req, err := readSigned[*protocol.ExecRequest](n, r, from)
	if err != nil {
		return err
	}
	_ = st.SetReadDeadline(time.Time{})
	lease, err := protocol.ParseMsgID(req.GetLeaseId())
	if err != nil {
		return err
	}
	spec := sandbox.ExecSpec{Args: req.GetCommand(), TTY: req.GetTty()}
	size := sandbox.Size{Rows: uint16(req.GetRows()), Columns: uint16(req.GetCols())}
	err = serveExec(ctx, st, r, spec, size, func(ctx context.Context, spec sandbox.ExecSpec) (int, error) {
		return n.provider.Exec(ctx, from, lease, spec)
	})
	return errors.Join(err, st.CloseWrite())
}

// execStream is a stream of frames from and to a renter.
type execStream interface {
	io.Writer
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// serveExec joins a renter's frames, read from r, with a command until it ends
// or the renter is gone.
func serveExec(ctx context.Context, st execStream, r io.Reader, spec sandbox.ExecSpec, size sandbox.Size,
	run func(context.Context, sandbox.ExecSpec) (int, error),
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &frameWriter{w: st}
	in, feed := io.Pipe()
	sizes := make(chan sandbox.Size, 1)
	sizes <- size
	var reading, pinging sync.WaitGroup
	reading.Go(func() {
		defer cancel()
		err := feedExec(r, feed, sizes)
		_ = feed.CloseWithError(err) // always nil
	})
	pinging.Go(func() { pingExec(ctx, w, cancel) })
	spec.Stdin, spec.Resize = in, sizes
	spec.Stdout, spec.Stderr = out{w, client.FrameStdout}, out{w, client.FrameStderr}
	code, err := run(ctx, spec)
	cancel()
	_ = in.Close()
	// A renter that takes nothing keeps neither a ping nor the last frame waiting.
	_ = st.SetWriteDeadline(time.Now().Add(execLinger))
	pinging.Wait()
	err = endExec(w, code, err)
	_ = st.SetReadDeadline(time.Now())
	reading.Wait()
	return err
}

// pingExec finds out that a renter is gone while its input waits for a program
// that does not read, when nobody reads the stream either.
func pingExec(ctx context.Context, w *frameWriter, gone func()) {
	t := time.NewTicker(execPing)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if w.send(client.FramePing, nil) != nil {
			gone()
			return
		}
	}
}

// feedExec passes the renter's input on until the stream ends.
func feedExec(r io.Reader, feed *io.PipeWriter, sizes chan sandbox.Size) error {
	var buf []byte
	for {
		t, data, err := client.ReadFrame(r, &buf)
		if err != nil {
			return err
		}
		switch t {
		case client.FrameStdin:
			if _, err := feed.Write(data); err != nil && !errors.Is(err, io.ErrClosedPipe) {
				return err
			}
		case client.FrameStdinEOF:
			_ = feed.Close() // always nil
		case client.FrameResize:
			rows, cols := client.DecodeSize(data)
			select {
			case <-sizes: // only the newest matters
			default:
			}
			sizes <- sandbox.Size{Rows: uint16(rows), Columns: uint16(cols)}
		case client.FramePing:
		default:
			return fmt.Errorf("type %d from the renter: %w", t, client.ErrFrame)
		}
	}
}

// endExec sends the last frame.
func endExec(w *frameWriter, code int, err error) error {
	if err == nil {
		return w.send(client.FrameExit, client.EncodeExit(code))
	}
	p, merr := json.Marshal(client.Problem{
		Title: "exec failed", Status: 409, Detail: err.Error(), Code: "exec_failed",
		Remedy: "check with `lumbung ps` that the task is running, and the command with its image",
	})
	if merr != nil {
		return merr
	}
	return w.send(client.FrameError, p[:min(len(p), client.MaxFrame)])
}
