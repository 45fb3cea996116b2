package content

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	chunkers "github.com/PlakarKorp/go-cdc-chunkers"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func changed(name, body string, change func(*tar.Header)) tarEntry {
	e := file(name, body)
	change(&e.h)
	return e
}

var longName = strings.Repeat("folder-with-a-long-name/", 9) + strings.Repeat("file", 40)

// withParents adds the folders above longName to a tree.
func withParents(lines ...string) []string {
	for i, c := range longName {
		if c == '/' {
			lines = append(lines, "drwxr-xr-x "+longName[:i])
		}
	}
	return lines
}

// conformance is a set of layers, lowest first, and the tree that they make.
var conformance = []struct {
	name   string
	layers [][]tarEntry
	want   []string
}{
	{
		"files and folders",
		[][]tarEntry{{folderAt("a/", 0o750), file("a/b", "1"), file("./c", "2"), file("/d", "3"), file("implied/e", "4")}},
		[]string{"-rw-r--r-- a/b 1", "-rw-r--r-- c 2", "-rw-r--r-- d 3", "-rw-r--r-- implied/e 4", "drwxr-x--- a", "drwxr-xr-x implied"},
	},
	{"empty layers", [][]tarEntry{{}, {file("a", "")}, {}}, []string{"-rw-r--r-- a "}},
	{"the same layer twice", [][]tarEntry{{file("a", "1")}, {file("a", "1")}}, []string{"-rw-r--r-- a 1"}},
	{
		"whiteouts",
		[][]tarEntry{{file("d/gone", "1"), file("d/kept", "2"), folderAt("f/", 0o755), file("f/x", "3")}, {file("d/.wh.gone", ""), file(".wh.f", "")}},
		[]string{"-rw-r--r-- d/kept 2", "drwxr-xr-x d"},
	},
	{"a whiteout and the same name again", [][]tarEntry{{file("a", "old")}, {file(".wh.a", ""), file("a", "new")}}, []string{"-rw-r--r-- a new"}},
	{
		"an opaque folder",
		[][]tarEntry{{file("d/old", "1"), file("d/s/old", "2")}, {folderAt("d/", 0o755), file("d/.wh..wh..opq", ""), file("d/new", "3")}},
		[]string{"-rw-r--r-- d/new 3", "drwxr-xr-x d"},
	},
	{
		"an opaque folder, told last",
		[][]tarEntry{{file("d/old", "1")}, {file("d/new", "3"), file("d/.wh..wh..opq", "")}},
		[]string{"-rw-r--r-- d/new 3", "drwxr-xr-x d"},
	},
	{"hard links", [][]tarEntry{{file("a", "1"), hardlink("b", "a")}}, []string{"-rw-r--r-- a 1", "-rw-r--r-- b 1"}},
	{
		"hard links across layers",
		[][]tarEntry{{file("d/a", "1")}, {hardlink("b", "d/a")}, {file("d/.wh.a", "")}},
		[]string{"-rw-r--r-- b 1", "drwxr-xr-x d"},
	},
	{
		"symbolic links",
		[][]tarEntry{{file("usr/lib/x", "1"), symlink("lib", "usr/lib"), symlink("abs", "/usr/lib"), symlink("gone", "nowhere")}, {file("lib/y", "2")}},
		[]string{"-rw-r--r-- usr/lib/x 1", "-rw-r--r-- usr/lib/y 2", "Lrwxrwxrwx abs -> /usr/lib", "Lrwxrwxrwx gone -> nowhere", "Lrwxrwxrwx lib -> usr/lib", "drwxr-xr-x usr", "drwxr-xr-x usr/lib"},
	},
	{
		"a file becomes a folder and back",
		[][]tarEntry{{file("a", "1"), file("b/c", "2")}, {folderAt("a/", 0o755), file("a/x", "3"), file("b", "4")}},
		[]string{"-rw-r--r-- a/x 3", "-rw-r--r-- b 4", "drwxr-xr-x a"},
	},
	{
		"setuid and sticky bits",
		[][]tarEntry{{changed("su", "1", func(h *tar.Header) { h.Mode = 0o4755 }), folderAt("tmp/", 0o1777)}},
		[]string{"urwxr-xr-x su 1", "dtrwxrwxrwx tmp"},
	},
	{"long names in PAX", [][]tarEntry{{changed(longName, "1", func(h *tar.Header) { h.Format = tar.FormatPAX })}}, withParents("-rw-r--r-- " + longName + " 1")},
	{"long names in GNU", [][]tarEntry{{changed(longName, "1", func(h *tar.Header) { h.Format = tar.FormatGNU })}}, withParents("-rw-r--r-- " + longName + " 1")},
	{
		"long names of links",
		[][]tarEntry{{file(longName, "1"), changed("l", "", func(h *tar.Header) { h.Typeflag, h.Linkname = tar.TypeLink, longName })}},
		withParents("-rw-r--r-- "+longName+" 1", "-rw-r--r-- l 1"),
	},
	{"names that are no UTF-8", [][]tarEntry{{changed("caf\xe9", "1", func(h *tar.Header) { h.Format = tar.FormatGNU })}}, []string{"-rw-r--r-- caf\xe9 1"}},
	{
		"names that are odd",
		[][]tarEntry{{file("a b\tc", "1"), file("日本語", "2"), file("...", "3"), file(".wh", "4"), file("-rf", "5")}},
		[]string{"-rw-r--r-- -rf 5", "-rw-r--r-- ... 3", "-rw-r--r-- .wh 4", "-rw-r--r-- a b\tc 1", "-rw-r--r-- 日本語 2"},
	},
}

// packings are ways a layer may lie in an image, with the media type it claims.
var packings = []struct {
	name, media string
	pack        func(testing.TB, []byte) []byte
}{
	{"plain", ocispec.MediaTypeImageLayer, func(_ testing.TB, b []byte) []byte { return b }},
	{"gzip", ocispec.MediaTypeImageLayerGzip, func(t testing.TB, b []byte) []byte { return gz(t, b) }},
	{"gzip of members", "application/vnd.docker.image.rootfs.diff.tar.gzip", func(t testing.TB, b []byte) []byte {
		return slices.Concat(gz(t, b[:512]), gz(t, b[512:]))
	}},
	{"zstd", ocispec.MediaTypeImageLayerZstd, func(t testing.TB, b []byte) []byte { return zst(t, b) }},
	{"zstd after a skippable frame", ocispec.MediaTypeImageLayerZstd, func(t testing.TB, b []byte) []byte {
		return slices.Concat([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00skip"), zst(t, b))
	}},
	{"plain called gzip", ocispec.MediaTypeImageLayerGzip, func(_ testing.TB, b []byte) []byte { return b }},
	{"gzip called plain", ocispec.MediaTypeImageLayer, func(t testing.TB, b []byte) []byte { return gz(t, b) }},
	{"zstd called gzip", ocispec.MediaTypeImageLayerGzip, func(t testing.TB, b []byte) []byte { return zst(t, b) }},
	{"zstd called nothing", "", func(t testing.TB, b []byte) []byte { return zst(t, b) }},
}

// Every set of layers makes its tree, however the layers are packed, and one
// image has one root.
func TestLoadConformance(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("names and modes as Linux has them")
	}
	for _, tc := range conformance {
		t.Run(tc.name, func(t *testing.T) {
			var plain [][]byte
			for _, entries := range tc.layers {
				plain = append(plain, makeTar(t, entries...))
			}
			config := testConfig(t, "amd64", plain...)
			root := ""
			for _, p := range packings {
				s := testStore(t)
				b := memBlobs{}
				var layers []ocispec.Descriptor
				for _, l := range plain {
					layers = append(layers, b.put(p.pack(t, l), p.media))
				}
				idx := indexOf(b.putJSON(t, manifestOf(b.put(config, ""), layers...), ocispec.MediaTypeImageManifest))
				img, err := newLoader(t.Context(), s, LoadOptions{}).loadIndex(b, idx, "")
				if err != nil {
					t.Fatalf("%s: %v", p.name, err)
				}
				if img.ID != "sha256:"+sha(config) || root != "" && root != img.Root.String() {
					t.Errorf("%s: id %s, root %s, want %s", p.name, img.ID, img.Root, root)
				}
				if root = img.Root.String(); p.name != "gzip" {
					continue
				}
				dir := filepath.Join(t.TempDir(), "root")
				noErr(t, Unpack(t.Context(), s, img.Root, dir))
				slices.Sort(tc.want)
				if got := tree(t, dir); got != strings.Join(tc.want, "\n") {
					t.Errorf("got\n%s\nwant\n%s", got, strings.Join(tc.want, "\n"))
				}
			}
		})
	}
}

// tarTree makes a folder with what tar tools differ in.
func tarTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, mode fs.FileMode, body []byte) {
		path := filepath.Join(dir, name)
		noErr(t, os.MkdirAll(filepath.Dir(path), 0o755))
		noErr(t, os.WriteFile(path, body, 0o600))
		noErr(t, os.Chmod(path, mode))
	}
	write("bin/app", 0o4755, noise(3, 3<<20))
	write("caf\xe9/\xff", 0o644, []byte("bytes"))
	write(longName, 0o600, []byte("long"))
	noErr(t, os.Link(filepath.Join(dir, "bin/app"), filepath.Join(dir, "bin/again")))
	noErr(t, os.Symlink("../bin/app", filepath.Join(dir, "bin/link")))
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	noErr(t, err)
	for _, at := range []int64{0, 1 << 20, 5<<20 + 17} {
		_, err := sparse.WriteAt([]byte("data"), at)
		noErr(t, err)
	}
	noErr(t, sparse.Truncate(8<<20))
	noErr(t, sparse.Close())
	return dir
}

// What the real tar writes, in each format it has, comes out as what it read.
func TestLoadRealTar(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil || runtime.GOOS != "linux" {
		t.Skip("needs GNU tar and Linux's file names")
	}
	src := tarTree(t)
	want := tree(t, src)
	for _, flags := range []string{
		"--format=gnu", "--format=gnu --sparse", "--format=posix", "--format=posix --sparse",
		"--format=posix --sparse --sparse-version=0.0", "--format=posix --sparse --sparse-version=0.1", "--format=posix --xattrs",
	} {
		t.Run(flags, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "layer.tar")
			args := append(strings.Fields(flags), "--sort=name", "--owner=0", "--group=0", "-C", src, "-cf", path, ".")
			if out, err := exec.CommandContext(t.Context(), "tar", args...).CombinedOutput(); err != nil {
				t.Skipf("this tar has no %s: %s", flags, out)
			}
			layer, err := os.ReadFile(path)
			noErr(t, err)
			s := testStore(t)
			dir := filepath.Join(t.TempDir(), "root")
			noErr(t, Unpack(t.Context(), s, imageOf(t, s, layer), dir))
			if got := tree(t, dir); got != want {
				t.Errorf("the tree differs: %d bytes of listing, want %d", len(got), len(want))
			}
		})
	}
	t.Run("as a folder", func(t *testing.T) {
		s := testStore(t)
		img, err := LoadImage(t.Context(), s, "rootfs:"+src, LoadOptions{})
		noErr(t, err)
		dir := filepath.Join(t.TempDir(), "root")
		noErr(t, Unpack(t.Context(), s, img.Root, dir))
		if got := tree(t, dir); got != want {
			t.Errorf("the tree differs: %d bytes of listing, want %d", len(got), len(want))
		}
	})
}

// Cut points are those of the library that the algorithm is from.
func TestCutPoints(t *testing.T) {
	var repeats bytes.Buffer
	for i := range 40 {
		repeats.Write(bytes.Repeat([]byte{byte(i)}, 300_000+i))
	}
	text, err := io.ReadAll(io.LimitReader(newRealBytes(9), 8<<20))
	noErr(t, err)
	for name, data := range map[string][]byte{
		"noise": noise(9, 12<<20), "zeros": make([]byte, 5<<20), "repeats": repeats.Bytes(), "text": text,
		"empty": nil, "one byte": {1}, "least": noise(1, cdcMin), "most": noise(2, cdcMax), "more": noise(3, cdcMin+1),
	} {
		c, err := chunkers.NewChunker("fastcdc-v1.0.0", bytes.NewReader(data), &chunkers.ChunkerOpts{MinSize: cdcMin, NormalSize: cdcNormal, MaxSize: cdcMax})
		noErr(t, err)
		for rest := data; ; {
			chunk, err := c.Next()
			if err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			if len(chunk) > 0 || len(rest) > 0 {
				n := cutPoint(rest)
				if n != len(chunk) {
					t.Fatalf("%s: cut at %d, the library at %d, with %d left", name, n, len(chunk), len(rest))
				}
				rest = rest[n:]
			}
			if err != nil {
				break
			}
		}
	}
}

// All slabs come back, and are used again.
func TestLayerSlabs(t *testing.T) {
	s := testStore(t)
	l := newLoader(t.Context(), s, LoadOptions{})
	r, err := l.importTar(t.Context(), noiseReader(5, 80<<20), func() {})
	noErr(t, err)
	if r.diff != rawRef(noise(5, 80<<20)).key || r.size != 80<<20 {
		t.Error("another digest or size")
	}
	if n := len(l.slabs.free); n != cap(l.slabs.free) {
		t.Errorf("%d of %d slabs came back", n, cap(l.slabs.free))
	}
}

// One image is chosen of several platforms, or the error says which there are.
func TestLoadPlatforms(t *testing.T) {
	b := memBlobs{}
	layer := b.put(makeTar(t, file("a", "b")), "")
	var idx ocispec.Index
	add := func(arch, variant string, known bool) digest.Digest {
		config := fmt.Sprintf(`{"os":"linux","architecture":%q,"variant":%q,"rootfs":{"type":"layers","diff_ids":[%q]}}`, arch, variant, layer.Digest)
		d := b.putJSON(t, manifestOf(b.put([]byte(config), ""), layer), ocispec.MediaTypeImageManifest)
		if known {
			d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch, Variant: variant}
		}
		idx.Manifests = append(idx.Manifests, d)
		return digest.Digest("sha256:" + sha([]byte(config)))
	}
	ids := map[string]digest.Digest{
		"linux/amd64": add("amd64", "", true), "linux/amd64/v3": add("amd64", "v3", true), "linux/arm64": add("arm64", "v8", false),
		"linux/arm/v6": add("arm", "v6", true), "linux/arm/v7": add("arm", "v7", true),
	}
	idx.Manifests = append(idx.Manifests, ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: layer.Digest, Platform: &ocispec.Platform{OS: "unknown", Architecture: "unknown"},
	})
	for _, nested := range []bool{false, true} {
		top := idx
		if nested {
			top = indexOf(b.putJSON(t, idx, ocispec.MediaTypeImageIndex))
		}
		load := func(platform string) (Image, error) {
			return newLoader(t.Context(), testStore(t), LoadOptions{Platform: platform}).loadIndex(b, top, "")
		}
		for platform, want := range ids {
			if img, err := load(platform); err != nil || img.ID != string(want) {
				t.Errorf("%s: %s %v", platform, img.ID, err)
			}
		}
		if img, err := load(""); err != nil || img.ID != string(ids["linux/amd64"]) {
			t.Errorf("none asked for: %s %v", img.ID, err)
		}
		_, err := load("linux/arm")
		wantLoadError(t, err, CodeNoPlatform, ErrNoImage, []string{"2 images for linux/arm", "linux/arm/v6", "linux/arm/v7", "--platform"})
		_, err = load("windows/amd64")
		wantLoadError(t, err, CodeNoPlatform, ErrNoImage, []string{"no image for windows/amd64; there are: linux/amd64, linux/amd64/v3, linux/arm64/v8", "--platform"})
	}
}

// A layer that was imported is not read again, whatever it is packed with; one
// whose chunks are gone is.
func TestKnownLayers(t *testing.T) {
	layer := bigLayer(t)
	config := testConfig(t, "amd64", layer)
	dir := t.TempDir()
	s := openStore(t, dir)
	load := func(blob []byte) (Image, uint64, error) {
		b := memBlobs{}
		d := b.put(blob, "")
		idx := indexOf(b.putJSON(t, manifestOf(b.put(config, ""), d), ocispec.MediaTypeImageManifest))
		if blob == nil {
			delete(b, blobName(mustKey(t, d)))
		}
		l := newLoader(t.Context(), s, LoadOptions{})
		img, err := l.loadIndex(b, idx, "")
		if err == nil {
			err = l.remember(img)
		}
		return img, l.read.Load(), err
	}
	first, _, err := load(gz(t, layer))
	noErr(t, err)
	again, _, err := load(nil) // there is nothing to read
	noErr(t, err)
	if again.Root != first.Root {
		t.Error("another root")
	}
	r, _, err := readImage(t.Context(), s, first.Root)
	noErr(t, err)
	m, ok := s.renewMap(layerRef{diff: rawRef(layer).key, size: r.Bytes, mp: mustRef(t, r)})
	if !ok || len(m.chunks) == 0 {
		t.Fatal("no map")
	}
	s.mu.Lock()
	s.forget(m.chunks[0].ref.key)
	s.mu.Unlock()
	if _, _, err := load(nil); err == nil {
		t.Error("a layer with a chunk missing was taken as whole")
	}
	if img, _, err := load(zst(t, layer)); err != nil || img.Root != first.Root {
		t.Errorf("%v", err)
	}
	noErr(t, os.WriteFile(s.knownPath(), bytes.Repeat([]byte{7}, 200), 0o600))
	if _, _, err := load(nil); err == nil {
		t.Error("a damaged list was believed")
	}
	if img, _, err := load(layer); err != nil || img.Root != first.Root {
		t.Errorf("after a damaged list: %v", err)
	}
}

func mustRef(t *testing.T, img Image) ref {
	t.Helper()
	r, err := refOf(img.Layers[0].Map)
	noErr(t, err)
	return r
}
