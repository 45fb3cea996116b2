package content

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// fileSystem is what the store does to files: everything that can fail or be
// lost by a crash goes through it, so that tests can fail and lose it.
type fileSystem interface {
	mkdir(dir string) error
	lock(path string) (io.Closer, error)
	open(path string) (diskFile, error)   // made if there is none
	create(path string) (diskFile, error) // made, or emptied
	rename(from, to string) error
	remove(path string) error
	list(dir string) ([]string, error) // names of regular files
	syncDir(dir string) error          // makes names durable
	free(dir string) (uint64, error)   // bytes that can be written
}

// diskFile is one open file of a fileSystem.
type diskFile interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// writeVec writes bufs one after another at off. It may write a part
	// before an error.
	writeVec(bufs [][]byte, off int64) error
	Truncate(size int64) error
	Sync() error
	size() (int64, error)
	// writeback begins to write a range to the disk and does not wait for it.
	// It makes nothing durable: it leaves a later Sync less to do.
	writeback(off, n int64)
}

// osFS is the system's own file system.
type osFS struct{}

type osFile struct{ *os.File }

func (osFS) mkdir(dir string) error { return os.MkdirAll(dir, 0o700) }

func (osFS) lock(path string) (io.Closer, error) { return lockFile(path) }

func (osFS) open(path string) (diskFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	return osFile{f}, err
}

func (osFS) create(path string) (diskFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	return osFile{f}, err
}

func (osFS) rename(from, to string) error { return os.Rename(from, to) }

func (osFS) remove(path string) error { return os.Remove(path) }

func (osFS) free(dir string) (uint64, error) { return freeSpace(dir) }

func (osFS) list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (osFS) syncDir(dir string) error {
	if runtime.GOOS == "windows" { // folders cannot be synced there
		return nil
	}
	d, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if errors.Is(err, fs.ErrInvalid) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

func (f osFile) size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// writeEach is writeVec where the system has no call for it.
func (f osFile) writeEach(bufs [][]byte, off int64) error {
	for _, b := range bufs {
		if _, err := f.WriteAt(b, off); err != nil {
			return err
		}
		off += int64(len(b))
	}
	return nil
}

// errFull wraps err, which came of writing need bytes, in words that help when
// the disk is full, and leaves others alone.
func (s *Store) errFull(err error, need uint64) error {
	if err == nil || !isDiskFull(err) || errors.Is(err, ErrFull) {
		return err
	}
	room := "an unknown number of"
	if free, ferr := s.fs.free(s.dir); ferr == nil {
		room = fmt.Sprint(free)
	}
	return fmt.Errorf("%w: the disk under %s has no room for %d more bytes, %s are free; give back room with `lumbung gc`, or make room on that disk and try again, nothing that was kept is lost: %w",
		ErrFull, s.dir, need, room, err)
}
