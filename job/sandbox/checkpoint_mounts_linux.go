package sandbox

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// saved are the mounts whose content is part of a checkpoint, by their place in
// the spec.
func saved(s Spec) map[int]Mount {
	list := map[int]Mount{}
	for i, m := range s.Mounts {
		if !m.ReadOnly && m.MaxBytes == 0 {
			list[i] = m
		}
	}
	return list
}

// saveMounts writes what is in the writable mounts of a container that stands
// still as one tar, each under its number.
func saveMounts(s Spec, file string) (err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	for i, m := range saved(s) {
		if err := saveMount(w, strconv.Itoa(i), m.Source); err != nil {
			return fmt.Errorf("saving what is in %s: %w", m.Dest, err)
		}
	}
	return w.Close()
}

func saveMount(w *tar.Writer, prefix, source string) error {
	info, err := os.Lstat(source)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		f, err := os.Open(source)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		return saveEntry(w, prefix, info, "", f)
	}
	root, err := os.OpenRoot(source)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		at := path.Join(prefix, name)
		switch {
		case info.IsDir():
			return saveEntry(w, at+"/", info, "", nil)
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := root.Readlink(name)
			if err != nil {
				return err
			}
			return saveEntry(w, at, info, to, nil)
		case info.Mode().IsRegular():
			f, err := root.Open(name)
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			return saveEntry(w, at, info, "", f)
		}
		return fmt.Errorf("%s is neither a file, a folder nor a link", name)
	})
}

func saveEntry(w *tar.Writer, name string, info fs.FileInfo, link string, from io.Reader) error {
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Format, h.Uname, h.Gname = name, tar.FormatPAX, "", ""
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if from == nil {
		return nil
	}
	_, err = io.Copy(w, from)
	return err
}

// restoreMounts fills the writable mounts of a container from its checkpoint.
// What the checkpoint says comes from a peer.
func restoreMounts(ctx context.Context, s Spec) error {
	if s.Restore == "" {
		return nil
	}
	if err := checkSaved(s.Restore); err != nil {
		return fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	f, err := os.Open(filepath.Join(s.Restore, fileMounts))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	defer func() { _ = f.Close() }()
	r := &mountRestorer{spec: s, mounts: saved(s), left: s.OutputBytes, roots: map[int]*os.Root{}, seen: map[int]bool{}}
	defer r.close()
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return r.finish()
		}
		if err == nil {
			err = r.entry(h, until{ctx, tr})
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("%w: its files cannot be laid out: %w", ErrCheckpoint, err)
		}
	}
}

// until reads as long as ctx does not end.
type until struct {
	ctx  context.Context
	from io.Reader
}

func (u until) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.from.Read(p)
}

// checkSaved refuses a checkpoint that holds anything but files where its files
// should be: a link in its place would have runsc, which follows links, give the
// container a file of the host's as its memory.
func checkSaved(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no folder", dir)
	}
	for _, name := range []string{fileKernel, filePagesMeta, filePages, fileMounts} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("its %s is no file", name)
		}
	}
	return nil
}

// mountRestorer lays out the entries of a tar, each below its own mount and
// nowhere else, and within the limit of what the job may write.
type mountRestorer struct {
	spec   Spec
	mounts map[int]Mount
	left   uint64
	roots  map[int]*os.Root
	seen   map[int]bool // mounts whose own folder or file came
	// folders get their modes and times last: one may forbid to write to it.
	folders []restoredFolder
}

// restoredFolder is no header: one may carry a mebibyte that nobody needs.
type restoredFolder struct {
	root *os.Root
	name string
	attributes
}

// attributes are what a file is given besides its bytes.
type attributes struct {
	mode     fs.FileMode
	uid, gid int
	modified time.Time
}

// attributesOf never make a set-user-id file: these folders are the host's.
func attributesOf(h *tar.Header) attributes {
	return attributes{h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSticky), h.Uid, h.Gid, h.ModTime}
}

func (r *mountRestorer) close() {
	for _, root := range r.roots {
		_ = root.Close()
	}
}

func (r *mountRestorer) entry(h *tar.Header, from io.Reader) error {
	number, name, _ := strings.Cut(path.Clean(h.Name), "/")
	i, err := strconv.Atoi(number)
	m, ok := r.mounts[i]
	if err != nil || !ok {
		return fmt.Errorf("%.80q is in no mount of the container", h.Name)
	}
	cost := uint64(entryCost) + uint64(max(h.Size, 0)) //nolint:gosec // not negative
	if name == "" {
		if r.seen[i] {
			return fmt.Errorf("%.80q comes twice", h.Name)
		}
		r.seen[i] = true
		cost -= entryCost // the folder of a mount itself costs nothing, as in outputSize
	}
	if cost > r.left {
		return fmt.Errorf("more than the %d bytes that the job may write", r.spec.OutputBytes)
	}
	r.left -= cost
	if name == "" && h.Typeflag == tar.TypeReg {
		return restoreFile(m.Source, from)
	}
	root, err := r.root(i, m)
	if err != nil {
		return err
	}
	if name == "" {
		name = "."
	}
	return r.lay(root, name, h, from)
}

func restoreFile(name string, from io.Reader) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

func (r *mountRestorer) root(i int, m Mount) (*os.Root, error) {
	if root := r.roots[i]; root != nil {
		return root, nil
	}
	root, err := os.OpenRoot(m.Source)
	if err == nil {
		r.roots[i] = root
	}
	return root, err
}

func (r *mountRestorer) lay(root *os.Root, name string, h *tar.Header, from io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		if name != "." {
			if err := root.Mkdir(name, 0o700); err != nil {
				return err
			}
		}
		r.folders = append(r.folders, restoredFolder{root, name, attributesOf(h)})
		return nil
	case tar.TypeSymlink:
		if err := root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return attributesOf(h).own(root, name)
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, from)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		return attributesOf(h).give(root, name)
	}
	return fmt.Errorf("%.80q is neither a file, a folder nor a link", h.Name)
}

// finish gives folders their attributes, the innermost first.
func (r *mountRestorer) finish() error {
	for i := len(r.folders) - 1; i >= 0; i-- {
		f := r.folders[i]
		if err := f.give(f.root, f.name); err != nil {
			return fmt.Errorf("%w: its files cannot be laid out: %w", ErrCheckpoint, err)
		}
	}
	return nil
}

func (a attributes) give(root *os.Root, name string) error {
	if err := a.own(root, name); err != nil {
		return err
	}
	if err := root.Chmod(name, a.mode); err != nil {
		return err
	}
	return root.Chtimes(name, time.Time{}, a.modified)
}

// own does nothing for an ordinary user: all is that user's.
func (a attributes) own(root *os.Root, name string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	if a.uid < 0 || a.gid < 0 || a.uid >= 1<<32-1 || a.gid >= 1<<32-1 {
		return unix.EINVAL
	}
	return root.Lchown(name, a.uid, a.gid)
}
