package p2p

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

func testRoot(t testing.TB, n int) cid.Cid {
	t.Helper()
	sum, err := multihash.Sum(fmt.Appendf(nil, "root %d", n), multihash.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	return cid.NewCidV1(cid.DagProtobuf, sum)
}

// rootList is a source of roots that a test changes.
type rootList struct {
	mu    sync.Mutex
	roots []cid.Cid
	err   error
}

func (l *rootList) set(roots ...cid.Cid) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.roots = roots
}

func (l *rootList) list(context.Context) ([]cid.Cid, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.roots), l.err
}

func TestHoldersAreFound(t *testing.T) {
	boot := newHost(t, func(c *Config) { c.DHT = DHTServer })
	run(t, boot)
	holder, other, seeker := newHost(t, via(boot)), newHost(t, via(boot)), newHost(t, via(boot))
	for _, h := range []*Host{holder, other, seeker} {
		run(t, h)
		if err := h.WaitBootstrapped(limited(t)); err != nil {
			t.Fatal(err)
		}
	}
	a, b := testRoot(t, 1), testRoot(t, 2)
	var of rootList
	of.set(a)
	holder.AnnounceRoots(of.list)
	if err := holder.AnnounceNow(limited(t)); err != nil {
		t.Fatal(err)
	}
	find := func(root cid.Cid) []string {
		got, err := seeker.FindHolders(limited(t), root, 0)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, id := range got {
			out = append(out, id.String())
		}
		return out
	}
	if got := find(a); !slices.Equal(got, []string{holder.ID().String()}) {
		t.Errorf("holders of the announced root: %v", got)
	}
	if got := find(cid.NewCidV0(a.Hash())); !slices.Equal(got, []string{holder.ID().String()}) {
		t.Errorf("holders by the CIDv0 of the root: %v", got)
	}
	if got := find(b); len(got) != 0 {
		t.Errorf("holders of a root that nobody announced: %v", got)
	}
	// A root that is new to the list is announced soon, by Run alone.
	of.set(b, a)
	holder.AnnounceSoon()
	for ctx := limited(t); len(find(b)) == 0; {
		if ctx.Err() != nil {
			t.Fatal("the new root was not announced")
		}
	}
	if _, err := seeker.FindHolders(limited(t), cid.Undef, 0); err == nil {
		t.Error("an empty CID was looked up")
	}
}

func TestRootsAreDueInTime(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	a := newHoldings()
	say := func(since time.Time, roots ...cid.Cid) int {
		t.Helper()
		due, err := a.due("test", roots, since)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range due {
			a.told[multihashKey(key.Hash())] = now
		}
		return len(due)
	}
	one, two := testRoot(t, 1), testRoot(t, 2)
	if n := say(now, one, one, cid.NewCidV0(one.Hash())); n != 1 {
		t.Errorf("%d due of one new root", n)
	}
	if n := say(now, one, two); n != 1 {
		t.Errorf("%d due of a new and a told root", n)
	}
	if n := say(now.Add(time.Minute), one, two); n != 2 {
		t.Errorf("%d due of two that were told before", n)
	}
	if say(now); len(a.told) != 0 {
		t.Errorf("%d roots are remembered that are not listed", len(a.told))
	}
	if n := say(now, one); n != 1 {
		t.Error("a root that came back is not due")
	}
	if _, err := a.due("test", []cid.Cid{cid.Undef}, now); err == nil {
		t.Error("an empty CID was taken")
	}
}

func TestAnnouncingSaysWhatFailed(t *testing.T) {
	h := newHost(t)
	if err := h.AnnounceNow(limited(t)); err != nil {
		t.Errorf("nothing to announce: %v", err)
	}
	var of rootList
	of.err = errors.New("no database")
	h.AnnounceRoots(of.list)
	if err := h.AnnounceNow(limited(t)); !errors.Is(err, of.err) {
		t.Errorf("a failing source: %v", err)
	}
	of.err = nil
	of.set(testRoot(t, 1))
	if err := h.AnnounceNow(limited(t)); err == nil {
		t.Error("announced although nobody is there")
	}
	if len(h.holdings.told) != 0 {
		t.Error("what failed counts as told")
	}
}

func TestKeysOfRootsTellNothing(t *testing.T) {
	root := testRoot(t, 1)
	key, err := rootKey("test", root)
	if err != nil {
		t.Fatal(err)
	}
	other, err := rootKey("test2", root)
	if err != nil {
		t.Fatal(err)
	}
	if key.Hash().String() == root.Hash().String() || key.Equals(other) {
		t.Error("the key of a root is the root's digest, or that of another network")
	}
}
