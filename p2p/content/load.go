package content

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/authn"
)

// maxImageBytes is the default bound on an image's uncompressed layers.
const maxImageBytes = 1 << 40

// DefaultPlatform is what providers run: it is taken from an image for several
// platforms unless another is asked for.
const DefaultPlatform = "linux/amd64"

// LoadOptions configures LoadImage.
type LoadOptions struct {
	// Name is what to call the image; empty takes the archive's name for it.
	Name string
	// Platform is what to take from an image for several, like "linux/arm64";
	// empty is DefaultPlatform.
	Platform string
	// MaxBytes bounds the uncompressed layers; 0 is 1 TiB.
	MaxBytes uint64
	// Progress, if set, is called with the bytes read of the layers as they lie
	// in the source, packed or not; at the end with the image's own size.
	Progress func(Progress)

	keys       authn.Keychain // nil is the user's own
	containerd string         // its folder; empty is the usual one
}

// LoadImage imports an image. ref is a path, of which the kind is found out, or
// one of
//
//	docker-archive:FILE[:NAME]   what `docker save` writes
//	oci:PATH[:NAME]              an OCI layout, as folder or tar
//	oci-archive:FILE[:NAME]      the same, as tar
//	rootfs:FOLDER                the root file system of a container
//	docker://NAME                a registry, with the user's own credentials
//	docker+http://NAME           a registry without TLS and without credentials
//	docker-daemon:NAME           Docker's own store, through its socket
//	containerd:NAME              containerd's store, out of its folder
//
// A file may be packed with gzip or zstd as a whole. What is wrong with the
// reference or its source is a *LoadError.
//
// Hold puts until the root is kept by something else: see Store.HoldPuts.
func LoadImage(ctx context.Context, s *Store, ref string, o LoadOptions) (Image, error) {
	defer s.HoldPuts()()
	l := newLoader(ctx, s, o)
	img, err := l.load(ref)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", ref, err)
	}
	if err := s.Sync(); err != nil {
		return Image{}, fmt.Errorf("image %s: %w", ref, err)
	}
	if err := l.remember(img); err != nil {
		return Image{}, fmt.Errorf("image %s: %w", ref, err)
	}
	l.done(img)
	return img, nil
}

// loader is one run of LoadImage.
type loader struct {
	ctx    context.Context
	asked  bool // for a platform
	s      *Store
	o      LoadOptions
	slabs  *slabPool
	layers knownLayers

	read atomic.Uint64 // bytes of the phase

	mu    sync.Mutex // one call of Progress at a time
	phase string
	total uint64
}

func newLoader(ctx context.Context, s *Store, o LoadOptions) *loader {
	if o.MaxBytes == 0 {
		o.MaxBytes = maxImageBytes
	}
	l := &loader{ctx: ctx, s: s, o: o, slabs: newSlabPool(), asked: o.Platform != ""}
	if !l.asked {
		l.o.Platform = DefaultPlatform
	}
	return l
}

// tick reports n more bytes read.
func (l *loader) tick(n int) {
	done := l.read.Add(uint64(n))
	if l.o.Progress == nil || n == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.o.Progress(Progress{Phase: l.phase, Done: done, Total: l.total})
}

// begin starts a phase of total bytes, 0 if that is not known.
func (l *loader) begin(phase string, total uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.phase, l.total = phase, total
	l.read.Store(0)
}

func (l *loader) done(img Image) {
	if l.o.Progress == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.o.Progress(Progress{Phase: "done", Done: img.Bytes, Total: img.Bytes})
}

func (l *loader) load(ref string) (Image, error) {
	r, err := splitRef(ref)
	if err != nil {
		return Image{}, err
	}
	switch r.form {
	case formRegistry, formPlainHTTP:
		return l.loadRegistry(r)
	case formDaemon:
		return l.loadDaemon(r.path)
	case formContainerd:
		return l.loadContainerd(r.path)
	}
	fi, err := os.Stat(r.path)
	if err != nil {
		return Image{}, &LoadError{Code: CodeNoImage, Remedy: "name an image in one of these forms: " + ImageForms, Err: err}
	}
	if fi.IsDir() {
		return l.loadDir(r)
	}
	if !fi.Mode().IsRegular() {
		return Image{}, fmt.Errorf("%w: %s is neither file nor folder", ErrMalformed, r.path)
	}
	return l.loadFile(r)
}

func (l *loader) loadDir(r imageRef) (Image, error) {
	if r.form == formArchive || r.form == formOCIArchive {
		return Image{}, fmt.Errorf("%w: %s is a folder, not a %s", ErrMalformed, r.path, r.form)
	}
	_, err := os.Stat(filepath.Join(r.path, "oci-layout"))
	if r.form != formOCI && (err != nil || r.form == formRootfs) {
		return l.loadRootfs(r.path)
	}
	root, err := os.OpenRoot(r.path)
	if err != nil {
		return Image{}, err
	}
	defer func() { _ = root.Close() }()
	return l.loadOCI(folder{root}, r.pick)
}

func (l *loader) loadFile(r imageRef) (Image, error) {
	if r.form == formRootfs {
		return Image{}, fmt.Errorf("%w: %s is a file, not a folder with a root file system", ErrMalformed, r.path)
	}
	f, err := os.Open(r.path)
	if err != nil {
		return Image{}, err
	}
	return l.loadArchive(f, false, r)
}

// loadArchive imports from a tar. The file is closed, and removed if it is ours.
func (l *loader) loadArchive(f *os.File, ours bool, r imageRef) (Image, error) {
	fi, err := f.Stat()
	if err != nil {
		return Image{}, errors.Join(err, f.Close())
	}
	l.begin("unpacking", uint64(fi.Size())) //nolint:gosec // a file's size
	t, err := openArchive(l.ctx, f, ours, l.s.dir, l.o.MaxBytes, l.tick)
	if err != nil {
		return Image{}, err
	}
	defer func() { _ = t.close() }()
	isOCI := t.has("index.json") && t.has("oci-layout")
	switch {
	case t.has("manifest.json") && (r.form == formArchive || r.form == formDaemon || r.form == formAuto && !isOCI):
		return l.loadDocker(t, r.pick)
	case isOCI && r.form != formArchive:
		return l.loadOCI(t, r.pick)
	}
	return Image{}, fmt.Errorf("%w: a tar without manifest.json or index.json; give a docker-archive (docker save), an OCI layout or a folder with a root file system", ErrMalformed)
}
