package p2p

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/multiformats/go-multiaddr"
)

// reserve asks a relay to lead others to a host.
func reserve(t testing.TB, h, relay *Host) {
	t.Helper()
	res, err := client.Reserve(limited(t), h.host, peer.AddrInfo{ID: relay.ID(), Addrs: relay.Addrs()})
	if err != nil {
		t.Fatal(err)
	}
	if res.LimitData != 2<<20 {
		t.Errorf("the relay passes %d bytes, want 2 MiB", res.LimitData)
	}
}

// throughRelay connects two hosts over a relay only.
func throughRelay(t testing.TB, from, relay, to *Host) {
	t.Helper()
	addr, err := multiaddr.NewMultiaddr(relay.FullAddrs()[0] + "/p2p-circuit")
	if err != nil {
		t.Fatal(err)
	}
	if err := from.Connect(limited(t), peer.AddrInfo{ID: to.ID(), Addrs: []multiaddr.Multiaddr{addr}}); err != nil {
		t.Fatal(err)
	}
	if got := from.host.Network().Connectedness(to.ID()); got != network.Limited {
		t.Fatalf("connected %s, want over the relay only", got)
	}
}
