package content

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
)

// bigLayers make an image of a few MiB whose last file is wanted first.
func bigLayers(t testing.TB) [][]byte {
	var list []tarEntry
	for i := range 24 {
		list = append(list, file(fmt.Sprintf("data/%02d", i), string(noise(uint64(i), 300<<10))))
	}
	list = append(list, file("etc/passwd", "root:x:0:0::/:/bin/sh\n"), file("bin/last", "read first"), symlink("bin/app", "last"), hardlink("bin/other", "bin/last"))
	return [][]byte{makeTar(t, list...), makeTar(t, file("data/.wh.03", ""), file("upper", "of the second layer"))}
}

// A file is there before the image is, nothing else but what is whole appears,
// and in the end all is as if it had been unpacked, also after a restart.
func TestLazyBeforeWhole(t *testing.T) {
	src := testStore(t)
	root := loadLayers(t, src, bigLayers(t)...)
	n := newTestNet(t)
	open := make(chan struct{})
	n.honest("a", src, quickOptions, gated(quickBytes/2, open))
	s := testStore(t)
	f := NewExchange(s, n, quickOptions).Start(t.Context(), root, FetchOptions{Kind: KindImage, Peers: []string{"a"}})
	defer f.Stop()
	noErr(t, NeedTables(t.Context(), s, root, f))
	dir := filepath.Join(t.TempDir(), "lazy")
	l, err := OpenLazy(t.Context(), s, root, dir, LazyOptions{Fetch: f, First: []string{"upper", "no/such"}})
	noErr(t, err)
	if got := []string{l.files[0].names[0], l.files[1].names[0], l.files[2].names[0]}; l.first != 3 || !slices.Equal(got, []string{"upper", "etc/passwd", "bin/last"}) {
		t.Errorf("%d first: %q", l.first, got)
	}
	var names []string
	noErr(t, filepath.WalkDir(l.Whole(), func(p string, d fs.DirEntry, err error) error {
		if !d.IsDir() && d.Type()&fs.ModeSymlink == 0 {
			names = append(names, p)
		}
		return err
	}))
	if len(names) > 0 {
		t.Errorf("at first there are %q", names)
	}
	if fi, err := os.Stat(filepath.Join(l.Shape(), "data/00")); err != nil || fi.Size() != 300<<10 {
		t.Errorf("%v %v", fi, err)
	}
	_, err = os.Stat(filepath.Join(l.Shape(), "data/03"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is whited out: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- l.Run(ctx, filepath.Join(dir, "done")) }()
	if l.Fill(t.Context(), "/no/such") == nil {
		t.Error("a file that is not in the image was brought")
	}
	cancel() // the node is restarted
	if err := <-ran; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	noErr(t, l.Close())
	close(open)
	l, err = OpenLazy(t.Context(), s, root, dir, LazyOptions{Fetch: f})
	noErr(t, err)
	noErr(t, l.Fill(t.Context(), "/bin/other"))
	for _, name := range []string{"bin/last", "bin/app", "bin/other"} {
		if b, err := os.ReadFile(filepath.Join(l.Whole(), name)); err != nil || string(b) != "read first" {
			t.Errorf("%s: %q %v", name, b, err)
		}
	}
	noErr(t, l.FillAny(t.Context(), "/bin/app"))
	noErr(t, l.FillAny(t.Context(), "/no/such"))
	dest := filepath.Join(dir, "done")
	noErr(t, l.Run(t.Context(), dest))
	if l.Left() != 0 {
		t.Errorf("%d files are left", l.Left())
	}
	noErr(t, l.Close())
	want := filepath.Join(t.TempDir(), "unpacked")
	noErr(t, Unpack(t.Context(), src, root, want))
	if w, g := listTree(t, want), listTree(t, dest); w != g {
		t.Errorf("unpacked\n%s\nbrought\n%s", w, g)
	}
}

// A file whose blocks nobody has is an error that names both.
func TestLazyLostBlock(t *testing.T) {
	src := testStore(t)
	root := loadLayers(t, src, bigLayers(t)...)
	s := testStore(t)
	missing, err := tables(s, root)
	for ; err == nil && len(missing) > 0; missing, err = tables(s, root) {
		for _, c := range missing {
			data, err := src.Get(t.Context(), c)
			noErr(t, err)
			noErr(t, s.Put(t.Context(), c, data))
		}
	}
	noErr(t, err)
	l, err := OpenLazy(t.Context(), s, root, filepath.Join(t.TempDir(), "lazy"), LazyOptions{})
	noErr(t, err)
	defer func() { noErr(t, l.Close()) }()
	if err := l.Fill(t.Context(), "/data/07"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "/data/07") || !strings.Contains(err.Error(), "bafkrei") {
		t.Errorf("%v", err)
	}
	if err := NeedTables(t.Context(), testStore(t), root, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// A table of contents that is not of its tar is found out, at the latest before
// the image becomes an ordinary one.
func TestLyingTOC(t *testing.T) {
	layer := makeTar(t, file("bin/sh", "a shell"), file("etc/shadow", "a secret"), file("last", string(makeTar(t, file("bin/sh", "a hidden trap")))))
	for name, lie := range map[string]func(list []tocEntry) []tocEntry{
		"another body": func(l []tocEntry) []tocEntry { l[0].name, l[1].name = l[1].name, l[0].name; return l },
		"longer":       func(l []tocEntry) []tocEntry { l[0].size = 500; return l },
		"set user id":  func(l []tocEntry) []tocEntry { l[0].mode = 0o4755; return l },
		"left out":     func(l []tocEntry) []tocEntry { l[1].len += l[0].len; l[1].from = 0; return l[1:] },
		"cut short":    func(l []tocEntry) []tocEntry { return l[:2] },
		"within a file": func(l []tocEntry) []tocEntry {
			l[1].len += tocUnit // up to the body of last, which holds a header
			l[2] = tocEntry{name: "bin/sh", kind: '0', mode: 0o644, mtime: testTime.UTC(), size: 13, from: l[1].from + l[1].len, len: 2 * tocUnit}
			return l
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := testStore(t)
			list, _, err := tocOf(t, layer)
			noErr(t, err)
			var toc []sized
			w := &tocWriter{put: func(b []byte) error {
				toc = append(toc, sized{rawRef(b), uint64(len(b))})
				return s.put(rawRef(b).key, b)
			}}
			for _, e := range lie(list) {
				noErr(t, w.add(&e))
			}
			noErr(t, w.flush())
			chunk := rawRef(layer)
			noErr(t, s.put(chunk.key, layer))
			l, err := putMap(s, []sized{{chunk, uint64(len(layer))}}, chunk.key, uint64(len(layer)), toc...)
			noErr(t, err)
			_, root, err := finishImage(s, testConfig(t, "amd64", layer), []layerRef{l})
			noErr(t, err)
			dest, err := runLazy(t, s, root.cid(), Limits{})
			if !errors.Is(err, ErrMismatch) {
				t.Errorf("%v", err)
			}
			if _, err := os.Lstat(dest); dest != "" && err == nil {
				t.Error("it was used nevertheless")
			}
		})
	}
}

// What an image's program is linked to comes first.
func TestFirstFiles(t *testing.T) {
	const host = "/bin/sh"
	f, err := elf.Open(host)
	if err != nil {
		t.Skipf("no ELF %s here: %v", host, err)
	}
	libs, err := f.ImportedLibraries()
	noErr(t, errors.Join(err, f.Close()))
	if len(libs) == 0 {
		t.Skipf("%s is static here", host)
	}
	program, err := os.ReadFile(host)
	noErr(t, err)
	list := []tarEntry{
		file("usr/bin/dash", string(program)), symlink("bin", "usr/bin"), symlink("usr/bin/sh", "dash"), file("usr/bin/env", "x"),
		file("bin/app", "#!/usr/bin/env sh\necho\n"), file("etc/passwd", "p"), file("lib64/ld-linux-x86-64.so.2", "l"), file("other", "o"),
	}
	for _, lib := range libs {
		list = append(list, file("usr/lib/"+lib, "lib"))
	}
	layer := makeTar(t, list...)
	s := testStore(t)
	im, err := LoadImage(t.Context(), s, dockerArchive(t, testConfig(t, "amd64", layer), layer), LoadOptions{})
	noErr(t, err)
	data, err := s.Get(t.Context(), im.Root)
	noErr(t, err)
	m, err := decodeImageRoot(data)
	noErr(t, err)
	want := []string{"etc/passwd", "usr/bin/app", "usr/bin/env", "usr/bin/dash"}
	for _, lib := range libs {
		want = append(want, "usr/lib/"+lib)
	}
	for i := 0; i < len(m.first); i++ {
		if strings.HasPrefix(m.first[i], "lib64/") { // the loader, where there is one of that name
			m.first = slices.Delete(m.first, i, i+1)
		}
	}
	if !slices.Equal(m.first, want) {
		t.Errorf("%q, want %q", m.first, want)
	}
	var links []cid.Cid
	noErr(t, s.walk(t.Context(), im.Root, func(l link, _ int, here bool) error {
		if here {
			links = append(links, l.ref.cid())
		}
		return nil
	}))
	missing, err := tables(s, im.Root)
	if err != nil || len(missing) > 0 {
		t.Errorf("%v %v", missing, err)
	}
	lm := decodeMapOf(t, s, m.layers[0].mp)
	for _, b := range lm.toc {
		if !slices.Contains(links, b.ref.cid()) {
			t.Error("the table of contents is not under the root")
		}
	}
}

func decodeMapOf(t testing.TB, s *Store, r ref) layerMap {
	t.Helper()
	data, err := s.get(r, nil)
	noErr(t, err)
	m, err := decodeLayerMap(data)
	noErr(t, err)
	return m
}
