package node

import (
	"path/filepath"
	"strings"
	"time"

	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/p2p/content"
	"github.com/lumbung-net/lumbung/protocol"
)

// exchangeOptions is how this node takes part in the exchange of blocks.
func (n *Node) exchangeOptions() content.ExchangeOptions {
	return content.ExchangeOptions{
		Log: n.log, Now: n.now, UploadRate: n.cfg.UploadRate, Priority: n.worksWith,
		BanFile: filepath.Join(n.cfg.Home, "banned-peers.json"),
	}
}

// worksWith says whether a job binds this node and a peer: what such a peer
// fetches here is served ahead of what others do.
func (n *Node) worksWith(peer string) bool {
	if n.renter != nil && n.renter.LeasedTo(peer) {
		return true
	}
	if n.provider == nil {
		return false
	}
	for _, c := range n.provider.Leases() {
		if c.Renter == peer {
			return true
		}
	}
	return false
}

// renterLast parts whom a job's provider fetches from: the renter, which comes
// first and has all, is asked for what nobody else has.
func renterLast(from []protocol.PeerID) (renter, holders []protocol.PeerID) {
	if len(from) == 0 {
		return nil, nil
	}
	return from[:1], from[1:]
}

// peerNames are the ids of peers without this node's own.
func (n *Node) peerNames(ids []protocol.PeerID) []string {
	out := make([]string, 0, len(ids))
	for _, p := range ids {
		if p != n.host.ID() {
			out = append(out, p.String())
		}
	}
	return out
}

// transfers are what is fetched and served now.
func (n *Node) transfers() []client.Transfer {
	var out []client.Transfer
	for _, t := range n.exchange.Transfers() {
		c := client.Transfer{
			Direction: "out", Peer: t.Peer, Peers: t.Peers, Bytes: t.Bytes, Total: t.Total,
			Rate: uint64(t.Rate), ETA: t.ETA.Round(time.Second),
		}
		if t.In {
			c.Direction = "in"
		}
		if t.Root.Defined() {
			c.Root = strings.ToLower(t.Root.String())
		}
		out = append(out, c)
	}
	return out
}
