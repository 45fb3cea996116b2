package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// dsn names the file and what holds for each connection to it.
func dsn(path string) string {
	q := url.Values{"_txlock": {"immediate"}, "_pragma": {
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "fullfsync(1)", "foreign_keys(1)",
		"cache_size(-4000)", "wal_autocheckpoint(2000)", "journal_size_limit(67108864)", "temp_store(MEMORY)",
	}}
	p := filepath.ToSlash(path)
	if !strings.HasPrefix(p, "/") {
		p = "/" + p // C:/… of Windows
	}
	return "file://" + (&url.URL{Path: p}).EscapedPath() + "?" + q.Encode()
}

// conn is one connection with the statements prepared on it. One goroutine uses
// it at a time.
type conn struct {
	c     *sql.Conn
	stmts map[string]*sql.Stmt
}

func connect(ctx context.Context, handle *sql.DB, setup ...string) (*conn, error) {
	c, err := handle.Conn(ctx)
	if err != nil {
		return nil, explain(err)
	}
	for _, s := range setup {
		if _, err := c.ExecContext(ctx, s); err != nil {
			return nil, errors.Join(explain(err), c.Close())
		}
	}
	return &conn{c: c, stmts: map[string]*sql.Stmt{}}, nil
}

// stmt prepares a statement once; the queries of this package are a fixed set.
func (c *conn) stmt(ctx context.Context, query string) (*sql.Stmt, error) {
	if s, ok := c.stmts[query]; ok {
		return s, nil
	}
	s, err := c.c.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	c.stmts[query] = s
	return s, nil
}

func (c *conn) exec(ctx context.Context, query string, args ...any) (sql.Result, error) {
	s, err := c.stmt(ctx, query)
	if err != nil {
		return nil, explain(err)
	}
	res, err := s.ExecContext(ctx, args...)
	return res, explain(err)
}

func (c *conn) close() error {
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, c.c.Close())...)
}

// What the disk or the file does not allow.
var (
	// ErrFull says that nothing can be written for want of room.
	ErrFull = errors.New("no room to write the database; free space on its disk and start again")
	// ErrReadOnly says that the file or its folder cannot be written.
	ErrReadOnly = errors.New("the database cannot be written; give the user that runs lumbung the right to write its folder")
	// ErrCorrupt says that the file is damaged or no database of ours.
	ErrCorrupt = errors.New("the file is damaged or no database of lumbung; put it aside, or restore it from a backup")
)

// explain adds a remedy to the errors of SQLite that have one.
func explain(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		return fmt.Errorf("%w (%w)", ErrFull, err)
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return fmt.Errorf("%w (%w)", ErrReadOnly, err)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("%w (%w)", ErrCorrupt, err)
	}
	return err
}
