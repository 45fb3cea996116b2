package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/api"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/p2p"
	"github.com/lumbung-net/lumbung/p2p/content"
)

// Bounds of fetching by hand.
const (
	maxAsked  = 16 // connected peers asked for a DAG that is not here
	pinSearch = 5 * time.Second
	pinTime   = 24 * time.Hour // for a DAG from IPFS nodes
	pinMost   = 1 << 40        // its bytes
)

// Pin implements api.Backend: what is not here is fetched from the peers that
// have it, of this network or, where they are named or allowed, of IPFS. Of a
// path what it leads to is pinned, and nothing beside it fetched but the folders
// on the way.
func (b backend) Pin(ctx context.Context, r client.PinRequest, progress func(client.Progress)) (client.Added, error) {
	root, below, err := splitPath(r.CID)
	if err != nil {
		return client.Added{}, err
	}
	from, err := b.n.ipfsNodes(r.From)
	if err != nil {
		return client.Added{}, err
	}
	if below != "" {
		if root, err = b.n.pathToPin(ctx, root, below, from, meter(progress)); err != nil {
			return client.Added{}, err
		}
	}
	defer b.n.blocks.Hold(root)()
	if _, _, complete, err := content.Missing(ctx, b.n.blocks, root); err != nil || !complete {
		if err := b.n.fetchPin(ctx, root, from, meter(progress)); err != nil {
			return client.Added{}, err
		}
	}
	size, err := content.DAGSize(ctx, b.n.blocks, root)
	if err != nil {
		return client.Added{}, err
	}
	if err := b.n.db.Pin(ctx, root, ""); err != nil {
		return client.Added{}, err
	}
	b.n.announce(root, false)
	return client.Added{CID: root.String(), Bytes: size.Bytes}, nil
}

// pathToPin is what a path leads to, brought here from whoever has the whole.
func (n *Node) pathToPin(ctx context.Context, root cid.Cid, below string, from []peer.AddrInfo, progress func(job.Progress)) (cid.Cid, error) {
	if len(from) > 0 {
		return cid.Undef, &api.Error{
			Status: http.StatusUnprocessableEntity, Code: "bad_cid", Detail: "a path is not followed on IPFS nodes",
			Remedy: "give the CID of what lies there; `ipfs resolve` tells it",
		}
	}
	if err := n.privateOutputs(ctx, root); err != nil {
		return cid.Undef, err
	}
	e, err := n.whole(ctx, root, below, progress)
	return e.CID, err
}

// ipfsNodes reads the addresses of IPFS nodes, which the operator must allow.
func (n *Node) ipfsNodes(from []string) ([]peer.AddrInfo, error) {
	if len(from) == 0 {
		return nil, nil
	}
	if !n.cfg.IPFS {
		return nil, &api.Error{
			Status: http.StatusForbidden, Code: "ipfs_off", Detail: "this node does not fetch from IPFS nodes",
			Remedy: "start it with `lumbung up --ipfs`, or put `ipfs: true` into its config.yaml; or pin without --from",
		}
	}
	nodes, err := p2p.ParsePeers(from)
	if err != nil {
		return nil, &api.Error{
			Status: http.StatusUnprocessableEntity, Code: "bad_address", Err: err,
			Remedy: "give an address such as /ip4/203.0.113.7/tcp/4001/p2p/12D3KooW…; `ipfs id` prints them",
		}
	}
	return nodes, nil
}

// fetchPin brings a DAG here: from the IPFS nodes that are named, else from this
// network and, where it has not all and the operator allows it, from the IPFS
// nodes that are connected.
func (n *Node) fetchPin(ctx context.Context, root cid.Cid, from []peer.AddrInfo, progress func(job.Progress)) error {
	if len(from) > 0 {
		return notFetched(root, n.pull(ctx, root, from, progress))
	}
	var peers []string
	foreign := n.bitswap.Connected()
	ipfs := map[peer.ID]bool{}
	for _, p := range foreign {
		ipfs[p.ID] = true
	}
	for _, p := range n.host.Peers() {
		if len(peers) < maxAsked && !ipfs[p.ID] {
			peers = append(peers, p.ID.String())
		}
	}
	peers = append(peers, n.findHolders(ctx, root, pinSearch)...)
	err := n.fetchFrom(ctx, root, content.FetchOptions{Peers: peers}, progress)
	if n.cfg.IPFS && errors.Is(err, content.ErrUnavailable) && len(foreign) > 0 {
		if more := n.pull(ctx, root, foreign[:min(len(foreign), maxAsked)], progress); more != nil {
			err = errors.Join(err, more)
		} else {
			err = nil
		}
	}
	return notFetched(root, err)
}

// notFetched says what to do about a DAG that could not be had.
func notFetched(root cid.Cid, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, content.ErrUnsupportedCID), errors.Is(err, content.ErrMalformed), errors.Is(err, content.ErrTooLarge):
		return &api.Error{
			Status: http.StatusUnprocessableEntity, Code: "bad_content", Err: err,
			Remedy: "this store keeps DAGs of raw, dag-pb and dag-cbor blocks of up to 2 MiB, hashed with sha2-256, up to 1 TiB",
		}
	}
	return &api.Error{
		Status: http.StatusBadGateway, Code: "not_fetched", Err: err, Retryable: true,
		Remedy: "connect to a peer that has it, or add it again where it came from; `lumbung pin " + root.String() +
			" --from ADDRESS` names an IPFS node. What came is kept for a while, so trying again goes on from there",
	}
}

// pull brings a DAG here from IPFS nodes.
func (n *Node) pull(ctx context.Context, root cid.Cid, from []peer.AddrInfo, progress func(job.Progress)) error {
	ctx, cancel := context.WithTimeout(ctx, pinTime)
	defer cancel()
	ask, err := n.bitswap.Ask(ctx, root, from)
	if err != nil {
		return err
	}
	err = content.Pull(ctx, n.blocks, root, ask, content.PullOptions{
		MaxBytes: pinMost,
		Progress: func(p content.FetchProgress) {
			progress(job.Progress{Phase: "fetching from IPFS", Done: p.HaveBytes, Total: p.TotalBytes})
		},
	})
	if why := ask.Err(); err != nil && why != nil { // what ended the search says more than that it ended
		err = fmt.Errorf("fetch %s from IPFS nodes: %w", root, why)
	}
	return errors.Join(err, ask.Close())
}

// ExportDAG implements api.Backend.
func (b backend) ExportDAG(ctx context.Context, name string, w io.Writer) error {
	root, err := parseCID(name)
	if err != nil {
		return err
	}
	// Before the first byte, so that what is missing is said instead of sent.
	if _, err := content.DAGSize(ctx, b.n.blocks, root); err != nil {
		return notHere(root, err)
	}
	_, err = content.ExportCAR(ctx, b.n.blocks, root, w, nil)
	return notHere(root, err)
}

// notHere says how to get what is not in the store.
func notHere(root cid.Cid, err error) error {
	if !errors.Is(err, content.ErrNotFound) {
		return err
	}
	return &api.Error{
		Status: http.StatusNotFound, Code: "not_here", Err: err,
		Remedy: "fetch what is missing with `lumbung pin " + root.String() + "`",
	}
}

// ImportDAG implements api.Backend. The roots are pinned, also where not all
// below them came: what did is kept then until the rest does.
func (b backend) ImportDAG(ctx context.Context, r io.Reader, progress func(client.Progress)) (client.Imported, error) {
	defer b.n.blocks.HoldPuts()()
	car, err := content.ImportCAR(ctx, b.n.blocks, r, content.CAROptions{Progress: passOn(meter(progress))})
	out := client.Imported{Roots: []string{}, Blocks: car.Blocks, Bytes: car.Bytes}
	for _, root := range car.Roots {
		if !b.n.blocks.Has(root) {
			continue // nothing to keep
		}
		defer b.n.blocks.Hold(root)()
		if perr := b.n.db.Pin(context.WithoutCancel(ctx), root, "CAR"); perr != nil {
			return out, errors.Join(err, perr)
		}
		b.n.announce(root, false)
		out.Roots = append(out.Roots, root.String())
	}
	if err == nil {
		return out, nil
	}
	return out, badCAR(fmt.Errorf("%w; blocks kept: %d, roots pinned: %d", err, car.Blocks, len(out.Roots)), err)
}

// badCAR tells a CAR that cannot be taken from the node's own failure.
func badCAR(told, err error) error {
	for _, e := range []struct {
		err    error
		remedy string
	}{
		{content.ErrMismatch, "make the CAR again where it came from: a block's bytes are not those that its CID names"},
		{content.ErrUnsupportedCID, "this store keeps raw, dag-pb and dag-cbor blocks hashed with sha2-256; make the DAG again that way"},
		{content.ErrNotWhole, "import the rest too, or fetch it with `lumbung pin CID`"},
		{content.ErrTooLarge, "import parts of it: a block may have 2 MiB, a CAR 1 TiB"},
		{content.ErrMalformed, "check that the file is a whole CAR, of version 1 or 2, and import it again"},
	} {
		if errors.Is(err, e.err) {
			return &api.Error{Status: http.StatusUnprocessableEntity, Code: "bad_car", Err: told, Remedy: e.remedy}
		}
	}
	if errors.Is(err, content.ErrFull) {
		return &api.Error{Status: http.StatusInsufficientStorage, Code: "full", Err: told, Remedy: "collect with `lumbung gc`, or raise --store-max"}
	}
	return told
}
