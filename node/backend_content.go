package node

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/node/api"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/node/store"
	"github.com/lumbung-net/lumbung/p2p/content"
)

// LoadImage implements api.Backend.
func (b backend) LoadImage(ctx context.Context, r client.PathRequest, progress func(client.Progress)) (client.Image, error) {
	o := content.LoadOptions{Name: r.Name, Platform: r.Platform}
	im, err := b.n.images.load(ctx, r.Path, o, meter(progress))
	if err != nil {
		return client.Image{}, badContent(err)
	}
	return b.stored(ctx, im)
}

func imageOf(im *store.Image) client.Image {
	root, err := cid.Cast(im.Root)
	if err != nil {
		root = cid.Undef // PutImage lets none in
	}
	return client.Image{
		Name: im.Name, ID: im.ID, CID: root.String(), Size: im.Size, Platform: im.Platform, Layers: im.Layers, Created: im.Created,
	}
}

// Images implements api.Backend.
func (b backend) Images(ctx context.Context) ([]client.Image, error) {
	list, err := b.n.db.Images(ctx)
	out := make([]client.Image, 0, len(list))
	for _, im := range list {
		out = append(out, imageOf(im))
	}
	return out, err
}

// RemoveImage implements api.Backend. The blocks go with the next collection.
func (b backend) RemoveImage(ctx context.Context, ref string) error {
	return b.n.db.DeleteImage(ctx, ref)
}

// Add implements api.Backend. What was added is pinned: it stays until
// `lumbung pin --rm`.
func (b backend) Add(ctx context.Context, r client.PathRequest, progress func(client.Progress)) (client.Added, error) {
	defer b.n.blocks.HoldPuts()()
	added, err := content.Add(ctx, b.n.blocks, r.Path, content.AddOptions{Memory: b.n.db, Progress: passOn(meter(progress))})
	if err != nil {
		return client.Added{}, err
	}
	defer b.n.blocks.Hold(added.CID)()
	if err := b.n.db.Pin(ctx, added.CID, r.Path); err != nil {
		return client.Added{}, err
	}
	return client.Added{CID: added.CID.String(), Bytes: added.Bytes, Files: int(added.Files)}, nil
}

// Cat implements api.Backend.
func (b backend) Cat(ctx context.Context, path string, w io.Writer) error {
	root, below, err := splitPath(path)
	if err != nil {
		return err
	}
	if err := b.n.privateOutputs(ctx, root); err != nil {
		return err
	}
	defer b.n.blocks.Hold(root)()
	return b.n.cat(ctx, root, below, w)
}

func parseCID(s string) (cid.Cid, error) {
	root, err := content.ParseCID(s)
	if err != nil {
		return root, &api.Error{
			Status: http.StatusUnprocessableEntity, Code: "bad_cid", Err: err,
			Remedy: "give a CID such as `lumbung add` prints, bafy… or bafk…",
		}
	}
	return root, nil
}

// Unpin implements api.Backend.
func (b backend) Unpin(ctx context.Context, name string) error {
	root, err := parseCID(name)
	if err != nil {
		return err
	}
	return b.n.db.Unpin(ctx, root)
}

// Pins implements api.Backend.
func (b backend) Pins(ctx context.Context) ([]client.Pin, error) {
	roots, err := b.n.db.Pins(ctx)
	out := make([]client.Pin, 0, len(roots))
	for _, p := range roots {
		pin := client.Pin{CID: p.Root.String(), Created: p.Created}
		if size, err := content.DAGSize(ctx, b.n.blocks, p.Root); err == nil {
			pin.Bytes = size.Bytes
		}
		out = append(out, pin)
	}
	return out, err
}

// GC implements api.Backend.
func (b backend) GC(ctx context.Context) (client.Collected, error) {
	if _, err := b.n.db.ExpireHolds(ctx, b.n.now()); err != nil {
		return client.Collected{}, err
	}
	stats, err := b.n.blocks.GC(ctx, roots(b), content.GCOptions{})
	if err != nil {
		return client.Collected{}, fmt.Errorf("collect blocks: %w", err)
	}
	return client.Collected{Blocks: uint64(stats.Blocks), Bytes: stats.Bytes}, nil
}
