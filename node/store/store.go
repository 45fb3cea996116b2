// Package store keeps all that a node must not forget in one SQLite file: jobs,
// contracts and their evidence, logs, the journal, events, images, pins and
// settings. It hides SQL, the file's format and its migrations, how concurrent
// writes share one fsync, and how those who follow events or logs are woken.
//
// One process has the file open at a time. What an Update wrote is on disk when
// it returns (write-ahead log, synchronous=FULL).
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	_ "modernc.org/sqlite" // the driver

	"github.com/lumbung-net/lumbung/job"
)

// ErrClosed says that the database was closed.
var ErrClosed = errors.New("the database is closed")

// Bounds of what is kept.
const (
	// DefaultEvents is how many events are kept.
	DefaultEvents = 100_000
	// MaxLogBytes is how much of one lease's output is kept, counting 64 bytes
	// a record beside its data.
	MaxLogBytes = 64 << 20

	readers = 4
)

// Options are what a database needs besides its file.
type Options struct {
	Log *slog.Logger     // slog.Default when nil
	Now func() time.Time // time.Now when nil
	// Events is how many events are kept; DefaultEvents when 0.
	Events int
	// MaxLag is by how many events a watcher that had caught up may fall
	// behind; half of Events when 0.
	MaxLag int
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Events <= 0 {
		o.Events = DefaultEvents
	}
	if o.MaxLag <= 0 {
		o.MaxLag = max(o.Events/2, 1)
	}
	return o
}

// DB is an open database. Its methods may be called from any goroutine.
type DB struct {
	o       Options
	path    string
	lock    *fileLock
	handle  *sql.DB
	write   *conn
	read    chan *conn // the readers that are free
	bell    bell
	queue   chan *request
	closing chan struct{}
	done    chan struct{} // closed when the writer has ended

	viewMu sync.Mutex // orders the start of a View and Close
	views  sync.WaitGroup

	turnover turnover

	closeOnce sync.Once
	closeErr  error
}

var _ job.Store = (*DB)(nil)

// Open opens the database at path, makes it when it is not there, and brings an
// older format to this build's. The file is for its owner only. ErrInUse when
// another process has it, ErrNewer when a newer lumbung wrote it.
func Open(path string, o Options) (*DB, error) {
	db, err := open(path, o, migrations)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	return db, nil
}

func open(path string, o Options, steps []string) (*DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(abs), 0o700); err != nil {
		return nil, err
	}
	lock, err := lockFile(abs + ".lock")
	if err != nil {
		return nil, err
	}
	db := &DB{
		o: o.withDefaults(), path: abs, lock: lock,
		queue: make(chan *request), closing: make(chan struct{}), done: make(chan struct{}),
	}
	if err := db.connect(steps); err != nil {
		return nil, errors.Join(err, db.release())
	}
	go db.writeLoop()
	return db, nil
}

func (db *DB) connect(steps []string) error {
	// SQLite would make the file readable by all whom the umask lets; its
	// companions take the mode of the file.
	f, err := os.OpenFile(db.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o600), f.Close()); err != nil && runtime.GOOS != "windows" {
		return err
	}
	if db.handle, err = sql.Open("sqlite", dsn(db.path)); err != nil {
		return err
	}
	db.handle.SetMaxOpenConns(1 + readers)
	db.handle.SetMaxIdleConns(1 + readers)
	ctx := context.Background()
	if db.write, err = connect(ctx, db.handle); err != nil {
		return err
	}
	from, err := migrate(ctx, db.write, steps)
	if err != nil {
		return explain(err)
	}
	if from > 0 && from < len(steps) {
		db.o.Log.Info("database brought to a newer format", "path", db.path, "from", from, "to", len(steps))
	}
	db.read = make(chan *conn, readers)
	for range readers {
		c, err := connect(ctx, db.handle, "PRAGMA query_only = 1")
		if err != nil {
			return err
		}
		db.read <- c
	}
	return nil
}

// Path is the file's absolute path.
func (db *DB) Path() string { return db.path }

// Close ends the updates under way, makes waiting ones, watchers and followers
// fail with ErrClosed, and gives the file free.
func (db *DB) Close() error {
	db.closeOnce.Do(func() {
		db.viewMu.Lock()
		close(db.closing)
		db.viewMu.Unlock()
		<-db.done
		db.views.Wait()
		if err := db.release(); err != nil {
			db.closeErr = fmt.Errorf("close database %s: %w", db.path, err)
		}
	})
	return db.closeErr
}

// release closes what is open; the last connection folds the write-ahead log
// into the file.
func (db *DB) release() error {
	var errs []error
	if db.read != nil {
		for range len(db.read) {
			errs = append(errs, (<-db.read).close())
		}
	}
	if db.write != nil {
		errs = append(errs, db.write.close())
	}
	if db.handle != nil {
		errs = append(errs, db.handle.Close())
	}
	return errors.Join(append(errs, db.lock.release())...)
}
