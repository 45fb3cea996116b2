package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/api"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/p2p/content"
)

// AddStream implements api.Backend. What was added is pinned.
func (b backend) AddStream(ctx context.Context, r io.Reader, progress func(client.Progress)) (client.Added, error) {
	defer b.n.blocks.HoldPuts()()
	added, err := content.AddReader(ctx, b.n.blocks, r, content.AddOptions{Progress: passOn(meter(progress))})
	if err != nil {
		return client.Added{}, err
	}
	defer b.n.blocks.Hold(added.CID)()
	if err := b.n.db.Pin(ctx, added.CID, "stdin"); err != nil {
		return client.Added{}, err
	}
	return client.Added{CID: added.CID.String(), Bytes: added.Bytes, Files: int(added.Files)}, nil //nolint:gosec // one
}

// splitPath takes CID/path, with /ipfs/ before it or without, apart.
func splitPath(path string) (root cid.Cid, below string, err error) {
	name, below, _ := strings.Cut(strings.TrimPrefix(path, "/ipfs/"), "/")
	root, err = parseCID(name)
	return root, below, err
}

// maxLookups bounds the blocks that are fetched one after the other to follow
// one path.
const maxLookups = 1 << 12

// lazily does what needs some blocks under a root, and again whenever one was
// missing and has been fetched. Fetching is begun only then, and ended with it:
// not all of the DAG is brought here for a part of it.
func (n *Node) lazily(ctx context.Context, root cid.Cid, do func() error) error {
	err := do()
	var missing *content.MissingError
	if !errors.As(err, &missing) {
		return err
	}
	defer n.blocks.Hold(root)()
	f := n.exchange.Start(ctx, root, content.FetchOptions{Peers: n.askable(ctx, root)})
	defer f.Stop()
	for range maxLookups {
		if err := f.Need(ctx, []cid.Cid{missing.CID}); err != nil {
			return notFetched(root, err)
		}
		if err = do(); !errors.As(err, &missing) {
			return err
		}
	}
	return err
}

// askable are peers that may have a DAG: those that are connected, and those
// that the DHT names.
func (n *Node) askable(ctx context.Context, root cid.Cid) []string {
	var peers []string
	for _, p := range n.host.Peers() {
		if len(peers) < maxAsked {
			peers = append(peers, p.ID.String())
		}
	}
	return append(peers, n.findHolders(ctx, root, pinSearch)...)
}

// resolve follows a path under a root, fetching the folders on its way.
func (n *Node) resolve(ctx context.Context, root cid.Cid, below string) (e content.Entry, err error) {
	err = n.lazily(ctx, root, func() error {
		e, err = content.Resolve(ctx, n.blocks, root, below)
		return err
	})
	return e, noPath(err)
}

// noPath says what to do about a path that does not exist.
func noPath(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &api.Error{Status: http.StatusNotFound, Code: "no_path", Err: err, Remedy: "`lumbung ls CID` shows what there is"}
	}
	return err
}

// whole brings all of what a path leads to here.
func (n *Node) whole(ctx context.Context, root cid.Cid, below string, progress func(job.Progress)) (content.Entry, error) {
	e, err := n.resolve(ctx, root, below)
	if err != nil {
		return e, err
	}
	_, _, complete, err := content.Missing(ctx, n.blocks, e.CID)
	if err != nil || complete {
		return e, err
	}
	err = n.fetchFrom(ctx, e.CID, content.FetchOptions{Peers: n.askable(ctx, root)}, progress)
	if errors.Is(err, content.ErrUnavailable) {
		err = n.fetchPin(ctx, e.CID, nil, progress) // who has the part alone
	}
	return e, err
}

// cat writes a file, fetching it first.
func (n *Node) cat(ctx context.Context, root cid.Cid, below string, w io.Writer) error {
	e, err := n.resolve(ctx, root, below)
	if err == nil && e.Kind == content.EntryFile {
		e, err = n.whole(ctx, root, below, func(job.Progress) {})
	}
	if err != nil {
		return err
	}
	return content.Cat(ctx, n.blocks, e.CID, "", w) // which says what is no file
}

// List implements api.Backend: of what is not here, the folder's own blocks and
// those that tell what its entries are get fetched.
func (b backend) List(ctx context.Context, path string) ([]client.DirEntry, error) {
	root, below, err := splitPath(path)
	if err != nil {
		return nil, err
	}
	if err := b.n.privateOutputs(ctx, root); err != nil {
		return nil, err
	}
	var list []content.Entry
	err = b.n.lazily(ctx, root, func() error {
		if list, err = content.List(ctx, b.n.blocks, root, below); err != nil {
			return err
		}
		for _, e := range list {
			if e.Kind == content.EntryUnknown {
				_, err := content.Resolve(ctx, b.n.blocks, e.CID, "")
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, noPath(err)
	}
	out := make([]client.DirEntry, 0, len(list))
	for _, e := range list {
		out = append(out, client.DirEntry{Name: e.Name, CID: e.CID.String(), Kind: e.Kind, Size: e.Size, Mode: uint32(e.Mode.Perm())})
	}
	return out, nil
}

// GetPath implements api.Backend. Links that lead out of a folder are left out:
// what was fetched may be anybody's.
func (b backend) GetPath(ctx context.Context, r client.GetRequest, progress func(client.Progress)) (client.Got, error) {
	root, below, err := splitPath(r.Path)
	if err != nil {
		return client.Got{}, err
	}
	if err := b.n.privateOutputs(ctx, root); err != nil {
		return client.Got{}, err
	}
	defer b.n.blocks.Hold(root)()
	e, err := b.n.whole(ctx, root, below, meter(progress))
	if err != nil {
		return client.Got{}, err
	}
	defer b.n.blocks.Hold(e.CID)()
	out, err := content.ExportWith(ctx, b.n.blocks, e.CID, r.Dest, content.ExportOptions{Progress: passOn(meter(progress))})
	if err != nil {
		return client.Got{}, fmt.Errorf("get %s: %w", r.Path, err)
	}
	return client.Got{CID: e.CID.String(), Path: r.Dest, Bytes: out.Bytes, Files: out.Files, Skipped: out.Skipped}, nil
}
