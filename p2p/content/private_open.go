package content

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/ipfs/go-cid"
)

// ErrSealed says that a private file does not open: it was made for another key,
// or it is not as it was made.
var ErrSealed = errors.New("the private file does not open")

// OpenPrivate writes what is in a private file: each of its trees to the place
// that dests has for its name, as ExportWith does; "" passes over one. Every name
// in dests must be there, and no other. Bytes are written only when they are proved to be those
// that were encrypted, and a file appears when all of its bytes are; a private
// file that turns out damaged may leave the files before the damage. Trees that
// are folders keep the permissions that the place has or gets by itself. The
// memory it takes does not depend on what there is.
func OpenPrivate(ctx context.Context, s *Store, root cid.Cid, with age.Identity, dests map[string]string, o ExportOptions) (Exported, error) {
	defer s.Hold(root)()
	o.Limits = o.Limits.orDefault()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	u := newUnsealer(exporter{ctx: ctx, d: dagService{ctx, s}, o: o}, dests)
	pr, pw := io.Pipe()
	read := make(chan struct{})
	go func() {
		defer close(read)
		n, err := u.d.find(ctx, root, "")
		if err == nil {
			err = u.d.write(ctx, n, pw, 0)
		}
		if err != nil {
			err = storeError{err}
		}
		_ = pw.CloseWithError(err) // it never fails
	}()
	err := u.run(pr, with)
	cancel()
	_ = pr.CloseWithError(errReaderGone)
	<-read
	if err != nil {
		return u.st, fmt.Errorf("open the private file %s: %w", root, err)
	}
	u.say("done")
	return u.st, nil
}

// ageMagic begins every file that age made.
const ageMagic = "age-encryption.org/v1\n"

// LooksPrivate reports whether what a root names begins as age's files do. Roots
// for which it is so need not be announced: nobody but who was told of them can
// do anything with them. While too little is here to tell, it is ErrNotFound.
func LooksPrivate(ctx context.Context, s *Store, root cid.Cid) (bool, error) {
	d := dagService{ctx, s}
	n, err := d.find(ctx, root, "")
	if errors.Is(err, ErrMalformed) || err == nil && n.kind != EntryFile {
		return false, nil // an image, a folder
	}
	head := &headWriter{}
	if err == nil {
		err = d.write(ctx, n, head, 0)
	}
	if err != nil && !errors.Is(err, errHead) {
		return false, fmt.Errorf("look at %s: %w", root, err)
	}
	return bytes.Equal(head.got, []byte(ageMagic)), nil
}

var errHead = errors.New("enough was read")

// headWriter takes as many bytes as the magic has.
type headWriter struct{ got []byte }

func (h *headWriter) Write(p []byte) (int, error) {
	h.got = append(h.got, p[:min(len(p), len(ageMagic)-len(h.got))]...)
	if len(h.got) == len(ageMagic) {
		return 0, errHead
	}
	return len(p), nil
}

// unsealer writes the entries of a private file. They must come as seal makes
// them: each folder before what is in it. So nothing is ever looked for by a path
// that could lead through a link; os.Root stands behind that.
type unsealer struct {
	exporter
	dests map[string]string
	met   map[string]bool // trees that have begun
	open  []openFolder    // from a tree's root to where entries come to lie
	buf   []byte
	// passing says that what comes is of a tree that is passed over.
	passing bool
}

func newUnsealer(e exporter, dests map[string]string) *unsealer {
	return &unsealer{exporter: e, dests: dests, met: map[string]bool{}, buf: make([]byte, 128<<10)}
}

// openFolder is a folder that is being written; its permissions come last.
type openFolder struct {
	name string
	dir  *os.Root
	mode fs.FileMode
	set  bool // its permissions are to become mode
}

func (u *unsealer) run(r io.Reader, with age.Identity) error {
	dec, err := age.Decrypt(r, with)
	if err != nil {
		return sealedErr(err)
	}
	tr := tar.NewReader(sealedReader{dec})
	for err == nil {
		var h *tar.Header
		if h, err = tr.Next(); err != nil {
			break
		}
		if err = u.entry(h, tr); err != nil {
			err = fmt.Errorf("%.300q: %w", h.Name, err)
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		// The rest is read too: only its end proves that nothing is missing.
		_, err = io.CopyBuffer(onlyWriter{io.Discard}, sealedReader{dec}, u.buf)
	case errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("%w: what was encrypted is no whole tar: %w", ErrMalformed, err)
	}
	err = errors.Join(err, u.leave(0))
	for name := range u.dests {
		if err == nil && !u.met[name] {
			err = fmt.Errorf("%w: it has no %q", ErrMalformed, name)
		}
	}
	return err
}

// sealedReader tells damage from other trouble.
type sealedReader struct{ r io.Reader }

func (s sealedReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = sealedErr(err)
	}
	return n, err
}

// storeError is why the encrypted bytes could not be read.
type storeError struct{ error }

func (s storeError) Unwrap() error { return s.error }

// sealedErr words why age does not go on. What the store could not read is the
// store's affair.
func sealedErr(err error) error {
	var store storeError
	var other *age.NoIdentityMatchError
	switch {
	case errors.As(err, &store):
		return store.error
	case errors.As(err, &other):
		return fmt.Errorf("%w: it was encrypted for another key", ErrSealed)
	}
	return fmt.Errorf("%w: it is cut off or was changed (%v)", ErrSealed, err) //nolint:errorlint // an EOF in it would mean another end
}

// leave closes the folders that lie deeper than n.
func (u *unsealer) leave(n int) error {
	var errs []error
	for len(u.open) > n {
		last := u.open[len(u.open)-1]
		u.open = u.open[:len(u.open)-1]
		if last.set {
			errs = append(errs, last.dir.Chmod(".", last.mode))
		}
		errs = append(errs, last.dir.Close())
	}
	return errors.Join(errs...)
}

func (u *unsealer) entry(h *tar.Header, r io.Reader) error {
	if err := u.ctx.Err(); err != nil {
		return err
	}
	if u.st.Files++; u.st.Files > u.o.Limits.Entries {
		return fmt.Errorf("%w: more than %d files, folders and links", ErrTooLarge, u.o.Limits.Entries)
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return fmt.Errorf("%w: a file with holes", ErrMalformed)
		}
	}
	parts := strings.Split(strings.TrimSuffix(h.Name, "/"), "/")
	if len(parts) > maxAddDepth+2 {
		return fmt.Errorf("%w: folders more than %d deep", ErrTooLarge, maxAddDepth)
	}
	for _, p := range parts {
		if !safeName(p) {
			return fmt.Errorf("%w: this name leads outside", ErrUnsafe)
		}
	}
	if len(parts) == 1 {
		return u.tree(parts[0], h, r)
	}
	if u.passing {
		return nil
	}
	parents, base := parts[:len(parts)-1], parts[len(parts)-1]
	if len(u.open) < len(parents) {
		return fmt.Errorf("%w: it comes before its folder", ErrMalformed)
	}
	for i, p := range parents {
		if u.open[i].name != p {
			return fmt.Errorf("%w: it comes before its folder", ErrMalformed)
		}
	}
	if err := u.leave(len(parents)); err != nil {
		return err
	}
	return u.write(u.open[len(u.open)-1].dir, base, path.Join(parts[1:]...), h, r)
}

// tree begins one of the trees at its own place.
func (u *unsealer) tree(name string, h *tar.Header, r io.Reader) error {
	dest, wanted := u.dests[name]
	if !wanted || u.met[name] {
		return fmt.Errorf("%w: it is not asked for, or comes twice", ErrMalformed)
	}
	u.met[name] = true
	if err := u.leave(0); err != nil {
		return err
	}
	if u.passing = dest == ""; u.passing {
		return nil
	}
	if h.Typeflag == tar.TypeDir {
		if err := os.MkdirAll(dest, 0o755); err != nil {
			return err
		}
		dir, err := os.OpenRoot(dest)
		if err != nil {
			return err
		}
		u.open = append(u.open, openFolder{name: name, dir: dir})
		return nil
	}
	if h.Typeflag != tar.TypeReg {
		return fmt.Errorf("%w: neither file nor folder", ErrMalformed)
	}
	parent, base := filepath.Split(filepath.Clean(dest))
	if parent == "" {
		parent = "."
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	dir, err := os.OpenRoot(parent)
	if err != nil {
		return err
	}
	return errors.Join(u.write(dir, base, base, h, r), dir.Close())
}

// write makes one entry in a folder; at is its path below the tree's place.
func (u *unsealer) write(dir *os.Root, base, at string, h *tar.Header, r io.Reader) error {
	mode := fs.FileMode(h.Mode) & fs.ModePerm //nolint:gosec // nine bits of it
	switch h.Typeflag {
	case tar.TypeReg:
		if left := u.o.Limits.Bytes - u.st.Bytes; h.Size < 0 || uint64(h.Size) > left {
			return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, u.o.Limits.Bytes)
		}
		return replaceFile(dir, base, func(f *os.File) error {
			if _, err := io.CopyBuffer(&exportWriter{&u.exporter, f}, r, u.buf); err != nil {
				return err
			}
			return f.Chmod(mode)
		}, time.Time{})
	case tar.TypeSymlink:
		return u.link(dir, base, node{kind: EntrySymlink, target: h.Linkname}, at)
	case tar.TypeDir:
		return u.subfolder(dir, base, mode)
	}
	return fmt.Errorf("%w: entry of type %q", ErrMalformed, h.Typeflag)
}

func (u *unsealer) subfolder(dir *os.Root, base string, mode fs.FileMode) error {
	if err := dir.Mkdir(base, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	fi, err := dir.Lstat(base)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%w: a folder should go where a %s is; move it away", fs.ErrExist, kindOf(fi.Mode()))
	}
	if fi.Mode()&0o700 != 0o700 {
		if err := dir.Chmod(base, fi.Mode().Perm()|0o700); err != nil {
			return err
		}
	}
	sub, err := dir.OpenRoot(base)
	if err != nil {
		return err
	}
	u.open = append(u.open, openFolder{name: base, dir: sub, mode: mode, set: true})
	return nil
}
