package p2p

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Times of dialling. A dial over a relay is some seven round trips, so the
// host's own bound is wide; the DHT, where dead peers would dominate every
// lookup, gives each peer probeTime (see quick).
const (
	dialTime  = 5 * time.Second
	probeTime = 1500 * time.Millisecond
)

// options are the parts of the libp2p host; undo closes them where the host
// that would is never made.
func (h *Host) options(listen, announce []multiaddr.Multiaddr) (opts []libp2p.Option, undo func() error, err error) {
	rm, err := newResourceManager(h.cfg.MaxConns, h.cfg.Registerer != nil)
	if err != nil {
		return nil, nil, err
	}
	cm, err := connmgr.NewConnManager(h.cfg.MaxConns/2, h.cfg.MaxConns, connmgr.WithGracePeriod(30*time.Second))
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("connection manager: %w", err), rm.Close())
	}
	undo = func() error { return errors.Join(cm.Close(), rm.Close()) }
	opts = []libp2p.Option{
		libp2p.Identity(h.cfg.Key),
		libp2p.UserAgent(h.cfg.Agent),
		libp2p.ProtocolVersion(protocolVersion(h.cfg.Network)),
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Transport(quic.NewTransport),
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Security(noise.ID, noise.New),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.SwarmOpts(swarm.WithDialRanker(rankDials)),
		libp2p.WithDialTimeout(dialTime),
		libp2p.ResourceManager(rm),
		libp2p.ConnectionManager(cm),
		libp2p.ConnectionGater(h.gate),
		libp2p.AddrsFactory(addrsFactory(announce)),
		libp2p.EnableAutoNATv2(),
		libp2p.EnableHolePunching(holepunch.DirectDialTimeout(probeTime)),
	}
	if h.cfg.Registerer == nil {
		opts = append(opts, libp2p.DisableMetrics())
	} else {
		opts = append(opts, libp2p.PrometheusRegisterer(h.cfg.Registerer))
	}
	if behindNAT(listen, announce) {
		opts = append(opts, libp2p.NATPortMap())
	}
	if h.cfg.RelayService {
		return append(opts, h.relayOptions()...), undo, nil
	}
	return append(opts, libp2p.EnableAutoRelayWithPeerSource(h.relayCandidates,
		autorelay.WithNumRelays(2), autorelay.WithMinCandidates(1), autorelay.WithBootDelay(10*time.Second),
		autorelay.WithMinInterval(10*time.Second), autorelay.WithBackoff(time.Minute))), undo, nil
}

// behindNAT reports whether a router may have to be asked for a port: the node
// listens where a LAN sees it and knows no public address of its own.
func behindNAT(listen, announce []multiaddr.Multiaddr) bool {
	for _, a := range announce {
		if manet.IsPublicAddr(a) {
			return false
		}
	}
	for _, a := range listen {
		if manet.IsIPUnspecified(a) || (manet.IsPrivateAddr(a) && !manet.IsIPLoopback(a)) {
			return true
		}
	}
	return false
}

// relayOptions make a node serve those that cannot be reached. Its operator
// says that it can be; the black hole detector must not keep its AutoNAT
// service from dialling back just because it dials little itself.
func (h *Host) relayOptions() []libp2p.Option {
	l := h.cfg.RelayLimits
	res := relay.DefaultResources()
	res.Limit = &relay.RelayLimit{Duration: l.CircuitTime, Data: l.CircuitBytes}
	res.MaxReservations = l.Reservations
	res.MaxReservationsPerIP = l.ReservationsPerIP
	res.MaxReservationsPerASN = l.Reservations
	res.MaxCircuits = l.CircuitsPerPeer
	opts := []relay.Option{relay.WithResources(res)}
	if h.gate.loopback {
		opts = append(opts, relay.WithReservationAddressFilter(func(multiaddr.Multiaddr) bool { return true }))
	}
	return []libp2p.Option{
		libp2p.ForceReachabilityPublic(),
		libp2p.EnableNATService(),
		libp2p.EnableRelayService(opts...),
		libp2p.UDPBlackHoleSuccessCounter((*swarm.BlackHoleSuccessCounter)(nil)),
		libp2p.IPv6BlackHoleSuccessCounter((*swarm.BlackHoleSuccessCounter)(nil)),
	}
}

// relayCandidates offers connected peers that relay, bootstrap nodes first.
func (h *Host) relayCandidates(ctx context.Context, num int) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo, num)
	defer close(out)
	select {
	case <-h.started:
	default:
		return out
	}
	seen := map[peer.ID]bool{h.id: true}
	offer := func(id peer.ID) {
		if seen[id] || len(out) == num || ctx.Err() != nil {
			return
		}
		seen[id] = true
		if ok, err := h.host.Peerstore().SupportsProtocols(id, circuit.ProtoIDv2Hop); err != nil || len(ok) == 0 {
			return
		}
		out <- h.host.Peerstore().PeerInfo(id)
	}
	for _, p := range h.boot {
		offer(p.ID)
	}
	for _, id := range h.dht.RoutingTable().ListPeers() {
		offer(id)
	}
	for _, id := range h.host.Network().Peers() {
		offer(id)
	}
	return out
}

// addrsFactory adds the announced addresses and, where there is any public
// one, leaves out loopback, which helps nobody then.
func addrsFactory(announce []multiaddr.Multiaddr) func([]multiaddr.Multiaddr) []multiaddr.Multiaddr {
	return func(own []multiaddr.Multiaddr) []multiaddr.Multiaddr {
		all := append(append([]multiaddr.Multiaddr{}, announce...), own...)
		public := false
		for _, a := range all {
			public = public || manet.IsPublicAddr(a)
		}
		var out []multiaddr.Multiaddr
		for _, a := range all {
			if public && manet.IsIPLoopback(a) {
				continue
			}
			out = append(out, a)
		}
		return multiaddr.Unique(out)
	}
}
