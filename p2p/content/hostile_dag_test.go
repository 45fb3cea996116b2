package content

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	"github.com/spaolacci/murmur3"
)

// pbNode puts a UnixFS node with raw links, as boxo would refuse to make.
func pbNode(t testing.TB, s *Store, fsn *unixfs.FSNode, links ...*format.Link) cid.Cid {
	t.Helper()
	data, err := fsn.GetBytes()
	noErr(t, err)
	return pbBytes(t, s, data, links...)
}

func pbBytes(t testing.TB, s *Store, data []byte, links ...*format.Link) cid.Cid {
	t.Helper()
	n := merkledag.NodeWithData(data)
	noErr(t, n.SetCidBuilder(profile().CidBuilder()))
	for _, l := range links {
		noErr(t, n.AddRawLink(l.Name, l))
	}
	noErr(t, s.Put(t.Context(), n.Cid(), n.RawData()))
	return n.Cid()
}

// selfSimilar makes folders in folders, each naming the next twice.
func selfSimilar(t testing.TB, s *Store, levels int) cid.Cid {
	t.Helper()
	c := pbNode(t, s, unixfs.NewFSNode(unixfs.TDirectory), &format.Link{Name: "leaf", Size: 4, Cid: putRaw(t, s, []byte("leaf"))})
	for range levels {
		c = pbNode(t, s, unixfs.NewFSNode(unixfs.TDirectory), &format.Link{Name: "a", Size: 1 << 40, Cid: c}, &format.Link{Name: "b", Size: 1 << 40, Cid: c})
	}
	return c
}

// A DAG of 32 blocks that unfolds to a billion folders costs 32 blocks
// everywhere, and is refused where it would have to be unfolded.
func TestSelfSimilarFolders(t *testing.T) {
	s := testStore(t)
	const levels = 30
	root := selfSimilar(t, s, levels)
	if sz, err := DAGSize(t.Context(), s, root); err != nil || sz.Blocks != levels+2 {
		t.Errorf("size %+v %v", sz, err)
	}
	if _, _, complete, err := Missing(t.Context(), s, root); err != nil || !complete {
		t.Errorf("missing: %v %v", complete, err)
	}
	if list, err := List(t.Context(), s, root, "a/b/a"); err != nil || len(list) != 2 {
		t.Errorf("list: %v %v", list, err)
	}
	dest := filepath.Join(t.TempDir(), "out")
	ex, err := ExportWith(t.Context(), s, root, dest, ExportOptions{})
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "unfolds to") || ex.Files != 0 {
		t.Errorf("export: %+v %v", ex, err)
	}
	if _, err := os.Lstat(dest); err == nil {
		t.Error("something was written before it was refused")
	}
	st, err := s.GC(t.Context(), rootList{root}, GCOptions{})
	if err != nil || st.Kept != levels+2 {
		t.Errorf("collection: %+v %v", st, err)
	}
	// Fetching it takes each block once.
	net, to := newTestNet(t), testStore(t)
	net.honest("source", s, ExchangeOptions{}, nil)
	noErr(t, net.honest("asker", to, ExchangeOptions{}, nil).Fetch(t.Context(), root, FetchOptions{Peers: []string{"source"}}))
	if st := to.Stats(); st.Blocks != levels+2 {
		t.Errorf("fetched %+v", st)
	}
}

// Blocks that all name all later ones have few blocks but many links: a walk
// that noted each link would need memory for their square.
func TestDenseLinks(t *testing.T) {
	s := testStore(t)
	const n = 800
	links := make([]*format.Link, 0, n)
	for i := range n {
		c := pbNode(t, s, unixfs.NewFSNode(unixfs.TDirectory), links...)
		links = append(links, &format.Link{Name: fmt.Sprint(i), Cid: c})
	}
	root := links[n-1].Cid
	r, err := refOf(root)
	noErr(t, err)
	// The heap is the process's: what other tests left running may add to it once,
	// but not each time.
	grown := int64(math.MaxInt64)
	for range 5 {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		live := codecSet{}
		noErr(t, s.mark(t.Context(), []ref{r}, live))
		runtime.GC()
		runtime.ReadMemStats(&after)
		if len(live) != n {
			t.Errorf("%d of %d blocks marked", len(live), n)
		}
		if grown = min(grown, int64(after.HeapAlloc)-int64(before.HeapAlloc)); grown <= 1<<20 {
			break
		}
	}
	if grown > 1<<20 {
		t.Errorf("the marks of %d blocks take %d bytes", n, grown)
	}
	if sz, err := DAGSize(t.Context(), s, root); err != nil || sz.Blocks != n {
		t.Errorf("%+v %v", sz, err)
	}
}

// A stranger who names a block of somebody else's DAG as plain bytes does not
// hide what is under it, from a collection or from a count.
func TestBlockNamedByTwoCodecs(t *testing.T) {
	s := testStore(t)
	leaf := putRaw(t, s, []byte("precious"))
	victim := pbNode(t, s, unixfs.NewFSNode(unixfs.TDirectory), &format.Link{Name: "f", Size: 8, Cid: leaf})
	r, err := refOf(victim)
	noErr(t, err)
	r.codec = codecRaw
	stranger := pbNode(t, s, unixfs.NewFSNode(unixfs.TDirectory), &format.Link{Name: "x", Cid: r.cid()})
	both := pbNode(t, s, unixfs.NewFSNode(unixfs.TDirectory), &format.Link{Name: "a", Cid: r.cid()}, &format.Link{Name: "b", Cid: victim})
	for _, roots := range []rootList{{r.cid(), victim, both}, {victim, stranger, both}, {stranger, victim, both}, {both}} {
		_, err := s.GC(t.Context(), roots, GCOptions{})
		noErr(t, err)
		if !s.Has(leaf) {
			t.Fatalf("collected, with roots %v", roots)
		}
		if roots[0] != both && !s.Has(stranger) {
			stranger = pbNode(t, s, unixfs.NewFSNode(unixfs.TDirectory), &format.Link{Name: "x", Cid: r.cid()})
		}
	}
	sz, err := DAGSize(t.Context(), s, both)
	if err != nil || sz.Blocks != 3 {
		t.Errorf("%+v %v, want 3 blocks", sz, err)
	}
}

func shard(t testing.TB, s *Store, fanout uint64, links ...*format.Link) cid.Cid {
	t.Helper()
	data, err := unixfs.HAMTShardData([]byte{0xff}, fanout, 0x22)
	noErr(t, err)
	return pbBytes(t, s, data, links...)
}

// shardOf makes a sharded folder of names that all lead to c.
func shardOf(t testing.TB, s *Store, c cid.Cid, names []string, shift int) cid.Cid {
	t.Helper()
	var groups [256][]string
	for _, name := range names {
		at := murmur3.Sum64([]byte(name)) >> shift & 0xff
		groups[at] = append(groups[at], name)
	}
	var links []*format.Link
	for at, g := range groups {
		switch len(g) {
		case 0:
		case 1:
			links = append(links, &format.Link{Name: fmt.Sprintf("%02X", at) + g[0], Size: 1, Cid: c})
		default:
			links = append(links, &format.Link{Name: fmt.Sprintf("%02X", at), Cid: shardOf(t, s, c, g, shift-8)})
		}
	}
	return shard(t, s, 256, links...)
}

// shardPlace is where a name belongs in the topmost node of a folder with 256.
func shardPlace(name string) string { return fmt.Sprintf("%02X", murmur3.Sum64([]byte(name))>>56) }

// Sharded folders that lead in circles of their own making end.
func TestHostileShards(t *testing.T) {
	s := testStore(t)
	leaf := putRaw(t, s, []byte("x"))
	deep := shard(t, s, 256, &format.Link{Name: "00f", Cid: leaf})
	for range 30 {
		deep = shard(t, s, 256, &format.Link{Name: "00", Cid: deep}, &format.Link{Name: "01", Cid: deep})
	}
	twice := shardOf(t, s, leaf, []string{"f"}, 48)
	hollow := shard(t, s, 256)
	file, err := Add(t.Context(), s, writeTemp(t, "x"), AddOptions{})
	noErr(t, err)
	for _, tc := range []struct {
		name string
		root cid.Cid
		want error
	}{
		{"deeper than the hash", deep, ErrMalformed},
		{"one part twice", shard(t, s, 256, &format.Link{Name: shardPlace("f"), Cid: twice}, &format.Link{Name: "FF", Cid: twice}), ErrMalformed},
		{"entry out of place", shard(t, s, 256, &format.Link{Name: "00f", Cid: leaf}), ErrMalformed},
		{"entry twice", shard(t, s, 256, &format.Link{Name: shardPlace("f") + "f", Cid: leaf}, &format.Link{Name: shardPlace("f") + "f", Cid: leaf}), ErrMalformed},
		{"empty part", shard(t, s, 256, &format.Link{Name: "00", Cid: hollow}), ErrMalformed},
		{"part is a file", shard(t, s, 256, &format.Link{Name: "00", Cid: file.CID}), ErrMalformed},
		{"part is a folder", shard(t, s, 256, &format.Link{Name: "00", Cid: hostileDir(t, s, "f")}), ErrMalformed},
		{"part of another fanout", shard(t, s, 256, &format.Link{Name: "00", Cid: shard(t, s, 16, &format.Link{Name: "0f", Cid: leaf})}), ErrMalformed},
		{"short name", shard(t, s, 256, &format.Link{Name: "0", Cid: leaf}), ErrMalformed},
		{"no digits", shard(t, s, 256, &format.Link{Name: "xxf", Cid: leaf}), ErrMalformed},
		{"fanout of 3", shard(t, s, 3, &format.Link{Name: "0f", Cid: leaf}), ErrMalformed},
		{"enormous fanout", shard(t, s, 1<<40, &format.Link{Name: "00f", Cid: leaf}), ErrMalformed},
		{"unsafe name", shard(t, s, 256, &format.Link{Name: shardPlace("..") + "..", Cid: leaf}), ErrUnsafe},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := List(t.Context(), s, tc.root, ""); !errors.Is(err, tc.want) {
				t.Errorf("list: %v, want %v", err, tc.want)
			}
			if err := Export(t.Context(), s, tc.root, filepath.Join(t.TempDir(), "out")); !errors.Is(err, tc.want) {
				t.Errorf("export: %v, want %v", err, tc.want)
			}
		})
	}
}

func writeTemp(t testing.TB, body string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "f")
	noErr(t, os.WriteFile(p, []byte(body), 0o600))
	return p
}

// A file of nothing, cut into a billion parts, or of one byte each behind
// long chains, is refused for the nodes it takes.
func TestFileOfManyNodes(t *testing.T) {
	s := testStore(t)
	for _, first := range []string{"", "x"} {
		c, size := putRaw(t, s, []byte(first)), uint64(len(first))
		for range 20 {
			f := unixfs.NewFSNode(unixfs.TFile)
			links := make([]*format.Link, 4)
			for i := range links {
				f.AddBlockSize(size)
				links[i] = &format.Link{Size: size, Cid: c}
			}
			c, size = pbNode(t, s, f, links...), 4*size
		}
		if err := Cat(t.Context(), s, c, "", io.Discard); !errors.Is(err, ErrTooLarge) {
			t.Errorf("of %q: %v", first, err)
		}
	}
}

// One large node named by every entry of a folder is read once to list it.
func TestListReadsOnce(t *testing.T) {
	s := testStore(t)
	heavy := pbNode(t, s, unixfs.NewFSNode(unixfs.TDirectory), &format.Link{Name: strings.Repeat("n", 1<<20), Cid: putRaw(t, s, nil)})
	links := make([]*format.Link, 20_000)
	for i := range links {
		links[i] = &format.Link{Name: fmt.Sprintf("e%05d", i), Cid: heavy}
	}
	root := pbNode(t, s, unixfs.NewFSNode(unixfs.TDirectory), links...)
	d := describer{dagService{t.Context(), s}, map[ref]Entry{}}
	for _, l := range links {
		e, err := d.entry(l)
		if err != nil || e.Name != l.Name || e.Kind != EntryFolder {
			t.Fatalf("%+v %v", e, err)
		}
	}
	if len(d.seen) != 1 {
		t.Errorf("%d entries were described", len(d.seen))
	}
	if list, err := List(t.Context(), s, root, ""); err != nil || len(list) != len(links) {
		t.Errorf("%d %v", len(list), err)
	}
}

// A folder of more entries than are listed is refused; one of 100,000 is not.
func TestHugeFolder(t *testing.T) {
	s := testStore(t)
	leaf := putRaw(t, s, []byte("x"))
	names := make([]string, maxDirList+1)
	for i := range names {
		names[i] = fmt.Sprintf("file-%07d", i)
	}
	list, err := List(t.Context(), s, shardOf(t, s, leaf, names[:100_000], 56), "")
	if err != nil || len(list) != 100_000 {
		t.Errorf("%d %v", len(list), err)
	}
	huge := shardOf(t, s, leaf, names, 56)
	d := dagService{t.Context(), s}
	n, err := d.find(t.Context(), huge, "")
	noErr(t, err)
	seen := 0
	err = d.eachEntry(t.Context(), n, func(*format.Link) error { seen++; return nil })
	if !errors.Is(err, ErrTooLarge) || seen != maxDirList {
		t.Errorf("%d entries: %v", seen, err)
	}
}

// An export stops before it fills the disk.
func TestExportLeavesRoom(t *testing.T) {
	r := &diskRoom{dir: "here", free: func(string) (uint64, error) { return keepFree - 1, nil }}
	w := &exportWriter{&exporter{o: ExportOptions{Limits: Limits{}.orDefault()}, room: r}, io.Discard}
	buf := make([]byte, 1<<20)
	var err error
	n := 0
	for ; err == nil && n < 2*roomEvery; n += len(buf) {
		_, err = w.Write(buf)
	}
	if !errors.Is(err, ErrNoRoom) || n > roomEvery {
		t.Errorf("after %d bytes: %v", n, err)
	}
}
