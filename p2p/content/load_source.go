package content

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// maxMeta bounds an index, a manifest and a config, in bytes; OCI registries
// take manifests up to 4 MiB.
const maxMeta = 4 << 20

// blobs is where the parts of an image come from.
type blobs interface {
	// open returns the bytes of a part and their number. They are not checked.
	open(ctx context.Context, p part) (io.ReadCloser, int64, error)
}

// part is one blob or file of an image.
type part struct {
	name     string // as a file, like blobs/sha256/…
	digest   *key   // of its bytes as they lie there, if they are named by it
	manifest bool   // an index or a manifest, which registries keep apart
	size     int64  // as the manifest says; -1 if it does not
}

func namedPart(name string) part { return part{name: name, size: -1} }

func blobPart(k key, size int64) part {
	return part{name: blobName(k), digest: &k, size: size}
}

// folder is a blobs over a directory.
type folder struct{ root *os.Root }

func (f folder) open(_ context.Context, p part) (io.ReadCloser, int64, error) {
	name := filepath.FromSlash(p.name)
	fi, err := f.root.Stat(name) // before opening, which would wait at a pipe
	if err != nil {
		return nil, 0, err
	}
	if !fi.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%w: %s is no file", ErrMalformed, p.name)
	}
	r, err := f.root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	return r, fi.Size(), nil
}

// readMeta reads a small part whole and checks it if a digest names it.
func (l *loader) readMeta(b blobs, p part) ([]byte, error) {
	if p.size > maxMeta {
		return nil, fmt.Errorf("read %s: %w: %d bytes, over %d", p.name, ErrTooLarge, p.size, maxMeta)
	}
	r, n, err := b.open(l.ctx, p)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", p.name, err)
	}
	defer func() { _ = r.Close() }()
	if n > maxMeta {
		return nil, fmt.Errorf("read %s: %w: %d bytes, over %d", p.name, ErrTooLarge, n, maxMeta)
	}
	data, err := io.ReadAll(io.LimitReader(r, maxMeta+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", p.name, err)
	}
	if len(data) > maxMeta {
		return nil, fmt.Errorf("read %s: %w: more than %d bytes", p.name, ErrTooLarge, maxMeta)
	}
	if got := rawRef(data).key; p.digest != nil && got != *p.digest {
		return nil, fmt.Errorf("read %s: %w: it is %s", p.digest.digest(), ErrMismatch, got.digest())
	}
	return data, nil
}

func (l *loader) readJSON(b blobs, p part, v any) error {
	data, err := l.readMeta(b, p)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w: %w", p.name, ErrMalformed, err)
	}
	return nil
}
