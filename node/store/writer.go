package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lumbung-net/lumbung/job"
)

// Bounds of one commit: what waits longest for it waits no longer than this
// allows.
const (
	maxBatch  = 256
	batchTime = 25 * time.Millisecond
	slowFn    = time.Second
)

var errAborted = errors.New("the update broke off")

// request is one Update on its way: it gets its turn, does its writing on its
// own goroutine, and waits for the commit that it shares with others.
type request struct {
	ctx  context.Context
	turn chan *txn
	ret  chan error // what fn returned
	done chan error // how the commit went
}

// Update runs fn in a transaction: all that it wrote is durable when Update
// returns nil, and nothing of it is there otherwise. Updates that wait for each
// other share one commit. fn must not call Update, and its Tx is good only
// until it returns. An error of fn is returned as it is. When ctx ends before
// fn had its turn, fn is not called.
func (db *DB) Update(ctx context.Context, fn func(job.Tx) error) error {
	return db.update(ctx, func(t *txn) error { return fn(t) })
}

func (db *DB) update(ctx context.Context, fn func(*txn) error) error {
	r := &request{ctx: ctx, turn: make(chan *txn), ret: make(chan error, 1), done: make(chan error, 1)}
	select {
	case <-ctx.Done():
		return fmt.Errorf("write to %s: %w", db.path, ctx.Err())
	case <-db.closing:
		return ErrClosed
	case db.queue <- r:
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("write to %s: %w", db.path, ctx.Err())
	case err := <-r.done:
		return err
	case t := <-r.turn:
		if err := r.call(t, fn); err != nil {
			return err
		}
	}
	return <-r.done
}

// call hands the turn back however fn ends, so that a panic or the end of its
// goroutine harms no other update.
func (r *request) call(t *txn, fn func(*txn) error) (err error) {
	err = errAborted
	defer func() { r.ret <- err }()
	if err = fn(t); err == nil {
		err = t.broken
	}
	return err
}

func (db *DB) writeLoop() {
	defer close(db.done)
	for {
		select {
		case <-db.closing:
			return
		case r := <-db.queue:
			db.commit(r)
		}
	}
}

// commit runs a request and those that wait behind it in one transaction.
func (db *DB) commit(first *request) {
	ctx := context.Background()
	if _, err := db.write.exec(ctx, "BEGIN IMMEDIATE"); err != nil {
		first.done <- fmt.Errorf("begin a write to %s: %w", db.path, err)
		return
	}
	var wrote []*request
	rung := map[string]struct{}{}
	begun := time.Now()
	next, n := first, 0
	var err error
	for ; next != nil && err == nil; n++ {
		t := &txn{db: db, c: db.write, ctx: ctx}
		var kept bool
		if kept, err = db.turn(next, t); kept {
			wrote = append(wrote, next)
			for key := range t.rung {
				rung[key] = struct{}{}
			}
		}
		next = nil
		if err == nil && n+1 < maxBatch && time.Since(begun) < batchTime {
			select {
			case next = <-db.queue:
			default:
			}
		}
	}
	if err == nil {
		_, err = db.write.exec(ctx, "COMMIT")
	}
	if err != nil {
		err = fmt.Errorf("write to %s: %w", db.path, err)
		if _, undo := db.write.exec(ctx, "ROLLBACK"); undo != nil {
			db.o.Log.Debug("rollback after a failed write", "err", undo) // SQLite had done it by itself
		}
	}
	for _, r := range wrote {
		r.done <- err
	}
	if err == nil {
		db.bell.ring(rung)
	}
}

// turn lets one request write, behind a savepoint. kept says that its writes
// are part of the transaction; an error, that the transaction as a whole is
// lost.
func (db *DB) turn(r *request, t *txn) (kept bool, err error) {
	if _, err := db.write.exec(t.ctx, "SAVEPOINT one"); err != nil {
		r.done <- fmt.Errorf("write to %s: %w", db.path, err)
		return false, err
	}
	begun := time.Now()
	select {
	case <-r.ctx.Done(): // it has left; nothing was written
		_, err := db.write.exec(t.ctx, "RELEASE one")
		return false, err
	case r.turn <- t:
	}
	failed := <-r.ret
	if took := time.Since(begun); took > slowFn {
		db.o.Log.Warn("a write held up all others", "took", took)
	}
	if failed == nil {
		if _, err := db.write.exec(t.ctx, "RELEASE one"); err != nil {
			r.done <- fmt.Errorf("write to %s: %w", db.path, err)
			return false, err
		}
		return true, nil
	}
	// A full disk may have made SQLite undo the whole transaction.
	if _, err := db.write.exec(t.ctx, "ROLLBACK TO one"); err != nil {
		return false, errors.Join(failed, err)
	}
	_, err = db.write.exec(t.ctx, "RELEASE one")
	return false, err
}

// View runs fn on one consistent state of the database, which no write waits
// for and which waits for none.
func (db *DB) View(ctx context.Context, fn func(job.Tx) error) error {
	return db.view(ctx, func(t *txn) error { return fn(t) })
}

func (db *DB) view(ctx context.Context, fn func(*txn) error) (err error) {
	if !db.beginView() {
		return ErrClosed
	}
	defer db.views.Done()
	var c *conn
	select {
	case <-ctx.Done():
		return fmt.Errorf("read from %s: %w", db.path, ctx.Err())
	case c = <-db.read:
	}
	defer func() { db.read <- c }()
	// It waits for nothing. Were it interrupted, nobody could tell whether it had
	// begun, and the connection would go back within a transaction.
	if _, err := c.exec(context.WithoutCancel(ctx), "BEGIN DEFERRED"); err != nil {
		return fmt.Errorf("read from %s: %w", db.path, err)
	}
	defer func() {
		if _, undo := c.exec(context.WithoutCancel(ctx), "ROLLBACK"); undo != nil && err == nil {
			err = fmt.Errorf("read from %s: %w", db.path, undo)
		}
	}()
	return fn(&txn{db: db, c: c, ctx: ctx, reads: true})
}

func (db *DB) beginView() bool {
	db.viewMu.Lock()
	defer db.viewMu.Unlock()
	select {
	case <-db.closing:
		return false
	default:
	}
	db.views.Add(1)
	return true
}
