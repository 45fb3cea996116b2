package content

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"filippo.io/age"
)

// A private file is a tar of everything in it, names too, encrypted as age does
// (age-encryption.org/v1): whoever has the blocks and not the key learns their
// sizes. What lies in the store is one UnixFS file, so `ipfs cat | age -d | tar
// x` reads it.

// Tree is a file or folder of the host, and its name in a private file: one
// element of a path.
type Tree struct{ Name, Path string }

// pipeSize is how much of a private file is gathered before it changes hands.
const pipeSize = 1 << 20

// AddPrivate is Add of several files and folders as one private file that the
// identity of a recipient opens. Permissions and links are kept, owners and
// times are not. No plaintext touches the store or the disk. The memory it
// takes does not depend on what there is. Progress counts what is encrypted.
func AddPrivate(ctx context.Context, s *Store, trees []Tree, to age.Recipient, o AddOptions) (Root, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var progress func(Progress)
	if o.Progress != nil {
		total := PrivateSize(ctx, trees)
		progress = func(p Progress) {
			p.Total = max(total, p.Done)
			o.Progress(p)
		}
	}
	pr, pw := io.Pipe()
	sealed := make(chan error, 1)
	go func() {
		err := seal(ctx, pw, trees, to, o.Live)
		sealed <- err
		_ = pw.CloseWithError(err) // it never fails
	}()
	root, err := AddReader(ctx, s, pr, AddOptions{Progress: progress})
	_ = pr.CloseWithError(errReaderGone)
	if serr := <-sealed; serr != nil && !errors.Is(serr, errReaderGone) {
		return Root{}, serr
	}
	return root, err
}

var errReaderGone = errors.New("nothing reads on")

// PrivateSize is about how many bytes trees are as a private file. What cannot be
// read counts for nothing: adding it tells what is wrong.
func PrivateSize(ctx context.Context, trees []Tree) uint64 {
	const (
		record = 512 // of a tar
		chunk  = 64 << 10
		tag    = 16
		header = 256
	)
	var sum uint64
	for _, t := range trees {
		_ = filepath.WalkDir(t.Path, func(_ string, e fs.DirEntry, err error) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				return nil //nolint:nilerr // see above
			}
			sum += record
			if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
				sum += uint64(max(0, info.Size())+record-1) / record * record
			}
			return nil
		})
	}
	sum += 2 * record
	return sum + (sum/chunk+1)*tag + header
}

// seal writes trees as a private file.
func seal(ctx context.Context, w io.Writer, trees []Tree, to age.Recipient, live bool) error {
	gathered := bufio.NewWriterSize(w, pipeSize)
	enc, err := age.Encrypt(gathered, to)
	if err != nil {
		return fmt.Errorf("encrypt: %w", err)
	}
	z := &sealer{ctx: ctx, tar: tar.NewWriter(enc), live: live, buf: make([]byte, 128<<10)}
	for _, t := range trees {
		if err := z.tree(t); err != nil {
			return fmt.Errorf("encrypt %s: %w", t.Path, err)
		}
	}
	for _, end := range []func() error{z.tar.Close, enc.Close, gathered.Flush} {
		if err := end(); err != nil {
			return fmt.Errorf("encrypt: %w", err)
		}
	}
	return nil
}

// sealer writes the entries of a private file: each folder before what is in it.
type sealer struct {
	ctx  context.Context
	tar  *tar.Writer
	live bool // as in AddOptions
	buf  []byte
}

func (z *sealer) tree(t Tree) error {
	if !safeName(t.Name) {
		return fmt.Errorf("%w: the name %q", ErrUnsafe, t.Name)
	}
	fi, err := os.Stat(t.Path)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		f, err := os.OpenFile(t.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		return errors.Join(z.file(f, t.Name), f.Close())
	}
	dir, err := os.OpenRoot(t.Path)
	if err != nil {
		return err
	}
	return errors.Join(z.folder(dir, t.Name, 0), dir.Close())
}

func (z *sealer) folder(dir *os.Root, name string, depth int) error {
	if depth > maxAddDepth {
		return fmt.Errorf("%w: folders more than %d deep", ErrTooLarge, maxAddDepth)
	}
	entries, mode, err := listFolder(dir)
	if err != nil {
		return err
	}
	if err := z.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: int64(mode.Perm()), Format: tar.FormatPAX}); err != nil {
		return err
	}
	for _, e := range entries {
		if err := z.ctx.Err(); err != nil {
			return err
		}
		if !safeName(e.Name()) {
			return fmt.Errorf("%w: the name %q; rename it", ErrUnsafe, e.Name())
		}
		if err := z.entry(dir, e, name+"/"+e.Name(), depth); err != nil {
			return fmt.Errorf("%s: %w", e.Name(), err)
		}
	}
	return nil
}

func listFolder(dir *os.Root) ([]fs.DirEntry, fs.FileMode, error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	entries, err := f.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, fi.Mode(), err
}

// entry writes one entry of a folder. What a live folder no longer has, or does
// not let be read, is found out before anything of it is written.
func (z *sealer) entry(dir *os.Root, e fs.DirEntry, name string, depth int) error {
	var write func() error
	var err error
	switch {
	case e.IsDir():
		var sub *os.Root
		if sub, err = dir.OpenRoot(e.Name()); err == nil {
			defer func() { _ = sub.Close() }()
			write = func() error { return z.folder(sub, name, depth+1) }
		}
	case e.Type()&fs.ModeSymlink != 0:
		var target string
		target, err = dir.Readlink(e.Name())
		write = func() error { return z.link(name, filepath.ToSlash(target)) }
	case e.Type().IsRegular():
		var f *os.File
		// Not waiting for a writer: the entry may have become a pipe.
		if f, err = dir.OpenFile(e.Name(), os.O_RDONLY|syscall.O_NONBLOCK, 0); err == nil {
			defer func() { _ = f.Close() }()
			write = func() error { return z.file(f, name) }
		}
	default:
		err = fmt.Errorf("%w: a %v cannot be added; remove it or move it away", ErrUnsafe, e.Type())
	}
	if err == nil {
		return write()
	}
	if z.live && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, ErrUnsafe)) {
		return nil
	}
	return err
}

func (z *sealer) link(name, target string) error {
	return z.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, Format: tar.FormatPAX})
}

func (z *sealer) file(f *os.File, name string) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%w: neither file nor folder", ErrUnsafe)
	}
	err = z.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(fi.Mode().Perm()), Size: fi.Size(), Format: tar.FormatPAX})
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(onlyWriter{z.tar}, io.LimitReader(ctxReader{z.ctx, f}, fi.Size()), z.buf)
	if err == nil && n < fi.Size() {
		err = fmt.Errorf("it became shorter while it was read, %d bytes of %d: try again when nothing writes to it", n, fi.Size())
	}
	return err
}

// onlyWriter hides ReadFrom, so that a copy uses its buffer.
type onlyWriter struct{ io.Writer }
