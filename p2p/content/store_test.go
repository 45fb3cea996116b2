package content

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"pgregory.net/rapid"
)

func TestPutGet(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	ctx := t.Context()
	data := noise(1, 1000)
	c := putRaw(t, s, data)
	noErr(t, s.Put(ctx, c, data)) // again
	wantBlock(t, s, c, data)
	if n, ok := s.Size(c); !ok || n != 1000 {
		t.Errorf("size %d %v", n, ok)
	}
	empty := putRaw(t, s, nil)
	wantBlock(t, s, empty, nil)
	if st := s.Stats(); st.Blocks != 2 || st.Bytes != 1000 || st.DiskBytes != 1000 {
		t.Errorf("stats %+v", st)
	}
	if _, err := Open(dir, Options{}); err == nil {
		t.Error("two stores in one folder")
	}
	noErr(t, s.Close())
	if err := s.Put(ctx, rawRef([]byte("x")).cid(), []byte("x")); !errors.Is(err, ErrClosed) {
		t.Errorf("put after close: %v", err)
	}
	if _, err := s.Get(ctx, c); !errors.Is(err, ErrClosed) {
		t.Errorf("get after close: %v", err)
	}
	s = openStore(t, dir)
	wantBlock(t, s, c, data)
	wantBlock(t, s, empty, nil)
}

func TestPutRefuses(t *testing.T) {
	s := testStore(t)
	ctx := t.Context()
	data := []byte("block")
	sum := func(code uint64) cid.Cid {
		h, err := mh.Sum(data, code, -1)
		noErr(t, err)
		return cid.NewCidV1(cid.Raw, h)
	}
	h, err := mh.Sum(data, mh.SHA2_256, -1)
	noErr(t, err)
	for _, tc := range []struct {
		name string
		c    cid.Cid
		data []byte
		want error
	}{
		{"other bytes", sum(mh.SHA2_256), []byte("blocK"), ErrMismatch},
		{"sha2-512", sum(mh.SHA2_512), data, ErrUnsupportedCID},
		{"identity", sum(mh.IDENTITY), data, ErrUnsupportedCID},
		{"dag-json", cid.NewCidV1(cid.DagJSON, h), data, ErrUnsupportedCID},
		{"undefined", cid.Undef, data, ErrUnsupportedCID},
		{"too large", rawRef(make([]byte, MaxBlockHard+1)).cid(), make([]byte, MaxBlockHard+1), ErrTooLarge},
		{"largest", rawRef(make([]byte, MaxBlockHard)).cid(), make([]byte, MaxBlockHard), nil},
		{"v0", cid.NewCidV0(h), data, nil},
	} {
		if err := s.Put(ctx, tc.c, tc.data); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	if !s.Has(cid.NewCidV1(cid.DagProtobuf, h)) {
		t.Error("a CIDv0 is not the CIDv1 it stands for")
	}
	if _, err := ParseCID("not a cid"); err == nil {
		t.Error("parsed nonsense")
	}
	c, err := ParseCID(cid.NewCidV0(h).String())
	if err != nil || c != cid.NewCidV1(cid.DagProtobuf, h) {
		t.Errorf("parse v0: %v %v", c, err)
	}
}

// What was synced is there after the process is gone without a goodbye, and
// every cut of the last records and bytes leaves a store that opens.
func TestCutEverywhere(t *testing.T) {
	src := t.TempDir()
	s := openStore(t, src)
	var blocks [][]byte
	for i := range 6 {
		b := noise(uint64(i), 20+i)
		blocks = append(blocks, b)
		putRaw(t, s, b)
		noErr(t, s.Sync())
	}
	index, err := os.ReadFile(filepath.Join(src, "index"))
	noErr(t, err)
	packed, err := os.ReadFile(filepath.Join(src, packName(1)))
	noErr(t, err)
	check := func(t *testing.T, index, packed []byte, whole int) {
		dir := t.TempDir()
		noErr(t, os.WriteFile(filepath.Join(dir, "index"), index, 0o600))
		noErr(t, os.WriteFile(filepath.Join(dir, packName(1)), packed, 0o600))
		for round := range 2 { // what was repaired stays repaired
			s, err := Open(dir, Options{})
			noErr(t, err)
			for i, b := range blocks {
				_, err := s.Get(t.Context(), rawRef(b).cid())
				if i < whole && err != nil || i >= whole && round == 0 && !errors.Is(err, ErrNotFound) {
					t.Fatalf("round %d block %d of %d whole: %v", round, i, whole, err)
				}
			}
			for _, b := range blocks {
				putRaw(t, s, b)
			}
			for _, b := range blocks {
				wantBlock(t, s, rawRef(b).cid(), b)
			}
			noErr(t, s.Close())
		}
	}
	for cut := len(indexMagic) + 3*recordSize; cut <= len(index); cut++ {
		check(t, index[:cut], packed, (cut-len(indexMagic))/recordSize)
	}
	for cut := range len(indexMagic) {
		check(t, index[:cut], packed, 0)
	}
	end := 0
	for i, b := range blocks {
		for cut := end; cut < end+len(b); cut++ {
			if i >= 3 {
				check(t, index, packed[:cut], i)
			}
		}
		end += len(b)
	}
}

// Bytes put but not synced are lost with the process, and nothing else is.
func TestUnsyncedIsCutOff(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	kept := noise(1, 100)
	putRaw(t, s, kept)
	noErr(t, s.Sync())
	lost := noise(2, 100)
	putRaw(t, s, lost)
	crashed := t.TempDir()
	noErr(t, os.CopyFS(crashed, os.DirFS(dir)))
	s2 := openStore(t, crashed)
	wantBlock(t, s2, rawRef(kept).cid(), kept)
	if s2.Has(rawRef(lost).cid()) {
		t.Error("a block that was not synced is known")
	}
	if st := s2.Stats(); st.DiskBytes != 100 {
		t.Errorf("stats %+v: the lost bytes were not cut off", st)
	}
}

func TestFlippedBit(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	good, bad := noise(1, 500), noise(2, 500)
	putRaw(t, s, good)
	c := putRaw(t, s, bad)
	noErr(t, s.Sync())
	f, err := os.OpenFile(filepath.Join(dir, packName(1)), os.O_WRONLY, 0)
	noErr(t, err)
	_, err = f.WriteAt([]byte{bad[7] ^ 4}, 507)
	noErr(t, err)
	noErr(t, f.Close())
	if _, err := s.Get(t.Context(), c); !errors.Is(err, ErrNotFound) {
		t.Fatalf("damaged block: %v", err)
	}
	if s.Has(c) || s.Stats().Damaged != 1 {
		t.Error("a damaged block is still known")
	}
	wantBlock(t, s, rawRef(good).cid(), good)
	noErr(t, s.Close())
	s = openStore(t, dir)
	if s.Has(c) {
		t.Error("a damaged block came back")
	}
	putRaw(t, s, bad)
	wantBlock(t, s, c, bad)
}

func TestDamagedIndexRecordCostsOneBlock(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	for i := range 10 {
		putRaw(t, s, noise(uint64(i), 50))
	}
	noErr(t, s.Close())
	path := filepath.Join(dir, "index")
	b, err := os.ReadFile(path)
	noErr(t, err)
	b[len(indexMagic)+4*recordSize+20] ^= 1
	noErr(t, os.WriteFile(path, b, 0o600))
	s = openStore(t, dir)
	for i := range 10 {
		if has := s.Has(rawRef(noise(uint64(i), 50)).cid()); has != (i != 4) {
			t.Errorf("block %d: %v", i, has)
		}
	}
}

func TestQuota(t *testing.T) {
	s, err := Open(t.TempDir(), Options{MaxBytes: 1000})
	noErr(t, err)
	defer func() { noErr(t, s.Close()) }()
	putRaw(t, s, noise(1, 900))
	b := noise(2, 200)
	if err := s.Put(t.Context(), rawRef(b).cid(), b); !errors.Is(err, ErrFull) {
		t.Fatalf("over quota: %v", err)
	}
	_, err = s.GC(t.Context(), rootList{}, GCOptions{Target: 1})
	noErr(t, err)
	putRaw(t, s, b)
}

type rootList []cid.Cid

func (r rootList) Roots(context.Context) ([]cid.Cid, error) { return r, nil }

// testDAG puts a two-level DAG of n leaves and returns its root.
func testDAG(t testing.TB, s *Store, seed uint64, n int) (root cid.Cid, leaves [][]byte) {
	t.Helper()
	var chunks []sized
	for i := range n {
		b := noise(seed*1000+uint64(i), 300)
		leaves = append(leaves, b)
		putRaw(t, s, b)
		chunks = append(chunks, sized{rawRef(b), 300})
	}
	data, r, err := encodeChunks(chunks)
	noErr(t, err)
	noErr(t, s.put(r.key, data))
	return r.cid(), leaves
}

func TestGCKeepsRootsAndHolds(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	rooted, a := testDAG(t, s, 1, 5)
	held, b := testDAG(t, s, 2, 5)
	_, gone := testDAG(t, s, 3, 5)
	release := s.Hold(held)
	releasePuts := s.HoldPuts()
	_, fresh := testDAG(t, s, 4, 5)
	st, err := s.GC(t.Context(), rootList{rooted}, GCOptions{})
	noErr(t, err)
	if st.Blocks != 6 || st.Kept != 18 || st.DiskBytes == 0 {
		t.Errorf("%+v", st)
	}
	for _, leaf := range append(append(a, b...), fresh...) {
		wantBlock(t, s, rawRef(leaf).cid(), leaf)
	}
	for _, leaf := range gone {
		if s.Has(rawRef(leaf).cid()) {
			t.Fatal("kept a block nothing holds")
		}
	}
	if st := s.Stats(); st.DiskBytes != st.Bytes {
		t.Errorf("room not given back: %+v", st)
	}
	release()
	release() // twice does no harm
	releasePuts()
	st, err = s.GC(t.Context(), rootList{rooted}, GCOptions{})
	noErr(t, err)
	if st.Blocks != 12 {
		t.Errorf("after release: %+v", st)
	}
	noErr(t, s.Close())
	s = openStore(t, dir)
	for _, leaf := range a {
		wantBlock(t, s, rawRef(leaf).cid(), leaf)
	}
	if got := s.Stats().Blocks; got != 6 {
		t.Errorf("%d blocks after reopening, want 6", got)
	}
}

func TestGCOldestFirst(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s, err := Open(t.TempDir(), Options{Now: func() time.Time { return now }})
	noErr(t, err)
	defer func() { noErr(t, s.Close()) }()
	var cids []cid.Cid
	for i := range 4 {
		cids = append(cids, putRaw(t, s, noise(uint64(i), 100)))
		now = now.Add(2 * time.Hour)
	}
	wantBlock(t, s, cids[0], noise(0, 100)) // used now
	st, err := s.GC(t.Context(), rootList{}, GCOptions{Target: 150})
	noErr(t, err)
	if st.Blocks != 2 || st.Idle != 2 || s.Has(cids[1]) || s.Has(cids[2]) {
		t.Errorf("%+v", st)
	}
	st, err = s.GC(t.Context(), rootList{}, GCOptions{MaxBytes: 100})
	noErr(t, err)
	if st.Blocks != 1 || !s.Has(cids[0]) {
		t.Errorf("%+v", st)
	}
}

// rootsAt says what to keep in the midst of a collection.
type rootsAt func() []cid.Cid

func (f rootsAt) Roots(context.Context) ([]cid.Cid, error) { return f(), nil }

// What a root set keeps can be read at any moment of any collection, which waits
// for no reader.
func TestConcurrentUse(t *testing.T) {
	s := testStore(t)
	root, leaves := testDAG(t, s, 9, 20)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 100 {
				b := noise(uint64(i*(g%2+1)), 2000)
				if err := s.Put(t.Context(), rawRef(b).cid(), b); err != nil {
					t.Error(err)
				}
				if i%10 == 0 {
					if err := s.Sync(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	over := make(chan struct{})
	var readers sync.WaitGroup
	read := func(leaf []byte) {
		if got, err := s.Get(t.Context(), rawRef(leaf).cid()); err != nil || !bytes.Equal(got, leaf) {
			t.Errorf("a block that is kept, during a collection: %v", err)
		}
	}
	for range 2 {
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				default:
					read(leaves[i%len(leaves)])
				}
			}
		})
	}
	var collected uint64
	for i := range 20 {
		roots := rootsAt(func() []cid.Cid { read(leaves[i]); return []cid.Cid{root} })
		st, err := s.GC(t.Context(), roots, GCOptions{})
		if err != nil {
			t.Error(err)
		}
		collected += st.Blocks
	}
	wg.Wait()
	close(over)
	readers.Wait()
	if collected == 0 {
		t.Error("nothing was ever collected")
	}
	for _, b := range leaves {
		wantBlock(t, s, rawRef(b).cid(), b)
	}
}

// The store behaves as a map over any sequence of puts, syncs, collections,
// reopenings and crashes.
func TestStoreIsAMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := t.TempDir()
		s, err := Open(dir, Options{})
		noErr(t, err)
		defer func() { noErr(t, s.Close()) }()
		synced, known := map[int]bool{}, map[int]bool{}
		block := func(i int) []byte { return noise(uint64(i), 10+i*7) }
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			i := rapid.IntRange(0, 15).Draw(rt, "block")
			switch rapid.SampledFrom([]string{"put", "put", "put", "get", "sync", "gc", "reopen", "crash"}).Draw(rt, "op") {
			case "put":
				putRaw(t, s, block(i))
				known[i] = true
			case "get":
				got, err := s.Get(t.Context(), rawRef(block(i)).cid())
				if known[i] != (err == nil) || err == nil && !bytes.Equal(got, block(i)) {
					rt.Fatalf("get %d: %v, known %v", i, err, known[i])
				}
			case "sync":
				noErr(t, s.Sync())
				synced = clone(known)
			case "gc":
				_, err := s.GC(t.Context(), rootList{rawRef(block(i)).cid()}, GCOptions{})
				noErr(t, err)
				for j := range known {
					if j != i {
						delete(known, j)
					}
				}
				synced = clone(known)
			case "reopen":
				noErr(t, s.Close())
				s, err = Open(dir, Options{})
				noErr(t, err)
				synced = clone(known)
			case "crash":
				next := t.TempDir()
				noErr(t, os.CopyFS(next, os.DirFS(dir)))
				noErr(t, s.Close())
				dir = next
				s, err = Open(dir, Options{})
				noErr(t, err)
				known = clone(synced)
			}
		}
		for i := range 16 {
			if s.Has(rawRef(block(i)).cid()) != known[i] {
				rt.Fatalf("has %d is not %v", i, known[i])
			}
		}
	})
}

func clone(m map[int]bool) map[int]bool {
	out := map[int]bool{}
	for k := range m {
		out[k] = true
	}
	return out
}

func FuzzIndexRecord(f *testing.F) {
	var b [recordSize]byte
	r := record{kind: recPut, key: key{1}, at: place{1, 2, 3}, time: 4}
	r.encode(&b)
	f.Add(b[:])
	f.Add(make([]byte, recordSize))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < recordSize {
			return
		}
		in := [recordSize]byte(data)
		r, err := decodeRecord(&in)
		if err != nil {
			return
		}
		var out [recordSize]byte
		r.encode(&out)
		if out != in {
			t.Fatal("a record does not survive reading and writing")
		}
	})
}

func TestManyPacks(t *testing.T) {
	s := testStore(t)
	// Fill a pack on paper, so that the next block begins another.
	putRaw(t, s, []byte("first"))
	s.mu.Lock()
	s.cur.size = packSize - 1
	s.mu.Unlock()
	putRaw(t, s, []byte("second"))
	wantBlock(t, s, rawRef([]byte("first")).cid(), []byte("first"))
	wantBlock(t, s, rawRef([]byte("second")).cid(), []byte("second"))
	if n := len(s.packs); n != 2 {
		t.Errorf("%d packs", n)
	}
	noErr(t, s.Close())
	s = openStore(t, s.dir)
	wantBlock(t, s, rawRef([]byte("first")).cid(), []byte("first"))
	wantBlock(t, s, rawRef([]byte("second")).cid(), []byte("second"))
}
