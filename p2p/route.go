package p2p

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/lumbung-net/lumbung/protocol"
)

// Route is one protocol of streams and its limits. Zero fields take defaults,
// except Timeout, whose zero means none.
type Route struct {
	Name       string        // "bid" becomes protocol.ID(network, "bid")
	Timeout    time.Duration // for the whole exchange
	PeerRate   Rate          // streams taken from one peer; default 20/s, 64 at once
	IPRate     Rate          // streams taken from one IP address; default eight times PeerRate
	Concurrent int           // streams served at a time; default 256
	PerPeer    int           // of those, for one peer; default a quarter
	Memory     int           // bytes reserved per stream by HandleStream, beyond libp2p's own
	Relayed    bool          // works over a relay too
	Bulk       bool          // much data: a TCP connection is preferred
}

func (r Route) withDefaults() Route {
	r.PeerRate = r.PeerRate.orElse(Rate{PerSecond: 20, Burst: 64})
	r.IPRate = r.IPRate.orElse(Rate{PerSecond: 8 * r.PeerRate.PerSecond, Burst: 8 * r.PeerRate.Burst})
	r.Concurrent = orElse(r.Concurrent, 256)
	r.PerPeer = orElse(r.PerPeer, max(1, r.Concurrent/4))
	return r
}

// buckets are token buckets by key, bounded: the key longest unused is
// forgotten first, which at worst gives its owner a fresh burst.
type buckets[K comparable] struct {
	rate Rate
	mu   sync.Mutex
	m    *lru.Cache[K, *rate.Limiter]
}

func newBuckets[K comparable](r Rate, size int) (*buckets[K], error) {
	m, err := lru.New[K, *rate.Limiter](size)
	if err != nil {
		return nil, err
	}
	return &buckets[K]{rate: r, m: m}, nil
}

func (b *buckets[K]) allow(key K, now time.Time) bool { return b.limiter(key).AllowN(now, 1) }

// wait takes n out of a bucket when there is as much in it.
func (b *buckets[K]) wait(ctx context.Context, key K, n int) error {
	return b.limiter(key).WaitN(ctx, n)
}

func (b *buckets[K]) limiter(key K) *rate.Limiter {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, ok := b.m.Get(key)
	if !ok {
		l = rate.NewLimiter(rate.Limit(b.rate.PerSecond), b.rate.Burst)
		b.m.Add(key, l)
	}
	return l
}

// admission is the state of a served route's limits.
type admission struct {
	route Route
	peers *buckets[peer.ID]
	ips   *buckets[netip.Prefix]

	mu   sync.Mutex
	busy map[peer.ID]int
	all  int
}

// limitedKeys is how many peers and addresses a route's limits remember.
const limitedKeys = 4096

func newAdmission(r Route) (*admission, error) {
	peers, err := newBuckets[peer.ID](r.PeerRate, limitedKeys)
	if err != nil {
		return nil, err
	}
	ips, err := newBuckets[netip.Prefix](r.IPRate, limitedKeys)
	if err != nil {
		return nil, err
	}
	return &admission{route: r, peers: peers, ips: ips, busy: make(map[peer.ID]int)}, nil
}

var (
	errRate = errors.New("too many requests")
	errSlot = errors.New("too many requests at a time")
)

// enter takes a stream in, or says why not; the caller leaves when it is done.
func (a *admission) enter(conn network.Conn, now time.Time) error {
	from, relayed := conn.RemotePeer(), conn.Stat().Limited
	if relayed && !a.route.Relayed {
		return fmt.Errorf("%s does not work over a relay: %w", a.route.Name, protocol.ErrElsewhere)
	}
	if !a.peers.allow(from, now) {
		return fmt.Errorf("%w from this peer, over %g a second: %w", errRate, a.route.PeerRate.PerSecond, protocol.ErrRetry)
	}
	// A relayed peer comes from its relay's address, which many share.
	if ip, ok := addrIP(conn.RemoteMultiaddr()); ok && !relayed && !a.ips.allow(ipGroup(ip), now) {
		return fmt.Errorf("%w from %s, over %g a second: %w", errRate, ip, a.route.IPRate.PerSecond, protocol.ErrRetry)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.all >= a.route.Concurrent || a.busy[from] >= a.route.PerPeer {
		return fmt.Errorf("%w (%d of %d in all, %d of %d from this peer): %w", errSlot, a.all, a.route.Concurrent, a.busy[from], a.route.PerPeer, protocol.ErrRetry)
	}
	a.all++
	a.busy[from]++
	return nil
}

func (a *admission) leave(from peer.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all--
	if a.busy[from]--; a.busy[from] <= 0 {
		delete(a.busy, from)
	}
}

// ipGroup is what one household or one server commonly has: an IPv4 address or
// an IPv6 /56.
func ipGroup(ip netip.Addr) netip.Prefix {
	bits := 32
	if ip.Is6() {
		bits = 56
	}
	p, err := ip.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
