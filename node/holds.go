package node

import (
	"context"
	"slices"
	"sync"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/p2p/content"
)

// holds are the roots that a request keeps from collection until it is over.
type holds struct {
	mu       sync.Mutex
	releases []func()
}

type holdsKey struct{}

// holding begins a request that gathers content: what is put under the context
// that it returns, and what hold names, stays until release. By then the
// database must name what is to stay longer.
func (n *Node) holding(ctx context.Context) (_ context.Context, release func()) {
	h := &holds{releases: []func(){n.blocks.HoldPuts()}}
	return context.WithValue(ctx, holdsKey{}, h), func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, f := range h.releases {
			f()
		}
		h.releases = nil
	}
}

// hold keeps what a root reaches to the end of the request, if ctx is of one.
// Blocks that were only found are kept by this alone, and those put by this too
// from a collection that had read the database before it named them.
func (n *Node) hold(ctx context.Context, root cid.Cid) {
	h, ok := ctx.Value(holdsKey{}).(*holds)
	if !ok {
		return
	}
	f := n.blocks.Hold(root)
	n.announce(root, false)
	h.mu.Lock()
	h.releases = append(h.releases, f)
	h.mu.Unlock()
}

// roots are what the database keeps. What a peer has named and no store can
// hold, of a codec that is not understood, is left out: it keeps nothing, and
// must not keep everything.
type roots struct{ n *Node }

func (r roots) Roots(ctx context.Context) ([]cid.Cid, error) {
	all, err := r.n.db.Roots(ctx)
	return slices.DeleteFunc(all, func(c cid.Cid) bool {
		_, err := content.Normalize(c)
		return err != nil
	}), err
}
