package p2p

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/multiformats/go-multiaddr"
)

// PeerInfo is a connected peer.
type PeerInfo struct {
	ID        peer.ID       `json:"id"`
	Addrs     []string      `json:"addrs"` // of its connections
	RTT       time.Duration `json:"rtt"`   // smoothed; 0 when not yet measured
	Agent     string        `json:"agent"`
	Direction string        `json:"direction"` // inbound or outbound
	Transport string        `json:"transport"` // tcp or quic
	Relayed   bool          `json:"relayed"`
}

// Peers lists the connected peers, ordered by id.
func (h *Host) Peers() []PeerInfo {
	var out []PeerInfo
	for _, id := range h.host.Network().Peers() {
		conns := h.host.Network().ConnsToPeer(id)
		if len(conns) == 0 {
			continue
		}
		info := PeerInfo{ID: id, RTT: h.host.Peerstore().LatencyEWMA(id)}
		best := bestConn(conns)
		info.Direction = strings.ToLower(best.Stat().Direction.String())
		info.Transport, info.Relayed = transportOf(best.RemoteMultiaddr()), relayedConn(best)
		for _, c := range conns {
			info.Addrs = append(info.Addrs, c.RemoteMultiaddr().String())
		}
		if agent, err := h.host.Peerstore().Get(id, "AgentVersion"); err == nil {
			if s, ok := agent.(string); ok {
				info.Agent = plain(s, 64)
			}
		}
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b PeerInfo) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

// bestConn is the connection that streams would take: direct before relayed,
// TCP before QUIC.
func bestConn(conns []network.Conn) network.Conn {
	rank := func(c network.Conn) int {
		switch {
		case relayedConn(c):
			return 2
		case has(c.RemoteMultiaddr(), multiaddr.P_TCP):
			return 0
		}
		return 1
	}
	return slices.MinFunc(conns, func(a, b network.Conn) int { return rank(a) - rank(b) })
}

func relayedConn(c network.Conn) bool {
	return c.Stat().Limited || isRelayed(c.RemoteMultiaddr())
}

// Ping measures one round trip to a peer, connecting first where needed, and
// says which way it went, such as "direct tcp" or "relayed tcp".
func (h *Host) Ping(ctx context.Context, id peer.ID) (rtt time.Duration, via string, err error) {
	if id == h.id {
		return 0, "", errors.New("that is this node itself")
	}
	if err := h.reach(ctx, id); err != nil {
		return 0, "", fmt.Errorf("ping peer %s: %w", id, err)
	}
	ctx, cancel := context.WithCancel(network.WithAllowLimitedConn(ctx, "ping"))
	defer cancel()
	start := time.Now()
	results := ping.Ping(ctx, h.host, id)
	res, ok := <-results
	cancel()
	for range results { // ends with ctx
		continue
	}
	switch {
	case !ok:
		return 0, "", fmt.Errorf("ping peer %s: no answer after %s: %w", id, time.Since(start).Round(time.Millisecond), context.Cause(ctx))
	case res.Error != nil:
		return 0, "", fmt.Errorf("ping peer %s: no answer after %s: %w", id, time.Since(start).Round(time.Millisecond), res.Error)
	}
	return res.RTT, h.via(id), nil
}

// via says which way a peer is connected.
func (h *Host) via(id peer.ID) string {
	conns := h.host.Network().ConnsToPeer(id)
	if len(conns) == 0 {
		return "gone"
	}
	c := bestConn(conns)
	if relayedConn(c) {
		return "relayed " + transportOf(c.RemoteMultiaddr())
	}
	return "direct " + transportOf(c.RemoteMultiaddr())
}
