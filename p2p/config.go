package p2p

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lumbung-net/lumbung/protocol"
)

// DHTMode says whether a node answers the DHT's queries.
type DHTMode int

// The modes. DHTAuto answers when other nodes can reach this one.
const (
	DHTAuto DHTMode = iota
	DHTServer
	DHTClient
)

// Rate is a token bucket: so many events a second, and so many at once.
type Rate struct {
	PerSecond float64
	Burst     int
}

func (r Rate) orElse(def Rate) Rate {
	if r.PerSecond <= 0 || r.Burst <= 0 {
		return def
	}
	return r
}

// RelayLimits bound what a node relays for others; zero fields take defaults.
type RelayLimits struct {
	Reservations      int           // peers that may be reached through this node
	ReservationsPerIP int           // of those, behind one IP address
	CircuitsPerPeer   int           // connections relayed to or from one peer
	CircuitBytes      int64         // bytes in each direction of one circuit
	CircuitTime       time.Duration // life of one circuit
}

// Config is all a host needs. Network and Key have no default.
type Config struct {
	Network   string
	Key       crypto.PrivKey
	Listen    []string // multiaddrs; DefaultListen(0) when empty
	Announce  []string // multiaddrs that are ours although no interface has them
	Bootstrap []string // multiaddrs with /p2p/<id>; may be empty
	PeersFile string   // where peers met are remembered; "" forgets them
	Agent     string   // name and version of this program

	RelayService bool // relay for peers that cannot be reached: the bootstrap role
	RelayLimits  RelayLimits
	DHT          DHTMode
	MaxConns     int // connections kept before the least useful are closed

	OfferQuota     Rate           // offers taken from one author
	ForwardQuota   Rate           // new offers taken from one group of IP addresses
	Farms          []netip.Prefix // networks where many peers behind one address are honest
	RepublishEvery time.Duration  // between two publications of the adverts
	RememberEvery  time.Duration  // between two writings of PeersFile
	Log            *slog.Logger
	Registerer     prometheus.Registerer
	Now            func() time.Time
	vetoDial       func(peer.ID, multiaddr.Multiaddr) bool // tests cut links with it
	refuseAfter    float64                                 // strikes before a peer is refused
	refuseFor      time.Duration                           // how long it then is
	dialBackoff    time.Duration                           // first wait after a failed dial
}

// Defaults that more than one place names.
const (
	defaultMaxConns      = 192
	defaultMaxConnsRelay = 8192
	defaultRepublish     = 12 * time.Minute
	defaultRemember      = time.Minute
)

// DefaultListen are the addresses a node listens on at one port, TCP and QUIC,
// IPv4 and IPv6; port 0 lets the system pick.
func DefaultListen(port int) []string {
	return []string{
		fmt.Sprintf("/ip4/0.0.0.0/tcp/%d", port),
		fmt.Sprintf("/ip4/0.0.0.0/udp/%d/quic-v1", port),
		fmt.Sprintf("/ip6/::/tcp/%d", port),
		fmt.Sprintf("/ip6/::/udp/%d/quic-v1", port),
	}
}

// withDefaults checks the configuration and fills what was left out.
func (c Config) withDefaults() (Config, error) {
	if err := protocol.CheckNetwork(c.Network); err != nil {
		return c, err
	}
	if c.Key == nil {
		return c, errors.New("no key: make one with LoadOrCreateKey")
	}
	if len(c.Listen) == 0 {
		c.Listen = DefaultListen(0)
	}
	if c.MaxConns == 0 {
		c.MaxConns = defaultMaxConns
		if c.RelayService {
			c.MaxConns = defaultMaxConnsRelay
		}
	}
	if c.MaxConns < 16 {
		return c, fmt.Errorf("at most %d connections: a node needs 16 or more to stay in the network", c.MaxConns)
	}
	if c.Agent == "" {
		c.Agent = "lumbung"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	// An array job is one offer, a retry is another: 30 a minute is far above
	// an honest renter and far below what would trouble a relay.
	c.OfferQuota = c.OfferQuota.orElse(Rate{PerSecond: 0.5, Burst: 20})
	c.ForwardQuota = c.ForwardQuota.orElse(Rate{PerSecond: 50, Burst: 500})
	c.RepublishEvery = orElse(c.RepublishEvery, defaultRepublish)
	c.RememberEvery = orElse(c.RememberEvery, defaultRemember)
	c.dialBackoff = orElse(c.dialBackoff, 500*time.Millisecond)
	c.refuseAfter = orElse(c.refuseAfter, 10)
	c.refuseFor = orElse(c.refuseFor, 5*time.Minute)
	c.RelayLimits = c.RelayLimits.withDefaults()
	return c, nil
}

// The defaults are those with which a job's control and logs pass over a
// relay; libp2p's own (128 KiB, two minutes) would cut every one.
func (l RelayLimits) withDefaults() RelayLimits {
	return RelayLimits{
		Reservations:      orElse(l.Reservations, 4096),
		ReservationsPerIP: orElse(l.ReservationsPerIP, 64),
		CircuitsPerPeer:   orElse(l.CircuitsPerPeer, 64),
		CircuitBytes:      orElse(l.CircuitBytes, 2<<20),
		CircuitTime:       orElse(l.CircuitTime, 10*time.Minute),
	}
}

func orElse[T int | int64 | float64 | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// ParsePeers reads multiaddrs that end in /p2p/<id> and gathers them by peer.
func ParsePeers(list []string) ([]peer.AddrInfo, error) {
	addrs, err := parseAddrs("address", list)
	if err != nil {
		return nil, err
	}
	infos, err := peer.AddrInfosFromP2pAddrs(addrs...)
	if err != nil {
		return nil, fmt.Errorf("addresses %q: each must end in /p2p/<peer id>: %w", list, err)
	}
	return infos, nil
}

// parsePeers is ParsePeers for the configured bootstrap nodes.
func parsePeers(list []string) ([]peer.AddrInfo, error) {
	infos, err := ParsePeers(list)
	if err != nil {
		return nil, fmt.Errorf("bootstrap nodes: %w", err)
	}
	return infos, nil
}

func parseAddrs(what string, list []string) ([]multiaddr.Multiaddr, error) {
	var out []multiaddr.Multiaddr
	for _, s := range list {
		a, err := multiaddr.NewMultiaddr(s)
		if err != nil {
			return nil, fmt.Errorf("%s %q is no multiaddr such as /ip4/192.0.2.1/tcp/4777: %w", what, s, err)
		}
		out = append(out, a)
	}
	return out, nil
}
