package content

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"
)

// blockSource gives blocks as an IPFS node would, through boxo's interface.
type blockSource struct {
	s     *Store
	give  func(c cid.Cid, data []byte) (blocks.Block, bool) // false gives nothing
	mu    sync.Mutex
	asked int
}

func (b *blockSource) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	data, err := b.s.Get(ctx, c)
	if err != nil {
		return nil, err
	}
	return blocks.NewBlockWithCid(data, c)
}

// GetBlocks hangs until ctx ends for what it does not have, as bitswap does.
func (b *blockSource) GetBlocks(ctx context.Context, cids []cid.Cid) (<-chan blocks.Block, error) {
	b.mu.Lock()
	b.asked += len(cids)
	b.mu.Unlock()
	out := make(chan blocks.Block)
	go func() {
		defer close(out)
		hang := false
		for _, c := range cids {
			data, err := b.s.Get(ctx, c)
			blk, ok := blocks.Block(nil), err == nil
			if ok && b.give != nil {
				blk, ok = b.give(c, data)
			} else if ok {
				blk, err = blocks.NewBlockWithCid(data, c)
				ok = err == nil
			}
			if !ok {
				hang = true
				continue
			}
			select {
			case out <- blk:
			case <-ctx.Done():
				return
			}
		}
		if hang {
			<-ctx.Done()
		}
	}()
	return out, nil
}

func TestPull(t *testing.T) {
	s, image, folder := exchangeSample(t)
	for name, root := range map[string]cid.Cid{"image": image, "folder": folder, "leaf": putRaw(t, s, []byte("leaf"))} {
		t.Run(name, func(t *testing.T) {
			to := testStore(t)
			var last FetchProgress
			noErr(t, Pull(t.Context(), to, root, &blockSource{s: s}, PullOptions{Progress: func(p FetchProgress) { last = p }}))
			wantComplete(t, to, root)
			if all, err := DAGSize(t.Context(), s, root); err != nil || last.HaveBytes != all.Bytes || last.Received != all.Bytes || last.TotalBytes < all.Bytes {
				t.Errorf("%+v of %+v, %v", last, all, err)
			}
			again := &blockSource{s: s}
			noErr(t, Pull(t.Context(), to, root, again, PullOptions{}))
			if again.asked != 0 {
				t.Errorf("%d blocks that are here were asked for", again.asked)
			}
		})
	}
}

func TestPullByCIDv0(t *testing.T) {
	s := testStore(t)
	root, err := Add(t.Context(), s, sampleTree(t), AddOptions{})
	noErr(t, err)
	to := testStore(t)
	noErr(t, Pull(t.Context(), to, cid.NewCidV0(root.CID.Hash()), &blockSource{s: s}, PullOptions{}))
	wantComplete(t, to, root.CID)
}

func TestPullFails(t *testing.T) {
	s, _, folder := exchangeSample(t)
	whole := func(c cid.Cid, data []byte) (blocks.Block, bool) {
		b, err := blocks.NewBlockWithCid(data, c)
		return b, err == nil
	}
	sha3, err := multihash.Sum([]byte("x"), multihash.SHA3_256, -1)
	noErr(t, err)
	given := 0
	tests := map[string]struct {
		root cid.Cid
		give func(cid.Cid, []byte) (blocks.Block, bool)
		o    PullOptions
		err  error
	}{
		"lies": {folder, func(c cid.Cid, data []byte) (blocks.Block, bool) {
			return whole(c, append([]byte("x"), data...))
		}, PullOptions{}, ErrMismatch},
		"stops giving": {folder, func(c cid.Cid, data []byte) (blocks.Block, bool) {
			if given++; given > 5 {
				return nil, false
			}
			return whole(c, data)
		}, PullOptions{Idle: 2 * time.Second}, ErrUnavailable},
		"has nothing": {rawRef([]byte("nobody has this")).cid(), whole, PullOptions{Idle: 50 * time.Millisecond}, ErrUnavailable},
		"too much":    {folder, whole, PullOptions{MaxBytes: 1 << 20}, ErrTooLarge},
		"hash":        {cid.NewCidV1(cid.Raw, sha3), whole, PullOptions{}, ErrUnsupportedCID},
		"codec":       {cid.NewCidV1(cid.DagJSON, folder.Hash()), whole, PullOptions{}, ErrUnsupportedCID},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			to := testStore(t)
			var mu sync.Mutex
			give := func(c cid.Cid, data []byte) (blocks.Block, bool) {
				mu.Lock()
				defer mu.Unlock()
				return tt.give(c, data)
			}
			if err := Pull(t.Context(), to, tt.root, &blockSource{s: s, give: give}, tt.o); !errors.Is(err, tt.err) {
				t.Errorf("%v", err)
			}
			if name == "stops giving" && to.Stats().Blocks != 5 {
				t.Errorf("%d blocks stayed of 5 that came", to.Stats().Blocks)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		to := testStore(t)
		err := Pull(ctx, to, folder, &blockSource{s: s, give: func(cid.Cid, []byte) (blocks.Block, bool) {
			cancel()
			return nil, false
		}}, PullOptions{})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

func TestBlockstore(t *testing.T) {
	s := testStore(t)
	root, err := Add(t.Context(), s, sampleTree(t), AddOptions{})
	noErr(t, err)
	b := Blockstore(s)
	data, err := s.Get(t.Context(), root.CID)
	noErr(t, err)
	for _, c := range []cid.Cid{root.CID, cid.NewCidV0(root.CID.Hash())} {
		blk, err := b.Get(t.Context(), c)
		noErr(t, err)
		n, err := b.GetSize(t.Context(), c)
		if has, herr := b.Has(t.Context(), c); !has || herr != nil || err != nil || n != len(data) || blk.Cid() != c || len(blk.RawData()) != n {
			t.Errorf("%s: %v %v %d %v", c, has, herr, n, err)
		}
	}
	if n, err := b.GetSize(t.Context(), putRaw(t, s, nil)); n == 0 || err != nil {
		t.Errorf("an empty block has the size %d, which the server takes for absence: %v", n, err)
	}
	for name, c := range map[string]cid.Cid{"absent": rawRef([]byte("absent")).cid(), "no codec of ours": cid.NewCidV1(cid.DagJSON, root.CID.Hash())} {
		_, gerr := b.Get(t.Context(), c)
		_, serr := b.GetSize(t.Context(), c)
		if has, err := b.Has(t.Context(), c); has || err != nil || !format.IsNotFound(gerr) || !format.IsNotFound(serr) {
			t.Errorf("%s: %v %v %v %v", name, has, err, gerr, serr)
		}
	}
	blk, err := blocks.NewBlockWithCid(data, root.CID)
	noErr(t, err)
	if b.Put(t.Context(), blk) == nil || b.PutMany(t.Context(), []blocks.Block{blk}) == nil || b.DeleteBlock(t.Context(), root.CID) == nil {
		t.Error("the store was changed by way of it")
	}
	if _, err := b.AllKeysChan(t.Context()); err == nil {
		t.Error("it lists all blocks")
	}
}
