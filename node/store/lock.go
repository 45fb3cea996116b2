package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// ErrInUse says that another process has the database open.
var ErrInUse = errors.New("the database is in use")

// fileLock keeps other processes out of a database, for as long as its file is
// open; the system ends it with the process.
type fileLock struct{ f *os.File }

// lockFile takes the lock and writes down who holds it.
func lockFile(path string) (*fileLock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := tryLock(f); err != nil {
		defer func() { _ = f.Close() }()
		if !errors.Is(err, errLocked) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return nil, fmt.Errorf("held by %s; stop it with `lumbung down`, or use another --home: %w", holder(f), ErrInUse)
	}
	note := fmt.Sprintf("process %d (%s)\n", os.Getpid(), program())
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(note), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", path, err), f.Close())
	}
	return &fileLock{f: f}, nil
}

func (l *fileLock) release() error { return l.f.Close() }

var errLocked = errors.New("locked")

// holder is what the process that has the lock wrote of itself.
func holder(f *os.File) string {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 256))
	if text := strings.TrimSpace(string(b)); err == nil && text != "" {
		return text
	}
	return "another process"
}

func program() string {
	if exe, err := os.Executable(); err == nil {
		return exe
	}
	return os.Args[0]
}
