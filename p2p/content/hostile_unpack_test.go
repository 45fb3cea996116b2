package content

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// gnuSparse makes the entry of a file of size bytes, of which only data is
// there, at the beginning: the old GNU format of sparse files.
func gnuSparse(name string, size int64, data []byte) []byte {
	var b [512]byte
	num := func(at int, n int64) { // base 256
		b[at] = 0x80
		binary.BigEndian.PutUint64(b[at+4:], uint64(n))
	}
	copy(b[0:], name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	num(124, int64(len(data)))
	copy(b[136:], "00000000000\x00        S")
	copy(b[257:], "ustar  \x00")
	num(386, 0)
	num(398, int64(len(data)))
	num(410, size)
	num(422, 0)
	num(483, size)
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	out := append(b[:], data...)
	return append(out, make([]byte, (512-len(data)%512)%512+1024)...)
}

// unpackOf lays layers out in a new folder.
func unpackOf(t testing.TB, s *Store, limit Limits, layers ...[]byte) (dir string, err error) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "root")
	return dir, UnpackLimited(t.Context(), s, imageOf(t, s, layers...), dir, limit)
}

func wantNothingBeside(t testing.TB, dir string) {
	t.Helper()
	if e, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(e) != 0 {
		t.Errorf("left %v %v", e, err)
	}
}

// Refusals name the layer, the path and the reason, also those of a writer.
func TestUnpackRefusalsSayWhere(t *testing.T) {
	good := makeTar(t, file("etc/hosts", "h"))
	long := strings.Repeat("n", 256)
	for _, tc := range []struct {
		name  string
		layer []byte
		limit Limits
		want  error
		words []string
	}{
		{"name outside", makeTar(t, file("../evil", "x")), Limits{}, ErrUnsafe, []string{"layer 1 (sha256:", `"../evil"`, "leads outside"}},
		{"1 TiB sparse", gnuSparse("var/log/huge", 1<<40, []byte("x")), Limits{}, ErrTooLarge, []string{"layer 1", `"var/log/huge"`, "more than 274877906944 bytes"}},
		{"name too long", makeTar(t, file("d/"+long, "x")), Limits{}, nil, []string{"layer 1", long[:100], "too long"}},
		{"hard link to nothing", makeTar(t, hardlink("a", "none")), Limits{}, fs.ErrNotExist, []string{"layer 1", `"a"`, `hard link to "none"`}},
		{"hard link to a folder", makeTar(t, hardlink("a", "etc")), Limits{}, ErrUnsafe, []string{"layer 1", `"a"`, "folder"}},
		{"no tar", bytes.Repeat([]byte("junk"), 1000), Limits{}, ErrMalformed, []string{"layer 1", "no tar"}},
		{"cut off", makeTar(t, file("big", strings.Repeat("x", 4000)))[:2048], Limits{}, io.ErrUnexpectedEOF, []string{"layer 1", `"big"`}},
		{"folder's name taken", makeTar(t, file("etc/hosts/x", "")), Limits{}, ErrMalformed, []string{"layer 1", `"etc/hosts/x"`, "no folder"}},
		{"link without a target", makeTar(t, tarEntry{tar.Header{Name: "l", Typeflag: tar.TypeSymlink}, ""}), Limits{}, ErrUnsafe, []string{"layer 1", `"l"`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, err := unpackOf(t, testStore(t), tc.limit, good, tc.layer)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Fatalf("%v, want %v", err, tc.want)
			}
			for _, w := range tc.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v does not say %q", err, w)
				}
			}
			wantNothingBeside(t, dir)
		})
	}
}

// A chunk named over and over makes a layer of any size out of nothing.
func TestUnpackBombs(t *testing.T) {
	s := testStore(t)
	chunk := makeTar(t, file("f", strings.Repeat("x", MaxBlock-512)))[:MaxBlock]
	r := rawRef(chunk)
	noErr(t, s.put(r.key, chunk))
	list := make([]sized, partChunks)
	for i := range list {
		list[i] = sized{r, MaxBlock}
	}
	part, pr, err := encodeChunks(list)
	noErr(t, err)
	noErr(t, s.put(pr.key, part))
	layer := func(parts int) imageRoot {
		m := layerMap{size: uint64(parts) * partChunks * MaxBlock, parts: make([]sized, parts)}
		for i := range m.parts {
			m.parts[i] = sized{pr, partChunks * MaxBlock}
		}
		data, mr, err := m.encode()
		noErr(t, err)
		noErr(t, s.put(mr.key, data))
		return imageRoot{layers: []layerRef{{size: m.size, mp: mr}}}
	}
	// 16 TiB: refused before anything is read.
	err = unpackLayers(t.Context(), s, layer(4096), t.TempDir(), Limits{}.orDefault())
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "the layers are 17592186044416 bytes") {
		t.Errorf("16 TiB: %v", err)
	}
	// 4 GiB of one file after the other, when 50 MiB are allowed.
	dir := t.TempDir()
	err = unpackLayers(t.Context(), s, layer(1), dir, Limits{Bytes: 50 << 20, Entries: 1 << 21})
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), `layer 0`) {
		t.Errorf("4 GiB: %v", err)
	}
	// A caller who gives up is heard.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := unpackLayers(ctx, s, layer(1), t.TempDir(), Limits{}.orDefault()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// An image of 10,000 layers is refused by whoever meets it first.
func TestTenThousandLayers(t *testing.T) {
	const n = 10_000
	s := testStore(t)
	l := makeTar(t, file("a", "b"))
	m := imageRoot{platform: "linux/amd64", layers: make([]layerRef, n)}
	data, r, err := m.encode()
	noErr(t, err)
	noErr(t, s.put(r.key, data))
	for _, err := range []error{
		func() error { _, err := ReadImage(t.Context(), s, r.cid()); return err }(),
		Unpack(t.Context(), s, r.cid(), filepath.Join(t.TempDir(), "root")),
	} {
		if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), fmt.Sprintf("at most %d", maxLayers)) {
			t.Errorf("root: %v", err)
		}
	}
	layers := make([][]byte, n)
	for i := range layers {
		layers[i] = l
	}
	archive := dockerArchive(t, testConfig(t, "amd64", layers...), layers...)
	if _, err := LoadImage(t.Context(), s, archive, amd64(LoadOptions{})); err == nil || !strings.Contains(err.Error(), fmt.Sprint(maxLayers)) {
		t.Errorf("import: %v", err)
	}
}

// 100,000 entries are no trouble; more than allowed are refused with nothing
// left, however many there are.
func TestUnpackManyEntries(t *testing.T) {
	s := testStore(t)
	const n = 100_000
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for i := range n {
		h := tar.Header{Name: fmt.Sprintf("one/%06d", i), Typeflag: tar.TypeLink, Linkname: fmt.Sprintf("one/%06d", i/50*50)}
		if i%50 == 0 {
			h = tar.Header{Name: h.Name, Typeflag: tar.TypeReg, Mode: 0o644}
		}
		noErr(t, tw.WriteHeader(&h))
	}
	noErr(t, tw.Close())
	dir := filepath.Join(t.TempDir(), "root")
	root := layerImage(t, s, &buf)
	noErr(t, Unpack(t.Context(), s, root, dir))
	if e, err := os.ReadDir(filepath.Join(dir, "one")); err != nil || len(e) != n {
		t.Errorf("%d entries %v", len(e), err)
	}
	dir = filepath.Join(t.TempDir(), "root")
	if err := UnpackLimited(t.Context(), s, root, dir, Limits{Entries: 1000}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
	wantNothingBeside(t, dir)
}

// What is behind the limit of entries is neither read, it is not even there, nor
// remembered.
func TestUnpackStopsAtTheLimit(t *testing.T) {
	s := testStore(t)
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for i := range 40_000 {
		noErr(t, tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("d/%07d", i), Typeflag: tar.TypeSymlink, Linkname: "x", Mode: 0o777}))
	}
	var list []sized
	for data := buf.Bytes(); len(data) > 0; data = data[min(len(data), MaxBlock):] {
		chunk := data[:min(len(data), MaxBlock)]
		noErr(t, s.put(rawRef(chunk).key, chunk))
		list = append(list, sized{rawRef(chunk), uint64(len(chunk))})
	}
	total := uint64(buf.Len())
	for total < 1_000_000*512 {
		list = append(list, sized{rawRef([]byte("absent")), MaxBlock})
		total += MaxBlock
	}
	m := layerMap{size: total, chunks: list}
	data, r, err := m.encode()
	noErr(t, err)
	noErr(t, s.put(r.key, data))
	image := imageRoot{layers: []layerRef{{size: total, mp: r}}}
	grown := leastAllocated(t, 64<<20, func() {
		err := unpackLayers(t.Context(), s, image, t.TempDir(), Limits{Bytes: 1 << 30, Entries: 10_000})
		if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "more than 10000 files") {
			t.Errorf("%v", err)
		}
	})
	if grown > 64<<20 {
		t.Errorf("%d bytes were allocated for 10,000 of 1,000,000 entries", grown)
	}
}

// Folders cost memory to remember, so how many there may be is bounded too.
func TestUnpackTreeMemory(t *testing.T) {
	top, err := os.OpenRoot(t.TempDir())
	noErr(t, err)
	tree := newFolderTree(top, &attrWriter{})
	defer tree.close()
	tree.bytes = maxTreeBytes - 1
	if err := tree.mkdir(tree.top, "d", attrs{mode: fs.ModeDir | 0o755}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
	_, err = unpackOf(t, testStore(t), Limits{}, makeTar(t, file(strings.Repeat("d/", maxTreeDepth+1)+"f", "")))
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "deep") {
		t.Errorf("depth: %v", err)
	}
}

// Writing stops before the disk is full, and says so.
func TestUnpackLeavesRoom(t *testing.T) {
	dir := t.TempDir()
	top, err := os.OpenRoot(dir)
	noErr(t, err)
	a, err := probeAttrs(top)
	noErr(t, err)
	r := &diskRoom{dir: dir, free: func(string) (uint64, error) { return keepFree / 2, nil }}
	u := newUnpacker(top, startLayWriters(t.Context(), a, r), Limits{}.orDefault())
	s := testStore(t)
	_, m, err := readImage(t.Context(), s, imageOf(t, s, makeTar(t, file("d/big", string(noise(1, 2*roomEvery))))))
	noErr(t, err)
	err = u.layers(t.Context(), s, m)
	u.tree.close()
	if !errors.Is(err, ErrNoRoom) || !strings.Contains(err.Error(), `"d/big"`) || !strings.Contains(err.Error(), "layer 0") {
		t.Errorf("%v", err)
	}
}

// A chunk whose bytes rotted on disk is found by the diff id, named, and
// dropped so that it can be fetched again.
func TestUnpackDamagedChunk(t *testing.T) {
	s := testStore(t)
	layer := makeTar(t, file("data", string(noise(3, 4<<20))))
	root := imageOf(t, s, layer)
	_, m, err := readImage(t.Context(), s, root)
	noErr(t, err)
	lr, err := openLayer(t.Context(), s, m.layers[0])
	noErr(t, err)
	noErr(t, s.Sync())
	victim := lr.list[2].ref
	s.mu.Lock()
	e := s.blocks[victim.key]
	s.mu.Unlock()
	f, err := os.OpenFile(filepath.Join(s.dir, packName(e.at.pack)), os.O_RDWR, 0)
	noErr(t, err)
	_, err = f.WriteAt([]byte("rot"), int64(e.at.offset)+1000)
	noErr(t, err)
	noErr(t, f.Close())
	dir := filepath.Join(t.TempDir(), "root")
	err = Unpack(t.Context(), s, root, dir)
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), victim.String()) || !strings.Contains(err.Error(), "layer 0") {
		t.Errorf("%v", err)
	}
	if s.Has(victim.cid()) || s.Stats().Damaged != 1 {
		t.Error("the damaged chunk stayed")
	}
	wantNothingBeside(t, dir)
}

// swapTree makes a layer with more folders than are kept open, whose files come
// in turn, so that folders are looked up again and again.
func swapTree(t testing.TB) []byte {
	var list []tarEntry
	for d := range 2 * openFolders {
		list = append(list, folderAt(fmt.Sprintf("d%03d/", d), 0o755))
	}
	for f := range 6 {
		for d := range 2 * openFolders {
			name := fmt.Sprintf("d%03d/f%d", d, f)
			list = append(list, file(name, "inside"))
			if f == 5 {
				list = append(list, hardlink(name+"-hard", name), file(fmt.Sprintf("d%03d/.wh.f0", d), ""), folderAt(fmt.Sprintf("d%03d/", d), 0o700))
			}
		}
	}
	return makeTar(t, list...)
}

// swapper makes folders of a tree into links to outside and back, until stop.
func swapper(parent, outside string, pause int, stop <-chan struct{}, swaps chan<- int) {
	n := 0
	defer func() { swaps <- n }()
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		tops, err := filepath.Glob(filepath.Join(parent, ".root.partial-*"))
		if err != nil || len(tops) == 0 {
			runtime.Gosched()
			continue
		}
		d := filepath.Join(tops[0], fmt.Sprintf("d%03d", i%(2*openFolders)))
		if os.Rename(d, d+".away") != nil {
			continue
		}
		if os.Symlink(outside, d) == nil {
			n++
			runtime.Gosched()
			_ = os.Remove(d)
		}
		_ = os.Rename(d+".away", d)
		for range pause {
			runtime.Gosched()
		}
		if i%3 > 0 {
			continue
		}
		f := filepath.Join(d, fmt.Sprintf("f%d", i%6))
		if os.Remove(f) == nil {
			_ = os.Symlink(filepath.Join(outside, "secret"), f)
		}
	}
}

// Somebody who swaps folders and files for links while an image is unpacked
// can spoil the unpacking, but never makes it write, link or change anything
// outside.
func TestUnpackRacingLinks(t *testing.T) {
	s := testStore(t)
	root := imageOf(t, s, swapTree(t), swapTree(t))
	outside := t.TempDir()
	noErr(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o640))
	noErr(t, os.Chtimes(filepath.Join(outside, "secret"), testTime, testTime))
	noErr(t, os.Chmod(outside, 0o751))
	noErr(t, os.Chtimes(outside, testTime.Add(time.Hour), testTime.Add(time.Hour)))
	parent := t.TempDir()
	total, spoiled, round := 0, 0, 0
	const rounds, most = 16, 2 * time.Minute // the most of a machine so loaded that nothing is swapped in that many
	for began := time.Now(); round < rounds || total == 0 && time.Since(began) < most; round++ {
		stop, swaps := make(chan struct{}), make(chan int, 1)
		go swapper(parent, outside, round%rounds*(round%rounds)*20, stop, swaps)
		err := Unpack(t.Context(), s, root, filepath.Join(parent, "root"))
		close(stop)
		total += <-swaps
		if err != nil {
			spoiled++
		}
		left, err := os.ReadDir(parent)
		noErr(t, err)
		for _, e := range left {
			noErr(t, RemoveAll(filepath.Join(parent, e.Name())))
		}
	}
	t.Logf("%d swaps, %d of %d unpackings spoiled", total, spoiled, round)
	if total == 0 {
		t.Error("nothing was ever swapped")
	}
	if got := tree(t, outside); got != "-rw-r----- secret s" {
		t.Errorf("outside is now\n%s", got)
	}
	for p, want := range map[string]time.Time{"secret": testTime, ".": testTime.Add(time.Hour)} {
		if fi, err := os.Stat(filepath.Join(outside, p)); err != nil || !fi.ModTime().Equal(want) {
			t.Errorf("%s outside was touched: %v %v", p, fi, err)
		}
	}
	if fi, err := os.Stat(outside); err != nil || fi.Mode().Perm() != 0o751 {
		t.Errorf("outside has mode %v %v", fi.Mode(), err)
	}
}

// Whatever the entries, writing beside reading leaves what writing each entry
// before the next is read leaves.
func TestUnpackOrderProperty(t *testing.T) {
	name := rapid.SampledFrom([]string{"a", "b", "a/x", "a/y", "b/x", "a/x/z", "l/x", "l", "a/.wh.x", ".wh.a", "a/.wh..wh..opq", "b/l", "b/l/x", ".wh.b", "b/big"})
	kind := rapid.SampledFrom([]byte{tar.TypeReg, tar.TypeReg, tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo})
	target := rapid.SampledFrom([]string{"a", "/a", "../b", "a/x", "b/x", "l", "b/big", ".."})
	rapid.Check(t, func(rt *rapid.T) {
		s := testStore(t)
		var m imageRoot
		for range rapid.IntRange(1, 3).Draw(rt, "layers") {
			var list []tarEntry
			for i := range rapid.IntRange(0, 14).Draw(rt, "entries") {
				h := tar.Header{Name: name.Draw(rt, "name"), Typeflag: kind.Draw(rt, "kind"), Mode: 0o755}
				body := ""
				switch h.Typeflag {
				case tar.TypeReg:
					body = fmt.Sprint(i)
					if strings.HasSuffix(h.Name, "big") {
						body = strings.Repeat(body, laySmall+i*1000)
					}
				case tar.TypeSymlink, tar.TypeLink:
					h.Linkname = target.Draw(rt, "target")
				}
				list = append(list, tarEntry{h, body})
			}
			m.layers = append(m.layers, rawLayer(t, s, bytes.NewReader(makeTar(t, list...))))
		}
		one, other := t.TempDir(), t.TempDir()
		err1 := unpackLayers(t.Context(), s, m, one, Limits{}.orDefault())
		err2 := unpackInTurn(t, s, m, other)
		if (err1 == nil) != (err2 == nil) || err1 != nil && strings.ReplaceAll(err1.Error(), one, other) != err2.Error() {
			rt.Fatalf("at once: %v, in turn: %v", err1, err2)
		}
		if err1 == nil && tree(t, one) != tree(t, other) {
			rt.Fatalf("at once\n%.2000s\nin turn\n%.2000s", tree(t, one), tree(t, other))
		}
	})
}

// unpackInTurn waits for each entry's file before it reads the next entry.
func unpackInTurn(t testing.TB, s *Store, m imageRoot, dir string) error {
	top, err := os.OpenRoot(dir)
	noErr(t, err)
	a, err := probeAttrs(top)
	noErr(t, err)
	w := startLayWriters(t.Context(), a, nil)
	u := newUnpacker(top, w, Limits{}.orDefault())
	defer u.tree.close()
	err = walkLayers(t.Context(), s, m.layers, func(e layerEntry) error {
		u.startLayer(e.layer)
		if err := u.entry(e.header, e.body); err != nil {
			return err
		}
		return w.wait()
	})
	if err != nil {
		w.cancel(err)
	}
	if werr := w.close(); werr != nil {
		return werr
	}
	return u.tree.finish()
}

// loggedStore is a store that logs into what is returned.
func loggedStore(t testing.TB) (*Store, *bytes.Buffer) {
	t.Helper()
	var buf bytes.Buffer
	s, err := Open(t.TempDir(), Options{Log: slog.New(slog.NewTextHandler(&buf, nil))})
	noErr(t, err)
	t.Cleanup(func() { noErr(t, s.Close()) })
	return s, &buf
}
