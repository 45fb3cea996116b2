package content

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
)

// flip flips a bit of a block where it lies on the disk.
func flip(t *testing.T, s *Store, r ref, at int64) (path string, offset uint64) {
	t.Helper()
	s.mu.Lock()
	e := s.blocks[r.key]
	s.mu.Unlock()
	path = filepath.Join(s.dir, packName(e.at.pack))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	noErr(t, err)
	var b [1]byte
	_, err = f.ReadAt(b[:], int64(e.at.offset)+at)
	noErr(t, err)
	b[0] ^= 0x10
	_, err = f.WriteAt(b[:], int64(e.at.offset)+at)
	noErr(t, err)
	noErr(t, f.Close())
	return filepath.Base(path), uint64(e.at.offset)
}

func TestCheckFindsFlippedBits(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	one, a := testDAG(t, s, 1, 5)
	two, b := testDAG(t, s, 2, 5)
	loose := noise(99, 700)
	putRaw(t, s, loose)
	noErr(t, s.Sync())
	var done uint64
	got, err := s.Check(t.Context(), rootList{one, two}, func(n, _ uint64) { done = n })
	noErr(t, err)
	if got.Blocks != 13 || got.Damaged != 0 || got.Bytes != s.Stats().Bytes || done != got.Bytes {
		t.Fatalf("a sound store: %+v, %d done", got, done)
	}
	pack, offset := flip(t, s, rawRef(a[3]), 299)
	flip(t, s, rawRef(loose), 0)
	r, err := refOf(two)
	noErr(t, err)
	flip(t, s, r, 2)
	got, err = s.Check(t.Context(), rootList{one, two}, nil)
	noErr(t, err)
	if got.Blocks != 13 || got.Damaged != 3 || len(got.Found) != 3 {
		t.Fatalf("%+v", got)
	}
	want := map[cid.Cid][]cid.Cid{rawRef(a[3]).cid(): {one}, two: {two}, rawRef(loose).cid(): nil}
	for _, d := range got.Found {
		if roots, ok := want[d.Block]; !ok || !slices.Equal(roots, d.Roots) || d.Reason == "" {
			t.Errorf("%+v", d)
		}
		if d.Block == rawRef(a[3]).cid() && (d.Pack != pack || d.Offset != offset || d.Bytes != 300) {
			t.Errorf("it lies elsewhere: %+v", d)
		}
	}
	noErr(t, s.Close())
	s = openStore(t, dir)
	if s.Has(two) || s.Has(rawRef(a[3]).cid()) || !s.Has(one) || s.Stats().Blocks != 10 {
		t.Error("damaged blocks came back, or others went")
	}
	wantBlock(t, s, rawRef(b[0]).cid(), b[0])
	putRaw(t, s, a[3]) // fetched again
	got, err = s.Check(t.Context(), rootList{one}, nil)
	noErr(t, err)
	if got.Damaged != 0 || got.Blocks != 11 {
		t.Errorf("after mending: %+v", got)
	}
}

// A pack that was cut short costs the blocks behind the cut.
func TestCheckOfACutPack(t *testing.T) {
	s := testStore(t)
	for i := range 4 {
		putRaw(t, s, noise(uint64(i), 100))
	}
	noErr(t, os.Truncate(filepath.Join(s.dir, packName(1)), 250))
	got, err := s.Check(t.Context(), rootList{}, nil)
	noErr(t, err)
	if got.Damaged != 2 || s.Stats().Blocks != 2 {
		t.Errorf("%+v", got)
	}
}

func TestCheckIsCancelled(t *testing.T) {
	s := testStore(t)
	putRaw(t, s, []byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Check(ctx, rootList{}, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A block seen right lately is served unhashed; time and Check end that.
func TestServedLately(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	dir := t.TempDir()
	s, err := Open(dir, Options{Now: func() time.Time { return now }})
	noErr(t, err)
	defer func() { noErr(t, s.Close()) }()
	wrong := func(data []byte, what string) {
		t.Helper()
		if _, err := s.getServed(rawRef(data), nil); !errors.Is(err, ErrNotFound) || s.Has(rawRef(data).cid()) {
			t.Errorf("%s: a damaged block was served: %v", what, err)
		}
	}
	for i, end := range []func(){
		func() { now = now.Add(trustFor) },
		func() { _, err := s.Check(t.Context(), rootList{}, nil); noErr(t, err) },
	} {
		data := noise(uint64(i), 400)
		putRaw(t, s, data)
		flip(t, s, rawRef(data), 5)
		if _, err := s.getServed(rawRef(data), nil); err != nil {
			t.Errorf("hashed what was put a moment ago: %v", err)
		}
		end()
		wrong(data, "after the end of trust")
	}
	data := noise(50, 400)
	putRaw(t, s, data)
	now = now.Add(time.Hour)
	if _, err := s.getServed(rawRef(data), nil); err != nil { // hashed, and trusted again
		t.Fatal(err)
	}
	flip(t, s, rawRef(data), 5)
	if _, err := s.getServed(rawRef(data), nil); err != nil {
		t.Errorf("hashed what was read right a moment ago: %v", err)
	}
	if _, err := s.Get(t.Context(), rawRef(data).cid()); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get trusted: %v", err)
	}
}
