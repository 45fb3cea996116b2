package content

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	chunker "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/files"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	unixfile "github.com/ipfs/boxo/ipld/unixfs/file"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	format "github.com/ipfs/go-ipld-format"
	"pgregory.net/rapid"
)

// plainBoxo returns boxo's own DAG service over memory, with our blocks in it.
func plainBoxo(t testing.TB, s *Store, root cid.Cid) format.DAGService {
	t.Helper()
	bs := blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
	if root.Defined() {
		noErr(t, s.walk(t.Context(), root, func(l link, _ int, here bool) error {
			data, err := s.get(l.ref, nil)
			if err != nil {
				return err
			}
			b, err := blocks.NewBlockWithCid(data, l.ref.cid())
			if err != nil {
				return err
			}
			return bs.Put(t.Context(), b)
		}))
	}
	return merkledag.NewDAGService(blockservice.New(bs, nil))
}

func sampleTree(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	noErr(t, os.MkdirAll(filepath.Join(dir, "sub", "empty"), 0o755))
	write := func(name string, data []byte, mode fs.FileMode) {
		p := filepath.Join(dir, name)
		noErr(t, os.WriteFile(p, data, 0o600))
		noErr(t, os.Chmod(p, mode))
	}
	write("plain", []byte("plain"), 0o644)
	write("run.sh", []byte("#!/bin/sh"), 0o755)
	write("nothing", nil, 0o644)
	write("nothing-private", nil, 0o600)
	write("sub/big", noise(1, 3<<20+17), 0o640)
	noErr(t, os.Symlink("../plain", filepath.Join(dir, "sub", "link")))
	noErr(t, os.Chmod(filepath.Join(dir, "sub"), 0o750))
	return dir
}

func TestAddExport(t *testing.T) {
	s := testStore(t)
	dir := sampleTree(t)
	var last Progress
	root, err := Add(t.Context(), s, dir, AddOptions{Progress: func(p Progress) { last = p }})
	noErr(t, err)
	if root.Files != 6 || root.Bytes != 3<<20+17+14 || last.Done != root.Bytes {
		t.Errorf("%+v %+v", root, last)
	}
	out := filepath.Join(t.TempDir(), "out")
	noErr(t, Export(t.Context(), s, root.CID, out))
	if got, want := tree(t, out), tree(t, dir); got != want {
		t.Errorf("got\n%.2000s\nwant\n%.2000s", got, want)
	}
	// Over itself, with a file changed and one of the user's own.
	noErr(t, os.WriteFile(filepath.Join(out, "plain"), []byte("changed by hand"), 0o644))
	noErr(t, os.WriteFile(filepath.Join(out, "mine"), []byte("mine"), 0o644))
	noErr(t, Export(t.Context(), s, root.CID, out))
	noErr(t, os.Remove(filepath.Join(out, "mine")))
	if tree(t, out) != tree(t, dir) {
		t.Error("a second export differs")
	}
	again, err := Add(t.Context(), s, out, AddOptions{})
	noErr(t, err)
	if again.CID != root.CID {
		t.Errorf("what was exported adds to %s, not %s", again.CID, root.CID)
	}
	sz, err := DAGSize(t.Context(), s, root.CID)
	noErr(t, err)
	if st := s.Stats(); sz.Blocks != st.Blocks || sz.Bytes != st.Bytes {
		t.Errorf("%+v, store has %+v", sz, st)
	}
}

func TestAddKeepsTimesWhenAsked(t *testing.T) {
	s := testStore(t)
	dir := t.TempDir()
	p := filepath.Join(dir, "f")
	noErr(t, os.WriteFile(p, []byte("x"), 0o644))
	noErr(t, os.Chtimes(p, testTime, testTime))
	root, err := Add(t.Context(), s, dir, AddOptions{ModTime: true})
	noErr(t, err)
	out := t.TempDir()
	noErr(t, Export(t.Context(), s, root.CID, out))
	fi, err := os.Stat(filepath.Join(out, "f"))
	noErr(t, err)
	if !fi.ModTime().Equal(testTime) {
		t.Errorf("time %v", fi.ModTime())
	}
}

// boxo alone reads what Add makes.
func TestBoxoReadsUs(t *testing.T) {
	s := testStore(t)
	dir := sampleTree(t)
	root, err := Add(t.Context(), s, dir, AddOptions{})
	noErr(t, err)
	ds := plainBoxo(t, s, root.CID)
	n, err := ds.Get(t.Context(), root.CID)
	noErr(t, err)
	f, err := unixfile.NewUnixfsFile(t.Context(), ds, n)
	noErr(t, err)
	out := filepath.Join(t.TempDir(), "out")
	noErr(t, files.WriteTo(f, out))
	noErr(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		noErr(t, err)
		rel, _ := filepath.Rel(dir, p)
		if !d.Type().IsRegular() {
			return nil
		}
		a, err := os.ReadFile(p)
		noErr(t, err)
		b, err := os.ReadFile(filepath.Join(out, rel))
		noErr(t, err)
		if !bytes.Equal(a, b) {
			t.Errorf("%s differs", rel)
		}
		return nil
	}))
}

// boxo sees the permissions we wrote down.
func TestBoxoReadsModes(t *testing.T) {
	s := testStore(t)
	dir := sampleTree(t)
	root, err := Add(t.Context(), s, dir, AddOptions{})
	noErr(t, err)
	ds := plainBoxo(t, s, root.CID)
	n, err := ds.Get(t.Context(), root.CID)
	noErr(t, err)
	f, err := unixfile.NewUnixfsFile(t.Context(), ds, n)
	noErr(t, err)
	got := map[string]fs.FileMode{}
	noErr(t, files.Walk(f, func(p string, nd files.Node) error {
		got[p] = nd.Mode().Perm()
		return nil
	}))
	for name, want := range map[string]fs.FileMode{"run.sh": 0o755, "nothing-private": 0o600, "sub/big": 0o640, "sub": 0o750, "plain": 0} {
		if got[name] != want {
			t.Errorf("%s has mode %v, want %v", name, got[name], want)
		}
	}
}

// boxoFile imports with boxo's own importer under the same settings.
func boxoFile(t testing.TB, ds format.DAGService, data []byte, mode fs.FileMode) format.Node {
	t.Helper()
	p := uio.UnixFS_v1_2025
	params := helpers.DagBuilderParams{Dagserv: ds, RawLeaves: true, Maxlinks: p.FileDAGWidth, CidBuilder: p.CidBuilder(), FileMode: mode}
	db, err := params.New(chunker.NewSizeSplitter(bytes.NewReader(data), p.ChunkSize))
	noErr(t, err)
	n, err := balanced.Layout(db)
	noErr(t, err)
	return n
}

func TestSameCIDAsBoxo(t *testing.T) {
	ds := plainBoxo(t, nil, cid.Undef)
	s := testStore(t)
	for _, tc := range []struct {
		size int
		mode fs.FileMode
	}{{0, 0o644}, {1, 0o644}, {1 << 20, 0o644}, {1<<20 + 1, 0o644}, {5<<20 + 3, 0o644}, {5<<20 + 3, 0o755}} {
		p := filepath.Join(t.TempDir(), "f")
		data := noise(uint64(tc.size), tc.size)
		noErr(t, os.WriteFile(p, data, 0o600))
		noErr(t, os.Chmod(p, tc.mode))
		mode := tc.mode
		if mode == plainFile {
			mode = 0
		}
		root, err := Add(t.Context(), s, p, AddOptions{})
		noErr(t, err)
		if want := boxoFile(t, ds, data, mode).Cid(); root.CID != want {
			t.Errorf("%d bytes %v: %s, boxo makes %s", tc.size, tc.mode, root.CID, want)
		}
		var buf bytes.Buffer
		noErr(t, Cat(t.Context(), s, root.CID, "", &buf))
		if !bytes.Equal(buf.Bytes(), data) {
			t.Errorf("%d bytes: cat differs", tc.size)
		}
	}
	// A folder large enough to be sharded.
	dir := t.TempDir()
	d, err := uio.NewDirectory(ds, uio.WithCidBuilder(uio.UnixFS_v1_2025.CidBuilder()), uio.WithSizeEstimationMode(uio.SizeEstimationBlock))
	noErr(t, err)
	const many = 6000
	for i := range many {
		name := fmt.Sprintf("frame_%06d.png", i)
		noErr(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
		noErr(t, os.Chmod(filepath.Join(dir, name), 0o644))
		noErr(t, d.AddChild(t.Context(), name, boxoFile(t, ds, []byte(name), 0)))
	}
	noErr(t, os.Chmod(dir, 0o755))
	want, err := d.GetNode()
	noErr(t, err)
	root, err := Add(t.Context(), s, dir, AddOptions{})
	noErr(t, err)
	if root.CID != want.Cid() {
		t.Errorf("folder: %s, boxo makes %s", root.CID, want.Cid())
	}
	n, err := dagService{t.Context(), s}.find(t.Context(), root.CID, "")
	noErr(t, err)
	if n.fsn.Type() != unixfs.THAMTShard {
		t.Error("a folder of 6000 files is not sharded")
	}
	list, err := List(t.Context(), s, root.CID, "")
	if err != nil || len(list) != many {
		t.Errorf("list: %d %v", len(list), err)
	}
	var buf bytes.Buffer
	noErr(t, Cat(t.Context(), s, root.CID, "/frame_000123.png", &buf))
	if buf.String() != "frame_000123.png" {
		t.Errorf("cat %q", buf.String())
	}
	out := t.TempDir()
	noErr(t, Export(t.Context(), s, root.CID, out))
	if e, err := os.ReadDir(out); err != nil || len(e) != many {
		t.Errorf("export: %d %v", len(e), err)
	}
}

func TestListCat(t *testing.T) {
	s := testStore(t)
	root, err := Add(t.Context(), s, sampleTree(t), AddOptions{})
	noErr(t, err)
	list, err := List(t.Context(), s, root.CID, "sub")
	noErr(t, err)
	var got []string
	for _, e := range list {
		got = append(got, fmt.Sprintf("%s %s %d %v", e.Kind, e.Name, e.Size, e.Mode))
	}
	want := fmt.Sprintf("[file big %d -rw-r----- folder empty 0 -rwxr-xr-x symlink link 0 -rw-r--r--]", 3<<20+17)
	if fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
	for path, want := range map[string]string{"none": `no "none"`, "sub": "not a file", "plain/x": "not a folder", "sub/link": "not a file"} {
		if err := Cat(t.Context(), s, root.CID, path, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("cat %s: %v", path, err)
		}
	}
	if err := Cat(t.Context(), s, root.CID, "none", io.Discard); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("cat none: %v", err)
	}
}

// hostileDir makes a folder node with any links, as boxo would refuse to.
func hostileDir(t testing.TB, s *Store, names ...string) cid.Cid {
	t.Helper()
	n := unixfs.EmptyDirNode()
	noErr(t, n.SetCidBuilder(profile().CidBuilder()))
	leaf := putRaw(t, s, []byte("evil"))
	for _, name := range names {
		noErr(t, n.AddRawLink(name, &format.Link{Size: 4, Cid: leaf}))
	}
	noErr(t, s.Put(t.Context(), n.Cid(), n.RawData()))
	return n.Cid()
}

func TestExportHostile(t *testing.T) {
	s := testStore(t)
	for _, name := range []string{"", ".", "..", "../evil", "a/b", "/abs", "nul\x00", strings.Repeat("n", 256), `..\evil`} {
		dir := filepath.Join(t.TempDir(), "out")
		if err := Export(t.Context(), s, hostileDir(t, s, "ok", name), dir); !errors.Is(err, ErrUnsafe) {
			t.Errorf("%q: %v", name, err)
		}
		if e, _ := os.ReadDir(filepath.Dir(dir)); len(e) > 1 {
			t.Errorf("%q: wrote %v", name, e)
		}
	}
	// Links that lead outside are left out unless wanted.
	src := t.TempDir()
	noErr(t, os.MkdirAll(filepath.Join(src, "x", "y"), 0o755))
	for name, to := range map[string]string{"abs": "/etc/passwd", "up": "../../x", "x/in": "../good", "x/out": "../../bad", "good": "x/y", "x/y/d": "../../", "sly": "x/y/d/../.."} {
		noErr(t, os.Symlink(to, filepath.Join(src, name)))
	}
	root, err := Add(t.Context(), s, src, AddOptions{})
	noErr(t, err)
	out := t.TempDir()
	ex, err := ExportWith(t.Context(), s, root.CID, out, ExportOptions{})
	noErr(t, err)
	if got := fmt.Sprint(ex.Skipped); got != "[abs sly up x/out]" {
		t.Errorf("skipped %v", got)
	}
	ex, err = ExportWith(t.Context(), s, root.CID, out, ExportOptions{KeepOutsideLinks: true})
	noErr(t, err)
	if len(ex.Skipped) > 0 || tree(t, out) != tree(t, src) {
		t.Error("links not kept")
	}
	// A link in the destination is not followed out of it.
	outside, dest := t.TempDir(), t.TempDir()
	noErr(t, os.Symlink(outside, filepath.Join(dest, "x")))
	if err := Export(t.Context(), s, root.CID, dest); !errors.Is(err, fs.ErrExist) {
		t.Errorf("through a link: %v", err)
	}
	if e, _ := os.ReadDir(outside); len(e) != 0 {
		t.Errorf("wrote outside: %v", e)
	}
}

// A few small nodes that name each other twice would unfold to terabytes.
func TestFileBomb(t *testing.T) {
	s := testStore(t)
	data := make([]byte, 1<<20)
	c, size := putRaw(t, s, data), uint64(1<<20)
	for range 20 {
		f := unixfs.NewFSNode(unixfs.TFile)
		n := &merkledag.ProtoNode{}
		noErr(t, n.SetCidBuilder(profile().CidBuilder()))
		for range 2 {
			f.AddBlockSize(size)
			noErr(t, n.AddRawLink("", &format.Link{Size: size, Cid: c}))
		}
		b, err := f.GetBytes()
		noErr(t, err)
		n.SetData(b)
		noErr(t, s.Put(t.Context(), n.Cid(), n.RawData()))
		c, size = n.Cid(), size*2
	}
	dest := filepath.Join(t.TempDir(), "bomb")
	_, err := ExportWith(t.Context(), s, c, dest, ExportOptions{Limits: Limits{Bytes: 10 << 20}})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if e, _ := os.ReadDir(filepath.Dir(dest)); len(e) != 0 {
		t.Errorf("left %v", e)
	}
	if sz, err := DAGSize(t.Context(), s, c); err != nil || sz.Blocks != 21 {
		t.Errorf("%+v %v", sz, err)
	}
}

func TestFileThatLiesAboutItsSize(t *testing.T) {
	s := testStore(t)
	leaf := putRaw(t, s, []byte("12345"))
	for _, told := range [][2]uint64{{4, 4}, {6, 6}, {5, 9}} {
		f := unixfs.NewFSNode(unixfs.TFile)
		f.AddBlockSize(told[0])
		f.UpdateFilesize(int64(told[1] - told[0]))
		n := &merkledag.ProtoNode{}
		noErr(t, n.SetCidBuilder(profile().CidBuilder()))
		noErr(t, n.AddRawLink("", &format.Link{Size: 5, Cid: leaf}))
		b, err := f.GetBytes()
		noErr(t, err)
		n.SetData(b)
		noErr(t, s.Put(t.Context(), n.Cid(), n.RawData()))
		if err := Cat(t.Context(), s, n.Cid(), "", io.Discard); !errors.Is(err, ErrMalformed) {
			t.Errorf("%v: %v", told, err)
		}
	}
}

func TestMissing(t *testing.T) {
	s, part := testStore(t), testStore(t)
	root, err := Add(t.Context(), s, sampleTree(t), AddOptions{})
	noErr(t, err)
	_, total, complete, err := Missing(t.Context(), s, root.CID)
	if err != nil || !complete {
		t.Fatal(complete, err)
	}
	if have, all, complete, err := Missing(t.Context(), part, root.CID); have != 0 || all != 0 || complete || err != nil {
		t.Errorf("nothing here: %d %d %v %v", have, all, complete, err)
	}
	data, err := s.Get(t.Context(), root.CID)
	noErr(t, err)
	noErr(t, part.Put(t.Context(), root.CID, data))
	have, all, complete, err := Missing(t.Context(), part, root.CID)
	if err != nil || complete || have != uint64(len(data)) || all != total {
		t.Errorf("have %d of %d (want %d of %d) %v %v", have, all, len(data), total, complete, err)
	}
	if _, err := DAGSize(t.Context(), part, root.CID); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// Any tree comes back as it was.
func TestAddExportProperty(t *testing.T) {
	s := testStore(t)
	rapid.Check(t, func(rt *rapid.T) {
		src := filepath.Join(t.TempDir(), "src")
		noErr(t, os.Mkdir(src, 0o755))
		for range rapid.IntRange(0, 12).Draw(rt, "files") {
			p := filepath.Join(src, rapid.StringMatching(`([a-c]/){0,3}[d-z0-9 ]{1,8}`).Draw(rt, "name"))
			noErr(t, os.MkdirAll(filepath.Dir(p), 0o755))
			if rapid.IntRange(0, 4).Draw(rt, "kind") == 0 {
				_ = os.Symlink(rapid.StringMatching(`[a-z]{1,5}(/[a-z]{1,3})?`).Draw(rt, "to"), p) // a name twice stays
				continue
			}
			if _, err := os.Lstat(p); err == nil {
				continue
			}
			noErr(t, os.WriteFile(p, noise(rapid.Uint64().Draw(rt, "seed"), rapid.SampledFrom([]int{0, 1, 100, 5000, 1<<20 + 1}).Draw(rt, "size")), 0o600))
			noErr(t, os.Chmod(p, fs.FileMode(rapid.IntRange(0, 0o777).Draw(rt, "mode"))|0o400))
		}
		root, err := Add(t.Context(), s, src, AddOptions{ModTime: rapid.Bool().Draw(rt, "times")})
		noErr(t, err)
		out := filepath.Join(src+"-out", "d")
		noErr(t, Export(t.Context(), s, root.CID, out))
		if got, want := tree(t, out), tree(t, src); got != want {
			rt.Fatalf("got\n%.500q\nwant\n%.500q", got, want)
		}
		noErr(t, RemoveAll(src))
		noErr(t, RemoveAll(src+"-out"))
	})
}

func FuzzUnixFS(f *testing.F) {
	s := testStore(f)
	f.Add(unixfs.EmptyDirNode().RawData())
	f.Add(unixfs.FilePBData([]byte("x"), 1))
	f.Add(hostileDir(f, s, "a", "..").Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		r := rawRef(data)
		noErr(t, s.put(r.key, data))
		for _, c := range []codec{codecPB, codecCBOR} {
			r.codec = c
			_, _ = List(t.Context(), s, r.cid(), "a")
			_ = Cat(t.Context(), s, r.cid(), "", io.Discard)
			_, _, _, _ = Missing(t.Context(), s, r.cid())
			_, _ = ReadImage(t.Context(), s, r.cid())
		}
	})
}

func FuzzImageBlocks(f *testing.F) {
	m := imageRoot{platform: "linux/amd64", layers: []layerRef{{size: 3}}}
	a, _, err := m.encode()
	noErr(f, err)
	lm := layerMap{size: 5, chunks: []sized{{ref{}, 5}}}
	b, _, err := lm.encode()
	noErr(f, err)
	lm = layerMap{size: 5, parts: []sized{{ref{codec: codecCBOR}, 5}}}
	c, _, err := lm.encode()
	noErr(f, err)
	d, _, err := encodeChunks(lm.parts)
	noErr(f, err)
	for _, seed := range [][]byte{a, b, c, d} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := decodeImageRoot(data); err == nil {
			out, r, err := m.encode()
			noErr(t, err)
			again, err := decodeImageRoot(out)
			if err != nil || fmt.Sprint(again) != fmt.Sprint(m) {
				t.Fatalf("%s: %v", r, err)
			}
		}
		if m, err := decodeLayerMap(data); err == nil {
			out, _, err := m.encode()
			noErr(t, err)
			if again, err := decodeLayerMap(out); err != nil || fmt.Sprint(again) != fmt.Sprint(m) {
				t.Fatalf("%+v: %v", m, err)
			}
		}
		_, _ = decodeChunks(data, 5)
		_, _ = linksCBOR(data)
		_, _ = linksPB(data)
	})
}

func BenchmarkAdd(b *testing.B) {
	p := filepath.Join(b.TempDir(), "f")
	const size = 256 << 20
	noErr(b, os.WriteFile(p, noise(1, size), 0o644))
	b.SetBytes(size)
	for b.Loop() {
		s := testStore(b)
		_, err := Add(b.Context(), s, p, AddOptions{})
		noErr(b, err)
	}
}
