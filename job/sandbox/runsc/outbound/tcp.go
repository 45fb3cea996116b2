package outbound

import (
	"errors"
	"io"
	"net"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const chunk = 32 << 10 // bytes moved at once

var chunks = sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}

// handleTCP is called for each connection that the container begins, on a
// goroutine of its own. It dials before it answers, so that the container sees
// a refusal as one.
func (n *Network) handleTCP(r *tcp.ForwarderRequest) {
	if !n.place(kindTCP, maxConns) {
		r.Complete(true)
		return
	}
	defer n.leave(kindTCP)
	to := destination(r.ID())
	if isNames(to) {
		n.namesByTCP(r)
		return
	}
	if !n.Meter.Up(connectCost) {
		r.Complete(true)
		return
	}
	out, err := n.dialer.dial(n.life, "tcp", to)
	if err != nil {
		// One that nobody answers is not answered here either.
		var late net.Error
		r.Complete(!errors.As(err, &late) || !late.Timeout())
		n.Log.Debug("connection refused", "to", to, "err", err)
		return
	}
	in, ep := accept(r)
	if in == nil {
		_ = out.Close()
		return
	}
	n.relay(in, ep, out.(*net.TCPConn))
}

// accept finishes the handshake with the container.
func accept(r *tcp.ForwarderRequest) (*gonet.TCPConn, tcpip.Endpoint) {
	var wq waiter.Queue
	ep, err := r.CreateEndpoint(&wq)
	r.Complete(err != nil)
	if err != nil {
		return nil, nil
	}
	ep.SocketOptions().SetKeepAlive(true)
	ep.SocketOptions().SetDelayOption(false)
	return gonet.NewTCPConn(&wq, ep), ep
}

// relay moves bytes both ways until both directions have ended: an end of one
// is passed on, and the other goes on.
func (n *Network) relay(in *gonet.TCPConn, ep tcpip.Endpoint, out *net.TCPConn) {
	reset := sync.OnceFunc(ep.Abort)
	f := &flow{kind: kindTCP, idle: idleTCP, abort: func() {
		_ = out.SetLinger(0)
		_ = out.Close()
		reset()
	}}
	n.enter(f)
	defer n.drop(f)
	var both sync.WaitGroup
	both.Go(func() {
		if err := move(in, out, f, n.Meter.Up); err != nil {
			f.abort()
			return
		}
		_ = out.CloseWrite()
	})
	if err := move(out, in, f, n.Meter.Down); err != nil {
		f.abort()
	} else {
		_ = in.CloseWrite()
	}
	both.Wait()
	_ = out.Close()
	// What a program has not read by then would be kept as long as it likes.
	unread := tcpip.TCPUserTimeoutOption(unreadTCP)
	_ = ep.SetSockOpt(&unread)
	_ = in.Close()
}

var errOver = errors.New("the limit of bytes is met")

// move copies until the end of from, which is no error.
func move(from io.Reader, to io.Writer, f *flow, count func(int) bool) error {
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	for {
		k, err := from.Read(*buf)
		if k > 0 {
			f.touch()
			if !count(k) {
				return errOver
			}
			if _, err := to.Write((*buf)[:k]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
