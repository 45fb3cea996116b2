package p2p

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	bsclient "github.com/ipfs/boxo/bitswap/client"
	bsmsg "github.com/ipfs/boxo/bitswap/message"
	bspb "github.com/ipfs/boxo/bitswap/message/pb"
	boxoexchange "github.com/ipfs/boxo/exchange"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// ErrNotThere says that peers answered, and do not have what was asked for.
var ErrNotThere = errors.New("no peer that was asked has it")

// Ask is a search for the blocks of one root at named IPFS nodes, by bitswap.
// Nobody else is asked, and what others send is not listened to.
type Ask struct {
	boxoexchange.Fetcher

	b      *Bitswap
	root   cid.Cid
	peers  map[peer.ID]bool
	client *bsclient.Client
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	denied map[peer.ID]struct{} // they do not have the root
	away   map[peer.ID]struct{} // they are not connected
}

// Ask connects to IPFS nodes and asks them whether they have a root. Its
// Fetcher then gets blocks from them, until Close, until ctx ends, or until all
// of them are gone or have said that they do not have the root: Err tells which.
func (b *Bitswap) Ask(ctx context.Context, root cid.Cid, from []peer.AddrInfo) (*Ask, error) {
	a := &Ask{b: b, root: root, peers: map[peer.ID]bool{}, denied: map[peer.ID]struct{}{}, away: map[peer.ID]struct{}{}}
	a.ctx, a.cancel = context.WithCancelCause(ctx)
	if err := a.connect(from); err != nil {
		a.cancel(err)
		return nil, err
	}
	a.client = bsclient.New(a.ctx, b.net, nil, b.blocks, bsclient.WithoutDuplicatedBlockStats())
	a.Fetcher = a.client.NewSession(a.ctx)
	for id := range a.peers {
		a.client.PeerConnected(id)
	}
	b.mu.Lock()
	b.asks[a] = struct{}{} // from here on it hears of its peers
	b.mu.Unlock()
	// The session only wants to hear from those who have a block; this makes the
	// others say that they do not.
	probe := bsmsg.New(false)
	probe.AddEntry(root, 1, bspb.Message_Wantlist_Have, true)
	for id := range a.peers {
		if b.h.host.Network().Connectedness(id) != network.Connected {
			a.lost(id, a.away)
		} else if err := b.net.SendMessage(a.ctx, id, probe); err != nil {
			return nil, errors.Join(fmt.Errorf("ask peer %s: %w", id, err), a.Close())
		}
	}
	return a, nil
}

// Connected are the IPFS nodes that are connected now.
func (b *Bitswap) Connected() []peer.AddrInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []peer.AddrInfo
	for id := range b.foreign {
		if b.h.host.Network().Connectedness(id) == network.Connected {
			out = append(out, peer.AddrInfo{ID: id})
		}
	}
	return out
}

// connect makes peers of those that can be reached and speak bitswap.
func (a *Ask) connect(from []peer.AddrInfo) error {
	var errs []error
	for _, p := range from {
		a.b.invite(p.ID, 1)
		defer a.b.invite(p.ID, -1)
		if err := a.connectTo(p); err != nil {
			errs = append(errs, err)
			continue
		}
		a.peers[p.ID] = true
	}
	if len(a.peers) > 0 {
		return nil
	}
	if len(errs) == 0 {
		errs = append(errs, fmt.Errorf("no IPFS node is named or connected: %w", ErrUnreachable))
	}
	return errors.Join(errs...)
}

func (a *Ask) connectTo(p peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(a.ctx, connectTime)
	defer cancel()
	if p.ID == a.b.h.id {
		return fmt.Errorf("peer %s: that is this node itself", p.ID)
	}
	if addrs := a.b.h.gate.filter(p.Addrs); len(addrs) == 0 && len(p.Addrs) > 0 {
		return fmt.Errorf("peer %s: %v lies inside a private network that this machine is not part of: %w", p.ID, p.Addrs, ErrUnreachable)
	}
	if err := a.b.h.Connect(ctx, p); err != nil {
		return err
	}
	if ok, err := a.b.h.host.Peerstore().SupportsProtocols(p.ID, bitswapIDs...); err != nil || len(ok) == 0 {
		return fmt.Errorf("peer %s does not speak bitswap, so it is no IPFS node that gives blocks: %w", p.ID, errors.Join(ErrUnreachable, err))
	}
	// What it told of itself may be heard of only when the invitation is over.
	if v, err := a.b.h.host.Peerstore().Get(p.ID, "ProtocolVersion"); err == nil && !strings.HasPrefix(fmt.Sprint(v), versionPrefix) {
		a.b.welcome(p.ID)
	}
	return nil
}

// Err says why the search is over, nil while it goes on.
func (a *Ask) Err() error { return context.Cause(a.ctx) }

// Close ends the search.
func (a *Ask) Close() error {
	a.cancel(context.Canceled)
	a.b.mu.Lock()
	delete(a.b.asks, a)
	a.b.mu.Unlock()
	return a.client.Close()
}

// receive hands a message on, and notes who does not have the root.
func (a *Ask) receive(ctx context.Context, from peer.ID, m bsmsg.BitSwapMessage) {
	for _, c := range m.DontHaves() {
		if c.Equals(a.root) {
			a.lost(from, a.denied)
		}
	}
	a.client.ReceiveMessage(ctx, from, m)
}

func (a *Ask) connected(id peer.ID) {
	a.mu.Lock()
	delete(a.away, id)
	a.mu.Unlock()
	a.client.PeerConnected(id)
}

func (a *Ask) disconnected(id peer.ID) {
	a.lost(id, a.away)
	a.client.PeerDisconnected(id)
}

// lost notes a peer that nothing comes from, and ends the search when it was the
// last one.
func (a *Ask) lost(id peer.ID, where map[peer.ID]struct{}) {
	a.mu.Lock()
	where[id] = struct{}{}
	open := 0
	for p := range a.peers {
		_, denied := a.denied[p]
		_, away := a.away[p]
		if !denied && !away {
			open++
		}
	}
	denied := len(a.denied)
	a.mu.Unlock()
	switch {
	case open > 0:
	case denied > 0:
		a.cancel(fmt.Errorf("%w: %d of %d said so", ErrNotThere, denied, len(a.peers)))
	default:
		a.cancel(fmt.Errorf("all %d peers that were asked are gone: %w", len(a.peers), ErrUnreachable))
	}
}
