package content

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is a container image in the store.
type Image struct {
	Root     cid.Cid // names everything the image is made of
	ID       string  // "sha256:" and the digest of its OCI config
	Name     string  // what the archive or the caller calls it; not part of Root
	Platform string  // "linux/amd64"
	Bytes    uint64  // of all layers, uncompressed
	Layers   []Layer // lowest first
	Config   ocispec.ImageConfig
}

// Layer is one uncompressed layer tar of an image.
type Layer struct {
	DiffID string  // "sha256:" and the digest of the tar
	Bytes  uint64  // of the tar
	Map    cid.Cid // the block that lists its chunks
}

// Progress says how far an import or an export is.
type Progress struct {
	Phase string // what is being done, for people
	Done  uint64 // bytes
	Total uint64 // bytes; 0 if not known
	Files uint64 // files and folders done
}

func (k key) digest() string { return "sha256:" + hex.EncodeToString(k[:]) }

// parseDigest reads "sha256:…".
func parseDigest(s string) (key, error) {
	var k key
	h, ok := cutDigest(s)
	if !ok {
		return k, fmt.Errorf("%w: digest %.80q; only sha256 is understood", ErrMalformed, s)
	}
	b, err := hex.DecodeString(h)
	if err != nil {
		return k, fmt.Errorf("%w: digest %.80q: %w", ErrMalformed, s, err)
	}
	return key(b), nil
}

func cutDigest(s string) (string, bool) {
	d := digest.Digest(s)
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return "", false
	}
	return d.Encoded(), true
}

// ReadImage reads the image under root. The root, the config and the manifest
// must be here and agree with each other; layer maps and chunks need not be.
func ReadImage(ctx context.Context, s *Store, root cid.Cid) (Image, error) {
	img, _, err := readImage(ctx, s, root)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", root, err)
	}
	return img, nil
}

func readImage(ctx context.Context, s *Store, root cid.Cid) (Image, imageRoot, error) {
	r, err := refOf(root)
	if err != nil {
		return Image{}, imageRoot{}, err
	}
	if r.codec != codecCBOR {
		return Image{}, imageRoot{}, fmt.Errorf("%w: this is no image but a file or folder", ErrMalformed)
	}
	var m imageRoot
	data, err := s.Get(ctx, root)
	if err == nil {
		m, err = decodeImageRoot(data)
	}
	if err != nil {
		return Image{}, m, err
	}
	raw, err := s.get(m.config, nil)
	if err != nil {
		return Image{}, m, fmt.Errorf("config: %w", err)
	}
	cfg, err := decodeConfig(raw)
	if err != nil {
		return Image{}, m, err
	}
	manifest, err := s.get(m.manifest, nil)
	if err != nil {
		return Image{}, m, fmt.Errorf("manifest: %w", err)
	}
	if err := m.agree(cfg, raw, manifest); err != nil {
		return Image{}, m, err
	}
	img := Image{Root: r.cid(), ID: m.config.key.digest(), Platform: m.platform, Config: cfg.Config}
	for _, l := range m.layers {
		img.Bytes = addCapped(img.Bytes, l.size)
		img.Layers = append(img.Layers, Layer{DiffID: l.diff.digest(), Bytes: l.size, Map: l.mp.cid()})
	}
	return img, m, nil
}

// agree checks that config and manifest speak of the layers the root lists.
func (m imageRoot) agree(cfg ocispec.Image, raw, manifest []byte) error {
	if got := platformOf(cfg); got != m.platform {
		return fmt.Errorf("%w: config is for %q, root says %q", ErrMismatch, got, m.platform)
	}
	diffs := make([]string, len(m.layers))
	for i, l := range m.layers {
		diffs[i] = l.diff.digest()
	}
	if err := sameDiffs(cfg, diffs); err != nil {
		return err
	}
	want, err := m.manifestJSON(len(raw))
	if err != nil {
		return err
	}
	if !slices.Equal(want, manifest) {
		return fmt.Errorf("%w: the manifest is not that of this config and these layers", ErrMismatch)
	}
	return nil
}

func sameDiffs(cfg ocispec.Image, diffs []string) error {
	if len(cfg.RootFS.DiffIDs) != len(diffs) {
		return fmt.Errorf("%w: config lists %d layers, the image has %d", ErrMismatch, len(cfg.RootFS.DiffIDs), len(diffs))
	}
	for i, d := range cfg.RootFS.DiffIDs {
		if string(d) != diffs[i] {
			return fmt.Errorf("%w: layer %d is %s, config says %.80s", ErrMismatch, i, diffs[i], d)
		}
	}
	return nil
}

// manifestJSON is the OCI manifest over the uncompressed layers. It follows
// from config and layers alone, so one image has one root wherever it came from.
func (m imageRoot) manifestJSON(configLen int) ([]byte, error) {
	man := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digestOf(m.config.key), Size: int64(configLen)},
		Layers:    []ocispec.Descriptor{},
	}
	for _, l := range m.layers {
		man.Layers = append(man.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digestOf(l.diff), Size: int64(l.size)})
	}
	b, err := json.Marshal(man)
	if err != nil {
		return nil, fmt.Errorf("make manifest: %w", err)
	}
	return b, nil
}

func decodeConfig(data []byte) (ocispec.Image, error) {
	var cfg ocispec.Image
	if len(data) > MaxBlock {
		return cfg, fmt.Errorf("image config of %d bytes: %w: the limit is %d", len(data), ErrTooLarge, MaxBlock)
	}
	if err := json.Unmarshal(data, &cfg); err != nil {
		return cfg, fmt.Errorf("%w: image config: %w", ErrMalformed, err)
	}
	if cfg.OS == "" || cfg.Architecture == "" {
		return cfg, fmt.Errorf("%w: image config names no os and architecture", ErrMalformed)
	}
	return cfg, nil
}

func platformOf(cfg ocispec.Image) string {
	p := cfg.OS + "/" + cfg.Architecture
	if cfg.Variant != "" {
		p += "/" + cfg.Variant
	}
	return p
}

// finishImage puts config, manifest and root of an image whose layers are in.
// first names the files that are read first.
func finishImage(s *Store, rawConfig []byte, layers []layerRef, first ...string) (imageRoot, ref, error) {
	cfg, err := decodeConfig(rawConfig)
	if err != nil {
		return imageRoot{}, ref{}, err
	}
	if len(layers) > maxLayers {
		return imageRoot{}, ref{}, fmt.Errorf("%d layers: %w: the limit is %d", len(layers), ErrTooLarge, maxLayers)
	}
	m := imageRoot{platform: platformOf(cfg), config: ref{key: sha256.Sum256(rawConfig)}, layers: layers, first: first}
	manifest, err := m.manifestJSON(len(rawConfig))
	if err != nil {
		return m, ref{}, err
	}
	m.manifest = rawRef(manifest)
	if err := m.agree(cfg, rawConfig, manifest); err != nil {
		return m, ref{}, err
	}
	data, root, err := m.encode()
	if err != nil {
		return m, ref{}, err
	}
	for _, b := range []struct {
		k    key
		data []byte
	}{{m.config.key, rawConfig}, {m.manifest.key, manifest}, {root.key, data}} {
		if err := s.put(b.k, b.data); err != nil {
			return m, ref{}, err
		}
	}
	return m, root, nil
}

func digestOf(k key) digest.Digest { return digest.Digest(k.digest()) }
