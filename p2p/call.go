package p2p

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	lprotocol "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"

	"github.com/lumbung-net/lumbung/protocol"
)

// ErrUnreachable says that no connection to a peer came about.
var ErrUnreachable = errors.New("the peer could not be reached")

// Call sends a request and returns the checked answer. The error names the
// peer and the route; it wraps protocol.ErrRetry, ErrElsewhere or ErrBlame when
// the peer refused, ErrUnreachable when it was not reached, the context's error
// when the time was over, protocol.ErrInvalid when the answer was wrong.
func Call[Req, Resp protocol.Message](ctx context.Context, h *Host, to peer.ID, r Route, req protocol.Signed[Req]) (protocol.Signed[Resp], error) {
	var none protocol.Signed[Resp]
	start := time.Now()
	if r.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.Timeout)
		defer cancel()
	}
	st, err := h.OpenStream(ctx, to, r)
	if err != nil {
		return none, err
	}
	defer func() { _ = st.Close() }()
	status, body, err := exchange(ctx, st, req.Raw, protocol.MaxSize(protocol.KindOf[Resp]()))
	h.metrics.called(r.Name, err)
	if err != nil {
		_ = st.Reset()
		return none, callError(ctx, to, r, start, err)
	}
	if status != protocol.StatusOK {
		return none, fmt.Errorf("%s of peer %s answered %q: %w", r.Name, to, plain(string(body), maxDetail), status.Err())
	}
	resp, err := protocol.Open[Resp](h.cfg.Network, body, h.cfg.Now())
	if err != nil {
		return none, fmt.Errorf("the answer of peer %s to %s: %w", to, r.Name, err)
	}
	if resp.From != to {
		return none, fmt.Errorf("the answer of peer %s to %s is signed by %s: %w", to, r.Name, resp.From, protocol.ErrInvalid)
	}
	return resp, nil
}

// exchange writes the request and reads the answer. A refusal may come before
// the request was read, so a failed write does not keep it from reading.
func exchange(ctx context.Context, st network.Stream, raw []byte, limit int) (protocol.Status, []byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = st.Reset() })
	defer stop()
	if d, ok := ctx.Deadline(); ok {
		_ = st.SetDeadline(d)
	}
	_, sent := st.Write(appendFrame(nil, raw))
	if sent == nil {
		sent = st.CloseWrite()
	}
	status, body, err := readAnswer(bufio.NewReader(st), limit)
	if err != nil && sent != nil {
		err = errors.Join(sent, err)
	}
	return status, body, err
}

// callError puts words to what broke an exchange.
func callError(ctx context.Context, to peer.ID, r Route, start time.Time, err error) error {
	took := time.Since(start).Round(time.Millisecond)
	if ctx.Err() != nil {
		return fmt.Errorf("%s to peer %s: no answer after %s: %w", r.Name, to, took, ctx.Err())
	}
	if timedOut(err) {
		return fmt.Errorf("%s to peer %s: no answer after %s: %w", r.Name, to, took, context.DeadlineExceeded)
	}
	return fmt.Errorf("%s to peer %s broke off after %s: %w", r.Name, to, took, StreamError(err))
}

// OpenStream opens a stream of a route, connecting first where needed; a peer
// of unknown address is looked up in the DHT. A bulk route takes a TCP
// connection when there is one. The caller sets deadlines and closes.
func (h *Host) OpenStream(ctx context.Context, to peer.ID, r Route) (network.Stream, error) {
	if to == h.ID() {
		return nil, fmt.Errorf("%s to peer %s: that is this node itself: %w", r.Name, to, ErrUnreachable)
	}
	start := time.Now()
	if err := h.reach(ctx, to); err != nil {
		return nil, fmt.Errorf("%s to peer %s: %w", r.Name, to, err)
	}
	if r.Relayed {
		ctx = network.WithAllowLimitedConn(ctx, r.Name)
	}
	id := lprotocol.ID(protocol.ID(h.cfg.Network, r.Name))
	st, err := h.openStream(ctx, to, id, r.Bulk)
	if err == nil {
		return st, nil
	}
	took := time.Since(start).Round(time.Millisecond)
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s to peer %s: no stream after %s: %w", r.Name, to, took, ctx.Err())
	case unsupported(err):
		return nil, fmt.Errorf("peer %s does not serve %s, it may have another role or version: %w", to, r.Name, errors.Join(protocol.ErrElsewhere, err))
	case errors.Is(err, network.ErrLimitedConn):
		return nil, fmt.Errorf("%s to peer %s: only a relay leads there and %s does not work over one: %w", r.Name, to, r.Name, errors.Join(ErrUnreachable, err))
	}
	return nil, fmt.Errorf("%s to peer %s: %w", r.Name, to, errors.Join(ErrUnreachable, StreamError(err)))
}

func (h *Host) openStream(ctx context.Context, to peer.ID, id lprotocol.ID, bulk bool) (network.Stream, error) {
	if bulk {
		if st, err := h.openOverTCP(ctx, to, id); err == nil && st != nil {
			return st, nil
		}
	}
	return h.host.NewStream(ctx, to, id)
}

// openOverTCP opens a stream on a direct TCP connection, nil when there is
// none. libp2p offers no choice of connection, so the protocol is agreed here.
func (h *Host) openOverTCP(ctx context.Context, to peer.ID, id lprotocol.ID) (network.Stream, error) {
	for _, c := range h.host.Network().ConnsToPeer(to) {
		if c.Stat().Limited || isRelayed(c.RemoteMultiaddr()) || !has(c.RemoteMultiaddr(), multiaddr.P_TCP) {
			continue
		}
		st, err := c.NewStream(ctx)
		if err != nil {
			return nil, err
		}
		stop := context.AfterFunc(ctx, func() { _ = st.Reset() })
		err = errors.Join(st.SetProtocol(id), multistream.SelectProtoOrFail(id, st))
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			_ = st.Reset()
			return nil, err
		}
		return st, nil
	}
	return nil, nil
}

// reach makes sure that there is a connection to a peer.
func (h *Host) reach(ctx context.Context, to peer.ID) error {
	switch h.host.Network().Connectedness(to) {
	case network.Connected, network.Limited:
		return nil
	}
	info := peer.AddrInfo{ID: to}
	if len(h.gate.filter(h.host.Peerstore().Addrs(to))) == 0 {
		found, err := h.FindPeer(ctx, to)
		if err != nil {
			return errors.Join(ErrUnreachable, err)
		}
		info = found
	}
	return h.Connect(ctx, info)
}

func unsupported(err error) bool {
	var e multistream.ErrNotSupported[lprotocol.ID]
	return errors.As(err, &e)
}

// StreamError gives a broken stream's error the sentinel that its sender meant.
func StreamError(err error) error {
	var e *network.StreamError
	if !errors.As(err, &e) || !e.Remote {
		return err
	}
	switch e.ErrorCode {
	case network.StreamRateLimited, network.StreamResourceLimitExceeded, network.StreamShutdown:
		return errors.Join(protocol.ErrRetry, err)
	case network.StreamGated:
		return errors.Join(protocol.ErrElsewhere, err)
	case network.StreamProtocolViolation:
		return errors.Join(protocol.ErrBlame, err)
	}
	return err
}

// codeOf is the code that StreamError reads.
func codeOf(err error) network.StreamErrorCode {
	switch protocol.StatusOf(err) {
	case protocol.StatusElsewhere:
		return network.StreamGated
	case protocol.StatusBlame:
		return network.StreamProtocolViolation
	default:
		return network.StreamRateLimited
	}
}
