package content

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Bounds on indexes that name indexes.
const (
	maxIndexDepth   = 4
	maxIndexEntries = 4096 // looked at in all
)

// Docker's names for what OCI also has.
const (
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerSchema1      = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

func blobName(k key) string { return "blobs/sha256/" + hex.EncodeToString(k[:]) }

// descriptorPart finds what a descriptor names.
func descriptorPart(d ocispec.Descriptor) (part, error) {
	k, err := parseDigest(string(d.Digest))
	if err != nil {
		return part{}, err
	}
	if d.Size < 0 {
		return part{}, fmt.Errorf("%w: %s has %d bytes", ErrMalformed, d.Digest, d.Size)
	}
	return blobPart(k, d.Size), nil
}

// readManifest reads an index or a manifest into v.
func (l *loader) readManifest(b blobs, d ocispec.Descriptor, v any) error {
	p, err := descriptorPart(d)
	if err != nil {
		return err
	}
	p.manifest = true
	raw, err := l.readMeta(b, p)
	if err == nil {
		err = decodeManifest(raw, v)
	}
	return err
}

func decodeManifest(raw []byte, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

func (l *loader) readConfig(b blobs, d ocispec.Descriptor) ([]byte, error) {
	p, err := descriptorPart(d)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	raw, err := l.readMeta(b, p)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return raw, nil
}

// loadOCI imports from an OCI layout.
func (l *loader) loadOCI(b blobs, pick string) (Image, error) {
	var idx ocispec.Index
	if err := l.readJSON(b, namedPart("index.json"), &idx); err != nil {
		return Image{}, err
	}
	return l.loadIndex(b, idx, pick)
}

// loadIndex imports the image of an index that is for the wanted platform.
func (l *loader) loadIndex(b blobs, idx ocispec.Index, pick string) (Image, error) {
	d, man, err := l.pickManifest(b, idx, pick)
	if err != nil {
		return Image{}, err
	}
	if l.o.Name == "" {
		l.o.Name = descriptorName(d)
	}
	if len(man.Layers) > maxLayers {
		return Image{}, fmt.Errorf("%w: the manifest lists %d layers, over %d", ErrTooLarge, len(man.Layers), maxLayers)
	}
	rawConfig, err := l.readConfig(b, man.Config)
	if err != nil {
		return Image{}, err
	}
	sources := make([]part, 0, len(man.Layers))
	for i, d := range man.Layers {
		p, err := descriptorPart(d)
		if err != nil {
			return Image{}, fmt.Errorf("layer %d: %w", i, err)
		}
		sources = append(sources, p)
	}
	return l.loadLayers(b, rawConfig, sources)
}

func descriptorName(d ocispec.Descriptor) string {
	if n := d.Annotations["io.containerd.image.name"]; n != "" {
		return n
	}
	return d.Annotations[ocispec.AnnotationRefName]
}

// candidate is a manifest found in an index, with the top entry it is under.
type candidate struct {
	top      ocispec.Descriptor
	d        ocispec.Descriptor
	platform string
}

// gathering is what is found on a walk through indexes.
type gathering struct {
	found []candidate
	seen  map[string]bool // digests
}

// pickManifest finds the one manifest for the wanted platform and name.
func (l *loader) pickManifest(b blobs, idx ocispec.Index, pick string) (ocispec.Descriptor, ocispec.Manifest, error) {
	all := gathering{seen: map[string]bool{}}
	var names []string
	for _, top := range idx.Manifests {
		if n := descriptorName(top); n != "" && !slices.Contains(names, n) && len(names) < 100 {
			names = append(names, n)
		}
		if pick != "" && pick != descriptorName(top) && pick != top.Annotations[ocispec.AnnotationRefName] {
			continue
		}
		if err := l.gather(b, top, top, 0, &all); err != nil {
			return ocispec.Descriptor{}, ocispec.Manifest{}, err
		}
	}
	if len(all.found) == 0 && pick != "" {
		return ocispec.Descriptor{}, ocispec.Manifest{}, noSuchName(pick, names)
	}
	c, err := choose(all.found, l.o.Platform, names)
	if err != nil {
		return ocispec.Descriptor{}, ocispec.Manifest{}, err
	}
	var man ocispec.Manifest
	if err := l.readManifest(b, c.d, &man); err != nil {
		return c.top, man, fmt.Errorf("manifest: %w", err)
	}
	return c.top, man, nil
}

func noSuchName(pick string, names []string) error {
	return loadErr(CodeNoImage, "name one of those, or none if there is only one", "%w: no image named %q; there are: %s", ErrNoImage, pick, strings.Join(names, ", "))
}

// choose takes the one candidate for a platform. One that names exactly it goes
// before one that says more, like a variant.
func choose(all []candidate, platform string, names []string) (candidate, error) {
	var fit []candidate
	var seen []string
	for _, c := range all {
		if !slices.Contains(seen, c.platform) {
			seen = append(seen, c.platform)
		}
		if samePlatform(c.platform, platform) {
			fit = append(fit, c)
		}
	}
	if exact := slices.DeleteFunc(slices.Clone(fit), func(c candidate) bool { return c.platform != platform }); len(exact) > 0 {
		fit = exact
	}
	switch {
	case len(fit) == 0:
		return candidate{}, errPlatform(platform, seen)
	case len(fit) == 1:
		return fit[0], nil
	case fit[0].platform != fit[1].platform:
		return candidate{}, loadErr(CodeNoPlatform, "name one with --platform", "%w: %d images for %s: %s", ErrNoImage, len(fit), platform, strings.Join(seen, ", "))
	}
	return candidate{}, loadErr(CodeNoImage, "pick one with oci:PATH:NAME", "%w: %d images for %s; pick one with oci:PATH:NAME, names are: %s", ErrNoImage, len(fit), platform, strings.Join(names, ", "))
}

func errPlatform(want string, have []string) error {
	if len(have) == 0 {
		return loadErr(CodeNoPlatform, "take another source of it", "%w: no image for %s; there is none for any platform", ErrNoImage, want)
	}
	return loadErr(CodeNoPlatform, "choose another with --platform, such as --platform "+have[0],
		"%w: no image for %s; there are: %s", ErrNoImage, want, strings.Join(have, ", "))
}

// samePlatform compares "os/arch" and, where both name one, the variant.
func samePlatform(have, want string) bool {
	h, w := strings.Split(have, "/"), strings.Split(want, "/")
	for i := range min(len(h), len(w)) {
		if h[i] != w[i] {
			return false
		}
	}
	return len(h) >= 2 && len(w) >= 2
}

// gather collects the manifests under d; what was seen before is passed over.
func (l *loader) gather(b blobs, top, d ocispec.Descriptor, depth int, out *gathering) error {
	if out.seen[string(d.Digest)] {
		return nil
	}
	out.seen[string(d.Digest)] = true
	if depth > maxIndexDepth || len(out.seen) > maxIndexEntries || len(out.found) > maxLayers {
		return fmt.Errorf("%w: an index of indexes more than %d deep or of more than %d entries", ErrTooLarge, maxIndexDepth, maxIndexEntries)
	}
	switch d.MediaType {
	case ocispec.MediaTypeImageIndex, dockerManifestList:
		var idx ocispec.Index
		if err := l.readManifest(b, d, &idx); err != nil {
			return fmt.Errorf("index: %w", err)
		}
		for _, m := range idx.Manifests {
			if err := l.gather(b, top, m, depth+1, out); err != nil {
				return err
			}
		}
		return nil
	case ocispec.MediaTypeImageManifest, dockerManifest, "":
	case dockerSchema1:
		return fmt.Errorf("%w: an image in the format of Docker before 1.10; pull and push it with a newer Docker", ErrMalformed)
	default:
		return nil // signatures and other company
	}
	p, err := l.platform(b, d)
	if err != nil {
		return err
	}
	if p != "unknown/unknown" { // build attestations
		out.found = append(out.found, candidate{top, d, p})
	}
	return nil
}

// platform is what the descriptor says, or the config it leads to.
func (l *loader) platform(b blobs, d ocispec.Descriptor) (string, error) {
	if p := d.Platform; p != nil && p.OS != "" && p.Architecture != "" {
		s := p.OS + "/" + p.Architecture
		if p.Variant != "" {
			s += "/" + p.Variant
		}
		return s, nil
	}
	var man ocispec.Manifest
	if err := l.readManifest(b, d, &man); err != nil {
		return "", fmt.Errorf("manifest: %w", err)
	}
	raw, err := l.readConfig(b, man.Config)
	if err != nil {
		return "", err
	}
	cfg, err := decodeConfig(raw)
	return platformOf(cfg), err
}

// dockerImage is one entry of a docker-archive's manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// loadDocker imports from a docker-archive.
func (l *loader) loadDocker(b *archive, pick string) (Image, error) {
	var list []dockerImage
	if err := l.readJSON(b, namedPart("manifest.json"), &list); err != nil {
		return Image{}, err
	}
	im, err := pickDocker(list, pick)
	if err != nil {
		return Image{}, err
	}
	if l.o.Name == "" && len(im.RepoTags) > 0 {
		l.o.Name = im.RepoTags[0]
	}
	cp := namedPart(im.Config)
	if k, ok := digestName(im.Config); ok {
		cp.digest = &k
	}
	rawConfig, err := l.readMeta(b, cp)
	if err != nil {
		return Image{}, fmt.Errorf("config: %w", err)
	}
	cfg, err := decodeConfig(rawConfig)
	if err != nil {
		return Image{}, err
	}
	if p := platformOf(cfg); !samePlatform(p, l.o.Platform) {
		return Image{}, loadErr(CodeNoPlatform, "choose it with --platform "+p, "%w: no image for %s; it is for %s", ErrNoImage, l.o.Platform, p)
	}
	if len(im.Layers) > maxLayers {
		return Image{}, fmt.Errorf("%w: the manifest lists %d layers, over %d", ErrTooLarge, len(im.Layers), maxLayers)
	}
	sources := make([]part, 0, len(im.Layers))
	for _, name := range im.Layers {
		src := part{name: name, size: b.size(name)}
		if k, ok := digestName(name); ok && strings.HasPrefix(name, "blobs/sha256/") {
			src.digest = &k
		}
		sources = append(sources, src)
	}
	return l.loadLayers(b, rawConfig, sources)
}

func pickDocker(list []dockerImage, pick string) (dockerImage, error) {
	var names []string
	for _, im := range list {
		names = append(names, im.RepoTags...)
		if pick != "" && slices.Contains(im.RepoTags, pick) {
			return im, nil
		}
	}
	switch {
	case pick != "":
		return dockerImage{}, noSuchName(pick, names)
	case len(list) == 0:
		return dockerImage{}, fmt.Errorf("%w: the archive has no image", ErrMalformed)
	case len(list) > 1:
		return dockerImage{}, loadErr(CodeNoImage, "pick one with docker-archive:FILE:NAME",
			"%w: %d images in the archive; names are: %s", ErrNoImage, len(list), strings.Join(names, ", "))
	}
	return list[0], nil
}

// digestName reads the digest out of a name like blobs/sha256/HEX or HEX.json.
func digestName(name string) (key, bool) {
	b, err := hex.DecodeString(strings.TrimSuffix(path.Base(name), ".json"))
	if err != nil || len(b) != sha256.Size {
		return key{}, false
	}
	return key(b), true
}
