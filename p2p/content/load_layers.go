package content

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

// layersAtOnce is how many layers are read at a time. Their memory is bounded
// together by the slabs.
const layersAtOnce = 4

// Bounds on unpacking. Deflate packs no better than 1:1032, zstd far better,
// yet no layer somebody made on purpose of gigabytes packs like this.
const (
	bombRatio = 2000
	bombFree  = 4 << 30 // bytes that are unpacked whatever the ratio
)

// loadLayers imports the layers, a few at a time, checks them against the
// config's diff ids, and puts the root. Layers that are here are not read.
func (l *loader) loadLayers(b blobs, rawConfig []byte, sources []part) (Image, error) {
	cfg, err := decodeConfig(rawConfig)
	if err != nil {
		return Image{}, err
	}
	if n := len(cfg.RootFS.DiffIDs); n != len(sources) {
		return Image{}, fmt.Errorf("%w: config lists %d layers, the manifest %d", ErrMalformed, n, len(sources))
	}
	if err := layersFit(sources); err != nil {
		return Image{}, err
	}
	var total uint64
	for _, src := range sources {
		total = addCapped(total, uint64(max(src.size, 0)))
	}
	l.begin("layers", total)
	refs := make([]layerRef, len(sources))
	g, ctx := errgroup.WithContext(l.ctx)
	g.SetLimit(layersAtOnce)
	left := &budget{left: l.o.MaxBytes}
	for i, src := range sources {
		g.Go(func() error {
			want, err := parseDigest(string(cfg.RootFS.DiffIDs[i]))
			if err == nil {
				refs[i], err = l.layer(ctx, b, src, want, left)
			}
			if err != nil {
				return fmt.Errorf("layer %d (%s): %w", i, src.name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return Image{}, err
	}
	return l.finish(rawConfig, refs)
}

func layersFit(layers []part) error {
	if len(layers) > maxLayers {
		return fmt.Errorf("%w: %d layers, over %d", ErrTooLarge, len(layers), maxLayers)
	}
	return nil
}

func (l *loader) finish(rawConfig []byte, refs []layerRef) (Image, error) {
	first, err := firstFiles(l.ctx, l.s, rawConfig, refs)
	if err != nil {
		return Image{}, err
	}
	_, root, err := finishImage(l.s, rawConfig, refs, first...)
	if err != nil {
		return Image{}, err
	}
	img, _, err := readImage(l.ctx, l.s, root.cid())
	img.Name = l.o.Name
	return img, err
}

// layer returns the layer whose tar has the digest want, which is in the store
// or is imported.
func (l *loader) layer(ctx context.Context, b blobs, src part, want key, left *budget) (layerRef, error) {
	if r, ok := l.known(ctx, want); ok {
		if !left.take(r.size) {
			return r, errOverBudget()
		}
		l.tick(int(max(src.size, 0)))
		return r, nil
	}
	r, err := l.importBlob(ctx, b, src, want, left)
	if err == nil && r.diff != want {
		err = fmt.Errorf("%w: unpacked it is %s, the config says %s", ErrMismatch, r.diff.digest(), want.digest())
	}
	return r, err
}

// importBlob unpacks a layer's blob into chunks and checks it against its digest.
func (l *loader) importBlob(ctx context.Context, b blobs, src part, want key, left *budget) (layerRef, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f, _, err := b.open(ctx, src)
	if err != nil {
		return layerRef{}, err
	}
	defer func() { _ = f.Close() }()
	// A blob named by the tar's own digest is the tar: it is hashed as that.
	hashed := src.digest != nil && *src.digest != want
	ahead := readAhead(ctx, f, hashed, l.tick)
	defer func() { cancel(); <-ahead.gone }()
	tar, err := decompress(ahead)
	if err != nil {
		return layerRef{}, err
	}
	defer func() { _ = tar.Close() }()
	r, err := l.importTar(ctx, &boundReader{r: tar, b: left, packed: ahead}, cancel)
	if err != nil || !hashed {
		return r, err
	}
	got, err := ahead.rest()
	if err == nil && got != *src.digest {
		err = fmt.Errorf("%w: the blob is %s, the manifest says %s", ErrMismatch, got.digest(), src.digest.digest())
	}
	return r, err
}

// budget is a number of bytes several layers share.
type budget struct {
	mu   sync.Mutex
	left uint64
}

func (b *budget) take(n uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.left {
		return false
	}
	b.left -= n
	return true
}

func errOverBudget() error {
	return fmt.Errorf("%w: the image is larger than allowed when unpacked", ErrTooLarge)
}

// boundReader ends with ErrTooLarge when the shared budget is used up, or when
// far more comes out than can have been packed in good faith.
type boundReader struct {
	r      io.Reader
	b      *budget
	packed interface{ count() uint64 }
	out    uint64
}

func (r *boundReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.out += uint64(n)
	if !r.b.take(uint64(n)) {
		return 0, errOverBudget()
	}
	if isBomb(r.out, r.packed.count()) {
		return 0, fmt.Errorf("%w: %d bytes come out of %d: a decompression bomb", ErrTooLarge, r.out, r.packed.count())
	}
	return n, err
}

func isBomb(out, in uint64) bool { return out > bombFree && out/bombRatio > in }

// decompress finds out how r is packed by its first bytes, whatever its media
// type says, and unpacks it.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("%w: gzip: %w", ErrMalformed, err)
		}
		return z, nil
	case isZstd(magic):
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderConcurrency(min(4, runtime.GOMAXPROCS(0))))
		if err != nil {
			return nil, fmt.Errorf("%w: zstd: %w", ErrMalformed, err)
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(br), nil
}

// isZstd also knows the skippable frames that zstd:chunked layers may begin with.
func isZstd(magic []byte) bool {
	return string(magic) == "\x28\xb5\x2f\xfd" ||
		len(magic) == 4 && magic[0]&0xf0 == 0x50 && string(magic[1:]) == "\x2a\x4d\x18"
}
