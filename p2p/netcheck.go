package p2p

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// view is what the host has learned of its own place in the network.
type view struct {
	mu      sync.Mutex
	addrs   event.EvtHostReachableAddrsChanged
	nat     map[string]string
	autonat network.Reachability
}

func (v *view) reachable(e event.EvtHostReachableAddrsChanged) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.addrs = e
}

func (v *view) natDevice(e event.EvtNATDeviceTypeChanged) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.nat == nil {
		v.nat = make(map[string]string)
	}
	v.nat[e.TransportProtocol.String()] = e.NatDeviceType.String()
}

func (v *view) verdict(r network.Reachability) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.autonat = r
}

// Report is what Netcheck finds. Problems say what stands in the way and what
// to do about it.
type Report struct {
	Network      string            `json:"network"`
	ID           string            `json:"id"`
	Listen       []string          `json:"listen"`       // sockets
	Addrs        []string          `json:"addrs"`        // told to others
	Reachability string            `json:"reachability"` // public, private, local or unknown
	Reachable    []string          `json:"reachable"`    // addresses that others have dialled back (AutoNAT v2)
	Unreachable  []string          `json:"unreachable"`
	NAT          map[string]string `json:"nat,omitempty"` // by transport, when known
	Relays       []string          `json:"relays"`        // relays that lead to this node
	DHTMode      string            `json:"dht_mode"`      // server or client
	DHTPeers     int               `json:"dht_peers"`
	Peers        int               `json:"peers"`
	Bootstrap    []BootstrapCheck  `json:"bootstrap"`
	TCP          string            `json:"tcp"` // works, blocked or unknown
	UDP          string            `json:"udp"`
	Problems     []Problem         `json:"problems"`
}

// BootstrapCheck is how one bootstrap node answered.
type BootstrapCheck struct {
	ID       string        `json:"id"`
	Answered bool          `json:"answered"`
	RTT      time.Duration `json:"rtt"`
	TCP      string        `json:"tcp"` // works, blocked or unknown
	UDP      string        `json:"udp"`
	Error    string        `json:"error,omitempty"`
}

// Problem is something that stands in the way, and its remedy.
type Problem struct {
	What   string `json:"what"`
	Remedy string `json:"remedy"`
}

// Netcheck looks at the node's place in the network: it dials every bootstrap
// node anew over TCP and over QUIC, apart from the connections in use.
func (h *Host) Netcheck(ctx context.Context) Report {
	r := Report{
		Network: h.cfg.Network, ID: h.id.String(), DHTMode: "client", DHTPeers: h.dht.RoutingTable().Size(),
		Peers: len(h.host.Network().Peers()), Relays: []string{}, Problems: []Problem{},
	}
	r.Listen = addrStrings(h.host.Network().ListenAddresses())
	r.Addrs = addrStrings(h.host.Addrs())
	if h.dhtSwch.serving() {
		r.DHTMode = "server"
	}
	for _, a := range h.host.Addrs() {
		if isRelayed(a) {
			r.Relays = append(r.Relays, a.String())
		}
	}
	h.view.fill(&r, h.host.Addrs())
	r.Bootstrap = make([]BootstrapCheck, len(h.boot))
	var g sync.WaitGroup
	for i, p := range h.boot {
		g.Go(func() { r.Bootstrap[i] = h.checkBootstrap(ctx, p) })
	}
	g.Wait()
	r.TCP, r.UDP = "unknown", "unknown"
	for _, b := range r.Bootstrap {
		r.TCP, r.UDP = better(r.TCP, b.TCP), better(r.UDP, b.UDP)
	}
	r.Problems = append(r.Problems, r.diagnose()...)
	return r
}

// fill reports reachability: AutoNAT's second version speaks of each address;
// a node without any public address to ask about is local or private.
func (v *view) fill(r *Report, own []multiaddr.Multiaddr) {
	v.mu.Lock()
	defer v.mu.Unlock()
	r.Reachable, r.Unreachable = addrStrings(v.addrs.Reachable), addrStrings(v.addrs.Unreachable)
	r.NAT = make(map[string]string, len(v.nat))
	for k, d := range v.nat {
		r.NAT[k] = d
	}
	local := len(own) > 0
	for _, a := range own {
		local = local && manet.IsIPLoopback(a)
	}
	switch {
	case len(r.Reachable) > 0:
		r.Reachability = "public"
	case local:
		r.Reachability = "local"
	case len(r.Unreachable) > 0 || v.autonat == network.ReachabilityPrivate:
		r.Reachability = "private"
	case v.autonat == network.ReachabilityPublic:
		r.Reachability = "public"
	default:
		r.Reachability = "unknown"
	}
}

func (h *Host) checkBootstrap(ctx context.Context, p peer.AddrInfo) BootstrapCheck {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	check := BootstrapCheck{ID: p.ID.String(), TCP: "unknown", UDP: "unknown"}
	addrs := slices.Concat(p.Addrs, h.host.Peerstore().Addrs(p.ID))
	for _, a := range multiaddr.Unique(addrs) {
		if isRelayed(a) || !h.gate.dialable(a) {
			continue
		}
		took, err := h.probe(ctx, p.ID, a)
		state := "works"
		if err != nil {
			state = "blocked"
			check.Error = err.Error()
		} else if !check.Answered || took < check.RTT {
			check.Answered, check.RTT = true, took
		}
		if transportOf(a) == "tcp" {
			check.TCP = better(check.TCP, state)
		} else {
			check.UDP = better(check.UDP, state)
		}
	}
	if check.Answered {
		check.Error = ""
	}
	return check
}

// probe makes one connection and closes it; the time is that of the whole
// handshake.
func (h *Host) probe(ctx context.Context, id peer.ID, a multiaddr.Multiaddr) (time.Duration, error) {
	dialer, ok := h.host.Network().(interface {
		TransportForDialing(a multiaddr.Multiaddr) transport.Transport
	})
	if !ok {
		return 0, fmt.Errorf("dial %s: this host has no transports of its own", a)
	}
	t := dialer.TransportForDialing(a)
	if t == nil {
		return 0, fmt.Errorf("dial %s: no transport for it", a)
	}
	start := time.Now()
	c, err := t.Dial(ctx, a, id)
	if err != nil {
		return 0, fmt.Errorf("dial %s: no connection after %s: %w", a, time.Since(start).Round(time.Millisecond), err)
	}
	took := time.Since(start)
	if err := c.Close(); err != nil {
		h.cfg.Log.Debug("close the probe", "addr", a, "err", err)
	}
	return took, nil
}

// better joins two findings about one transport.
func better(a, b string) string {
	for _, s := range []string{"works", "blocked"} {
		if a == s || b == s {
			return s
		}
	}
	return "unknown"
}

func (r *Report) diagnose() []Problem {
	var out []Problem
	add := func(what, remedy string) { out = append(out, Problem{what, remedy}) }
	answered := slices.ContainsFunc(r.Bootstrap, func(b BootstrapCheck) bool { return b.Answered })
	if len(r.Bootstrap) > 0 && !answered {
		add("no bootstrap node answers", "check their addresses with whoever runs them, and that this machine may connect to them over TCP")
	}
	if r.Peers == 0 {
		add("no peer is connected", "give --bootstrap the address of a node that is online; wait a minute if this one has just started")
	}
	if r.DHTPeers == 0 && r.Peers > 0 {
		add("the DHT knows no peer", "connect to a bootstrap node or to any node that others can reach")
	}
	if r.UDP == "blocked" && r.TCP == "works" {
		add("UDP is blocked", "nothing breaks; let UDP out on the node's port for direct connections through NATs")
	}
	if r.Reachability == "private" && len(r.Relays) == 0 {
		add("others cannot reach this node and no relay leads to it", "forward the node's TCP and UDP port on the router, or use a bootstrap node that relays")
	}
	if r.Reachability == "private" && len(r.Relays) > 0 {
		add("others reach this node over a relay only, until a direct connection is punched", "forward the node's TCP and UDP port on the router for direct connections")
	}
	if r.Reachability == "unknown" && answered {
		add("whether others can reach this node is not known yet", "wait a minute and look again; set --public if you know the node's public address")
	}
	return out
}

func addrStrings(addrs []multiaddr.Multiaddr) []string {
	out := make([]string, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}
