package content

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipld/unixfs"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	"github.com/ipfs/go-cid"
)

// opens counts the files that adding opens.
type opens struct {
	mu    sync.Mutex
	names []string
}

func (o *opens) note(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.names = append(o.names, name)
}

func (o *opens) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.names
	o.names = nil
	slices.Sort(out)
	return out
}

// later is a clock that is well past any change of the test's files.
func later() time.Time { return time.Now().Add(time.Hour) }

func remembering(o *opens) AddOptions {
	return AddOptions{Memory: &ShortMemory{}, clock: later, opened: o.note}
}

// What has not changed is not opened again; what has is.
func TestAddRemembers(t *testing.T) {
	s := testStore(t)
	dir := sampleTree(t)
	var seen opens
	o := remembering(&seen)
	first, err := Add(t.Context(), s, dir, o)
	noErr(t, err)
	all := seen.take()
	if len(all) == 0 || uint64(len(all)) > first.Files {
		t.Fatalf("%d of %d files opened", len(all), first.Files)
	}
	again, err := Add(t.Context(), s, dir, o)
	noErr(t, err)
	if got := seen.take(); len(got) > 0 || again != first {
		t.Errorf("opened again: %v; %+v, before %+v", got, again, first)
	}
	// A byte, with its time put back: the inode's own time tells.
	p := filepath.Join(dir, "plain")
	fi, err := os.Stat(p)
	noErr(t, err)
	data, err := os.ReadFile(p)
	noErr(t, err)
	data[0] ^= 1
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	noErr(t, err)
	_, err = f.WriteAt(data, 0)
	noErr(t, errors.Join(err, f.Close(), os.Chtimes(p, fi.ModTime(), fi.ModTime())))
	changed, err := Add(t.Context(), s, dir, o)
	noErr(t, err)
	if got := fmt.Sprint(seen.take()); got != "[plain]" || changed.CID == first.CID {
		t.Errorf("opened %s, root %s, before %s", got, changed.CID, first.CID)
	}
	var buf bytes.Buffer
	noErr(t, Cat(t.Context(), s, changed.CID, "plain", &buf))
	if !bytes.Equal(buf.Bytes(), data) {
		t.Error("the old bytes")
	}
	// Permissions are part of what a file becomes.
	noErr(t, os.Chmod(p, 0o600))
	if r, err := Add(t.Context(), s, dir, o); err != nil || r.CID == changed.CID || fmt.Sprint(seen.take()) != "[plain]" {
		t.Errorf("after chmod: %v %v", r.CID, err)
	}
	// Another file in its place, and one that is gone.
	noErr(t, os.WriteFile(p+".new", data, 0o600))
	noErr(t, os.Rename(p+".new", p))
	noErr(t, os.Remove(filepath.Join(dir, "run.sh")))
	if _, err := Add(t.Context(), s, dir, o); err != nil || fmt.Sprint(seen.take()) != "[plain]" {
		t.Errorf("after rename: %v", err)
	}
	// Times are part of it when they are asked for.
	o.ModTime = true
	timed, err := Add(t.Context(), s, dir, o)
	noErr(t, err)
	plain, err := Add(t.Context(), s, dir, AddOptions{ModTime: true})
	noErr(t, err)
	if timed.CID != plain.CID || len(seen.take()) == 0 {
		t.Errorf("%s with a memory without times, %s without", timed.CID, plain.CID)
	}
}

// A file that may have changed within the grain of its times is read again.
func TestAddDoubtsFreshFiles(t *testing.T) {
	dir := t.TempDir()
	noErr(t, os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644))
	fi, err := os.Stat(filepath.Join(dir, "f"))
	noErr(t, err)
	st, ok := stampOf(fi)
	if !ok {
		t.Skip("files have no stamps here")
	}
	for after, want := range map[time.Duration]int{0: 2, fineGrain: 2, coarseGrain + time.Millisecond: 1} {
		var seen opens
		o := remembering(&seen)
		o.clock = func() time.Time { return time.Unix(0, st.ctime).Add(after) }
		s := testStore(t)
		for range 2 {
			_, err := Add(t.Context(), s, dir, o)
			noErr(t, err)
		}
		if got := seen.take(); len(got) != want {
			t.Errorf("looked at %v after the change: opened %d times, want %d", after, len(got), want)
		}
	}
	for _, tc := range []struct {
		st   stamp
		at   time.Duration
		want bool
	}{
		{stamp{ctime: 1}, fineGrain, false},
		{stamp{ctime: 1}, fineGrain + time.Microsecond, true},
		{stamp{ctime: int64(time.Second)}, time.Second + coarseGrain, false},
		{stamp{ctime: int64(time.Second)}, time.Second + coarseGrain + 1, true},
	} {
		if got := tc.st.settled(time.Unix(0, int64(tc.at))); got != tc.want {
			t.Errorf("changed at %v, looked at %v: %v", time.Duration(tc.st.ctime), tc.at, got)
		}
	}
}

// An entry whose blocks were collected is not trusted, be it one block of many.
func TestAddDoesNotTrustWhatWasCollected(t *testing.T) {
	s := testStore(t)
	dir := sampleTree(t)
	// It is one block with the file beside it, and here again when that was read first.
	noErr(t, os.Remove(filepath.Join(dir, "nothing")))
	var seen opens
	o := remembering(&seen)
	first, err := Add(t.Context(), s, dir, o)
	noErr(t, err)
	whole := len(seen.take())
	_, err = s.GC(t.Context(), noRoots{}, GCOptions{})
	noErr(t, err)
	again, err := Add(t.Context(), s, dir, o)
	noErr(t, err)
	if got := seen.take(); len(got) != whole || again.CID != first.CID {
		t.Errorf("opened %d of %d", len(got), whole)
	}
	if _, _, complete, err := Missing(t.Context(), s, again.CID); err != nil || !complete {
		t.Error("not all is here", err)
	}
	// One leaf in the middle of the large file.
	n, err := dagService{t.Context(), s}.find(t.Context(), first.CID, "sub/big")
	noErr(t, err)
	r, err := refOf(n.proto.Links()[1].Cid)
	noErr(t, err)
	s.mu.Lock()
	s.forget(r.key)
	s.mu.Unlock()
	_, err = Add(t.Context(), s, dir, o)
	noErr(t, err)
	if got := fmt.Sprint(seen.take()); got != "[big]" {
		t.Errorf("opened %s", got)
	}
}

type noRoots struct{}

func (noRoots) Roots(context.Context) ([]cid.Cid, error) { return nil, nil }

// What is found unchanged is as safe from collection as what is put.
func TestAddKeepsTheUnchanged(t *testing.T) {
	s := testStore(t)
	var seen opens
	o := remembering(&seen)
	dir := sampleTree(t)
	_, err := Add(t.Context(), s, dir, o)
	noErr(t, err)
	release := s.HoldPuts()
	again, err := Add(t.Context(), s, dir, o)
	noErr(t, err)
	_, err = s.GC(t.Context(), noRoots{}, GCOptions{})
	noErr(t, err)
	if _, _, complete, err := Missing(t.Context(), s, again.CID); err != nil || !complete {
		t.Error("collected under the feet of its adder", err)
	}
	release()
}

func TestAddSingleFileRemembers(t *testing.T) {
	s := testStore(t)
	dir := t.TempDir()
	p := filepath.Join(dir, "f")
	noErr(t, os.WriteFile(p, noise(1, 3<<20), 0o755))
	var seen opens
	o := remembering(&seen)
	first, err := Add(t.Context(), s, p, o)
	noErr(t, err)
	noErr(t, os.Symlink("f", filepath.Join(dir, "link")))
	for _, name := range []string{p, filepath.Join(dir, "link")} {
		again, err := Add(t.Context(), s, name, o)
		noErr(t, err)
		if again != first {
			t.Errorf("%s: %+v, want %+v", name, again, first)
		}
	}
	if got := seen.take(); len(got) != 1 {
		t.Errorf("opened %v", got)
	}
	r, err := AddReader(t.Context(), s, bytes.NewReader(noise(1, 3<<20)), AddOptions{})
	noErr(t, err)
	noErr(t, os.Chmod(p, 0o644))
	plain, err := Add(t.Context(), s, p, AddOptions{})
	noErr(t, err)
	if r.CID != plain.CID || r.Bytes != 3<<20 || r.Files != 1 {
		t.Errorf("from a stream %+v, from a file %+v", r, plain)
	}
	if size, err := DAGSize(t.Context(), s, r.CID); err != nil || size.Bytes != r.Size {
		t.Errorf("%+v, size %d %v", size, r.Size, err)
	}
}

func TestAddOnly(t *testing.T) {
	s := testStore(t)
	dir := sampleTree(t)
	r, err := Add(t.Context(), s, dir, AddOptions{Only: []string{"plain", "none"}})
	noErr(t, err)
	list, err := List(t.Context(), s, r.CID, "")
	if err != nil || len(list) != 1 || list[0].Name != "plain" {
		t.Errorf("%v %v", list, err)
	}
	// A name below is no name at the top.
	if r, err = Add(t.Context(), s, dir, AddOptions{Only: []string{"sub"}}); err != nil {
		t.Fatal(err)
	}
	if list, err = List(t.Context(), s, r.CID, "sub"); err != nil || len(list) != 3 {
		t.Errorf("%v %v", list, err)
	}
}

func TestAddStops(t *testing.T) {
	s := testStore(t)
	dir := manyFiles(t, 300, 30, 10)
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	_, err := Add(ctx, s, dir, AddOptions{Progress: func(Progress) {
		if n++; n == 20 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := Add(t.Context(), s, filepath.Join(dir, "none"), AddOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// The edge between a plain folder and a sharded one is boxo's.
func TestFolderEdgeLikeBoxo(t *testing.T) {
	s := testStore(t)
	ds := plainBoxo(t, nil, cid.Undef)
	p := uio.UnixFS_v1_2025
	leaf := boxoFile(t, ds, []byte("x"), 0)
	sharded := 0
	for last := 124; last < 140; last++ { // around 256 KiB
		d, err := uio.NewDirectory(ds, uio.WithCidBuilder(p.CidBuilder()), uio.WithMaxHAMTFanout(p.HAMTShardWidth), uio.WithSizeEstimationMode(p.HAMTSizeEstimation))
		noErr(t, err)
		d.SetHAMTShardingSize(p.HAMTShardingSize)
		a := newAdder(t.Context(), s, AddOptions{})
		w := a.worker()
		f := &addFolder{}
		r, err := refOf(leaf.Cid())
		noErr(t, err)
		add := func(name string) {
			noErr(t, d.AddChild(t.Context(), name, leaf))
			f.entries = append(f.entries, addChild{name: name, made: made{r, 1}})
		}
		for i := range 885 {
			add(fmt.Sprintf("%04d%s", i, strings.Repeat("n", 246)))
		}
		add(strings.Repeat("z", last))
		dir := t.TempDir()
		noErr(t, os.Chmod(dir, 0o755))
		f.fi, err = os.Stat(dir)
		noErr(t, err)
		got, err := w.folderNode(f)
		noErr(t, err)
		want, err := d.GetNode()
		noErr(t, err)
		if got.ref.cid() != want.Cid() {
			t.Errorf("%d: %s, boxo makes %s of %d bytes", last, got.ref, want.Cid(), len(want.RawData()))
		}
		if n, err := unixfs.ExtractFSNode(want); err == nil && n.Type() == unixfs.THAMTShard {
			sharded++
		}
	}
	if sharded == 0 || sharded == 16 {
		t.Errorf("%d of 16 are sharded", sharded)
	}
}

func FuzzListing(f *testing.F) {
	head := [2]byte{listingVersion}
	f.Add([]byte{})
	f.Add(head[:])
	f.Add(encodeListing([]addChild{{name: "a", marked: true, made: made{ref{codec: codecPB}, 7}, stamp: stamp{1, 2, 3, 4, 5}}, {name: "left out"}}, head))
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := decodeListing(raw, head)
		if err != nil {
			return
		}
		var entries []addChild
		for name, r := range l {
			entries = append(entries, addChild{name: name, made: r.made, stamp: r.stamp, marked: true})
		}
		again, err := decodeListing(encodeListing(entries, head), head)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(l) {
			t.Fatalf("%v: %v", again, err)
		}
	})
}

// manyFiles makes n files of size bytes, so many a folder.
func manyFiles(t testing.TB, n, each, size int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "many")
	for i := range n {
		d := filepath.Join(dir, fmt.Sprintf("d%05d", i/each))
		if i%each == 0 {
			noErr(t, os.MkdirAll(d, 0o755))
		}
		noErr(t, os.WriteFile(filepath.Join(d, fmt.Sprintf("f%05d", i)), noise(uint64(i), size), 0o644))
	}
	return dir
}

// BenchmarkAdd20k imports 20,000 files of 4 KiB in folders of 100, and in one,
// beside reading and hashing the same files by one goroutine, and again with a
// memory.
func BenchmarkAdd20k(b *testing.B) {
	for name, each := range map[string]int{"folders": 100, "one-folder": 20000} {
		dir := manyFiles(b, int(BenchBytes(b, 1)>>20*20_000/1024), each, 4096)
		b.Run(name+"/floor", func(b *testing.B) {
			for b.Loop() {
				noErr(b, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
					if err != nil || e.IsDir() {
						return err
					}
					f, err := os.Open(p)
					if err != nil {
						return err
					}
					h := sha256.New()
					_, err = io.Copy(h, f)
					_ = h.Sum(nil)
					return errors.Join(err, f.Close())
				}))
			}
		})
		for _, kind := range []string{"add", "again"} {
			b.Run(name+"/"+kind, func(b *testing.B) {
				o := AddOptions{}
				s := testStore(b)
				if kind == "again" {
					o.Memory, o.clock = &ShortMemory{}, later
					_, err := Add(b.Context(), s, dir, o)
					noErr(b, err)
				}
				for b.Loop() {
					if kind == "add" {
						b.StopTimer()
						s = testStore(b)
						b.StartTimer()
					}
					_, err := Add(b.Context(), s, dir, o)
					noErr(b, err)
				}
			})
		}
	}
}

// BenchmarkAdd1G imports a file of 1 GiB beside hashing it.
func BenchmarkAdd1G(b *testing.B) {
	p := filepath.Join(b.TempDir(), "f")
	f, err := os.Create(p)
	noErr(b, err)
	size := BenchBytes(b, 1)
	_, err = io.Copy(f, noiseReader(1, size))
	noErr(b, errors.Join(err, f.Close()))
	b.Run("sha256", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			f, err := os.Open(p)
			noErr(b, err)
			h := sha256.New()
			_, err = io.Copy(h, f)
			noErr(b, errors.Join(err, f.Close()))
		}
	})
	b.Run("add", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			b.StopTimer()
			s := testStore(b)
			b.StartTimer()
			_, err := Add(b.Context(), s, p, AddOptions{})
			noErr(b, err)
		}
	})
}
