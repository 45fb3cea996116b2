package content

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/boxo/ipld/merkledag"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
)

// dagService lends a Store to boxo's UnixFS code. It carries its context since
// boxo's importer adds nodes without one.
type dagService struct {
	ctx context.Context
	s   *Store
}

var _ format.DAGService = dagService{}

func (d dagService) Get(ctx context.Context, c cid.Cid) (format.Node, error) {
	if err := errors.Join(ctx.Err(), d.ctx.Err()); err != nil {
		return nil, err
	}
	r, err := refOf(c)
	if err != nil {
		return nil, err
	}
	data, err := d.s.get(r, nil)
	if err != nil {
		return nil, notHere(r, err)
	}
	return decodeNode(r, data)
}

// decodeNode reads a raw or dag-pb block as boxo's node.
func decodeNode(r ref, data []byte) (format.Node, error) {
	blk, err := blocks.NewBlockWithCid(data, r.cid())
	if err != nil {
		return nil, fmt.Errorf("block %s: %w", r, err)
	}
	switch r.codec {
	case codecRaw:
		return merkledag.DecodeRawBlock(blk)
	case codecPB:
		n, err := merkledag.DecodeProtobufBlock(blk)
		if err != nil {
			return nil, fmt.Errorf("block %s: %w: %w", r, ErrMalformed, err)
		}
		return n, nil
	default:
		return nil, fmt.Errorf("block %s: %w: it is no file or folder", r, ErrMalformed)
	}
}

func (d dagService) GetMany(ctx context.Context, cids []cid.Cid) <-chan *format.NodeOption {
	out := make(chan *format.NodeOption, len(cids))
	for _, c := range cids {
		n, err := d.Get(ctx, c)
		out <- &format.NodeOption{Node: n, Err: err}
	}
	close(out)
	return out
}

// Add puts a node made by boxo. Its CID was computed from its bytes just now.
func (d dagService) Add(ctx context.Context, n format.Node) error {
	if err := errors.Join(ctx.Err(), d.ctx.Err()); err != nil {
		return err
	}
	r, err := refOf(n.Cid())
	if err != nil {
		return err
	}
	data := n.RawData()
	if len(data) > MaxBlockHard {
		return fmt.Errorf("block %s of %d bytes: %w: the limit is %d", r, len(data), ErrTooLarge, MaxBlockHard)
	}
	return d.s.put(r.key, data)
}

func (d dagService) AddMany(ctx context.Context, nodes []format.Node) error {
	for _, n := range nodes {
		if err := d.Add(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// Remove does nothing: blocks go by collection alone. boxo removes the nodes a
// growing directory no longer uses.
func (d dagService) Remove(context.Context, cid.Cid) error { return nil }

// RemoveMany does nothing, as Remove.
func (d dagService) RemoveMany(context.Context, []cid.Cid) error { return nil }
