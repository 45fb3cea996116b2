package p2p

import (
	"fmt"
	"net/netip"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
)

// connsPerIP is how many connections one IP address may hold: a farm of GPUs
// behind one address is one household here, and libp2p's eight would break it.
const connsPerIP = 256

// newResourceManager scales libp2p's limits to the machine and to maxConns.
// Every field of every limit is set, because an unset one blocks all.
func newResourceManager(maxConns int, metrics bool) (network.ResourceManager, error) {
	scaling := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&scaling)
	auto := scaling.AutoScale()

	conns := max(512, 2*maxConns)
	streams := 32 * conns
	partial := rcmgr.PartialLimitConfig{
		System:               limit(conns, streams, rcmgr.LimitVal64(max(1<<30, int64(conns)<<20))),
		Transient:            limit(max(256, conns/4), streams/8, 256<<20),
		AllowlistedSystem:    limit(conns, streams, 1<<30),
		AllowlistedTransient: limit(max(256, conns/4), streams/8, 256<<20),
		ServiceDefault:       limit(0, streams/2, 512<<20),
		ServicePeerDefault:   limit(0, 512, 64<<20),
		ProtocolDefault:      limit(0, streams/2, 512<<20),
		ProtocolPeerDefault:  limit(0, 512, 64<<20),
		PeerDefault:          limit(8, 1024, 128<<20),
		Conn:                 limit(1, 0, 32<<20),
		Stream:               limit(0, 1, 16<<20),
	}
	built := partial.Build(auto)
	if got := int(built.ToPartialLimitConfig().System.Conns); got < maxConns {
		return nil, fmt.Errorf("the resource manager allows %d connections, fewer than the %d to keep: lower the number of connections", got, maxConns)
	}
	opts := []rcmgr.Option{
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: connsPerIP}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: connsPerIP}, {PrefixLength: 48, ConnCount: 4 * connsPerIP}},
		),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: []rate.PrefixLimit{
				{Prefix: netip.MustParsePrefix("127.0.0.0/8")},
				{Prefix: netip.MustParsePrefix("::1/128")},
			},
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: rate.Limit{RPS: 5, Burst: connsPerIP}}},
				IPv6SubnetLimits: []rate.SubnetLimit{
					{PrefixLength: 56, Limit: rate.Limit{RPS: 5, Burst: connsPerIP}},
					{PrefixLength: 48, Limit: rate.Limit{RPS: 10, Burst: 2 * connsPerIP}},
				},
			},
		}),
	}
	if !metrics {
		opts = append(opts, rcmgr.WithMetricsDisabled())
	}
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(built), opts...)
}

// limit sets all fields. 0 connections or streams says that the scope counts
// none of them; file descriptors are what the process's own limit scales to.
func limit(conns, streams int, memory rcmgr.LimitVal64) rcmgr.ResourceLimits {
	c, s := rcmgr.LimitVal(conns), rcmgr.LimitVal(streams)
	if conns == 0 {
		c = rcmgr.Unlimited
	}
	if streams == 0 {
		s = rcmgr.Unlimited
	}
	return rcmgr.ResourceLimits{
		Conns: c, ConnsInbound: c, ConnsOutbound: c,
		Streams: s, StreamsInbound: s, StreamsOutbound: s,
		FD: rcmgr.DefaultLimit, Memory: memory,
	}
}
