package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/lumbung-net/lumbung/p2p"
	"github.com/lumbung-net/lumbung/protocol"
)

// market fits the host to what the market's two sides ask of a network.
type market struct{ host *p2p.Host }

// learnedTTL is how long addresses that a peer has signed are remembered.
const learnedTTL = 30 * time.Minute

func (m market) PublishOffer(ctx context.Context, offer protocol.Signed[*protocol.Offer]) error {
	return m.host.Offers().Publish(ctx, offer)
}

// Providers looks the classes up side by side and remembers the addresses.
func (m market) Providers(ctx context.Context, classes []string, limit int) ([]protocol.PeerID, error) {
	var (
		mu    sync.Mutex
		seen  = map[peer.ID]bool{}
		found []protocol.PeerID
		group sync.WaitGroup
	)
	for _, class := range classes {
		group.Go(func() {
			for info := range m.host.FindProviders(ctx, class, limit) {
				m.host.Host().Peerstore().AddAddrs(info.ID, info.Addrs, learnedTTL)
				mu.Lock()
				if !seen[info.ID] && len(found) < limit {
					seen[info.ID] = true
					found = append(found, info.ID)
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if len(found) == 0 && ctx.Err() != nil {
		return nil, fmt.Errorf("look for providers in the DHT: %w", ctx.Err())
	}
	return found, nil
}

func (m market) Quote(ctx context.Context, to protocol.PeerID, offer protocol.Signed[*protocol.Offer]) (protocol.Signed[*protocol.Answer], error) {
	return p2p.Call[*protocol.Offer, *protocol.Answer](ctx, m.host, to, routeQuote, offer)
}

func (m market) Propose(ctx context.Context, to protocol.PeerID, lease protocol.Signed[*protocol.Lease]) (protocol.Signed[*protocol.Decision], error) {
	return p2p.Call[*protocol.Lease, *protocol.Decision](ctx, m.host, to, routeLease, lease)
}

func (m market) Cancel(ctx context.Context, to protocol.PeerID, cancel protocol.Signed[*protocol.Cancel]) (protocol.Signed[*protocol.LeaseStatus], error) {
	return p2p.Call[*protocol.Cancel, *protocol.LeaseStatus](ctx, m.host, to, routeCancel, cancel)
}

func (m market) LeaseStatus(ctx context.Context, to protocol.PeerID, q protocol.Signed[*protocol.LeaseQuery]) (protocol.Signed[*protocol.LeaseStatus], error) {
	return p2p.Call[*protocol.LeaseQuery, *protocol.LeaseStatus](ctx, m.host, to, routeLeaseStatus, q)
}

func (m market) Answer(ctx context.Context, to protocol.PeerID, addrs [][]byte, answer protocol.Signed[*protocol.Answer]) error {
	m.Learn(to, addrs)
	_, err := p2p.Call[*protocol.Answer, *protocol.Ack](ctx, m.host, to, routeAnswer, answer)
	return err
}

func (m market) Heartbeat(ctx context.Context, to protocol.PeerID, hb protocol.Signed[*protocol.Heartbeat]) (protocol.Signed[*protocol.Verdict], error) {
	return p2p.Call[*protocol.Heartbeat, *protocol.Verdict](ctx, m.host, to, routeHeartbeat, hb)
}

func (m market) Logs(ctx context.Context, to protocol.PeerID, chunk protocol.Signed[*protocol.LogChunk]) (protocol.Signed[*protocol.Verdict], error) {
	return p2p.Call[*protocol.LogChunk, *protocol.Verdict](ctx, m.host, to, routeLogs, chunk)
}

func (m market) Result(ctx context.Context, to protocol.PeerID, res protocol.Signed[*protocol.Result]) (protocol.Signed[*protocol.Receipt], error) {
	return p2p.Call[*protocol.Result, *protocol.Receipt](ctx, m.host, to, routeResult, res)
}

// Learn remembers addresses that a peer has signed; those that are none are
// passed over.
func (m market) Learn(id protocol.PeerID, addrs [][]byte) {
	var list []multiaddr.Multiaddr
	for _, b := range addrs {
		if a, err := multiaddr.NewMultiaddrBytes(b); err == nil {
			list = append(list, a)
		}
	}
	if len(list) > 0 {
		m.host.Host().Peerstore().AddAddrs(id, list, learnedTTL)
	}
}

// maxSignedAddrs is how many of a node's addresses go into its messages.
const maxSignedAddrs = 8

func (m market) Addrs() [][]byte {
	var out [][]byte
	for _, a := range m.host.Addrs() {
		if len(out) < maxSignedAddrs {
			out = append(out, a.Bytes())
		}
	}
	return out
}

func (m market) RTT(id protocol.PeerID) time.Duration {
	return m.host.Host().Peerstore().LatencyEWMA(id)
}
