package node

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/p2p"
	"github.com/lumbung-net/lumbung/p2p/content"
)

// usedRoots are the roots that this life has fetched, for the order in which
// they are announced.
type usedRoots struct {
	mu    sync.Mutex
	uses  uint64 // counts, for an order
	roots map[cid.Cid]use
}

type use struct {
	at    uint64
	image bool
}

func newUsedRoots() *usedRoots { return &usedRoots{roots: map[cid.Cid]use{}} }

// note remembers a use; beyond p2p.MaxRoots the one longest ago is forgotten.
func (u *usedRoots) note(root cid.Cid, image bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.uses++
	u.roots[root] = use{at: u.uses, image: image || u.roots[root].image}
	if len(u.roots) <= p2p.MaxRoots {
		return
	}
	oldest := root
	for r, at := range u.roots {
		if at.at < u.roots[oldest].at {
			oldest = r
		}
	}
	delete(u.roots, oldest)
}

// list are the roots, images first, since many want them, then the one used
// last first.
func (u *usedRoots) list() []cid.Cid {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := make([]cid.Cid, 0, len(u.roots))
	for root := range u.roots {
		out = append(out, root)
	}
	slices.SortFunc(out, func(a, b cid.Cid) int {
		x, y := u.roots[a], u.roots[b]
		if x.image != y.image {
			if x.image {
				return -1
			}
			return 1
		}
		return cmp.Compare(y.at, x.at)
	})
	return out
}

// announce tells the DHT soon that something of a root is here.
func (n *Node) announce(root cid.Cid, image bool) {
	n.used.note(root, image)
	n.host.AnnounceSoon()
}

// heldRoots are the roots to announce: those of which something is here, as
// many as a node may announce. A root being fetched is among them as soon as its
// first block is here; a collected one no longer is. What a job holds is public
// to whoever knows its CID, and the DHT is told nothing that leads to it.
func (n *Node) heldRoots(ctx context.Context) ([]cid.Cid, error) {
	images, err := n.db.Images(ctx)
	if err != nil {
		return nil, err
	}
	list := n.used.list()
	for _, im := range images {
		root, err := cid.Cast(im.Root)
		if err != nil {
			continue // PutImage lets none in
		}
		list = append(list, root)
	}
	kept, err := roots{n}.Roots(ctx)
	if err != nil {
		return nil, err
	}
	list = append(list, kept...)
	seen := map[cid.Cid]bool{}
	var out []cid.Cid
	for _, root := range list {
		if len(out) == p2p.MaxRoots {
			break
		}
		if !seen[root] && n.blocks.Has(root) && n.public(ctx, root) {
			out = append(out, root)
		}
		seen[root] = true
	}
	return out, nil
}

// Ways of looking for holders while a fetch runs.
const (
	holdersAsked = 32 // peers that one search looks for
	holdersEvery = 30 * time.Second
	holdersTime  = 20 * time.Second // for one search
)

// holders looks in the DHT for peers that have something of a root, now and
// every so often, until stop; found lists those met so far.
func (n *Node) holders(ctx context.Context, root cid.Cid) (found func() []string, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var mu sync.Mutex
	var ids []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			some := n.findHolders(ctx, root, holdersTime)
			mu.Lock()
			for _, id := range some {
				if !slices.Contains(ids, id) {
					ids = append(ids, id)
				}
			}
			mu.Unlock()
			t := time.NewTimer(holdersEvery)
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case <-t.C:
			}
		}
	}()
	found = func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(ids)
	}
	return found, func() {
		cancel()
		<-done
	}
}

// findHolders is one search.
func (n *Node) findHolders(ctx context.Context, root cid.Cid, within time.Duration) []string {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	peers, err := n.host.FindHolders(ctx, root, holdersAsked)
	if err != nil {
		n.log.Debug("look for holders", "block", root.String(), "err", err)
	}
	var ids []string
	for _, p := range peers {
		ids = append(ids, p.String())
	}
	return ids
}

// fetchFrom brings a DAG here from the peers that o names, and announces it from
// its first block on.
func (n *Node) fetchFrom(ctx context.Context, root cid.Cid, o content.FetchOptions, progress func(job.Progress)) error {
	announced := false
	var received uint64
	o.Progress = func(p content.FetchProgress) { // of one goroutine, which ends with the fetch
		received = p.Received
		if p.HaveBytes > 0 && !announced {
			announced = true
			n.announce(root, o.Kind == content.KindImage)
		}
		progress(job.Progress{Phase: "fetching", Done: p.HaveBytes, Total: p.TotalBytes})
	}
	began := n.now()
	err := n.exchange.Fetch(ctx, root, o)
	if err == nil {
		n.link.measured(ctx, received, n.now().Sub(began))
	}
	return err
}
