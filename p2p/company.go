package p2p

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	lprotocol "github.com/libp2p/go-libp2p/core/protocol"

	"github.com/lumbung-net/lumbung/protocol"
)

// Ways of dialling to get back into the network.
const (
	maxDialWait   = time.Minute
	connectTime   = 15 * time.Second
	rememberedTry = 8
)

// Ready is closed once the node is in the network: connected to another node
// with the DHT's table begun, or the first node of a network that has no
// bootstrap nodes and knows no peers.
func (h *Host) Ready() <-chan struct{} { return h.ready }

// WaitBootstrapped waits until the node is in the network.
func (h *Host) WaitBootstrapped(ctx context.Context) error {
	select {
	case <-h.ready:
		return nil
	case <-h.life.Done():
		return errors.New("the host was closed before it found the network")
	case <-ctx.Done():
		return fmt.Errorf("none of %d bootstrap nodes and no peer met before has answered (check their addresses and this machine's connection with netcheck): %w",
			len(h.boot), ctx.Err())
	}
}

func (h *Host) setReady() { h.readied.Do(func() { close(h.ready) }) }

// wake tells those who keep up connections that a peer came or went.
func (h *Host) wake(id peer.ID) {
	h.mu.Lock()
	w := h.watchers[id]
	h.mu.Unlock()
	for _, c := range []chan struct{}{w, h.lonely} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// keepConnected dials one bootstrap node whenever it is not connected.
func (h *Host) keepConnected(ctx context.Context, info peer.AddrInfo) {
	wake := make(chan struct{}, 1)
	h.mu.Lock()
	h.watchers[info.ID] = wake
	h.mu.Unlock()
	h.protect(info.ID, info.Addrs)
	wait := h.cfg.dialBackoff
	for {
		if h.host.Network().Connectedness(info.ID) == network.Connected {
			wait = h.cfg.dialBackoff
			h.joined(ctx, info.ID)
			select {
			case <-wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		if err := h.dial(ctx, info); err != nil {
			h.cfg.Log.Debug("a bootstrap node does not answer", "peer", info.ID, "err", err, "again_in", wait)
			if !pause(ctx, jitter(wait), wake) {
				return
			}
			wait = min(2*wait, maxDialWait)
		}
	}
}

// keepCompany dials peers met before: at the start, and whenever no peer is
// connected.
func (h *Host) keepCompany(ctx context.Context) {
	known := h.book.recent(rememberedTry)
	if len(h.boot) == 0 && len(known) == 0 {
		h.setReady()
	}
	h.dialAny(ctx, known)
	wait := h.cfg.dialBackoff
	for {
		if peers := h.company(); len(peers) > 0 {
			wait = h.cfg.dialBackoff
			for _, id := range peers {
				select {
				case <-h.ready:
				default:
					h.joined(ctx, id)
				}
			}
			select {
			case <-h.lonely:
				continue
			case <-ctx.Done():
				return
			}
		}
		h.dialAny(ctx, h.book.recent(bookSize))
		if len(h.company()) > 0 {
			continue
		}
		if !pause(ctx, jitter(wait), h.lonely) {
			return
		}
		wait = min(2*wait, maxDialWait)
	}
}

// dialAny dials peers, a few at a time, until enough are connected.
func (h *Host) dialAny(ctx context.Context, peers []peer.AddrInfo) {
	for len(peers) > 0 && ctx.Err() == nil && len(h.company()) < rememberedTry {
		batch := peers[:min(len(peers), rememberedTry)]
		peers = peers[len(batch):]
		var g sync.WaitGroup
		for _, p := range batch {
			if p.ID == h.id {
				continue
			}
			g.Go(func() {
				if err := h.dial(ctx, p); err != nil {
					h.cfg.Log.Debug("a peer met before does not answer", "peer", p.ID, "err", err)
				}
			})
		}
		g.Wait()
	}
}

func (h *Host) dial(ctx context.Context, info peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	if err := h.Connect(ctx, info); err != nil {
		return err
	}
	h.joined(ctx, info.ID)
	return nil
}

// joined begins the DHT's table with a connected peer and says that the node
// is in the network. A peer that has not said that it is of this
// network does not count yet.
func (h *Host) joined(ctx context.Context, id peer.ID) {
	if !h.ours(id) {
		return
	}
	kad := lprotocol.ID(protocol.DHTPrefix(h.cfg.Network) + "/kad/1.0.0")
	if ok, err := h.host.Peerstore().SupportsProtocols(id, kad); err == nil && len(ok) > 0 {
		added, err := h.dht.RoutingTable().TryAddPeer(id, true, false)
		if err != nil {
			h.cfg.Log.Debug("the DHT's table has no room for a peer", "peer", id, "err", err)
		}
		if added {
			// The table fills better before the first lookup than during it, but
			// peers that are gone must not keep the node waiting.
			pause(ctx, probeTime, h.dht.RefreshRoutingTable())
		}
	}
	h.setReady()
}

// remember writes the peers met to their file, every so often.
func (h *Host) remember(ctx context.Context) {
	tick := time.NewTicker(h.cfg.RememberEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := h.saveBook(); err != nil {
				h.cfg.Log.Warn("peers met are not remembered", "err", err)
			}
		}
	}
}

// saveBook notes who is connected directly, and how to reach them again.
func (h *Host) saveBook() error {
	var met []peer.AddrInfo
	for _, id := range h.company() {
		if h.host.Network().Connectedness(id) != network.Connected || h.blame.refused(id) {
			continue
		}
		met = append(met, peer.AddrInfo{ID: id, Addrs: h.gate.filter(h.host.Peerstore().Addrs(id))})
	}
	h.book.note(met, h.cfg.Now())
	return h.book.save()
}

// pause waits, or less when woken; false says that ctx has ended.
func pause[T any](ctx context.Context, d time.Duration, wake <-chan T) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wake:
	case <-t.C:
	}
	return true
}
