package pack

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestLayoutIsAValidImage(t *testing.T) {
	dir := t.TempDir()
	im := Image{
		Name: "tiles:latest", Entrypoint: []string{"/bin/tiles"}, Env: []string{"A=b"}, Workdir: "/out",
		Files: []File{{Path: "/bin/tiles", Mode: 0o755, Data: []byte("program")}, {Path: "/bin/deep/er", Mode: 0o644, Data: []byte("x")}},
	}
	id, err := Layout(dir, im)
	if err != nil {
		t.Fatal(err)
	}

	var layout v1.ImageLayout
	read(t, filepath.Join(dir, v1.ImageLayoutFile), &layout)
	if layout.Version != v1.ImageLayoutVersion {
		t.Errorf("layout version %q", layout.Version)
	}
	var index v1.Index
	read(t, filepath.Join(dir, v1.ImageIndexFile), &index)
	if len(index.Manifests) != 1 || index.Manifests[0].Annotations[v1.AnnotationRefName] != "tiles:latest" {
		t.Fatalf("index %+v", index)
	}
	var manifest v1.Manifest
	unmarshal(t, blob(t, dir, index.Manifests[0]), &manifest)
	if len(manifest.Layers) != 1 || manifest.Layers[0].MediaType != v1.MediaTypeImageLayerGzip {
		t.Fatalf("manifest %+v", manifest)
	}
	var config v1.Image
	unmarshal(t, blob(t, dir, manifest.Config), &config)
	if manifest.Config.Digest.String() != id {
		t.Errorf("id %s, config is %s", id, manifest.Config.Digest)
	}
	if config.OS != "linux" || config.Config.Entrypoint[0] != "/bin/tiles" || config.Config.WorkingDir != "/out" {
		t.Errorf("config %+v", config)
	}

	names := map[string]int64{}
	packed := blob(t, dir, manifest.Layers[0])
	if got := untar(t, packed, names); got != config.RootFS.DiffIDs[0] {
		t.Errorf("layer's digest %s, diff_id %s", got, config.RootFS.DiffIDs[0])
	}
	want := map[string]int64{"bin/": 0o755, "bin/deep/": 0o755, "bin/deep/er": 0o644, "bin/tiles": 0o755}
	for name, mode := range want {
		if names[name] != mode {
			t.Errorf("%s has mode %o, want %o", name, names[name], mode)
		}
	}
	if len(names) != len(want) {
		t.Errorf("layer holds %v", names)
	}

	again, err := Layout(t.TempDir(), im)
	if err != nil || again != id {
		t.Errorf("a second packing gave %s (%v), want %s", again, err, id)
	}
}

func TestLayoutRefusesAFileWithoutName(t *testing.T) {
	if _, err := Layout(t.TempDir(), Image{Files: []File{{Path: "/"}}}); err == nil {
		t.Error("packed a file without a name")
	}
}

func blob(t *testing.T, dir string, d v1.Descriptor) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", d.Digest.Encoded()))
	if err != nil {
		t.Fatal(err)
	}
	if digest.FromBytes(raw) != d.Digest || int64(len(raw)) != d.Size {
		t.Fatalf("blob %s does not match its descriptor", d.Digest)
	}
	return raw
}

func read(t *testing.T, name string, v any) {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	unmarshal(t, raw, v)
}

func unmarshal(t *testing.T, raw []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatal(err)
	}
}

func untar(t *testing.T, packed []byte, names map[string]int64) digest.Digest {
	t.Helper()
	file := filepath.Join(t.TempDir(), "layer")
	if err := os.WriteFile(file, packed, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	sum := digest.SHA256.Digester()
	tee := io.TeeReader(z, sum.Hash())
	r := tar.NewReader(tee)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names[h.Name] = h.Mode
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		t.Fatal(err)
	}
	return sum.Digest()
}
