package p2p

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
	"golang.org/x/sync/errgroup"
)

// MaxRoots is how many roots a node announces at most. A DHT key costs some
// twenty messages each time it is published, so roots alone are announced,
// never the blocks under them.
const MaxRoots = 512

// Ways of announcing roots.
const (
	announcers   = 4 // publications at one time
	announceTime = 30 * time.Second
	announceWait = time.Second // before what failed is tried again, at first
)

// RootSource lists the roots of which this node has something now, the one used
// last first. Only the first MaxRoots count.
type RootSource func(ctx context.Context) ([]cid.Cid, error)

// holdings is what the node publishes of the roots that it holds.
type holdings struct {
	wake chan struct{} // something new to publish, one at most

	mu      sync.Mutex
	source  RootSource
	publish sync.Mutex                 // one round at a time; guards told
	told    map[multihashKey]time.Time // when each root was last published
}

// multihashKey is a root as the DHT knows it.
type multihashKey string

func newHoldings() *holdings {
	return &holdings{wake: make(chan struct{}, 1), told: map[multihashKey]time.Time{}}
}

// AnnounceRoots publishes in the DHT, while Run runs, that this node has
// something of the roots that source lists: a root new to the list when
// AnnounceSoon is called, all others every RepublishEvery, long before their
// records lapse. What source lists no longer is not published again; its
// records cannot be taken back, they lapse, and whoever asks until then is told
// that the blocks are not here.
func (h *Host) AnnounceRoots(source RootSource) {
	h.holdings.mu.Lock()
	h.holdings.source = source
	h.holdings.mu.Unlock()
	h.AnnounceSoon()
}

// AnnounceSoon says that the list of roots has changed. It does not wait.
func (h *Host) AnnounceSoon() {
	select {
	case h.holdings.wake <- struct{}{}:
	default:
	}
}

// AnnounceNow publishes the roots that are due at once, and reports what failed.
func (h *Host) AnnounceNow(ctx context.Context) error {
	a := h.holdings
	a.publish.Lock()
	defer a.publish.Unlock()
	a.mu.Lock()
	source := a.source
	a.mu.Unlock()
	if source == nil {
		return nil
	}
	roots, err := source(ctx)
	if err != nil {
		return fmt.Errorf("list the roots to announce: %w", err)
	}
	due, err := a.due(h.cfg.Network, roots[:min(len(roots), MaxRoots)], h.cfg.Now().Add(-h.cfg.RepublishEvery/2))
	if err != nil {
		return err
	}
	return h.provideAll(ctx, due)
}

// due forgets the roots that are no longer listed and returns the keys of those
// that were not published since.
func (a *holdings) due(network string, roots []cid.Cid, since time.Time) ([]cid.Cid, error) {
	listed := make(map[multihashKey]bool, len(roots))
	var due []cid.Cid
	for _, root := range roots {
		key, err := rootKey(network, root)
		if err != nil {
			return nil, err
		}
		k := multihashKey(key.Hash())
		if listed[k] {
			continue
		}
		listed[k] = true
		if told, ok := a.told[k]; !ok || told.Before(since) {
			due = append(due, key)
		}
	}
	for k := range a.told {
		if !listed[k] {
			delete(a.told, k)
		}
	}
	return due, nil
}

// provideAll publishes keys, a few at a time, and notes those that went well.
func (h *Host) provideAll(ctx context.Context, keys []cid.Cid) error {
	var mu sync.Mutex
	var errs []error
	var g errgroup.Group
	g.SetLimit(announcers)
	for _, key := range keys {
		g.Go(func() error {
			one, cancel := context.WithTimeout(quick(ctx), announceTime)
			defer cancel()
			err := h.dht.Provide(one, key, true)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				h.metrics.adverts.WithLabelValues("root failed").Inc()
				return nil
			}
			h.holdings.told[multihashKey(key.Hash())] = h.cfg.Now()
			h.metrics.adverts.WithLabelValues("root published").Inc()
			return nil
		})
	}
	_ = g.Wait() // the errors are in errs
	if len(errs) > 0 {
		return fmt.Errorf("announce roots in the DHT (%d of %d failed, %d peers known): %w",
			len(errs), len(keys), h.dht.RoutingTable().Size(), errors.Join(errs[:min(len(errs), 3)]...))
	}
	return nil
}

// announce publishes roots until ctx ends; what failed is tried again soon.
func (h *Host) announce(ctx context.Context) {
	select {
	case <-h.ready: // before, there is nobody to tell
	case <-ctx.Done():
		return
	}
	retry := announceWait
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.holdings.wake:
		case <-timer.C:
		}
		err := h.AnnounceNow(ctx)
		wait := jitter(h.cfg.RepublishEvery)
		if err != nil && ctx.Err() == nil {
			wait, retry = min(wait, jitter(retry)), min(2*retry, time.Minute)
			h.cfg.Log.Debug("the roots are not all announced", "err", err, "again_in", wait)
		} else {
			retry = announceWait
		}
		timer.Reset(wait)
	}
}

// rootKey is the DHT key under which the holders of a root are found. It is
// made from the root's digest, so that those who keep the record learn nothing
// that leads to the content, and a CIDv0 and the CIDv1 it stands for are one.
func rootKey(network string, root cid.Cid) (cid.Cid, error) {
	if !root.Defined() {
		return cid.Undef, errors.New("key of a root: empty CID")
	}
	sum, err := multihash.Sum(append([]byte("lumbung/"+network+"/root/"), root.Hash()...), multihash.SHA2_256, -1)
	if err != nil {
		return cid.Undef, fmt.Errorf("key of root %s: %w", root, err)
	}
	return cid.NewCidV1(cid.Raw, sum), nil
}

// FindHolders asks the DHT who has something of a root, for at most limit peers
// (0 for all), until it has no more to tell or ctx ends. The records behind it
// are unsigned and outlive their makers: a peer that is named may have nothing.
// Only a root that cannot be looked up is an error.
func (h *Host) FindHolders(ctx context.Context, root cid.Cid, limit int) ([]peer.ID, error) {
	key, err := rootKey(h.cfg.Network, root)
	if err != nil {
		return nil, err
	}
	var out []peer.ID
	for p := range h.findProviders(ctx, key, limit) {
		out = append(out, p.ID)
	}
	return out, nil
}
