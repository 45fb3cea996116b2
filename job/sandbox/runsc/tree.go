package main

import (
	"bytes"
	"errors"
	"io"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	rwfd "gvisor.dev/gvisor/pkg/fd"
	"gvisor.dev/gvisor/pkg/fsutil"
	"gvisor.dev/gvisor/pkg/lisafs"
	"gvisor.dev/gvisor/pkg/marshal/primitive"
)

// tree serves the folder the gofer has as its root, read-only: names, kinds,
// attributes and links as they lie there, the content of files from source.
type tree struct{ source *source }

// Mount implements lisafs.ConnectionImpl.
func (t *tree) Mount(c *lisafs.Connection, node *lisafs.Node) (*lisafs.ControlFD, lisafs.Statx, int, error) {
	fd, st, err := openAt(unix.AT_FDCWD, node.FilePath())
	if err != nil {
		return nil, lisafs.Statx{}, -1, err
	}
	f := &file{tree: t, fd: fd}
	node.IncRef() // passes to the control FD
	f.ControlFD.Init(c, node, linux.FileMode(st.Mode), f)
	return f.FD(), st, -1, nil
}

// SupportedMessages implements lisafs.ConnectionImpl: those that only read.
func (*tree) SupportedMessages() []lisafs.MID {
	return []lisafs.MID{
		lisafs.Mount, lisafs.Channel, lisafs.FStat, lisafs.Walk, lisafs.WalkStat, lisafs.OpenAt, lisafs.Close,
		lisafs.PRead, lisafs.FStatFS, lisafs.ReadLinkAt, lisafs.Getdents64, lisafs.FGetXattr, lisafs.FListXattr,
	}
}

// MaxMessageSize implements lisafs.ConnectionImpl.
func (*tree) MaxMessageSize() uint32 { return lisafs.MaxMessageSize() }

// openAt opens what is there without following a link; links by name only.
func openAt(dir int, name string) (int, lisafs.Statx, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		fd, err = unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return -1, lisafs.Statx{}, err
	}
	st, err := stat(fd)
	if err != nil {
		_ = unix.Close(fd)
		return -1, lisafs.Statx{}, err
	}
	return fd, st, nil
}

func stat(fd int) (lisafs.Statx, error) {
	var s unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &s); err != nil {
		return lisafs.Statx{}, err
	}
	if kind := s.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR && kind != unix.S_IFLNK {
		return lisafs.Statx{}, unix.EPERM // nothing else is unpacked
	}
	at := func(t unix.StatxTimestamp) lisafs.StatxTimestamp {
		return lisafs.StatxTimestamp{Sec: t.Sec, Nsec: t.Nsec}
	}
	return lisafs.Statx{
		Mask: s.Mask, Mode: s.Mode, DevMinor: s.Dev_minor, DevMajor: s.Dev_major, Ino: s.Ino, Nlink: s.Nlink,
		UID: s.Uid, GID: s.Gid, RdevMinor: s.Rdev_minor, RdevMajor: s.Rdev_major,
		Size: s.Size, Blksize: s.Blksize, Blocks: s.Blocks,
		Atime: at(s.Atime), Btime: at(s.Btime), Mtime: at(s.Mtime), Ctime: at(s.Ctime),
	}, nil
}

// file is a file, folder or link that the sandbox knows.
type file struct {
	lisafs.ControlFD
	tree *tree
	fd   int
}

// FD implements lisafs.ControlFDImpl.
func (f *file) FD() *lisafs.ControlFD {
	if f == nil {
		return nil
	}
	return &f.ControlFD
}

// Close implements lisafs.ControlFDImpl.
func (f *file) Close() {
	if f.fd >= 0 {
		_ = unix.Close(f.fd)
		f.fd = -1
	}
}

// Stat implements lisafs.ControlFDImpl.
func (f *file) Stat() (lisafs.Statx, error) { return stat(f.fd) }

// Walk implements lisafs.ControlFDImpl.
func (f *file) Walk(name string) (*lisafs.ControlFD, lisafs.Statx, error) {
	fd, st, err := openAt(f.fd, name)
	if err != nil {
		return nil, lisafs.Statx{}, err
	}
	child := &file{tree: f.tree, fd: fd}
	parent := f.Node()
	var node *lisafs.Node
	parent.WithChildrenMu(func() {
		if node = parent.LookupChildLocked(name); node != nil {
			node.IncRef()
			return
		}
		node = &lisafs.Node{}
		node.InitLocked(name, parent)
	})
	child.ControlFD.Init(f.Conn(), node, linux.FileMode(st.Mode), child)
	return child.FD(), st, nil
}

// WalkStat implements lisafs.ControlFDImpl.
func (f *file) WalkStat(path lisafs.StringArray, record func(lisafs.Statx)) error {
	if len(path) > 0 && path[0] == "" {
		st, err := stat(f.fd)
		if err != nil {
			return err
		}
		record(st)
		path = path[1:]
	}
	at := f.fd
	defer func() {
		if at != f.fd {
			_ = unix.Close(at)
		}
	}()
	for _, name := range path {
		next, err := unix.Openat(at, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			return nil // the walk ends here
		}
		if err != nil {
			return err
		}
		if at != f.fd {
			_ = unix.Close(at)
		}
		at = next
		st, err := stat(at)
		if err != nil {
			return err
		}
		record(st)
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return nil
		}
	}
	return nil
}

// Open implements lisafs.ControlFDImpl. A file of the image is handed to the
// sandbox as a descriptor of the whole file, once it is whole; until then this
// waits. The empty file that stands in its place is never handed out.
func (f *file) Open(flags uint32) (*lisafs.OpenFD, int, error) {
	var fd int
	var err error
	switch {
	case f.IsDir():
		fd, err = unix.Openat(f.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	case f.IsRegular():
		fd, err = f.content()
	default:
		return nil, -1, unix.EPERM
	}
	if err != nil {
		return nil, -1, err
	}
	donated := -1
	if f.IsRegular() {
		if donated, err = unix.Dup(fd); err != nil {
			_ = unix.Close(fd)
			return nil, -1, err
		}
	}
	o := &opened{file: f, fd: fd}
	o.OpenFD.Init(f.FD(), flags, o)
	return o.FD(), donated, nil
}

// content is a descriptor to read the file from.
func (f *file) content() (int, error) {
	fd, err := f.tree.source.open(f.Node().FilePath())
	if err != nil {
		return -1, err
	}
	if fd < 0 { // it lies here, whole: a file of the container's own
		return unix.Dup(f.fd)
	}
	var want, have unix.Statx_t
	err = errors.Join(
		unix.Statx(f.fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &want),
		unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &have))
	if err != nil || have.Mode&unix.S_IFMT != unix.S_IFREG || have.Size != want.Size {
		_ = unix.Close(fd)
		return -1, unix.EIO
	}
	return fd, nil
}

// StatFS implements lisafs.ControlFDImpl.
func (f *file) StatFS() (lisafs.StatFS, error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(f.fd, &s); err != nil {
		return lisafs.StatFS{}, err
	}
	return lisafs.StatFS{
		Type: uint64(s.Type), BlockSize: s.Bsize, Blocks: s.Blocks, BlocksFree: s.Bfree, BlocksAvailable: s.Bavail,
		Files: s.Files, FilesFree: s.Ffree, NameLength: uint64(s.Namelen),
	}, nil
}

// Readlink implements lisafs.ControlFDImpl.
func (f *file) Readlink(buffer func(uint32) []byte) (uint16, error) {
	buf := buffer(unix.PathMax)
	n, err := unix.Readlinkat(f.fd, "", buf)
	if err != nil {
		return 0, err
	}
	return uint16(n), nil //nolint:gosec // at most PathMax
}

// GetXattr implements lisafs.ControlFDImpl.
func (f *file) GetXattr(name string, size uint32, buffer func(uint32) []byte) (uint16, error) {
	if f.IsSymlink() {
		return 0, unix.ENODATA // none is unpacked
	}
	if size == 0 || size > linux.XATTR_SIZE_MAX {
		size = linux.XATTR_SIZE_MAX
	}
	n, err := unix.Fgetxattr(f.fd, name, buffer(size))
	if err != nil {
		return 0, err
	}
	return uint16(n), nil //nolint:gosec // at most XATTR_SIZE_MAX
}

// ListXattr implements lisafs.ControlFDImpl.
func (f *file) ListXattr(uint64) (lisafs.StringArray, error) {
	if f.IsSymlink() {
		return nil, nil
	}
	buf := make([]byte, linux.XATTR_LIST_MAX)
	n, err := unix.Flistxattr(f.fd, buf)
	if err != nil {
		return nil, err
	}
	var names lisafs.StringArray
	for name := range bytes.SplitSeq(buf[:n], []byte{0}) {
		if len(name) > 0 {
			names = append(names, string(name))
		}
	}
	return names, nil
}

// Renamed implements lisafs.ControlFDImpl.
func (f *file) Renamed() {}

// opened is a file or folder that is being read.
type opened struct {
	lisafs.OpenFD
	file *file
	fd   int
}

// FD implements lisafs.OpenFDImpl.
func (o *opened) FD() *lisafs.OpenFD {
	if o == nil {
		return nil
	}
	return &o.OpenFD
}

// Close implements lisafs.OpenFDImpl.
func (o *opened) Close() {
	if o.fd >= 0 {
		_ = unix.Close(o.fd)
		o.fd = -1
	}
}

// Stat implements lisafs.OpenFDImpl: one file has one inode number, whichever
// way it is asked for.
func (o *opened) Stat() (lisafs.Statx, error) { return stat(o.file.fd) }

// Read implements lisafs.OpenFDImpl.
func (o *opened) Read(buf []byte, off uint64) (uint64, error) {
	n, err := rwfd.NewReadWriter(o.fd).ReadAt(buf, int64(off)) //nolint:gosec // the sandbox's own bound
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	return uint64(n), nil //nolint:gosec // not negative
}

// Getdent64 implements lisafs.OpenFDImpl.
func (o *opened) Getdent64(count uint32, seek0 bool, record func(lisafs.Dirent64)) error {
	if seek0 {
		if _, err := unix.Seek(o.fd, 0, 0); err != nil {
			return err
		}
	}
	var buf [8192]byte
	for read := 0; read < int(count); {
		n, err := unix.Getdents(o.fd, buf[:min(len(buf), int(count)-read)])
		if errors.Is(err, unix.EINVAL) && read > 0 {
			return nil // no room for one more
		}
		if err != nil || n <= 0 {
			return err
		}
		fsutil.ParseDirents(buf[:n], func(ino uint64, off int64, kind uint8, name string, reclen uint16) {
			st, err := fsutil.StatAt(o.fd, name)
			if err != nil {
				return // gone
			}
			record(lisafs.Dirent64{
				Ino: primitive.Uint64(ino), DevMinor: primitive.Uint32(unix.Minor(st.Dev)), DevMajor: primitive.Uint32(unix.Major(st.Dev)),
				Off: primitive.Uint64(off), Type: primitive.Uint8(kind), Name: lisafs.SizedString(name),
			})
			read += int(reclen)
		})
	}
	return nil
}

// Sync implements lisafs.OpenFDImpl.
func (o *opened) Sync() error { return nil }

// Flush implements lisafs.OpenFDImpl.
func (o *opened) Flush() error { return nil }

// Renamed implements lisafs.OpenFDImpl.
func (o *opened) Renamed() {}
