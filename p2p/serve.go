package p2p

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	lprotocol "github.com/libp2p/go-libp2p/core/protocol"

	"github.com/lumbung-net/lumbung/protocol"
)

// errPanic is what a handler's panic becomes.
var errPanic = errors.New("the handler panicked")

// Serve answers one kind of request. Before the handler runs, the wrapper has
// checked the peer's and its address's rate, the places free, the size, the
// signature and the fields, and that the peer asks in its own name. The
// handler's error becomes the status that its sentinel names; errors without a
// sentinel are logged here and told to nobody.
func Serve[Req, Resp protocol.Message](h *Host, r Route, handler func(ctx context.Context, from peer.ID, req protocol.Signed[Req]) (protocol.Signed[Resp], error)) error {
	kind := protocol.KindOf[Req]()
	r = r.withDefaults()
	r.Memory = protocol.MaxSize(kind) + protocol.MaxSize(protocol.KindOf[Resp]())
	exchange := func(ctx context.Context, from peer.ID, st network.Stream) error {
		raw, err := readFrame(bufio.NewReader(st), protocol.MaxSize(kind))
		if err != nil {
			return err
		}
		h.metrics.bytes.WithLabelValues(r.Name, "in").Add(float64(len(raw)))
		req, err := protocol.Open[Req](h.cfg.Network, raw, h.cfg.Now())
		if err != nil {
			return err
		}
		if req.From != from {
			return fmt.Errorf("signed by %s but sent by %s: %w", req.From, from, protocol.ErrInvalid)
		}
		resp, err := handler(ctx, from, req)
		if err != nil {
			return err
		}
		if resp.From != h.ID() {
			return fmt.Errorf("the answer is signed by %s, not by this node", resp.From)
		}
		return h.send(st, r.Name, protocol.StatusOK, resp.Raw)
	}
	return h.handle(r, exchange, func(st network.Stream, err error) {
		if errors.Is(err, errSend) {
			_ = st.Reset()
			return
		}
		if e := h.send(st, r.Name, protocol.StatusOf(err), []byte(detail(err))); e != nil {
			_ = st.Reset()
		}
	})
}

// HandleStream serves raw streams under the same limits as Serve. The handler
// owns the stream until it returns; its error resets the stream with a code
// that OpenStream's reader sees as the matching sentinel (see StreamError).
func (h *Host) HandleStream(r Route, fn func(ctx context.Context, from peer.ID, st network.Stream) error) error {
	return h.handle(r.withDefaults(), fn, func(st network.Stream, err error) { _ = st.ResetWithError(codeOf(err)) })
}

// handle registers a route: fn does the work, refuse tells the peer of an
// error. Both run inside the route's limits.
func (h *Host) handle(r Route, fn func(context.Context, peer.ID, network.Stream) error, refuse func(network.Stream, error)) error {
	adm, err := newAdmission(r)
	if err != nil {
		return fmt.Errorf("serve %s: %w", r.Name, err)
	}
	h.host.SetStreamHandler(lprotocol.ID(protocol.ID(h.cfg.Network, r.Name)), func(st network.Stream) {
		ctx, done, ok := h.begin()
		if !ok {
			_ = st.ResetWithError(network.StreamShutdown)
			return
		}
		defer done()
		h.serveOne(ctx, adm, st, fn, refuse)
	})
	return nil
}

func (h *Host) serveOne(ctx context.Context, adm *admission, st network.Stream, fn func(context.Context, peer.ID, network.Stream) error, refuse func(network.Stream, error)) {
	r, from, start := adm.route, st.Conn().RemotePeer(), time.Now()
	if h.blame.refused(from) {
		_ = st.ResetWithError(network.StreamGated)
		h.metrics.requests.WithLabelValues(r.Name, "refused").Inc()
		return
	}
	limit := 10 * time.Second // to be told of a refusal
	if r.Timeout > 0 {
		limit = r.Timeout
	}
	if r.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.Timeout)
		defer cancel()
		_ = st.SetDeadline(start.Add(r.Timeout))
	}
	err := adm.enter(st.Conn(), h.cfg.Now())
	if err == nil {
		func() {
			defer adm.leave(from)
			err = h.contained(ctx, r, from, st, fn)
		}()
	}
	h.metrics.done(r.Name, statusLabel(err), time.Since(start))
	if err == nil {
		_ = st.Close()
		return
	}
	h.judge(r, from, err)
	_ = st.SetDeadline(time.Now().Add(limit))
	refuse(st, err)
	_ = st.Close()
}

// contained runs a handler with its memory reserved and its panics caught.
func (h *Host) contained(ctx context.Context, r Route, from peer.ID, st network.Stream, fn func(context.Context, peer.ID, network.Stream) error) (err error) {
	if err := st.Scope().SetService("lumbung." + r.Name); err != nil {
		return fmt.Errorf("no room for another %s: %w", r.Name, errors.Join(protocol.ErrRetry, err))
	}
	if r.Memory > 0 {
		if err := st.Scope().ReserveMemory(r.Memory, network.ReservationPriorityMedium); err != nil {
			return fmt.Errorf("no memory for another %s: %w", r.Name, errors.Join(protocol.ErrRetry, err))
		}
		defer st.Scope().ReleaseMemory(r.Memory)
	}
	inflight := h.metrics.inflight.WithLabelValues(r.Name)
	inflight.Inc()
	defer inflight.Dec()
	defer func() {
		if v := recover(); v != nil {
			h.cfg.Log.Error("a handler panicked", "route", r.Name, "peer", from, "panic", v, "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	return fn(ctx, from, st)
}

// judge remembers what a peer did wrong and logs what went wrong here.
func (h *Host) judge(r Route, from peer.ID, err error) {
	log := h.cfg.Log.With("route", r.Name, "peer", from)
	weight := 0.0
	switch {
	case errors.Is(err, protocol.ErrInvalid), errors.Is(err, protocol.ErrTooLarge):
		weight = strikeInvalid
	case errors.Is(err, errRate):
		weight = strikeOverRate
	case h.life.Err() != nil, timedOut(err), errors.Is(err, errSend):
		log.Debug("a request was cut short", "err", err)
	case unexplained(err) && !errors.Is(err, errPanic):
		log.Warn("a request failed here", "err", err)
	}
	if weight > 0 && h.blame.strike(from, weight) {
		log.Warn("refusing a peer for a while, it sent wrong things too often", "err", err, "for", h.cfg.refuseFor)
		if err := h.host.Network().ClosePeer(from); err != nil {
			log.Debug("close the peer's connections", "err", err)
		}
	}
}

// unexplained reports whether an error has no sentinel meant for the peer.
func unexplained(err error) bool {
	for _, s := range []error{
		protocol.ErrRetry, protocol.ErrElsewhere, protocol.ErrBlame,
		protocol.ErrInvalid, protocol.ErrTooLarge, protocol.ErrStale,
	} {
		if errors.Is(err, s) {
			return false
		}
	}
	return true
}

// detail is what the peer is told; the words of internal errors stay here.
func detail(err error) string {
	switch {
	case timedOut(err):
		return "it took too long"
	case unexplained(err):
		return "internal error, see the log of this node"
	}
	return err.Error()
}

// timedOut reports whether a stream's or a context's deadline has passed; each
// transport has its own error for that.
func timedOut(err error) bool {
	var e net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || (errors.As(err, &e) && e.Timeout())
}

func statusLabel(err error) string {
	switch protocol.StatusOf(err) {
	case protocol.StatusOK:
		return "ok"
	case protocol.StatusElsewhere:
		return "elsewhere"
	case protocol.StatusBlame:
		return "blame"
	default:
		return "retry"
	}
}

// errSend marks an answer that could not be sent.
var errSend = errors.New("the answer could not be sent")

func (h *Host) send(st network.Stream, route string, status protocol.Status, body []byte) error {
	frame := answerFrame(status, body)
	if _, err := st.Write(frame); err != nil {
		return errors.Join(errSend, err)
	}
	h.metrics.bytes.WithLabelValues(route, "out").Add(float64(len(frame)))
	if err := st.CloseWrite(); err != nil {
		return errors.Join(errSend, err)
	}
	return nil
}
