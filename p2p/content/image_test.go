package content

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var testTime = time.Unix(1_600_000_000, 0)

// file, folder and the like make tar entries for tests.
func file(name, body string) tarEntry {
	return tarEntry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, body}
}

func folderAt(name string, mode int64) tarEntry {
	return tarEntry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}, ""}
}

func symlink(name, to string) tarEntry {
	return tarEntry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}, ""}
}

func hardlink(name, to string) tarEntry {
	return tarEntry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}, ""}
}

type tarEntry struct {
	h    tar.Header
	body string
}

func makeTar(t testing.TB, entries ...tarEntry) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		e.h.Size = int64(len(e.body))
		if e.h.Typeflag != tar.TypeXGlobalHeader {
			e.h.ModTime = testTime
		}
		noErr(t, tw.WriteHeader(&e.h))
		_, err := tw.Write([]byte(e.body))
		noErr(t, err)
	}
	noErr(t, tw.Close())
	return buf.Bytes()
}

func sha(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }

func testConfig(t testing.TB, arch string, layers ...[]byte) []byte {
	t.Helper()
	ids := make([]digest.Digest, 0, len(layers))
	for _, l := range layers {
		ids = append(ids, digest.Digest("sha256:"+sha(l)))
	}
	return configOf(t, arch, ids...)
}

func configOf(t testing.TB, arch string, diffs ...digest.Digest) []byte {
	t.Helper()
	var c ocispec.Image
	c.OS, c.Architecture = "linux", arch
	c.Config.Entrypoint = []string{"/bin/app"}
	c.Config.Env = []string{"A=b"}
	c.Config.WorkingDir = "/srv"
	c.RootFS.Type = "layers"
	c.RootFS.DiffIDs = diffs
	b, err := json.Marshal(c)
	noErr(t, err)
	return b
}

// dockerArchive writes a docker-archive tar and returns its path.
func dockerArchive(t testing.TB, config []byte, layers ...[]byte) string {
	t.Helper()
	man := []dockerImage{{Config: sha(config) + ".json", RepoTags: []string{"app:1"}}}
	entries := []tarEntry{file(man[0].Config, string(config))}
	for i, l := range layers {
		name := fmt.Sprintf("l%d/layer.tar", i)
		man[0].Layers = append(man[0].Layers, name)
		entries = append(entries, file(name, string(l)))
	}
	b, err := json.Marshal(man)
	noErr(t, err)
	path := filepath.Join(t.TempDir(), "image.tar")
	noErr(t, os.WriteFile(path, makeTar(t, append(entries, file("manifest.json", string(b)))...), 0o600))
	return path
}

func gz(t testing.TB, b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(b)
	noErr(t, err)
	noErr(t, w.Close())
	return buf.Bytes()
}

func zst(t testing.TB, b []byte) []byte {
	e, err := zstd.NewWriter(nil)
	noErr(t, err)
	defer func() { noErr(t, e.Close()) }()
	return e.EncodeAll(b, nil)
}

// ociLayout writes an OCI layout with an index of one manifest per arch.
type ociImage struct {
	arch   string
	config []byte
	layers [][]byte // as they lie there, packed or not
}

func ociLayout(t testing.TB, nested bool, images ...ociImage) string {
	t.Helper()
	dir := t.TempDir()
	noErr(t, os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755))
	put := func(b []byte, media string) ocispec.Descriptor {
		noErr(t, os.WriteFile(filepath.Join(dir, "blobs", "sha256", sha(b)), b, 0o600))
		return ocispec.Descriptor{MediaType: media, Digest: digest.Digest("sha256:" + sha(b)), Size: int64(len(b))}
	}
	putJSON := func(v any, media string) ocispec.Descriptor {
		b, err := json.Marshal(v)
		noErr(t, err)
		return put(b, media)
	}
	var idx ocispec.Index
	idx.SchemaVersion = 2
	for _, im := range images {
		var m ocispec.Manifest
		m.SchemaVersion = 2
		m.Config = put(im.config, ocispec.MediaTypeImageConfig)
		for _, l := range im.layers {
			m.Layers = append(m.Layers, put(l, ocispec.MediaTypeImageLayerGzip))
		}
		d := putJSON(m, ocispec.MediaTypeImageManifest)
		if nested {
			d.Platform = &ocispec.Platform{OS: "linux", Architecture: im.arch}
		}
		d.Annotations = map[string]string{ocispec.AnnotationRefName: "app-" + im.arch}
		idx.Manifests = append(idx.Manifests, d)
	}
	if nested {
		d := putJSON(idx, ocispec.MediaTypeImageIndex)
		d.Annotations = map[string]string{ocispec.AnnotationRefName: "app"}
		idx = ocispec.Index{Manifests: []ocispec.Descriptor{d}}
	}
	b, err := json.Marshal(idx)
	noErr(t, err)
	noErr(t, os.WriteFile(filepath.Join(dir, "index.json"), b, 0o600))
	noErr(t, os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600))
	return dir
}

func amd64(o LoadOptions) LoadOptions { o.Platform = "linux/amd64"; return o }

func bigLayer(t testing.TB) []byte {
	return makeTar(t, folderAt("bin/", 0o755), tarEntry{tar.Header{Name: "bin/app", Typeflag: tar.TypeReg, Mode: 0o755}, string(noise(7, 3<<20))}, file("etc/hosts", "h"))
}

// One image has one root, wherever it comes from and however it is packed.
func TestLoadAgrees(t *testing.T) {
	l1, l2 := bigLayer(t), makeTar(t, file("etc/motd", "hello"))
	config := testConfig(t, "amd64", l1, l2)
	arm := testConfig(t, "arm64", l2)
	images := []ociImage{{"amd64", config, [][]byte{gz(t, l1), zst(t, l2)}}, {"arm64", arm, [][]byte{l2}}}
	oci := ociLayout(t, false, images...)
	nested := ociLayout(t, true, images...)
	archive := dockerArchive(t, config, l1, l2)
	packed := archive + ".gz"
	b, err := os.ReadFile(archive)
	noErr(t, err)
	noErr(t, os.WriteFile(packed, gz(t, b), 0o600))
	ociTar := filepath.Join(t.TempDir(), "oci.tar")
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	noErr(t, tw.AddFS(os.DirFS(oci)))
	noErr(t, tw.Close())
	noErr(t, os.WriteFile(ociTar, buf.Bytes(), 0o600))

	var roots []cid.Cid
	for _, ref := range []string{archive, "docker-archive:" + archive, packed, oci, "oci:" + oci, "oci:" + oci + ":app-amd64", nested, ociTar, "oci:" + ociTar} {
		s := testStore(t)
		var last Progress
		img, err := LoadImage(t.Context(), s, ref, amd64(LoadOptions{Progress: func(p Progress) { last = p }}))
		if err != nil {
			t.Fatalf("%s: %v", ref, err)
		}
		if img.ID != "sha256:"+sha(config) || img.Platform != "linux/amd64" || len(img.Layers) != 2 || img.Name == "" ||
			img.Bytes != uint64(len(l1)+len(l2)) || img.Config.WorkingDir != "/srv" || img.Layers[0].DiffID != "sha256:"+sha(l1) {
			t.Errorf("%s: %+v", ref, img)
		}
		if last.Done != img.Bytes {
			t.Errorf("%s: progress %+v", ref, last)
		}
		again, err := ReadImage(t.Context(), s, img.Root)
		noErr(t, err)
		again.Name = img.Name
		if fmt.Sprint(again) != fmt.Sprint(img) {
			t.Errorf("read back %+v, want %+v", again, img)
		}
		left, err := filepath.Glob(filepath.Join(s.dir, "*.tmp"))
		noErr(t, err)
		if len(left) > 0 {
			t.Errorf("left %v", left)
		}
		roots = append(roots, img.Root)
	}
	for _, r := range roots {
		if r != roots[0] {
			t.Fatalf("roots differ: %v", roots)
		}
	}
	if got, want := roots[0].String(), "bafyreigk5qbjsvgdeicikmidkhq23yus7ajwp7ev7k2npdhb7rxnf2yrue"; got != want {
		t.Errorf("root %s, golden %s: the format of image roots, maps or chunks changed", got, want)
	}
}

func TestLoadRefuses(t *testing.T) {
	l1 := makeTar(t, file("a", "b"))
	config := testConfig(t, "amd64", l1)
	other := testConfig(t, "amd64", makeTar(t, file("a", "c")))
	junk := filepath.Join(t.TempDir(), "junk")
	noErr(t, os.WriteFile(junk, noise(1, 4096), 0o600))
	plainTar := filepath.Join(t.TempDir(), "plain.tar")
	noErr(t, os.WriteFile(plainTar, l1, 0o600))
	flipped := ociLayout(t, false, ociImage{"amd64", config, [][]byte{l1}})
	noErr(t, os.WriteFile(filepath.Join(flipped, "blobs", "sha256", sha(l1)), append([]byte{0}, l1[1:]...), 0o600))
	lying := ociLayout(t, false, ociImage{"amd64", config, [][]byte{l1}})
	noErr(t, os.WriteFile(filepath.Join(lying, "blobs", "sha256", sha(config)), other, 0o600))
	bomb := gz(t, makeTar(t, file("zeros", strings.Repeat("\x00", 8<<20))))
	for _, tc := range []struct {
		name, ref string
		want      string
	}{
		{"missing", filepath.Join(t.TempDir(), "nothing"), "no such file"},
		{"not a tar", junk, "not a tar archive"},
		{"another tar", plainTar, "without manifest.json"},
		{"other platform", ociLayout(t, false, ociImage{"arm64", testConfig(t, "arm64", l1), [][]byte{l1}}), "no image for linux/amd64; there are: linux/arm64"},
		{"docker other platform", dockerArchive(t, testConfig(t, "s390x", l1), l1), "no image for linux/amd64; it is for linux/s390x"},
		{"wrong diff id", dockerArchive(t, other, l1), "the config says"},
		{"layer missing", dockerArchive(t, config), "lists 1 layers"},
		{"flipped blob", flipped, "do not match"},
		{"lying config", lying, "do not match"},
		{"wrong kind", "docker-archive:" + flipped, "is a folder, not a docker-archive"},
		{"unknown form", "ftp://alpine", "begins like no form"},
		{"no such name", "oci:" + flipped + ":nope", `no image named "nope"`},
		{"bomb", ociLayout(t, false, ociImage{"amd64", config, [][]byte{bomb}}), "larger than allowed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := LoadImage(t.Context(), testStore(t), tc.ref, amd64(LoadOptions{MaxBytes: 1 << 20}))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestRootfs(t *testing.T) {
	dir := t.TempDir()
	noErr(t, os.MkdirAll(filepath.Join(dir, "bin"), 0o755))
	noErr(t, os.WriteFile(filepath.Join(dir, "bin", "app"), noise(1, 2<<20), 0o755))
	noErr(t, os.Link(filepath.Join(dir, "bin", "app"), filepath.Join(dir, "bin", "again")))
	noErr(t, os.Symlink("bin/app", filepath.Join(dir, "init")))
	s := testStore(t)
	img, err := LoadImage(t.Context(), s, dir, LoadOptions{Name: "demo"})
	noErr(t, err)
	img2, err := LoadImage(t.Context(), s, dir, LoadOptions{Name: "demo"})
	noErr(t, err)
	if img.Root != img2.Root || img.Name != "demo" {
		t.Error("the same folder makes two images")
	}
	out := filepath.Join(t.TempDir(), "rootfs")
	noErr(t, Unpack(t.Context(), s, img.Root, out))
	a, err := os.Stat(filepath.Join(out, "bin", "app"))
	noErr(t, err)
	b, err := os.Stat(filepath.Join(out, "bin", "again"))
	noErr(t, err)
	if !os.SameFile(a, b) || a.Mode().Perm() != 0o755 {
		t.Error("hard link or mode lost")
	}
	if to, err := os.Readlink(filepath.Join(out, "init")); err != nil || to != "bin/app" {
		t.Errorf("link %q %v", to, err)
	}
	got, err := os.ReadFile(filepath.Join(out, "init"))
	noErr(t, err)
	if !bytes.Equal(got, noise(1, 2<<20)) {
		t.Error("bytes differ")
	}
}

// loadLayersOf makes an image of the given layers, however hostile.
func imageOf(t testing.TB, s *Store, layers ...[]byte) cid.Cid {
	t.Helper()
	img, err := LoadImage(t.Context(), s, dockerArchive(t, testConfig(t, "amd64", layers...), layers...), amd64(LoadOptions{}))
	noErr(t, err)
	return img.Root
}

func tree(t testing.TB, dir string) string {
	t.Helper()
	var lines []string
	noErr(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		fi, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%v %s", fi.Mode(), rel)
		if fi.Mode()&fs.ModeSymlink != 0 {
			to, _ := os.Readlink(p)
			line += " -> " + to
		} else if fi.Mode().IsRegular() {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += " " + string(b)
		}
		lines = append(lines, line)
		return nil
	}))
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestUnpackLayers(t *testing.T) {
	s := testStore(t)
	lower := makeTar(t,
		folderAt("etc/", 0o755), file("etc/a", "1"), file("etc/b", "2"),
		folderAt("var/", 0o755), folderAt("var/lib/", 0o755), file("var/lib/old", "x"), folderAt("var/lib/sub", 0o755), file("var/lib/sub/old", "x"),
		folderAt("usr/", 0o755), folderAt("usr/lib/", 0o755), symlink("lib", "/usr/lib"),
		file("file-to-dir", "f"), folderAt("dir-to-file/", 0o755), file("dir-to-file/x", "x"),
		folderAt("ro/", 0o555), file("ro/inside", "i"),
		tarEntry{tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, ""},
		tarEntry{tar.Header{Name: "pipe", Typeflag: tar.TypeFifo}, ""},
	)
	upper := makeTar(t,
		file("etc/.wh.a", ""), file("etc/c", "3"), hardlink("etc/d", "etc/c"),
		file("var/lib/sub/new", "n"), file("var/lib/.wh..wh..opq", ""), file("var/lib/fresh", "n"),
		file("lib/through", "t"), hardlink("lib/hard", "/lib/through"),
		folderAt("file-to-dir/", 0o700), file("dir-to-file", "d"),
		file("ro/more", "m"), file(".wh..wh.plnk", ""), file("etc/.wh.never-was", ""),
		tarEntry{tar.Header{Name: "pax_global_header", Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "c"}}, ""},
	)
	root := imageOf(t, s, lower, upper)
	dir := filepath.Join(t.TempDir(), "root")
	noErr(t, Unpack(t.Context(), s, root, dir))
	ro := "dr-xr-xr-x ro"
	if os.Geteuid() != 0 {
		ro = "drwxr-xr-x ro"
	}
	want := []string{
		"Lrwxrwxrwx lib -> /usr/lib",
		"drwx------ file-to-dir", "drwxr-xr-x dev", "drwxr-xr-x etc", ro, "drwxr-xr-x usr", "drwxr-xr-x usr/lib",
		"drwxr-xr-x var", "drwxr-xr-x var/lib", "drwxr-xr-x var/lib/sub",
		"-rw-r--r-- dir-to-file d", "-rw-r--r-- etc/b 2", "-rw-r--r-- etc/c 3", "-rw-r--r-- etc/d 3",
		"-rw-r--r-- ro/inside i", "-rw-r--r-- ro/more m",
		"-rw-r--r-- usr/lib/hard t", "-rw-r--r-- usr/lib/through t", "-rw-r--r-- var/lib/fresh n", "-rw-r--r-- var/lib/sub/new n",
	}
	slices.Sort(want)
	if got := tree(t, dir); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	if fi, err := os.Stat(filepath.Join(dir, "etc", "b")); err != nil || !fi.ModTime().Equal(testTime) {
		t.Errorf("time %v %v", fi.ModTime(), err)
	}
	if err := Unpack(t.Context(), s, root, dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("unpacked over another: %v", err)
	}
	noErr(t, RemoveAll(dir))
	noErr(t, os.Mkdir(filepath.Join(filepath.Dir(dir), ".root.partial-123"), 0o700))
	noErr(t, Unpack(t.Context(), s, root, dir))
	if e, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(e) != 1 {
		t.Errorf("left beside: %v %v", e, err)
	}
}

func TestRemoveAllReadOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	noErr(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755))
	noErr(t, os.WriteFile(filepath.Join(dir, "a", "b", "f"), nil, 0o400))
	noErr(t, os.Chmod(filepath.Join(dir, "a", "b"), 0o500))
	noErr(t, os.Chmod(filepath.Join(dir, "a"), 0o500))
	noErr(t, RemoveAll(dir))
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("still there")
	}
}

func TestUnpackHostile(t *testing.T) {
	outside := t.TempDir()
	noErr(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600))
	for _, tc := range []struct {
		name   string
		limit  Limits
		want   error // nil: unpacks, confined
		layers []tarEntry
	}{
		{"dot dot", Limits{}, ErrUnsafe, []tarEntry{file("../evil", "x")}},
		{"inner dot dot", Limits{}, ErrUnsafe, []tarEntry{file("a/../../evil", "x")}},
		{"absolute name stays inside", Limits{}, nil, []tarEntry{file(outside+"/evil", "x")}},
		{"through absolute link", Limits{}, nil, []tarEntry{symlink("out", outside), file("out/evil", "x")}},
		{"through climbing link", Limits{}, nil, []tarEntry{symlink("out", "../../../../../../../.."+outside), file("out/evil", "x")}},
		{"link swapped for a folder", Limits{}, nil, []tarEntry{folderAt("d/", 0o755), file("d/a", "x"), symlink("d", outside), file("d/evil", "x")}},
		{"whiteout through link", Limits{}, nil, []tarEntry{symlink("out", outside), file("out/.wh.secret", "")}},
		{"opaque through link", Limits{}, nil, []tarEntry{symlink("out", outside), file("out/.wh..wh..opq", "")}},
		{"overwrite link", Limits{}, nil, []tarEntry{symlink("f", outside+"/secret"), file("f", "mine")}},
		{"hard link outside", Limits{}, ErrUnsafe, []tarEntry{hardlink("f", "../../secret")}},
		{"hard link through link", Limits{}, fs.ErrNotExist, []tarEntry{symlink("out", outside), hardlink("f", "out/secret")}},
		{"link loop", Limits{}, ErrUnsafe, []tarEntry{symlink("a", "b"), symlink("b", "a"), file("a/x", "x")}},
		{"whiteout of parent", Limits{}, ErrUnsafe, []tarEntry{folderAt("d/", 0o755), file("d/.wh...", "")}},
		{"file as folder", Limits{}, ErrMalformed, []tarEntry{file("f", "x"), file("f/g", "x")}},
		{"root as link", Limits{}, ErrUnsafe, []tarEntry{symlink(".", outside)}},
		{"too many bytes", Limits{Bytes: 10}, ErrTooLarge, []tarEntry{file("f", "123456"), file("g", "123456")}},
		{"too many entries", Limits{Entries: 3}, ErrTooLarge, []tarEntry{file("a", ""), file("b", ""), file("c", ""), file("d", "")}},
		{"deep folders count", Limits{Entries: 100}, ErrTooLarge, []tarEntry{file(strings.Repeat("d/", 500)+"f", "")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := testStore(t)
			dir := filepath.Join(t.TempDir(), "root")
			root := imageOf(t, s, makeTar(t, tc.layers...))
			err := UnpackLimited(t.Context(), s, root, dir, tc.limit)
			if !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			if err != nil {
				if e, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(e) != 0 {
					t.Errorf("left %v %v", e, err)
				}
			}
			laid, lerr := runLazy(t, s, root, tc.limit)
			if !errors.Is(lerr, tc.want) && !errors.Is(lerr, ErrTooLarge) {
				t.Errorf("laid out before it is whole: %v, want %v", lerr, tc.want)
			}
			if lerr == nil && listTree(t, laid) != listTree(t, dir) {
				t.Errorf("unpacked\n%s\nlaid out before it is whole\n%s", listTree(t, dir), listTree(t, laid))
			}
			if got := tree(t, outside); got != "-rw------- secret s" {
				t.Errorf("outside is now\n%s", got)
			}
		})
	}
}

// A root whose parts lie about each other unpacks nothing.
func TestLyingRoot(t *testing.T) {
	s := testStore(t)
	l1, l2 := makeTar(t, file("a", "1")), makeTar(t, file("a", "2"))
	_, m1, err := readImage(t.Context(), s, imageOf(t, s, l1))
	noErr(t, err)
	_, m2, err := readImage(t.Context(), s, imageOf(t, s, l2))
	noErr(t, err)
	mapOf := func(diff key, r ref, size uint64) ref {
		m := layerMap{diff: diff, size: size, chunks: []sized{{r, size}}}
		data, mr, err := m.encode()
		noErr(t, err)
		noErr(t, s.put(mr.key, data))
		return mr
	}
	for _, tc := range []struct {
		name string
		lie  func(m *imageRoot)
	}{
		{"config of another", func(m *imageRoot) { m.config = m2.config }},
		{"manifest of another", func(m *imageRoot) { m.manifest = m2.manifest }},
		{"map of another", func(m *imageRoot) { m.layers = []layerRef{{m.layers[0].diff, m.layers[0].size, m2.layers[0].mp}} }},
		{"map with other chunks", func(m *imageRoot) {
			m.layers = []layerRef{{m.layers[0].diff, m.layers[0].size, mapOf(m.layers[0].diff, rawRef(l2), m.layers[0].size)}}
		}},
		{"chunk of another size", func(m *imageRoot) {
			short := rawRef([]byte("short"))
			noErr(t, s.put(short.key, []byte("short")))
			m.layers = []layerRef{{m.layers[0].diff, m.layers[0].size, mapOf(m.layers[0].diff, short, m.layers[0].size)}}
		}},
		{"other platform", func(m *imageRoot) { m.platform = "linux/riscv64" }},
		{"layer left out", func(m *imageRoot) { m.layers = nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := m1
			tc.lie(&m)
			data, r, err := m.encode()
			noErr(t, err)
			noErr(t, s.put(r.key, data))
			dir := filepath.Join(t.TempDir(), "root")
			if err := Unpack(t.Context(), s, r.cid(), dir); !errors.Is(err, ErrMismatch) {
				t.Errorf("%v", err)
			}
			if _, err := os.Lstat(dir); err == nil {
				t.Error("half an image stayed")
			}
		})
	}
	if _, err := ReadImage(t.Context(), s, rawRef(l1).cid()); !errors.Is(err, ErrMalformed) {
		t.Errorf("a file read as image: %v", err)
	}
}

// A layer in parts reads back as what went in, and shares parts and chunks.
func TestLayerInParts(t *testing.T) {
	s := testStore(t)
	var list []sized
	var all []byte
	for i := range partChunks + 10 {
		b := noise(uint64(i), 40)
		noErr(t, s.put(rawRef(b).key, b))
		list = append(list, sized{rawRef(b), 40})
		all = append(all, b...)
	}
	l, err := putMap(s, list, rawRef(all).key, uint64(len(all)))
	noErr(t, err)
	r, err := openLayer(t.Context(), s, l)
	noErr(t, err)
	var got bytes.Buffer
	_, err = got.ReadFrom(r)
	noErr(t, err)
	if !bytes.Equal(got.Bytes(), all) {
		t.Error("other bytes")
	}
	have, total, complete, err := Missing(t.Context(), s, l.mp.cid())
	if err != nil || !complete || have != total || have < uint64(len(all)) {
		t.Errorf("%d of %d %v %v", have, total, complete, err)
	}
}

// Cut points do not move: nodes share blocks only if they cut alike.
func TestChunksGolden(t *testing.T) {
	var cuts []int
	for data := noise(42, 3<<20); len(data) > 0; data = data[cuts[len(cuts)-1]:] {
		cuts = append(cuts, cutPoint(data))
	}
	want := []int{330329, 302973, 268862, 330228, 67008, 396807, 263675, 294040, 327346, 355473, 208987}
	if !slices.Equal(cuts, want) {
		t.Errorf("cuts %v, want %v", cuts, want)
	}
}

// A change in the middle moves few chunks.
func TestChunksShift(t *testing.T) {
	data := noise(3, 16<<20)
	count := func(b []byte) map[key]bool {
		m := map[key]bool{}
		for len(b) > 0 {
			n := cutPoint(b)
			if n > cdcMax || n >= MaxBlock {
				t.Fatalf("chunk of %d", n)
			}
			m[rawRef(b[:n]).key] = true
			b = b[n:]
		}
		return m
	}
	before := count(data)
	after := count(slices.Insert(slices.Clone(data), 8<<20, []byte("something new")...))
	fresh := 0
	for k := range after {
		if !before[k] {
			fresh++
		}
	}
	if fresh > 3 || len(before) < 30 {
		t.Errorf("%d of %d chunks are new after one insertion", fresh, len(after))
	}
}
