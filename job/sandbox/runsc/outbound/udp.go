package outbound

import (
	"errors"
	"net"
	"sync"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const maxDatagram = 64 << 10

// portTime is where time is asked for, as portNames for names.
const portTime = 123

// handleUDP is called for the first datagram of each pair of addresses, in the
// path of packets: nothing in it waits. False makes the container see that the
// port cannot be reached.
func (n *Network) handleUDP(r *udp.ForwarderRequest) bool {
	to := destination(r.ID())
	if n.Meter.exceeded() || !n.place(kindUDP, maxFlows) {
		return false
	}
	var out net.Conn
	if !isNames(to) {
		var err error
		if out, err = n.dialer.dial(n.life, "udp", to); err != nil {
			n.Log.Debug("datagram refused", "to", to, "err", err)
			n.leave(kindUDP)
			return false
		}
	}
	var wq waiter.Queue
	ep, err := r.CreateEndpoint(&wq)
	if err != nil {
		if out != nil {
			_ = out.Close()
		}
		n.leave(kindUDP)
		return true // it raced with another one, or the stack is closing
	}
	in := gonet.NewUDPConn(&wq, ep)
	f := &flow{kind: kindUDP, idle: idleUDP}
	if to.Port() == portNames || to.Port() == portTime {
		f.idle = idleAnswer
	}
	f.abort = func() {
		_ = in.Close()
		if out != nil {
			_ = out.Close()
		}
	}
	n.enter(f)
	go func() {
		defer n.leave(kindUDP)
		defer n.drop(f)
		defer f.abort()
		if out == nil {
			n.namesByUDP(in, f)
			return
		}
		n.datagrams(in, out, f)
	}()
	return true
}

// datagrams moves them both ways until the flow is idle or aborted.
func (n *Network) datagrams(in *gonet.UDPConn, out net.Conn, f *flow) {
	var both sync.WaitGroup
	both.Go(func() {
		defer f.abort()
		pass(in, out, f, n.Meter.Up)
	})
	pass(out, in, f, n.Meter.Down)
	f.abort()
	both.Wait()
}

func pass(from, to net.Conn, f *flow, count func(int) bool) {
	buf := make([]byte, maxDatagram)
	for {
		k, err := from.Read(buf)
		if errors.Is(err, syscall.ECONNREFUSED) {
			continue // nobody listened there a moment ago
		}
		if err != nil {
			return
		}
		f.touch()
		if !count(k + datagramCost) {
			return
		}
		if _, err := to.Write(buf[:k]); errors.Is(err, net.ErrClosed) {
			return
		}
	}
}
