package content

import (
	"archive/tar"
	"bytes"
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	format "github.com/ipfs/go-ipld-format"
)

// FuzzLayer lays any bytes out as two layers: nothing outside changes.
func FuzzLayer(f *testing.F) {
	up := "../../../../../../../../../../.."
	for _, list := range [][]tarEntry{
		{folderAt("a/", 0o700), file("a/b", "1"), hardlink("c", "a/b"), symlink("l", "a"), file("l/x", "2"), file("a/.wh.b", "")},
		{file("../evil", "x"), file("/abs", "x"), symlink("s", up), file("s/evil", "x"), hardlink("h", "../secret")},
		{symlink("a", "b"), symlink("b", "a"), file("a/x", ""), file("a/.wh..wh..opq", "")},
		{{tar.Header{Name: "f", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}, "x"}},
		{{tar.Header{Name: "dev", Typeflag: tar.TypeChar}, ""}, folderAt("./", 0o500)},
	} {
		f.Add(makeTar(f, list...))
	}
	f.Add(gnuSparse("sparse", 1<<20, []byte("x")))
	s := testStore(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		base := t.TempDir()
		dir, secret := filepath.Join(base, "a", "tree"), filepath.Join(base, "secret")
		noErr(t, os.MkdirAll(dir, 0o755))
		noErr(t, os.WriteFile(secret, []byte("s"), 0o640))
		l := rawLayer(t, s, bytes.NewReader(data))
		err := unpackLayers(t.Context(), s, imageRoot{layers: []layerRef{l, l}}, dir, Limits{Bytes: 4 << 20, Entries: 500})
		t.Logf("%v", err)
		noErr(t, RemoveAll(dir))
		if got := tree(t, base); got != "-rw-r----- secret s\ndrwxr-xr-x a" {
			t.Fatalf("outside is now\n%s", got)
		}
	})
}

// FuzzManifest reads any bytes as config and manifest of an image.
func FuzzManifest(f *testing.F) {
	l := makeTar(f, file("a", "b"))
	config := testConfig(f, "amd64", l)
	m := imageRoot{platform: "linux/amd64", config: rawRef(config), layers: []layerRef{{diff: rawRef(l).key, size: uint64(len(l))}}}
	man, err := m.manifestJSON(len(config))
	noErr(f, err)
	f.Add(config, man)
	f.Add([]byte(`{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":[]}}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, config, manifest []byte) {
		m := m
		m.config, m.manifest = rawRef(config), rawRef(manifest)
		cfg, err := decodeConfig(config)
		if err != nil {
			return
		}
		if err := m.agree(cfg, config, manifest); err == nil && len(cfg.RootFS.DiffIDs) != 1 {
			t.Fatalf("config %q and manifest %q agree on one layer", config, manifest)
		}
	})
}

func compareRefs(a, b ref) int {
	return cmp.Or(slices.Compare(a.key[:], b.key[:]), cmp.Compare(a.codec, b.codec))
}

// FuzzLinks compares our reading of dag-pb links with boxo's: a block that boxo
// reads must not have links there that we do not see, for those would neither
// be fetched nor kept.
func FuzzLinks(f *testing.F) {
	s := testStore(f)
	for _, c := range []codec{codecPB, codecCBOR} {
		r := ref{key: rawRef([]byte("x")).key, codec: c}
		n := unixfs.EmptyDirNode()
		noErr(f, n.AddRawLink("n", &format.Link{Size: 1, Cid: r.cid()}))
		f.Add(n.RawData())
	}
	f.Add([]byte{0x12, 0x00})
	r, err := refOf(selfSimilar(f, s, 2))
	noErr(f, err)
	data, err := s.get(r, nil)
	noErr(f, err)
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, err := linksPB(data)
		n, berr := merkledag.DecodeProtobuf(data)
		if berr != nil || err != nil {
			return
		}
		var got, want []ref
		for _, l := range ours {
			got = append(got, l.ref)
		}
		for _, l := range n.Links() {
			r, err := refOf(l.Cid)
			noErr(t, err)
			want = append(want, r)
		}
		slices.SortFunc(got, compareRefs)
		slices.SortFunc(want, compareRefs)
		if !slices.Equal(got, want) {
			t.Fatalf("we see %v, boxo %v", got, want)
		}
		_, _ = linksCBOR(data)
	})
}
