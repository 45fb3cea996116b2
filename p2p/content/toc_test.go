package content

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
)

func tocOf(t testing.TB, layer []byte) ([]tocEntry, [][]byte, error) {
	t.Helper()
	var list []tocEntry
	var blocks [][]byte
	w := &tocWriter{put: func(b []byte) error { blocks = append(blocks, b); return nil }}
	err := eachEntry(bytes.NewReader(layer), func(e *tocEntry) error {
		list = append(list, *e)
		return w.add(e)
	})
	if err == nil {
		err = w.flush()
	}
	return list, blocks, err
}

func sameEntries(a, b tocEntry) bool { return a.same(&b) && a.from == b.from && a.len == b.len }

func TestTOCRoundTrip(t *testing.T) {
	long := strings.Repeat("long/", 60) + "name"
	entries := []tarEntry{
		folderAt("bin/", 0o755), file("bin/app", "the program"), file("bin/empty", ""), symlink("sh", "bin/app"), hardlink("again", "bin/app"),
		file(long, "behind a long name"), file("not-\xff-utf8", "x"),
		{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"comment": strings.Repeat("c", 700)}}, ""},
		{tar.Header{Name: "cap", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 1000, Gid: 70000, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.b": "2", "SCHILY.xattr.user.a": "1"}}, "body"},
		file("big", strings.Repeat("0123456789abcdef", 100_000)),
	}
	for i := range 20_000 {
		entries = append(entries, file(fmt.Sprintf("usr/lib/python3/site-packages/many/of/them/file-%d.py", i), "x"))
	}
	layer := makeTar(t, entries...)
	want, blocks, err := tocOf(t, layer)
	noErr(t, err)
	if len(want) != len(entries) || len(blocks) != 1 {
		t.Fatalf("%d entries, %d blocks", len(want), len(blocks))
	}
	if n := len(blocks[0]) / len(entries); n > 40 {
		t.Errorf("an entry takes %d bytes", n)
	}
	var got []tocEntry
	_, err = decodeTOC(blocks[0], 0, func(e *tocEntry) error { got = append(got, *e); return nil })
	noErr(t, err)
	if !slices.EqualFunc(got, want, sameEntries) {
		t.Error("what was read is not what was written")
	}
	for i, e := range want { // each begins where it says
		h, err := tar.NewReader(bytes.NewReader(layer[e.from : e.from+e.len])).Next()
		if err != nil || e.kind != tar.TypeXGlobalHeader && h.Name != e.name {
			t.Fatalf("entry %d: %v", i, err)
		}
	}
}

func TestNoTOC(t *testing.T) {
	sparse := makeTar(t, file("f", "x"))
	copy(sparse[156:], "S") // GNU's sparse file
	for name, layer := range map[string][]byte{"noise": bytes.Repeat([]byte("no tar "), 500), "sparse": sparse, "cut off": makeTar(t, file("f", strings.Repeat("x", 5000)))[:2000]} {
		if _, _, err := tocOf(t, layer); !errors.Is(err, errNoTOC) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// randomLayers makes layers over few names, so that they meet in every way.
func randomLayers(t testing.TB, rnd *rand.Rand) [][]byte {
	names := []string{"a", "b", "a/x", "a/y", "b/x", "a/x/k", "b/x/k", "l", "l/z", "a/l", "l/x/m"}
	pick := func() string { return names[rnd.IntN(len(names))] }
	var layers [][]byte
	for range 1 + rnd.IntN(3) {
		var list []tarEntry
		for range 1 + rnd.IntN(7) {
			name := pick()
			dir, base := filepath.Split(name)
			switch rnd.IntN(12) {
			case 0, 1, 2, 3:
				list = append(list, file(name, fmt.Sprint("body ", rnd.IntN(1000))))
			case 4, 5, 6:
				list = append(list, folderAt(name+"/", int64(0o700+rnd.IntN(64))))
			case 7:
				list = append(list, symlink(name, []string{"a", "/b", "../a/x", "..", "x"}[rnd.IntN(5)]))
			case 8, 9:
				list = append(list, hardlink(name, pick()))
			case 10:
				list = append(list, file(dir+whiteout+base, ""))
			case 11:
				list = append(list, file(dir+whiteoutOpaque, ""))
			}
		}
		layers = append(layers, makeTar(t, list...))
	}
	return layers
}

// listTree describes everything in a folder; hard links are named by the first
// of their names.
func listTree(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	first := map[fileID]string{}
	noErr(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		noErr(t, err)
		fi, err := d.Info()
		noErr(t, err)
		name, err := filepath.Rel(dir, p)
		noErr(t, err)
		fmt.Fprintf(&b, "%s %s", name, fi.Mode())
		if id, ok := hardLinked(fi); ok {
			if first[id] == "" {
				first[id] = name
			}
			fmt.Fprintf(&b, " =%s", first[id])
		}
		switch {
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(p)
			noErr(t, err)
			fmt.Fprintf(&b, " %s %s %s", fi.ModTime().UTC().Format(time.RFC3339), sha(data), owner(fi))
		case fi.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			noErr(t, err)
			fmt.Fprintf(&b, " -> %s", to)
		}
		b.WriteByte('\n')
		return nil
	}))
	return b.String()
}

func loadLayers(t testing.TB, s *Store, layers ...[]byte) cid.Cid {
	t.Helper()
	im, err := LoadImage(t.Context(), s, dockerArchive(t, testConfig(t, "amd64", layers...), layers...), LoadOptions{})
	noErr(t, err)
	return im.Root
}

// runLazy lays an image out and brings it, and returns the finished folder.
func runLazy(t testing.TB, s *Store, root cid.Cid, limit Limits) (string, error) {
	t.Helper()
	dir := t.TempDir()
	l, err := OpenLazy(t.Context(), s, root, filepath.Join(dir, "lazy"), LazyOptions{Limits: limit})
	if err != nil {
		return "", err
	}
	dest := filepath.Join(dir, "done")
	err = l.Run(t.Context(), dest)
	return dest, errors.Join(err, l.Close())
}

// An image that is laid out and brought is the one that is unpacked, whatever
// its layers do to each other.
func TestLazyAgreesWithUnpack(t *testing.T) {
	s := testStore(t)
	agreed := 0
	for seed := range uint64(400) {
		root := loadLayers(t, s, randomLayers(t, rand.New(rand.NewPCG(seed, 7)))...)
		want := filepath.Join(t.TempDir(), "unpacked")
		uerr := Unpack(t.Context(), s, root, want)
		got, lerr := runLazy(t, s, root, Limits{})
		if (uerr == nil) != (lerr == nil) {
			t.Fatalf("seed %d: unpacked: %v; laid out: %v", seed, uerr, lerr)
		}
		if uerr != nil {
			continue
		}
		agreed++
		if w, g := listTree(t, want), listTree(t, got); w != g {
			t.Fatalf("seed %d: unpacked\n%s\nlaid out\n%s", seed, w, g)
		}
	}
	if agreed < 100 {
		t.Errorf("only %d of the images could be unpacked", agreed)
	}
}

func FuzzTOC(f *testing.F) {
	_, blocks, err := tocOf(f, makeTar(f, file("a/b", "x"), symlink("l", "a"), hardlink("h", "a/b")))
	noErr(f, err)
	f.Add(blocks[0])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		tree := newTOCTree(Limits{Entries: 1000, Bytes: 1 << 20})
		var all []tocEntry
		_, err := decodeTOC(data, 0, func(e *tocEntry) error { all = append(all, *e); _ = tree.add(0, e); return nil })
		if err != nil || len(all) == 0 {
			return
		}
		var again [][]byte
		w := &tocWriter{put: func(b []byte) error { again = append(again, b); return nil }}
		for i := range all {
			noErr(t, w.add(&all[i]))
		}
		noErr(t, w.flush())
		var at uint64
		var back []tocEntry
		for _, b := range again {
			if at, err = decodeTOC(b, at, func(e *tocEntry) error { back = append(back, *e); return nil }); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.EqualFunc(all, back, sameEntries) {
			t.Errorf("%+v became %+v", all, back)
		}
	})
}

func FuzzTOCOfTar(f *testing.F) {
	f.Add(makeTar(f, file("a/b", strings.Repeat("x", 600)), symlink("l", "a"), folderAt("d/", 0o700)))
	f.Fuzz(func(t *testing.T, layer []byte) {
		list, blocks, err := tocOf(t, layer)
		if err != nil {
			return
		}
		var at uint64
		var back []tocEntry
		for _, b := range blocks {
			if at, err = decodeTOC(b, at, func(e *tocEntry) error { back = append(back, *e); return nil }); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.EqualFunc(list, back, sameEntries) {
			t.Errorf("%+v became %+v", list, back)
		}
	})
}
