package content

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// setFileTime sets the time of last change of an open file, if one is told.
// The file is named by what is open, in one call; an old kernel that cannot is
// given the name.
func setFileTime(dir *os.Root, name string, f *os.File, t time.Time) error {
	if t.IsZero() {
		return nil
	}
	if ts, err := unix.TimeToTimespec(t); err == nil {
		both := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, ts}
		if unix.UtimesNanoAt(int(f.Fd()), "", both, unix.AT_EMPTY_PATH) == nil {
			return nil
		}
	}
	return setTime(dir, name, t)
}

// create makes a file in the folder, which must not be there. os.Root.OpenFile
// does the same with six more system calls, to try whether the file can be
// waited for. A name is one element of a path, and O_EXCL follows no link, so
// nothing can be made outside the folder that is open.
func (f *treeFolder) create(name string, perm fs.FileMode) (*os.File, error) {
	for {
		const flags = unix.O_CREAT | unix.O_EXCL | unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		fd, err := unix.Openat(int(f.dir.Fd()), name, flags, uint32(perm.Perm()))
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case !errors.Is(err, unix.EINTR):
			return nil, &fs.PathError{Op: "create", Path: name, Err: err}
		}
	}
}
