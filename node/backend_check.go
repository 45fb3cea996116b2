package node

import (
	"context"
	"fmt"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

// CheckBlocks implements api.Backend.
func (b backend) CheckBlocks(ctx context.Context, progress func(client.Progress)) (client.Checked, error) {
	m := meter(progress)
	got, err := b.n.blocks.Check(ctx, roots(b), func(done, total uint64) {
		m(job.Progress{Phase: "checking", Done: done, Total: total})
	})
	if err != nil {
		return client.Checked{}, err
	}
	out := client.Checked{Blocks: got.Blocks, Bytes: got.Bytes, Damaged: got.Damaged}
	if got.Damaged == 0 {
		return out, nil
	}
	names, err := b.rootNames(ctx)
	if err != nil {
		return out, fmt.Errorf("check blocks: %d are damaged and were dropped, but what they are of cannot be told: %w", got.Damaged, err)
	}
	for _, d := range got.Found {
		block := client.DamagedBlock{CID: d.Block.String(), Pack: d.Pack, Offset: d.Offset, Bytes: d.Bytes, Reason: d.Reason}
		for _, r := range d.Roots {
			block.Roots = append(block.Roots, client.DamagedRoot{CID: r.String(), What: names[r]})
		}
		out.Found = append(out.Found, block)
	}
	return out, nil
}

// rootNames says in words what the roots of images and pins are.
func (b backend) rootNames(ctx context.Context) (map[cid.Cid]string, error) {
	names := map[cid.Cid]string{}
	pins, err := b.n.db.Pins(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range pins {
		if names[p.Root] = "pin"; p.Text != "" {
			names[p.Root] = "pin of " + p.Text
		}
	}
	images, err := b.n.db.Images(ctx)
	if err != nil {
		return nil, err
	}
	for _, im := range images {
		root, err := cid.Cast(im.Root)
		if err != nil {
			continue // PutImage lets none in
		}
		name := im.Name
		if name == "" {
			name = im.ID
		}
		names[root] = "image " + name
	}
	return names, nil
}
