package outbound

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// What one container can hold of its provider at once.
const (
	maxConns   = 512           // TCP connections
	maxFlows   = 256           // UDP, one a pair of addresses and ports
	maxDials   = 64            // TCP connections that are being made
	maxBuffer  = 128 << 10     // bytes of a connection towards the container, each way
	idleTCP    = 2 * time.Hour // without a byte either way
	unreadTCP  = time.Minute   // of the rest of one that has ended
	idleUDP    = 2 * time.Minute
	idleAnswer = 10 * time.Second // of UDP that asks and is answered once, as names and time
	janitor    = 5 * time.Second  // between looks for idle ones
)

// Options of a Network.
type Options struct {
	FD     int // one end of a pair of SOCK_SEQPACKET sockets, taken over
	Meter  *Meter
	Resolv string // path of the machine's resolv.conf
	Log    *slog.Logger
	// Own lists what is blocked beside the special ranges, at each dial.
	Own func() ([]netip.Prefix, error)

	connect    func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) // of tests
	answerTime time.Duration                                                                  // for a name; of tests
}

// Network is the network of one container.
type Network struct {
	Options
	link   *link
	stack  *stack.Stack
	life   context.Context
	end    context.CancelFunc
	gone   chan struct{} // closed when the container's end of the link is
	dialer dialer
	dns    chan struct{} // a place for each question on its way

	mu    sync.Mutex
	flows map[*flow]struct{}
	count [2]int // of TCP, of UDP
	work  sync.WaitGroup
}

// New takes the link over. The network works until Close.
func New(o Options) (*Network, error) {
	if o.connect == nil {
		o.connect = connect
	}
	if o.answerTime == 0 {
		o.answerTime = answerTime
	}
	n := &Network{
		Options: o, gone: make(chan struct{}), dialer: dialer{o.Own, o.connect},
		dns: make(chan struct{}, maxQuestions), flows: map[*flow]struct{}{},
	}
	l, err := newLink(o.FD, sync.OnceFunc(func() { close(n.gone) }))
	if err != nil {
		return nil, err
	}
	n.life, n.end = context.WithCancel(context.Background())
	n.link = l
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := n.configure(); err != nil {
		n.end()
		l.silence()
		n.stack.Destroy()
		return nil, err
	}
	n.work.Go(n.sweep)
	return n, nil
}

// configure makes the stack answer for every address.
func (n *Network) configure() error {
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(false)
	wait := tcpip.TCPTimeWaitTimeoutOption(time.Second) // nothing on this link is late
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: maxBuffer, Max: maxBuffer}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: maxBuffer, Max: maxBuffer}
	var bad []error
	note := func(what string, err tcpip.Error) {
		if err != nil {
			bad = append(bad, fmt.Errorf("%s: %s", what, err))
		}
	}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &wait, &rcv, &snd} {
		note(fmt.Sprintf("%T", o), n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o))
	}
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(n.stack, maxBuffer, maxDials, n.handleTCP).HandlePacket)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(n.stack, n.handleUDP).HandlePacket)
	n.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic},
		{Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	note("the interface", n.stack.CreateNIC(nic, n.link))
	note("any destination", n.stack.SetPromiscuousMode(nic, true))
	note("any source", n.stack.SetSpoofing(nic, true))
	return errors.Join(bad...)
}

// Gone is closed when the container has let go of the link.
func (n *Network) Gone() <-chan struct{} { return n.gone }

// Close ends all connections and returns when nothing of the network is left.
func (n *Network) Close() {
	n.end()
	n.abortAll()
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		n.work.Wait()
	}()
	n.abortEndpoints(idle)
	n.link.silence()
	n.stack.Destroy()
	_ = unix.Close(n.FD)
}

// abortEndpoints ends what the stack still has until the work is done: one in a
// handshake is no flow yet, and its container may never answer.
func (n *Network) abortEndpoints(idle <-chan struct{}) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, e := range n.stack.RegisteredEndpoints() {
			e.Abort()
		}
		select {
		case <-idle:
			return
		case <-tick.C:
		}
	}
}

// flow is one connection, or one pair of addresses that send each other
// datagrams.
type flow struct {
	kind  int
	idle  time.Duration
	abort func()

	mu   sync.Mutex
	last time.Time
}

const (
	kindTCP = iota
	kindUDP
)

func (f *flow) touch() {
	f.mu.Lock()
	f.last = time.Now()
	f.mu.Unlock()
}

func (f *flow) idleSince() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Since(f.last)
}

// place takes one of the places that there are of a kind.
func (n *Network) place(kind, most int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.life.Err() != nil || n.count[kind] >= most {
		return false
	}
	n.count[kind]++
	n.work.Add(1)
	return true
}

func (n *Network) leave(kind int) {
	n.mu.Lock()
	n.count[kind]--
	n.mu.Unlock()
	n.work.Done()
}

// enter lists a flow, so that it can be ended from outside. One that comes too
// late is ended at once.
func (n *Network) enter(f *flow) {
	f.touch()
	n.mu.Lock()
	n.flows[f] = struct{}{}
	n.mu.Unlock()
	if n.life.Err() != nil || n.Meter.exceeded() {
		f.abort()
	}
}

func (n *Network) drop(f *flow) {
	n.mu.Lock()
	delete(n.flows, f)
	n.mu.Unlock()
}

func (n *Network) abortAll() { n.abortIf(func(*flow) bool { return true }) }

func (n *Network) abortIdle() { n.abortIf(func(f *flow) bool { return f.idleSince() > f.idle }) }

func (n *Network) abortIf(want func(*flow) bool) {
	n.mu.Lock()
	var some []*flow
	for f := range n.flows {
		if want(f) {
			some = append(some, f)
		}
	}
	n.mu.Unlock()
	for _, f := range some {
		f.abort()
	}
}

// sweep ends flows that nobody uses, and all of them when too much was sent.
func (n *Network) sweep() {
	tick := time.NewTicker(janitor)
	defer tick.Stop()
	over := n.Meter.Over()
	for {
		select {
		case <-n.life.Done():
			return
		case <-over:
			over = nil
			n.abortAll()
		case <-tick.C:
			n.abortIdle()
		}
	}
}

// endpoints of a request: where it goes to.
func destination(id stack.TransportEndpointID) netip.AddrPort {
	a, _ := netip.AddrFromSlice(id.LocalAddress.AsSlice())
	return netip.AddrPortFrom(a, id.LocalPort)
}

// isNames says whether the container asks its name server.
func isNames(to netip.AddrPort) bool {
	return to.Port() == portNames && (to.Addr() == Gateway4 || to.Addr() == Gateway6)
}
