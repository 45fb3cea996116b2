package p2p

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

var _ connmgr.ConnectionGater = (*gater)(nil)

// lanCheck is how long the interfaces' networks are believed.
const lanCheck = time.Minute

// gater decides whom the host talks to. Addresses of private ranges come from
// strangers all the time; dialling those outside the host's own networks gets
// a machine reported for scanning, so only the host's own networks are dialled.
type gater struct {
	now       func() time.Time
	blame     *blameTable
	veto      func(peer.ID, multiaddr.Multiaddr) bool
	trusted   []netip.Addr // of configured bootstrap nodes
	loopback  bool         // this node was told to listen on loopback
	announced bool         // this node has public addresses of its own
	ifaces    func() ([]netip.Prefix, error)

	mu      sync.Mutex
	checked time.Time
	lans    []netip.Prefix
}

func newGater(cfg Config, listen, announce []multiaddr.Multiaddr, boot []peer.AddrInfo, blame *blameTable) *gater {
	g := &gater{now: cfg.Now, blame: blame, veto: cfg.vetoDial, ifaces: interfacePrefixes}
	for _, a := range listen {
		if ip, ok := addrIP(a); ok && ip.IsLoopback() {
			g.loopback = true
		}
	}
	for _, a := range announce {
		if manet.IsPublicAddr(a) {
			g.announced = true
		}
	}
	for _, p := range boot {
		for _, a := range p.Addrs {
			if ip, ok := addrIP(a); ok {
				g.trusted = append(g.trusted, ip)
			}
		}
	}
	return g
}

// dialable reports whether this host may dial an address.
func (g *gater) dialable(a multiaddr.Multiaddr) bool {
	ip, ok := addrIP(a)
	if !ok {
		return true // a name: what it resolves to comes here again
	}
	if manet.IsPublicAddr(a) {
		return true
	}
	if ip.IsUnspecified() || ip.IsMulticast() {
		return false
	}
	for _, t := range g.trusted {
		if t == ip {
			return true
		}
	}
	lans := g.ownNetworks()
	if ip.IsLoopback() {
		return g.loopback || !g.announced && !hasPublic(lans)
	}
	for _, lan := range lans {
		if !lan.Addr().IsLoopback() && lan.Contains(ip) {
			return true
		}
	}
	return false
}

// filter keeps the addresses that may be dialled.
func (g *gater) filter(addrs []multiaddr.Multiaddr) []multiaddr.Multiaddr {
	var out []multiaddr.Multiaddr
	for _, a := range addrs {
		if g.dialable(a) {
			out = append(out, a)
		}
	}
	return out
}

// ownNetworks are the networks of this machine's interfaces, as of a minute ago
// at most.
func (g *gater) ownNetworks() []netip.Prefix {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := g.now(); g.checked.IsZero() || now.Sub(g.checked) > lanCheck {
		if lans, err := g.ifaces(); err == nil {
			g.lans, g.checked = lans, now
		}
	}
	return g.lans
}

func interfacePrefixes() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p)
		}
	}
	return out, nil
}

func hasPublic(prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		if a, err := manet.FromIP(p.Addr().AsSlice()); err == nil && manet.IsPublicAddr(a) {
			return true
		}
	}
	return false
}

// addrIP is the first IP of an address; of a relayed one that is the relay's.
func addrIP(a multiaddr.Multiaddr) (netip.Addr, bool) {
	raw, err := manet.ToIP(a)
	if err != nil {
		return netip.Addr{}, false
	}
	ip, ok := netip.AddrFromSlice(raw)
	return ip.Unmap(), ok
}

// InterceptPeerDial implements connmgr.ConnectionGater.
func (g *gater) InterceptPeerDial(p peer.ID) bool { return !g.blame.refused(p) }

// InterceptAddrDial implements connmgr.ConnectionGater.
func (g *gater) InterceptAddrDial(p peer.ID, a multiaddr.Multiaddr) bool {
	return g.dialable(a) && (g.veto == nil || !g.veto(p, a))
}

// InterceptAccept implements connmgr.ConnectionGater.
func (g *gater) InterceptAccept(network.ConnMultiaddrs) bool { return true }

// InterceptSecured implements connmgr.ConnectionGater.
func (g *gater) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return !g.blame.refused(p)
}

// InterceptUpgraded implements connmgr.ConnectionGater.
func (g *gater) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }
