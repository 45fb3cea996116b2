package outbound

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

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
	in := accept(r)
	if in == nil {
		_ = out.Close()
		return
	}
	n.relay(in, out.(*net.TCPConn))
}

// inner is a connection's end towards the container.
type inner struct {
	*gonet.TCPConn
	ep  tcpip.Endpoint
	end <-chan struct{} // gets one when the connection is no more
}

// accept finishes the handshake with the container.
func accept(r *tcp.ForwarderRequest) *inner {
	wq := new(waiter.Queue)
	over, end := waiter.NewChannelEntry(waiter.EventHUp)
	wq.EventRegister(&over)
	ep, err := r.CreateEndpoint(wq)
	r.Complete(err != nil)
	if err != nil {
		return nil
	}
	ep.SocketOptions().SetKeepAlive(true)
	ep.SocketOptions().SetDelayOption(false)
	return &inner{gonet.NewTCPConn(wq, ep), ep, end}
}

// finish closes a connection and keeps its place until the stack has let go of
// it too: that holds what the container has yet to read.
func (n *Network) finish(in *inner) {
	unread := tcpip.TCPUserTimeoutOption(unreadTCP) // it might never
	_ = in.ep.SetSockOpt(&unread)
	_ = in.Close()
	t := time.NewTimer(2 * unreadTCP)
	defer t.Stop()
	select {
	case <-in.end:
	case <-n.life.Done():
	case <-t.C:
		in.ep.Abort()
	}
}

// relay moves bytes both ways until both directions have ended: an end of one
// is passed on, and the other goes on.
func (n *Network) relay(in *inner, out *net.TCPConn) {
	reset := sync.OnceFunc(in.ep.Abort)
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
	n.finish(in)
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
