package p2p

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/lumbung-net/lumbung/protocol"
)

// CapacitySource makes a provider's record, fresh at the time now.
type CapacitySource func(now time.Time) (protocol.Signed[*protocol.Capacity], error)

// advert is what the node publishes in the DHT.
type advert struct {
	wake chan struct{} // something to publish, one at most

	mu        sync.Mutex
	source    CapacitySource
	last      protocol.Signed[*protocol.Capacity]
	withdrawn bool
	publish   sync.Mutex // one publication at a time
}

func newAdvert() *advert { return &advert{wake: make(chan struct{}, 1)} }

// poke asks for a publication soon; several asks are one.
func (a *advert) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Advertise publishes the provider's record and its classes from now on, while
// Run runs: soon, every RepublishEvery and whenever the node's addresses
// change. It takes the place of an earlier source and of Withdraw.
func (h *Host) Advertise(source CapacitySource) {
	h.advert.mu.Lock()
	h.advert.source, h.advert.withdrawn = source, false
	h.advert.mu.Unlock()
	h.advert.poke()
}

// AdvertiseNow publishes at once and reports what failed.
func (h *Host) AdvertiseNow(ctx context.Context) error {
	h.advert.publish.Lock()
	defer h.advert.publish.Unlock()
	h.advert.mu.Lock()
	source, withdrawn := h.advert.source, h.advert.withdrawn
	h.advert.mu.Unlock()
	if source == nil || withdrawn {
		return nil
	}
	rec, err := source(h.cfg.Now())
	if err != nil {
		return fmt.Errorf("make the capacity record: %w", err)
	}
	if err := checkCapacity(h.cfg.Network, h.id, rec, h.cfg.Now()); err != nil {
		return err
	}
	h.advert.mu.Lock()
	h.advert.last = rec
	h.advert.mu.Unlock()
	err = h.put(ctx, rec)
	outcome := "published"
	if err != nil {
		outcome = "failed"
	}
	h.metrics.adverts.WithLabelValues(outcome).Inc()
	return err
}

// put stores the record under the peer's id and this node under each class.
func (h *Host) put(ctx context.Context, rec protocol.Signed[*protocol.Capacity]) error {
	ctx = quick(ctx)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	g.Go(func() error {
		if err := h.dht.PutValue(ctx, capacityKey(h.id), rec.Raw); err != nil {
			return fmt.Errorf("publish the capacity record in the DHT (%d peers known): %w", h.dht.RoutingTable().Size(), err)
		}
		return nil
	})
	for _, class := range rec.Msg.GetClasses() {
		key, err := classKey(h.cfg.Network, class)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		g.Go(func() error {
			if err := h.dht.Provide(ctx, key, true); err != nil {
				return fmt.Errorf("publish class %s in the DHT (%d peers known): %w", class, h.dht.RoutingTable().Size(), err)
			}
			return nil
		})
	}
	return g.Wait()
}

// Withdraw publishes a record that offers nothing and stops publishing. The
// class records cannot be taken back, they lapse; readers go by the record.
func (h *Host) Withdraw(ctx context.Context) error {
	h.advert.publish.Lock()
	defer h.advert.publish.Unlock()
	h.advert.mu.Lock()
	last, withdrawn := h.advert.last, h.advert.withdrawn
	h.advert.withdrawn = true
	h.advert.mu.Unlock()
	if last.IsZero() || withdrawn {
		return nil
	}
	empty, err := h.emptied(last.Msg)
	if err != nil {
		return err
	}
	if err := h.put(ctx, empty); err != nil {
		return fmt.Errorf("withdraw the adverts (they lapse within %s): %w", recordLife, err)
	}
	h.metrics.adverts.WithLabelValues("withdrawn").Inc()
	return nil
}

// emptied is the next record after last, one of a provider without resources.
// It lives as long as a record can, so that last does not come back after it.
func (h *Host) emptied(last *protocol.Capacity) (protocol.Signed[*protocol.Capacity], error) {
	now := h.cfg.Now()
	m, ok := proto.Clone(last).(*protocol.Capacity)
	if !ok {
		return protocol.Signed[*protocol.Capacity]{}, errors.New("copy the capacity record")
	}
	m.Seq++
	m.IssuedMs, m.ExpiresMs = now.UnixMilli(), now.Add(protocol.MaxCapLife).UnixMilli()
	m.Paused, m.Classes, m.Gpus, m.Addrs = true, nil, nil, nil
	m.CpuMillis, m.CpuMillisFree, m.MemoryBytes, m.MemoryBytesFree, m.DiskBytes, m.DiskBytesFree = 0, 0, 0, 0, 0, 0
	rec, err := protocol.Seal(h.cfg.Key, h.cfg.Network, m)
	if err != nil {
		return rec, fmt.Errorf("make the record that withdraws the adverts: %w", err)
	}
	return rec, nil
}

// advertise publishes until ctx ends; a failure is tried again soon.
func (h *Host) advertise(ctx context.Context) {
	select {
	case <-h.ready: // before, there is nobody to publish to
	case <-ctx.Done():
		return
	}
	retry := time.Second
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.advert.wake:
		case <-timer.C:
		}
		pub, cancel := context.WithTimeout(ctx, time.Minute)
		err := h.AdvertiseNow(pub)
		cancel()
		wait := jitter(h.cfg.RepublishEvery)
		if err != nil && ctx.Err() == nil {
			wait, retry = min(wait, jitter(retry)), min(2*retry, time.Minute)
			h.cfg.Log.Debug("the adverts are not all published", "err", err, "again_in", wait)
		} else {
			retry = time.Second
		}
		timer.Reset(wait)
	}
}

// jitter spreads a wait by a fifth to either side.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

// classKey is the DHT key under which the providers of a class are found.
func classKey(network, class string) (cid.Cid, error) {
	if err := protocol.CheckClass(class); err != nil {
		return cid.Undef, err
	}
	sum, err := multihash.Sum([]byte("lumbung/"+network+"/class/"+class), multihash.SHA2_256, -1)
	if err != nil {
		return cid.Undef, fmt.Errorf("key of class %s: %w", class, err)
	}
	return cid.NewCidV1(cid.Raw, sum), nil
}

// FindProviders asks the DHT who serves a class, at most limit peers (0 for
// all), each once and as soon as it is known. The records behind it are
// unsigned and outlive their makers: ask each peer for its Capacity. An unknown
// class has no providers. Stopping the iteration ends the search.
func (h *Host) FindProviders(ctx context.Context, class string, limit int) iter.Seq[peer.AddrInfo] {
	key, err := classKey(h.cfg.Network, class)
	if err != nil {
		return func(func(peer.AddrInfo) bool) {}
	}
	return h.findProviders(ctx, key, limit)
}

// findProviders asks the DHT who is recorded under a key.
func (h *Host) findProviders(ctx context.Context, key cid.Cid, limit int) iter.Seq[peer.AddrInfo] {
	return func(yield func(peer.AddrInfo) bool) {
		ctx, cancel := context.WithCancel(quick(ctx))
		found := h.dht.FindProvidersAsync(ctx, key, limit)
		defer func() {
			cancel()
			for range found { // the search ends before we return
				continue
			}
		}()
		for p := range found {
			if p.ID == h.id {
				continue
			}
			p.Addrs = h.gate.filter(p.Addrs)
			if !yield(p) {
				return
			}
		}
	}
}

// CapacityRoute is the route on which providers serve their record.
func CapacityRoute() Route {
	return Route{Name: "capacity", Timeout: 5 * time.Second, Relayed: true}
}

// Capacity is a peer's record: live from the peer itself, else the last one
// the DHT has. A withdrawn record is paused and has no classes.
func (h *Host) Capacity(ctx context.Context, id peer.ID) (protocol.Signed[*protocol.Capacity], error) {
	query, err := protocol.Seal(h.cfg.Key, h.cfg.Network, &protocol.CapacityQuery{})
	if err != nil {
		return protocol.Signed[*protocol.Capacity]{}, err
	}
	rec, live := Call[*protocol.CapacityQuery, *protocol.Capacity](ctx, h, id, CapacityRoute(), query)
	if live == nil {
		live = checkCapacity(h.cfg.Network, id, rec, h.cfg.Now())
		return rec, live
	}
	if ctx.Err() != nil {
		return rec, live
	}
	rec, stored := h.StoredCapacity(ctx, id)
	if stored != nil {
		return rec, errors.Join(live, stored)
	}
	return rec, nil
}

// StoredCapacity is a peer's record as the DHT has it.
func (h *Host) StoredCapacity(ctx context.Context, id peer.ID) (protocol.Signed[*protocol.Capacity], error) {
	raw, err := h.dht.GetValue(quick(ctx), capacityKey(id))
	if err != nil {
		return protocol.Signed[*protocol.Capacity]{}, fmt.Errorf("capacity record of peer %s in the DHT: %w", id, err)
	}
	return openCapacity(h.cfg.Network, id, raw, h.cfg.Now())
}
