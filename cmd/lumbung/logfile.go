package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// maxLog is the size at which a node's log is put aside; one older is kept.
const maxLog = 16 << 20

// logFile is a log that is rotated by size. What was is copied aside and the
// file emptied, so that a process whose stderr is the same file goes on in it.
type logFile struct {
	mu   sync.Mutex
	f    *os.File
	size int64
	max  int64
}

func openLog(name string) (*logFile, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, fmt.Errorf("folder of the log: %w", err)
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the log: %w", err), f.Close())
	}
	return &logFile{f: f, size: info.Size(), max: maxLog}, nil
}

// Write appends to the log.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(p)) > l.max {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}

func (l *logFile) rotate() error {
	old, err := os.OpenFile(l.f.Name()+".1", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("put the log aside: %w", err)
	}
	_, err = io.Copy(old, io.NewSectionReader(l.f, 0, l.size))
	if err = errors.Join(err, old.Close()); err != nil {
		return fmt.Errorf("put the log aside: %w", err)
	}
	if err := l.f.Truncate(0); err != nil {
		return fmt.Errorf("put the log aside: %w", err)
	}
	l.size = 0
	return nil
}

// Close closes the log.
func (l *logFile) Close() error { return l.f.Close() }
