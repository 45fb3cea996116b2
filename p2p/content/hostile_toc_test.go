package content

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
)

// tocImage puts an image of one layer that has a table of contents of the given
// entries, and nothing behind it.
func tocImage(t testing.TB, s *Store, entries iter.Seq[tocEntry]) cid.Cid {
	t.Helper()
	var toc []sized
	w := &tocWriter{put: func(b []byte) error {
		toc = append(toc, sized{rawRef(b), uint64(len(b))})
		return s.put(rawRef(b).key, b)
	}}
	var at uint64
	for e := range entries {
		e.from, e.len, e.mtime = at, tocUnit, testTime
		at += e.len
		noErr(t, w.add(&e))
	}
	noErr(t, w.flush())
	diff := rawRef([]byte("no tar at all"))
	var chunks []sized
	for left := at; left > 0; left -= chunks[len(chunks)-1].size {
		chunks = append(chunks, sized{diff, min(left, MaxBlock)})
	}
	l, err := putMap(s, chunks, diff.key, at, toc...)
	noErr(t, err)
	_, root, err := finishImage(s, diffConfig(t, digestOf(diff.key)), []layerRef{l})
	noErr(t, err)
	return root.cid()
}

// many yields n entries.
func many(n int, make func(i int) tocEntry) iter.Seq[tocEntry] {
	return func(yield func(tocEntry) bool) {
		for i := range n {
			if !yield(make(i)) {
				return
			}
		}
	}
}

func joined(lists ...iter.Seq[tocEntry]) iter.Seq[tocEntry] {
	return func(yield func(tocEntry) bool) {
		for _, list := range lists {
			for e := range list {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// A table of contents says in a few bytes what takes thousands to remember or to
// go through. Such an image is not laid out before it is whole.
func TestTOCBombs(t *testing.T) {
	deep := strings.Repeat(strings.Repeat("d", 39)+"/", 100) // 4,000 bytes
	empty := func(name string) tocEntry { return tocEntry{name: name, kind: tar.TypeReg, mode: 0o644} }
	link := tocEntry{name: "l", kind: tar.TypeSymlink, link: deep[:len(deep)-1]}
	one := func(e tocEntry) iter.Seq[tocEntry] { return many(1, func(int) tocEntry { return e }) }
	for _, tc := range []struct {
		name string
		list iter.Seq[tocEntry]
		want string
	}{
		{"long names", many(100_000, func(i int) tocEntry { return empty(fmt.Sprintf("%s%07d", deep, i)) }), "MiB of memory"},
		{"long paths behind a link", joined(one(empty(deep+"f")), one(link), many(100_000, func(i int) tocEntry { return empty(fmt.Sprintf("l/%07d", i)) })), "MiB of memory"},
		{"long links", many(60_000, func(i int) tocEntry {
			return tocEntry{name: fmt.Sprintf("%07d", i), kind: tar.TypeSymlink, link: deep}
		}), "MiB of memory"},
		{"attributes", many(6_000, func(i int) tocEntry {
			e := empty(fmt.Sprintf("%07d", i))
			for j := range tocXattrs {
				e.xattrs = append(e.xattrs, xattr{fmt.Sprintf("user.%02d", j), deep[:500]})
			}
			return e
		}), "MiB of memory"},
		{"global headers with names", many(100_000, func(i int) tocEntry {
			return tocEntry{name: fmt.Sprintf("%s%07d", deep, i), kind: tar.TypeXGlobalHeader}
		}), "MiB of memory"},
		{"a million files", many(1_000_000, func(i int) tocEntry { return empty(fmt.Sprintf("d/%07d", i)) }), "MiB of memory"},
		{"a folder emptied over and over", joined(
			many(5_000, func(i int) tocEntry { return empty(fmt.Sprintf("d/%d", i)) }),
			many(5_000, func(int) tocEntry { return empty("d/" + whiteoutOpaque) })), "steps"},
		{"links that wind", joined(
			one(tocEntry{name: "a/", kind: tar.TypeDir}),
			one(tocEntry{name: "l0", kind: tar.TypeSymlink, link: strings.Repeat("a/../", 800) + "a"}),
			many(20_000, func(i int) tocEntry { return empty(fmt.Sprintf("l0/%07d", i)) })), "steps"},
		{"a name no disk takes", one(empty(strings.Repeat("n", maxBase+1))), "name of 256 bytes"},
		{"a folder no disk takes", one(empty(strings.Repeat("n", maxBase+1) + "/f")), "name of 256 bytes"},
		{"folders in folders", one(empty(strings.Repeat("d/", maxDepth+1) + "f")), "200 folders"},
		{"a path of two halves", joined(one(empty(deep+"f")), one(link), one(empty("l/"+deep+"f"))), "in a path of"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := testStore(t)
			root := tocImage(t, s, tc.list)
			dir := filepath.Join(t.TempDir(), "lazy")
			const most = 3 * maxTOCTree // with what is garbage soon
			grown := leastAllocated(t, most, func() {
				l, err := OpenLazy(t.Context(), s, root, dir, LazyOptions{})
				if !errors.Is(err, ErrTooLarge) || !strings.Contains(fmt.Sprint(err), tc.want) || !strings.Contains(fmt.Sprint(err), "layer 0") {
					t.Errorf("%.300s, want %q", fmt.Sprint(err), tc.want)
				}
				if err == nil {
					noErr(t, l.Close())
				}
			})
			if grown > most {
				t.Errorf("%d bytes were allocated", grown)
			}
			if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("something was laid out: %v", err)
			}
		})
	}
}

// An image that is refused before it is whole is imported like any other, and
// names what is read of it first only if that is cheap to find out.
func TestImportOfTOCBomb(t *testing.T) {
	s := testStore(t)
	var list []tarEntry
	list = append(list, folderAt("d/", 0o755))
	for i := range 4200 {
		list = append(list, file(fmt.Sprintf("d/%d", i), ""))
	}
	for range 4200 {
		list = append(list, file("d/"+whiteoutOpaque, ""))
	}
	root := loadLayers(t, s, makeTar(t, list...))
	_, m, err := readImage(t.Context(), s, root)
	noErr(t, err)
	if len(m.first) > 0 {
		t.Errorf("first: %q", m.first)
	}
	if _, err := runLazy(t, s, root, Limits{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
}

// tarOf streams a tar of n entries in one folder, made from one header.
func tarOf(t testing.TB, n int, kind byte) io.Reader {
	t.Helper()
	const digits = 7
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	noErr(t, tw.WriteHeader(&tar.Header{Name: "d/" + strings.Repeat("0", digits), Typeflag: kind, Linkname: "x", Mode: 0o777}))
	head := buf.Bytes()[:tocUnit]
	var base int
	_, err := fmt.Sscanf(string(head[148:154]), "%o", &base)
	noErr(t, err)
	return &generated{n: n, head: head, name: head[2 : 2+digits], sum: head[148:154], base: base - digits*'0'}
}

// generated yields its header n times, with numbers in it, and the end mark.
type generated struct {
	i, n      int
	head      []byte
	name, sum []byte // in head
	base      int    // checksum without the number
	rest      []byte
}

func (g *generated) Read(p []byte) (int, error) {
	if len(g.rest) == 0 {
		switch {
		case g.i < g.n:
			copy(g.name, fmt.Sprintf("%07d", g.i))
			sum := g.base
			for _, c := range g.name {
				sum += int(c)
			}
			copy(g.sum, fmt.Sprintf("%06o", sum))
			g.rest = g.head
		case g.i == g.n:
			g.rest = make([]byte, 2*tocUnit)
		default:
			return 0, io.EOF
		}
		g.i++
	}
	n := copy(p, g.rest)
	g.rest = g.rest[n:]
	return n, nil
}

// A folder of more than a million entries is refused with nothing left, by
// default, and reading it takes little memory. They are devices, of which none is
// made: making a million links takes minutes on a disk, and is the long form.
func TestMillionEntries(t *testing.T) {
	kind := byte(tar.TypeChar)
	if os.Getenv("LUMBUNG_LONG") != "" {
		kind = tar.TypeSymlink
	}
	const million = 1_000_000
	s := testStore(t)
	root := layerImage(t, s, bufio.NewReaderSize(tarOf(t, million+1, kind), 1<<20))
	dir := filepath.Join(t.TempDir(), "root")
	most := uint64(1 << 30) // a header and its strings are garbage soon
	if raceDetected(t) {
		most *= 4 // the race detector's own allocations count too
	}
	grown := leastAllocated(t, most, func() {
		if err := Unpack(t.Context(), s, root, dir); !errors.Is(err, ErrTooLarge) || !strings.Contains(fmt.Sprint(err), "more than 1000000 files") {
			t.Errorf("%v", err)
		}
	})
	if grown > most {
		t.Errorf("%d bytes were allocated", grown)
	}
	wantNothingBeside(t, dir)
}
