// Package pack makes an OCI image layout out of a few files: the smallest real
// image that `lumbung image load`, skopeo and podman all read. It hides tar,
// gzip and the JSON of the image format. The same files give the same image.
package pack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is one file of the image.
type File struct {
	Path string // absolute, inside the image
	Mode int64  // permission bits
	Data []byte
}

// Image says what the image holds and how it starts.
type Image struct {
	Name       string // a reference, such as "tiles:latest"
	Files      []File
	Entrypoint []string
	Env        []string
	Workdir    string
}

// Layout writes the image as an OCI layout into dir, which must be empty or not
// there, and returns the image's id: the digest of its config.
func Layout(dir string, im Image) (string, error) {
	blobs := filepath.Join(dir, v1.ImageBlobsDir, string(digest.SHA256))
	if err := os.MkdirAll(blobs, 0o755); err != nil { //nolint:gosec // an image for everybody
		return "", fmt.Errorf("image layout: %w", err)
	}
	w := writer{blobs: blobs}
	plain, err := layer(im.Files)
	if err != nil {
		return "", err
	}
	packed, err := compress(plain)
	if err != nil {
		return "", err
	}
	fs := w.blob(v1.MediaTypeImageLayerGzip, packed)
	config := w.json(v1.MediaTypeImageConfig, v1.Image{
		Created:  &epoch,
		Platform: v1.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   v1.ImageConfig{Entrypoint: im.Entrypoint, Env: im.Env, WorkingDir: im.Workdir},
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(plain)}},
		History:  []v1.History{{Created: &epoch, CreatedBy: "lumbung examples/pack"}},
	})
	manifest := w.json(v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    config,
		Layers:    []v1.Descriptor{fs},
	})
	manifest.Platform = &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	if im.Name != "" {
		manifest.Annotations = map[string]string{v1.AnnotationRefName: im.Name}
	}
	w.file(filepath.Join(dir, v1.ImageIndexFile), v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{manifest},
	})
	w.file(filepath.Join(dir, v1.ImageLayoutFile), v1.ImageLayout{Version: v1.ImageLayoutVersion})
	if w.err != nil {
		return "", fmt.Errorf("image layout %s: %w", dir, w.err)
	}
	return config.Digest.String(), nil
}

// epoch is the time of everything in the image, so that it is reproducible.
var epoch = time.Unix(0, 0).UTC()

// layer is the tar of the files and the folders above them.
func layer(files []File) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	made := map[string]bool{}
	for _, f := range slices.SortedFunc(slices.Values(files), func(a, b File) int { return strings.Compare(a.Path, b.Path) }) {
		name := strings.TrimPrefix(path.Clean("/"+f.Path), "/")
		if name == "" {
			return nil, fmt.Errorf("image file %q has no name", f.Path)
		}
		if err := folders(w, path.Dir(name), made); err != nil {
			return nil, err
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: f.Mode, Size: int64(len(f.Data)), ModTime: epoch}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("image file %s: %w", f.Path, err)
		}
		if _, err := w.Write(f.Data); err != nil {
			return nil, fmt.Errorf("image file %s: %w", f.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("image layer: %w", err)
	}
	return out.Bytes(), nil
}

func folders(w *tar.Writer, dir string, made map[string]bool) error {
	if dir == "." || made[dir] {
		return nil
	}
	if err := folders(w, path.Dir(dir), made); err != nil {
		return err
	}
	made[dir] = true
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: epoch})
	if err != nil {
		return fmt.Errorf("image folder %s: %w", dir, err)
	}
	return nil
}

func compress(plain []byte) ([]byte, error) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(plain); err != nil {
		return nil, fmt.Errorf("image layer: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("image layer: %w", err)
	}
	return out.Bytes(), nil
}

// writer writes the layout's files until one fails.
type writer struct {
	blobs string
	err   error
}

func (w *writer) blob(mediaType string, raw []byte) v1.Descriptor {
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	w.write(filepath.Join(w.blobs, d.Digest.Encoded()), raw)
	return d
}

func (w *writer) json(mediaType string, v any) v1.Descriptor {
	raw, err := json.Marshal(v)
	if err != nil && w.err == nil {
		w.err = err
	}
	return w.blob(mediaType, raw)
}

func (w *writer) file(name string, v any) {
	raw, err := json.Marshal(v)
	if err != nil && w.err == nil {
		w.err = err
	}
	w.write(name, raw)
}

func (w *writer) write(name string, raw []byte) {
	if w.err == nil {
		w.err = os.WriteFile(name, raw, 0o644) //nolint:gosec // an image for everybody
	}
}
