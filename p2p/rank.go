package p2p

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
)

// stagger is the wait between one kind of address and the next; the value is
// that of happy eyeballs (RFC 8305).
const stagger = 250 * time.Millisecond

// rankDials orders the dialling of one peer's addresses: direct TCP at once,
// then QUIC, then relays. TCP leads because bulk over it costs a third of
// QUIC's CPU and because a TCP connection is what teaches a node the TCP
// address it is seen under. Within a kind, IPv4 follows IPv6.
func rankDials(addrs []multiaddr.Multiaddr) []network.AddrDelay {
	kinds := make([][]multiaddr.Multiaddr, 4)
	for _, a := range addrs {
		k := dialKind(a)
		kinds[k] = append(kinds[k], a)
	}
	out := make([]network.AddrDelay, 0, len(addrs))
	var delay time.Duration
	for _, kind := range kinds {
		if len(kind) == 0 {
			continue
		}
		slices.SortStableFunc(kind, func(a, b multiaddr.Multiaddr) int { return ipVersion(a) - ipVersion(b) })
		first := ipVersion(kind[0])
		for _, a := range kind {
			d := delay
			if ipVersion(a) != first {
				d += stagger / 5
			}
			out = append(out, network.AddrDelay{Addr: a, Delay: d})
		}
		delay += stagger
	}
	return out
}

func dialKind(a multiaddr.Multiaddr) int {
	switch {
	case isRelayed(a):
		return 3
	case has(a, multiaddr.P_TCP):
		return 0
	case has(a, multiaddr.P_QUIC_V1):
		return 1
	default:
		return 2
	}
}

func ipVersion(a multiaddr.Multiaddr) int {
	if has(a, multiaddr.P_IP6) {
		return 0
	}
	return 1
}

func isRelayed(a multiaddr.Multiaddr) bool { return has(a, multiaddr.P_CIRCUIT) }

func has(a multiaddr.Multiaddr, code int) bool {
	found := false
	multiaddr.ForEach(a, func(c multiaddr.Component) bool {
		found = c.Protocol().Code == code
		return !found
	})
	return found
}
