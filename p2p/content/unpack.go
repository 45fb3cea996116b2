package content

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/ipfs/go-cid"
)

// Limits bounds what content from a stranger may become on disk.
type Limits struct {
	// Bytes of all files; 0 is 256 GiB.
	Bytes uint64
	// Entries is how many files, folders and links there may be; 0 is a million.
	Entries uint64
}

// ErrNoRoom says that writing on would fill the disk.
var ErrNoRoom = errors.New("not enough room on the disk")

const (
	defaultLimitBytes   = 256 << 30
	defaultLimitEntries = 1_000_000
)

func (l Limits) orDefault() Limits {
	if l.Bytes == 0 {
		l.Bytes = defaultLimitBytes
	}
	if l.Entries == 0 {
		l.Entries = defaultLimitEntries
	}
	return l
}

// Unpack writes the merged root file system of an image as folder dir, within
// the default Limits. See UnpackLimited.
func Unpack(ctx context.Context, s *Store, root cid.Cid, dir string) error {
	return UnpackLimited(ctx, s, root, dir, Limits{})
}

// UnpackLimited writes the merged root file system of an image as folder dir,
// which must not be there yet or be empty. Every layer is checked against its
// diff id, and config and manifest against each other, before dir appears: it
// is written beside and renamed. A run that was killed leaves no dir, and what
// it did leave is removed by the next one for the same dir; after a power cut
// the file system may have lost some of what was written, so unpack again.
//
// Root keeps owners, set-id bits and capabilities. For an ordinary user all
// becomes the user's, who can always read it and remove it. Devices, pipes and
// sockets, and extended attributes other than user.* and, for root,
// security.capability, are left out and counted in the log. Runs of zeros in
// large files become holes. Nothing is written or linked to outside dir,
// whatever else changes in it meanwhile.
//
// ErrTooLarge, ErrUnsafe, ErrMalformed, ErrMismatch and ErrNoRoom say why an
// image was refused, and name layer and path.
func UnpackLimited(ctx context.Context, s *Store, root cid.Cid, dir string, limit Limits) error {
	if err := unpackImage(ctx, s, root, dir, limit.orDefault()); err != nil {
		return fmt.Errorf("unpack image %s into %s: %w", root, dir, err)
	}
	return nil
}

func unpackImage(ctx context.Context, s *Store, root cid.Cid, dir string, limit Limits) (err error) {
	defer s.Hold(root)()
	_, m, err := readImage(ctx, s, root)
	if err != nil {
		return err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return err
	}
	done, err := s.claim(dir, root)
	if err != nil {
		return err
	}
	defer done()
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("%w: remove it first", fs.ErrExist)
	}
	parent, pattern := filepath.Split(dir)
	pattern = "." + pattern + ".partial-"
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	if err := removeMatching(parent, pattern); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(parent, pattern+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, RemoveAll(tmp))
		}
	}()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := unpackLayers(ctx, s, m, tmp, limit); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(tmp, dir)
}

// claim makes sure that one unpack at a time writes dir.
func (s *Store) claim(dir string, root cid.Cid) (done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if by, busy := s.unpacks[dir]; busy {
		return nil, fmt.Errorf("image %s is being unpacked there right now", by)
	}
	s.unpacks[dir] = root.String()
	return s.once(func() { delete(s.unpacks, dir) }), nil
}

// removeMatching removes what killed runs left.
func removeMatching(parent, prefix string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if len(e.Name()) > len(prefix) && e.Name()[:len(prefix)] == prefix {
			if err := RemoveAll(filepath.Join(parent, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// RemoveAll removes path and everything in it, also from folders that do not
// let their owner write. Links in it are removed, not followed.
func RemoveAll(path string) error {
	err := os.RemoveAll(path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	werr := openUp(path)
	if err := os.RemoveAll(path); err != nil {
		return errors.Join(err, werr)
	}
	return nil
}

// openUp lets the owner into every folder in path.
func openUp(path string) error {
	parent, base := filepath.Split(filepath.Clean(path))
	if parent == "" {
		parent = "."
	}
	root, err := os.OpenRoot(parent)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return fs.WalkDir(root.FS(), base, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = root.Chmod(p, 0o700)
		}
		return err
	})
}

// unpackLayers lays the layers out in folder tmp, which is empty.
func unpackLayers(ctx context.Context, s *Store, m imageRoot, tmp string, limit Limits) error {
	if err := fits(m, limit); err != nil {
		return err
	}
	space := &diskRoom{dir: tmp, free: freeSpace}
	if err := space.check(); err != nil {
		return err
	}
	top, err := os.OpenRoot(tmp)
	if err != nil {
		return err
	}
	a, err := probeAttrs(top)
	if err != nil {
		return errors.Join(err, top.Close())
	}
	u := newUnpacker(top, startLayWriters(ctx, a, space), limit)
	err = u.layers(ctx, s, m)
	u.tree.close()
	u.left.tell(s.log, m)
	return err
}

// layers applies all layers, and then what folders are like.
func (u *unpacker) layers(ctx context.Context, s *Store, m imageRoot) error {
	err := walkLayers(ctx, s, m.layers, func(e layerEntry) error {
		u.startLayer(e.layer)
		return u.entry(e.header, e.body)
	})
	if err != nil {
		u.w.cancel(err)
	}
	// What a writer complained of comes first: it is why the rest stopped.
	if werr := u.w.close(); werr != nil {
		return werr
	}
	return u.tree.finish()
}

// fits refuses an image before anything is read of which the layers must be
// larger than what may come of them: bodies, and headers of entries.
func fits(m imageRoot, limit Limits) error {
	const perEntry = 8 << 10 // headers and padding, with long names and attributes
	most := addCapped(limit.Bytes, min(limit.Entries, 1<<40)*perEntry)
	var sum uint64
	for _, l := range m.layers {
		sum = addCapped(sum, l.size)
	}
	if sum > most {
		return fmt.Errorf("%w: the layers are %d bytes; %d bytes in %d files, folders and links are allowed", ErrTooLarge, sum, limit.Bytes, limit.Entries)
	}
	return nil
}

// tell logs what was left out.
func (l *leftOut) tell(log *slog.Logger, m imageRoot) {
	if l.devices == 0 && len(l.xattrs) == 0 {
		return
	}
	log.Info("some of an image was left out", "image", m.config.key.digest(), "devices_pipes_sockets", l.devices, "extended_attributes", l.xattrs)
}

// probeAttrs finds out what a new file is like in a folder.
func probeAttrs(top *os.Root) (*attrWriter, error) {
	const name = ".lumbung-probe"
	f, err := top.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fs.ModePerm)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err = errors.Join(err, f.Close(), top.Remove(name)); err != nil {
		return nil, err
	}
	a := &attrWriter{root: os.Geteuid() == 0, modes: fi.Mode().Perm()}
	a.uid, a.gid = ownerOf(fi)
	return a, nil
}
