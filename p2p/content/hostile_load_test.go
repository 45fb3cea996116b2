package content

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// memBlobs is an image in memory.
type memBlobs map[string][]byte

func (b memBlobs) open(_ context.Context, p part) (io.ReadCloser, int64, error) {
	data, ok := b[p.name]
	if !ok {
		return nil, 0, fmt.Errorf("%s: %w", p.name, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(data)), int64(len(data)), nil
}

func (b memBlobs) put(data []byte, media string) ocispec.Descriptor {
	k := rawRef(data).key
	b[blobName(k)] = data
	return ocispec.Descriptor{MediaType: media, Digest: digestOf(k), Size: int64(len(data))}
}

func (b memBlobs) putJSON(t testing.TB, v any, media string) ocispec.Descriptor {
	t.Helper()
	data, err := json.Marshal(v)
	noErr(t, err)
	return b.put(data, media)
}

func manifestOf(config ocispec.Descriptor, layers ...ocispec.Descriptor) ocispec.Manifest {
	return ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers}
}

func indexOf(d ...ocispec.Descriptor) ocispec.Index { return ocispec.Index{Manifests: d} }

// zeros packs n bytes of nothing, as small as it goes: frames of the same 8 MiB.
func zeros(t testing.TB, n int) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil)
	noErr(t, err)
	const frame = 8 << 20
	one := e.EncodeAll(make([]byte, frame), nil)
	noErr(t, e.Close())
	return bytes.Repeat(one, n/frame)
}

func gzZeros(t testing.TB, n int64) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	tw := tar.NewWriter(w)
	noErr(t, tw.WriteHeader(&tar.Header{Name: "manifest.json", Typeflag: tar.TypeReg, Size: n}))
	_, err := io.CopyN(tw, zeroReader{}, n)
	noErr(t, errors.Join(err, tw.Close(), w.Close()))
	return buf.Bytes()
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestLoadHostile(t *testing.T) {
	layer := makeTar(t, file("a", "b"))
	many := make([]ocispec.Descriptor, 10_000)
	for _, tc := range []struct {
		name  string
		build func(b memBlobs) ocispec.Index
		want  error
		text  string
	}{
		{"10,000 layers", func(b memBlobs) ocispec.Index {
			d := b.put(layer, ocispec.MediaTypeImageLayer)
			for i := range many {
				many[i] = d
			}
			ids := slices.Repeat([]digest.Digest{d.Digest}, len(many))
			return indexOf(b.putJSON(t, manifestOf(b.put(configOf(t, "amd64", ids...), ""), many...), ocispec.MediaTypeImageManifest))
		}, ErrTooLarge, "10000 layers"},
		{"a lying diff id", func(b memBlobs) ocispec.Index {
			config := b.put(testConfig(t, "amd64", makeTar(t, file("a", "c"))), "")
			return indexOf(b.putJSON(t, manifestOf(config, b.put(gz(t, layer), "")), ocispec.MediaTypeImageManifest))
		}, ErrMismatch, "the config says sha256:"},
		{"no diff id", func(b memBlobs) ocispec.Index {
			config := b.put(configOf(t, "amd64", "sha256:../../etc"), "")
			return indexOf(b.putJSON(t, manifestOf(config, b.put(layer, "")), ocispec.MediaTypeImageManifest))
		}, ErrMalformed, "digest"},
		{"more diff ids than layers", func(b memBlobs) ocispec.Index {
			config := b.put(testConfig(t, "amd64", layer, layer), "")
			return indexOf(b.putJSON(t, manifestOf(config, b.put(layer, "")), ocispec.MediaTypeImageManifest))
		}, ErrMalformed, "lists 2 layers"},
		{"a blob that is another", func(b memBlobs) ocispec.Index {
			d := b.put(gz(t, layer), "")
			b[blobName(key(mustKey(t, d)))] = gz(t, makeTar(t, file("evil", "x")))
			return indexOf(b.putJSON(t, manifestOf(b.put(testConfig(t, "amd64", layer), ""), d), ocispec.MediaTypeImageManifest))
		}, ErrMismatch, ""},
		{"a bomb", func(b memBlobs) ocispec.Index {
			config := b.put(configOf(t, "amd64", digestOf(rawRef(layer).key)), "")
			return indexOf(b.putJSON(t, manifestOf(config, b.put(zeros(t, 1<<40), "")), ocispec.MediaTypeImageManifest))
		}, ErrTooLarge, "larger than allowed"},
		{"many layers that are too large together", func(b memBlobs) ocispec.Index {
			d := b.put(zeros(t, 24<<20), "")
			config := b.put(configOf(t, "amd64", slices.Repeat([]digest.Digest{digestOf(rawRef(make([]byte, 24<<20)).key)}, 3)...), "")
			return indexOf(b.putJSON(t, manifestOf(config, d, d, d), ocispec.MediaTypeImageManifest))
		}, ErrTooLarge, "larger than allowed"},
		{"a torn layer", func(b memBlobs) ocispec.Index {
			torn := gz(t, bigLayer(t))
			d := b.put(torn[:len(torn)/2], "")
			return indexOf(b.putJSON(t, manifestOf(b.put(testConfig(t, "amd64", bigLayer(t)), ""), d), ocispec.MediaTypeImageManifest))
		}, io.ErrUnexpectedEOF, ""},
		{"indexes too deep", func(b memBlobs) ocispec.Index {
			d := b.putJSON(t, manifestOf(b.put(testConfig(t, "amd64", layer), ""), b.put(layer, "")), ocispec.MediaTypeImageManifest)
			for range maxIndexDepth + 1 {
				d = b.putJSON(t, indexOf(d), ocispec.MediaTypeImageIndex)
			}
			return indexOf(d)
		}, ErrTooLarge, "deep"},
		{"indexes that repeat themselves a trillion times", func(b memBlobs) ocispec.Index {
			d := b.put([]byte("{}"), "application/vnd.example.signature")
			for range maxIndexDepth {
				d = b.putJSON(t, indexOf(slices.Repeat([]ocispec.Descriptor{d}, 1000)...), ocispec.MediaTypeImageIndex)
			}
			return indexOf(d)
		}, ErrNoImage, "no image for"},
		{"an index of 5,000", func(b memBlobs) ocispec.Index {
			var idx ocispec.Index
			for i := range 5000 {
				idx.Manifests = append(idx.Manifests, b.put(fmt.Appendf(nil, "%d", i), "application/vnd.example.signature"))
			}
			return indexOf(b.putJSON(t, idx, ocispec.MediaTypeImageIndex))
		}, ErrTooLarge, "entries"},
		{"a manifest that is large", func(b memBlobs) ocispec.Index {
			return indexOf(b.put(make([]byte, maxMeta+1), ocispec.MediaTypeImageManifest))
		}, ErrTooLarge, ""},
		{"a manifest that hides its size", func(b memBlobs) ocispec.Index {
			d := b.put(make([]byte, maxMeta+1), ocispec.MediaTypeImageManifest)
			d.Size = 10
			return indexOf(d)
		}, ErrTooLarge, ""},
		{"a negative size", func(b memBlobs) ocispec.Index {
			d := b.put(layer, ocispec.MediaTypeImageManifest)
			d.Size = -1
			return indexOf(d)
		}, ErrMalformed, ""},
		{"the format of long ago", func(b memBlobs) ocispec.Index {
			return indexOf(b.put([]byte("{}"), dockerSchema1))
		}, ErrMalformed, "before 1.10"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := memBlobs{}
			idx := tc.build(b)
			var read uint64
			l := newLoader(t.Context(), testStore(t), LoadOptions{MaxBytes: 64 << 20, Progress: func(p Progress) { read = p.Done }})
			_, err := l.loadIndex(b, idx, "")
			if !errors.Is(err, tc.want) || !strings.Contains(fmt.Sprint(err), tc.text) {
				t.Errorf("%v, want %v with %q", err, tc.want, tc.text)
			}
			if read > 4<<20 {
				t.Errorf("%d bytes were read before it was refused", read)
			}
		})
	}
}

func mustKey(t testing.TB, d ocispec.Descriptor) key {
	t.Helper()
	k, err := parseDigest(string(d.Digest))
	noErr(t, err)
	return k
}

// An archive that grows when unpacked stops at the limit and leaves nothing.
func TestLoadHostileArchive(t *testing.T) {
	s := testStore(t)
	path := filepath.Join(t.TempDir(), "bomb.tar.gz")
	noErr(t, os.WriteFile(path, gzZeros(t, 256<<20), 0o600))
	_, err := LoadImage(t.Context(), s, path, LoadOptions{MaxBytes: 32 << 20})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if left, err := filepath.Glob(filepath.Join(s.dir, "*.tmp")); err != nil || len(left) > 0 {
		t.Errorf("left %v %v", left, err)
	}
	list, err := json.Marshal([]dockerImage{{Config: "c.json", Layers: slices.Repeat([]string{"l"}, 10_000)}})
	noErr(t, err)
	path = filepath.Join(t.TempDir(), "many.tar")
	noErr(t, os.WriteFile(path, makeTar(t, file("manifest.json", string(list)), file("l", ""), file("c.json", string(testConfig(t, "amd64")))), 0o600))
	if _, err := LoadImage(t.Context(), s, path, LoadOptions{}); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "10000 layers") {
		t.Errorf("%v", err)
	}
	loop := []tarEntry{symlink("manifest.json", "a"), symlink("a", "manifest.json")}
	path = filepath.Join(t.TempDir(), "loop.tar")
	noErr(t, os.WriteFile(path, makeTar(t, loop...), 0o600))
	if _, err := LoadImage(t.Context(), s, path, LoadOptions{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("%v", err)
	}
}

func TestBombRatio(t *testing.T) {
	for _, tc := range []struct {
		out, in uint64
		want    bool
	}{
		{bombFree, 1, false},
		{bombFree + 1, 1 << 20, true},
		{1 << 40, 1 << 30, false}, // the best deflate can do
		{1 << 40, 1 << 25, true},  // zstd of zeros
	} {
		if got := isBomb(tc.out, tc.in); got != tc.want {
			t.Errorf("%d out of %d: %v", tc.out, tc.in, got)
		}
	}
	r := &boundReader{r: zeroReader{}, b: &budget{left: 1 << 62}, packed: fixedCount(1000), out: bombFree - 1}
	if _, err := io.ReadFull(r, make([]byte, 4096)); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "decompression bomb") {
		t.Errorf("%v", err)
	}
}

type fixedCount uint64

func (c fixedCount) count() uint64 { return uint64(c) }

// FuzzLoadIndex feeds an index, a manifest and a config that are whatever they are.
func FuzzLoadIndex(f *testing.F) {
	layer := makeTar(f, file("a", "b"))
	config := testConfig(f, "amd64", layer)
	b := memBlobs{}
	man, err := json.Marshal(manifestOf(b.put(config, ""), b.put(layer, "")))
	noErr(f, err)
	idx, err := json.Marshal(indexOf(b.put(man, ocispec.MediaTypeImageManifest)))
	noErr(f, err)
	f.Add(idx, man, config)
	f.Add([]byte(`{"manifests":[{"digest":"sha256:00","size":-1}]}`), []byte(`{"layers":null}`), []byte(`{"os":"linux","architecture":"amd64"}`))
	f.Add([]byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json"}]}`), []byte(`[]`), []byte(`{}`))
	s := testStore(f)
	f.Fuzz(func(t *testing.T, index, manifest, config []byte) {
		b := memBlobs{"index.json": index}
		b.put(layer, "")
		c := b.put(config, "")
		m := b.put(manifest, ocispec.MediaTypeImageManifest)
		b.put(index, "")
		l := newLoader(t.Context(), s, LoadOptions{MaxBytes: 1 << 20})
		_, _ = l.loadOCI(b, "")
		_, _ = l.loadIndex(b, indexOf(m), "")
		img, err := l.loadIndex(b, indexOf(b.putJSON(t, manifestOf(c, b.put(layer, "")), ocispec.MediaTypeImageManifest)), "")
		if err == nil && img.ID != "sha256:"+sha(config) {
			t.Errorf("id %s", img.ID)
		}
	})
}

// FuzzLoadArchive feeds a docker-archive's manifest, and a tar that is none.
func FuzzLoadArchive(f *testing.F) {
	layer := makeTar(f, file("a", "b"))
	config := testConfig(f, "amd64", layer)
	f.Add([]byte(`[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l"]}]`), config, layer)
	f.Add([]byte(`[{}]`), []byte("null"), gz(f, layer))
	f.Add([]byte(`[{"Config":"../c.json","Layers":["../../l",""]}]`), []byte("{}"), zst(f, layer))
	s := testStore(f)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, manifest, config, layer []byte) {
		for _, data := range [][]byte{
			makeTar(t, file("manifest.json", string(manifest)), file("c.json", string(config)), file("l", string(layer))), layer, manifest,
		} {
			path := filepath.Join(dir, "image.tar")
			noErr(t, os.WriteFile(path, data, 0o600))
			_, _ = LoadImage(t.Context(), s, path, LoadOptions{MaxBytes: 1 << 20})
		}
	})
}

// FuzzKnownLayers reads the list of known layers whatever is in the file.
func FuzzKnownLayers(f *testing.F) {
	list := []layerRef{{diff: key{1}, size: 2, mp: ref{key{3}, codecCBOR}}, {diff: key{4}, size: 5, mp: ref{key{6}, codecCBOR}}}
	f.Add(encodeKnown(list))
	f.Add(encodeKnown(list)[:100])
	f.Fuzz(func(t *testing.T, data []byte) {
		got := decodeKnown(data)
		if again := decodeKnown(encodeKnown(got)); !slices.Equal(again, got) {
			t.Errorf("%v, then %v", got, again)
		}
	})
}
