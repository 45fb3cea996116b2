package node

import (
	"errors"
	"strings"
	"time"

	"github.com/lumbung-net/lumbung/p2p"
	"github.com/lumbung-net/lumbung/protocol"
)

// The protocols of the market, one line each: the id's name, how long an
// exchange may take, how often a peer may begin one, and whether it works over
// a relay. Sizes are the messages' own (protocol.MaxSize). Control and logs pass
// over relays, bulk does not need to.
var (
	routeQuote       = p2p.Route{Name: "quote", Timeout: 5 * time.Second, PeerRate: p2p.Rate{PerSecond: 20, Burst: 60}, Relayed: true}
	routeAnswer      = p2p.Route{Name: "answer", Timeout: 5 * time.Second, PeerRate: p2p.Rate{PerSecond: 20, Burst: 60}, Relayed: true}
	routeLease       = p2p.Route{Name: "lease", Timeout: 10 * time.Second, PeerRate: p2p.Rate{PerSecond: 50, Burst: 200}, Relayed: true}
	routeCancel      = p2p.Route{Name: "cancel", Timeout: 10 * time.Second, PeerRate: p2p.Rate{PerSecond: 50, Burst: 200}, Relayed: true}
	routeLeaseStatus = p2p.Route{Name: "lease-status", Timeout: 10 * time.Second, PeerRate: p2p.Rate{PerSecond: 50, Burst: 200}, Relayed: true}
	routeHeartbeat   = p2p.Route{Name: "heartbeat", Timeout: 10 * time.Second, PeerRate: p2p.Rate{PerSecond: 100, Burst: 400}, Relayed: true}
	routeLogs        = p2p.Route{Name: "logs", Timeout: 30 * time.Second, PeerRate: p2p.Rate{PerSecond: 100, Burst: 400}, Relayed: true}
	routeResult      = p2p.Route{Name: "result", Timeout: 30 * time.Second, PeerRate: p2p.Rate{PerSecond: 50, Burst: 200}, Relayed: true}
	routePort        = p2p.Route{Name: "port", PeerRate: p2p.Rate{PerSecond: 200, Burst: 1000}, Concurrent: 1024, PerPeer: 512, Memory: 96 << 10, Relayed: true}
	routeExec        = p2p.Route{Name: "exec", PeerRate: p2p.Rate{PerSecond: 5, Burst: 20}, Concurrent: 64, PerPeer: 16, Memory: 1 << 20, Relayed: true}
)

// routeContent is the route of one of the content exchange's protocols, which it
// names with their versions ("get/1").
func routeContent(name string) p2p.Route {
	return p2p.Route{
		Name: "content/" + strings.TrimSuffix(name, "/"+protocol.Version), PeerRate: p2p.Rate{PerSecond: 50, Burst: 200},
		Concurrent: 128, PerPeer: 16, Memory: 2 << 20, Bulk: true, Relayed: true,
	}
}

// serveRenter registers what providers ask of a renter.
func (n *Node) serveRenter() error {
	return errors.Join(
		p2p.Serve(n.host, routeAnswer, n.renter.HandleAnswer),
		p2p.Serve(n.host, routeHeartbeat, n.renter.HandleHeartbeat),
		p2p.Serve(n.host, routeLogs, n.renter.HandleLogs),
		p2p.Serve(n.host, routeResult, n.renter.HandleResult),
	)
}

// serveProvider registers what renters ask of a provider.
func (n *Node) serveProvider() error {
	return errors.Join(
		p2p.Serve(n.host, p2p.CapacityRoute(), n.handleCapacity),
		p2p.Serve[*protocol.Offer, *protocol.Answer](n.host, routeQuote, n.provider.HandleQuote),
		p2p.Serve(n.host, routeLease, n.provider.HandleLease),
		p2p.Serve(n.host, routeCancel, n.provider.HandleCancel),
		p2p.Serve(n.host, routeLeaseStatus, n.provider.HandleLeaseQuery),
		n.host.HandleStream(routeExec, n.handleExec),
		n.host.HandleStream(routePort, n.handlePort),
	)
}

// serveContent registers the exchange of blocks, which every node takes part in.
func (n *Node) serveContent() error {
	var errs []error
	for _, name := range n.exchange.Protocols() {
		errs = append(errs, n.host.HandleStream(routeContent(name), n.contentHandler(name)))
	}
	return errors.Join(errs...)
}
