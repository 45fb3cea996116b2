package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// LogReader reads the output of one container, while it runs and afterwards,
// until the container is removed. It is for several goroutines. Close it.
type LogReader struct {
	dir  string
	mu   sync.Mutex
	file *os.File // nil until the container has started
	log  *frameReader
}

// Logs opens the output of a container.
func (r *Runtime) Logs(id string) (*LogReader, error) {
	dir, err := r.folder(id)
	if err != nil {
		return nil, err
	}
	return &LogReader{dir: dir}, nil
}

// Close releases the file.
func (l *LogReader) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// ReadFrom gives records from number seq on (0 and 1 are the first), up to
// maxBytes of data, at least one record where there is one; and the number to
// go on with. It does not wait. closed says that nothing will follow.
func (l *LogReader) ReadFrom(ctx context.Context, seq uint64, maxBytes int) (recs []Record, next uint64, closed bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, seq, false, err
	}
	// Before reading: what was written before the exit is then read.
	st, err := readState(l.dir)
	if err != nil {
		return nil, seq, false, fmt.Errorf("reading the log: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if recs, err = l.read(seq, maxBytes); err != nil {
		return nil, seq, false, fmt.Errorf("reading the log: %w", err)
	}
	next = max(seq, 1)
	if n := len(recs); n > 0 {
		return recs, recs[n-1].Seq + 1, false, nil
	}
	return nil, next, st.Phase == phaseExited, nil
}

func (l *LogReader) read(seq uint64, maxBytes int) ([]Record, error) {
	if l.file == nil {
		f, err := os.Open(filepath.Join(l.dir, fileLog))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil // not started
		}
		if err != nil {
			return nil, err
		}
		l.file, l.log = f, newFrameReader(f)
	}
	return l.log.read(seq, maxBytes)
}

// Next is ReadFrom that waits until there is a record or the log is closed.
func (l *LogReader) Next(ctx context.Context, seq uint64, maxBytes int) (recs []Record, next uint64, closed bool, err error) {
	for {
		_, err = watchShim(ctx, l.dir, func() (bool, error) {
			recs, next, closed, err = l.ReadFrom(ctx, seq, maxBytes)
			return len(recs) > 0 || closed, err
		})
		if err != nil || len(recs) > 0 || closed {
			return recs, next, closed, err
		}
		// No shim: not started yet, or killed. Either shows in the state.
		recs, next, closed, err = l.ReadFrom(ctx, seq, maxBytes)
		if err != nil || len(recs) > 0 || closed {
			return recs, next, closed, err
		}
		if err := waitChange(ctx, maxLook/4); err != nil {
			return nil, seq, false, err
		}
	}
}
