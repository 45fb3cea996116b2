package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multihash"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/p2p"
	"github.com/lumbung-net/lumbung/p2p/content"
)

func p2pPart(t *testing.T, id string) multiaddr.Multiaddr {
	t.Helper()
	a, err := multiaddr.NewMultiaddr("/p2p/" + id)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestHoldersAreFoundInTheDHT has one node fetch from another that it was told
// nothing of, after the first holder is gone.
func TestHoldersAreFoundInTheDHT(t *testing.T) {
	boot := start(t, func(c *Config) { c.Roles = []string{RoleBootstrap} })
	via := func(c *Config) { c.Bootstrap = boot.Addrs()[:1] }
	first, second := start(t, via), start(t, via)
	dir, files := writeTree(t)
	added, err := first.c.Add(t.Context(), client.PathRequest{Path: dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	root := parsed(t, added.CID)
	for _, r := range []*running{first, second} {
		if err := r.host.WaitBootstrapped(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	fetch := func(to *running, from ...peer.ID) error {
		return to.fetch(t.Context(), root, content.KindDAG, nil, from, 0, func(job.Progress) {})
	}
	if err := fetch(second, first.host.ID()); err != nil {
		t.Fatal(err)
	}
	secondID := second.host.ID()
	first.stop(t)()

	third := start(t, via)
	if err := third.host.WaitBootstrapped(t.Context()); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(third.host.Peers(), func(p p2p.PeerInfo) bool { return p.ID == secondID }) {
		t.Log("the two are connected already; what is asked is still what the DHT names")
	}
	if err := fetch(third); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := third.c.Cat(t.Context(), added.CID+"/sub/big", &b); err != nil || !bytes.Equal(b.Bytes(), files["sub/big"]) {
		t.Errorf("%d bytes, %v", b.Len(), err)
	}
	// By now the third is a holder itself.
	for ctx := t.Context(); ; {
		got, err := boot.host.FindHolders(ctx, root, 0)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(got, third.host.ID()) {
			break
		}
	}
}

func TestUsedRootsAreBounded(t *testing.T) {
	u := newUsedRoots()
	root := func(i int) cid.Cid {
		sum, err := multihash.Sum(fmt.Append(nil, i), multihash.SHA2_256, -1)
		if err != nil {
			t.Fatal(err)
		}
		return cid.NewCidV1(cid.Raw, sum)
	}
	u.note(root(0), true)
	for i := 1; i <= p2p.MaxRoots; i++ {
		u.note(root(0), false) // still an image, and used again
		u.note(root(i), false)
	}
	list := u.list()
	if len(list) != p2p.MaxRoots || list[0] != root(0) || list[1] != root(p2p.MaxRoots) || list[len(list)-1] != root(2) {
		t.Errorf("%d roots, the first %v", len(list), list[:2])
	}
}

func TestHeldRootsAreThoseHere(t *testing.T) {
	us := start(t, nil)
	dir, _ := writeTree(t)
	added, err := us.c.Add(t.Context(), client.PathRequest{Path: dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	image, err := us.c.LoadImage(t.Context(), client.PathRequest{Path: dir, Name: "tree"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	held := func() []string {
		list, err := us.heldRoots(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, c := range list {
			out = append(out, c.String())
		}
		return out
	}
	if got := held(); len(got) != 2 || got[0] != image.CID || got[1] != added.CID {
		t.Errorf("held %v, want the image %s, then %s", got, image.CID, added.CID)
	}
	ctx := context.WithoutCancel(t.Context())
	if err := us.c.Unpin(ctx, added.CID); err != nil {
		t.Fatal(err)
	}
	if _, err := us.c.GC(ctx); err != nil {
		t.Fatal(err)
	}
	if got := held(); len(got) != 1 || got[0] != image.CID {
		t.Errorf("held %v after the collection, want %s", got, image.CID)
	}
}

// States that others took the place of are removed, and nothing else is that
// nobody holds: it may be of use yet.
func TestReplacedCheckpointsAreRemoved(t *testing.T) {
	us := start(t, nil)
	add := func(text string) cid.Cid {
		t.Helper()
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		added, err := content.Add(t.Context(), us.blocks, dir, content.AddOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return added.CID
	}
	put := us.blocks.HoldPuts() // as whoever else puts blocks does
	old, newer, idle := add("a state"), add("the state after"), add("cached")
	err := us.db.Update(t.Context(), func(tx job.Tx) error {
		return errors.Join(tx.HoldBlocks("checkpoint:j:0", old.Bytes(), time.Time{}), tx.ReleaseBlocks("checkpoint:j:0"), tx.HoldBlocks("checkpoint:j:0", newer.Bytes(), time.Time{}))
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := us.removeDropped(t.Context()); err != nil {
			t.Fatal(err)
		}
		put() // what could not go while somebody put is not forgotten
	}
	for c, want := range map[cid.Cid]bool{old: false, newer: true, idle: true} {
		if us.blocks.Has(c) != want {
			t.Errorf("%s is here: %v", c, !want)
		}
	}
	if left, err := us.db.Dropped(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("%v %v", left, err)
	}
}
