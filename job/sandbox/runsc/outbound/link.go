package outbound

import (
	"fmt"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/link/nested"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// The link between a container and its network: a pair of sockets that carry
// IP packets. No other machine sees these addresses. Package sandbox writes the
// first Gateway into the container's resolv.conf.
var (
	Addr4    = netip.MustParsePrefix("10.89.0.2/24")
	Addr6    = netip.MustParsePrefix("fd6c:756d:6275:6e67::2/64")
	Gateway4 = netip.MustParseAddr("10.89.0.1") // and name server
	Gateway6 = netip.MustParseAddr("fd6c:756d:6275:6e67::1")
)

const (
	// MTU is larger than the internet's: what a packet holds is taken out of it
	// and sent on in another.
	MTU = 16 << 10
	// InterfaceName is what the container sees.
	InterfaceName = "eth0"
	nic           = tcpip.NICID(1)
)

// link takes packets from the container and passes on only those that may be
// its own: TCP and UDP, from its addresses. There is no ICMP into the stack, as
// that would answer for the whole internet.
type link struct {
	nested.Endpoint
	admits func(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) bool

	mu     sync.RWMutex // held while a packet is delivered
	silent bool
}

// newLink wraps one end of the pair. closed is called when the other end is
// gone.
func newLink(fd int, closed func()) (*link, error) {
	child, err := fdbased.New(&fdbased.Options{
		// RecvMMsg would take the end of the other side for empty packets without
		// end, and no longer hear that it should stop.
		FDs: []int{fd}, MTU: MTU, PacketDispatchMode: fdbased.Readv,
		// The packets never leave memory.
		RXChecksumOffload: true, TXChecksumOffload: true,
		GSOMaxSize: stack.GVisorGSOMaxSize, GVisorGSOEnabled: true,
		ProcessorsPerChannel: 1,
		ClosedFunc:           func(tcpip.Error) { closed() },
	})
	if err != nil {
		return nil, fmt.Errorf("the link to the container: %w", err)
	}
	l := &link{admits: admits}
	l.Init(child, l)
	return l, nil
}

// DeliverNetworkPacket implements stack.NetworkDispatcher.
func (l *link) DeliverNetworkPacket(proto tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if !l.silent && l.admits(proto, pkt) {
		l.Endpoint.DeliverNetworkPacket(proto, pkt)
	}
}

// silence returns when no packet is being delivered, nor will be. The stack must
// not be destroyed before: it waits for a delivery with its lock held, and one
// that answers with a reset waits for that lock.
func (l *link) silence() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.silent = true
}

// admits looks at no more than the header; the stack checks the rest.
func admits(proto tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) bool {
	switch proto {
	case header.IPv4ProtocolNumber:
		b, ok := pkt.Data().PullUp(header.IPv4MinimumSize)
		if !ok {
			return false
		}
		h := header.IPv4(b)
		return carries(h.TransportProtocol()) && h.SourceAddress() == tcpip.AddrFrom4(Addr4.Addr().As4())
	case header.IPv6ProtocolNumber:
		b, ok := pkt.Data().PullUp(header.IPv6MinimumSize)
		if !ok {
			return false
		}
		h := header.IPv6(b)
		inner := tcpip.TransportProtocolNumber(h.NextHeader())
		return (carries(inner) || h.NextHeader() == uint8(header.IPv6FragmentHeader)) &&
			h.SourceAddress() == tcpip.AddrFrom16(Addr6.Addr().As16())
	}
	return false
}

func carries(p tcpip.TransportProtocolNumber) bool {
	return p == header.TCPProtocolNumber || p == header.UDPProtocolNumber
}
