package content

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// maxArchiveEntries bounds the table of an image archive.
const maxArchiveEntries = 1 << 16

// archive is a blobs over a tar file: a table of where each entry lies.
type archive struct {
	f       *os.File
	remove  string // the file, if it is a copy of ours
	entries map[string]span
}

type span struct {
	offset, size int64
	link         string // another entry, for a symbolic or hard link
}

// openArchive makes the table of a tar, which it then owns. A compressed archive
// is unpacked into dir first, since its parts lie in any order. ours says that
// the file is to be removed. tick is told of what is unpacked.
func openArchive(ctx context.Context, f *os.File, ours bool, dir string, limit uint64, tick func(int)) (*archive, error) {
	a := &archive{f: f, entries: map[string]span{}}
	if ours {
		a.remove = f.Name()
	}
	if err := a.unpack(ctx, dir, limit, tick); err != nil {
		return nil, errors.Join(err, a.close())
	}
	if err := a.scan(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: not a tar archive: %w", ErrMalformed, err), a.close())
	}
	return a, nil
}

// unpack replaces a compressed file by its unpacked copy.
func (a *archive) unpack(ctx context.Context, dir string, limit uint64, tick func(int)) error {
	magic := make([]byte, 4)
	if _, err := a.f.ReadAt(magic, 0); err != nil {
		return fmt.Errorf("%w: not a tar archive: %w", ErrMalformed, err)
	}
	if string(magic[:2]) != "\x1f\x8b" && !isZstd(magic) {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	ahead := readAhead(ctx, a.f, false, tick)
	defer func() { cancel(); <-ahead.gone }()
	r, err := decompress(ahead)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	tmp, err := tempFile(dir)
	if err != nil {
		return err
	}
	packed := archive{f: a.f, remove: a.remove}
	a.f, a.remove = tmp, tmp.Name()
	bound := &boundReader{r: ctxReader{ctx, r}, b: &budget{left: limit}, packed: ahead}
	if _, err = io.Copy(tmp, bound); err == nil {
		_, err = tmp.Seek(0, io.SeekStart)
	}
	cancel()
	<-ahead.gone
	if err = errors.Join(err, packed.close()); err != nil {
		return fmt.Errorf("unpack archive: %w", err)
	}
	return nil
}

// tempFile makes a file for what cannot be read in order. Where the system
// allows, it has no name any more, so that a crash leaves nothing.
func tempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "archive-*.tmp")
	if err != nil {
		return nil, err
	}
	_ = os.Remove(f.Name()) // Windows does not allow it: close removes it
	return f, nil
}

func (a *archive) scan(ctx context.Context) error {
	tr := tar.NewReader(a.f)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(a.entries) >= maxArchiveEntries {
			return fmt.Errorf("%w: more than %d entries", ErrTooLarge, maxArchiveEntries)
		}
		name := path.Clean("/" + h.Name)[1:]
		switch h.Typeflag {
		case tar.TypeReg:
			// tar.Reader reads a file in blocks, so it stands at the entry's bytes.
			at, err := a.f.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			a.entries[name] = span{offset: at, size: h.Size}
		case tar.TypeSymlink:
			a.entries[name] = span{link: path.Join("/", path.Dir(name), h.Linkname)[1:]}
		case tar.TypeLink:
			a.entries[name] = span{link: path.Clean("/" + h.Linkname)[1:]}
		}
	}
}

func (a *archive) has(name string) bool {
	_, ok := a.entries[name]
	return ok
}

// find follows links to the span of a name.
func (a *archive) find(name string) (span, error) {
	at := strings.TrimPrefix(path.Clean("/"+name), "/")
	for range 8 {
		e, ok := a.entries[at]
		if !ok {
			return e, fmt.Errorf("%q is not in the archive: %w", at, os.ErrNotExist)
		}
		if e.link == "" {
			return e, nil
		}
		at = e.link
	}
	return span{}, fmt.Errorf("%w: %q is a chain of links", ErrMalformed, name)
}

// size is the number of bytes of an entry, -1 if it is not there.
func (a *archive) size(name string) int64 {
	e, err := a.find(name)
	if err != nil {
		return -1
	}
	return e.size
}

func (a *archive) open(_ context.Context, p part) (io.ReadCloser, int64, error) {
	e, err := a.find(p.name)
	if err != nil {
		return nil, 0, err
	}
	return io.NopCloser(io.NewSectionReader(a.f, e.offset, e.size)), e.size, nil
}

func (a *archive) close() error {
	err := a.f.Close()
	if a.remove == "" {
		return err
	}
	if rerr := os.Remove(a.remove); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// ctxReader ends when its context does.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
