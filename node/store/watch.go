package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/protocol"
)

// ErrGone says that events were wanted that are no longer kept, or that no
// event has the number yet. Begin again at EventBounds.
var ErrGone = errors.New("those events are not here")

// ErrSlow says that a watcher fell too far behind. It may resume after the last
// event that it was given.
var ErrSlow = errors.New("the watcher is too slow and was cut; resume after the last event it has")

// watchBatch is how many events a watcher reads at a time.
const watchBatch = 256

// EventBounds are the numbers of the oldest and the newest event that are kept;
// newest is oldest-1 when there are none.
func (db *DB) EventBounds(ctx context.Context) (oldest, newest uint64, err error) {
	err = db.view(ctx, func(t *txn) error {
		oldest, newest, err = t.eventBounds()
		return err
	})
	return oldest, newest, err
}

func (t *txn) eventBounds() (oldest, newest uint64, err error) {
	err = t.get(`SELECT coalesce((SELECT min(seq) FROM events), 0), coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0)`, nil, &oldest, &newest)
	if oldest == 0 {
		oldest = newest + 1
	}
	return oldest, newest, err
}

// Watch calls fn with each event whose number is above since, in order, none
// left out and none twice: first those that are there, then each as it is
// committed. It ends with fn's error, with ctx, with ErrClosed, with ErrGone
// when since is out of what is kept, or with ErrSlow when fn cannot keep up.
func (db *DB) Watch(ctx context.Context, since uint64, fn func(job.Event) error) error {
	w := watcher{db: db, at: since, since: since}
	for {
		woken, stop := db.bell.listen(eventsKey)
		batch, err := w.read(ctx)
		if err != nil {
			stop()
			return err
		}
		if len(batch) == 0 {
			select {
			case <-ctx.Done():
				err = fmt.Errorf("watch events after %d: %w", w.at, ctx.Err())
			case <-db.closing:
				err = ErrClosed
			case <-woken:
			}
		}
		stop()
		if err != nil {
			return err
		}
		for _, e := range batch {
			if ctx.Err() != nil {
				return fmt.Errorf("watch events after %d: %w", w.at, ctx.Err())
			}
			if err := fn(e); err != nil {
				return err
			}
			w.at = e.Seq
		}
	}
}

// watcher is where a Watch stands.
type watcher struct {
	db        *DB
	since, at uint64
	begun     bool   // its first number was good
	past      uint64 // the newest event when it began; up to there it replays
}

// read takes the next events, or says why there will be none.
func (w *watcher) read(ctx context.Context) (batch []job.Event, err error) {
	var oldest, newest uint64
	err = w.db.view(ctx, func(t *txn) error {
		if oldest, newest, err = t.eventBounds(); err != nil || w.at+1 < oldest {
			return err
		}
		batch, err = t.events(w.at, watchBatch)
		return err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("watch events after %d: %w", w.at, err)
	case w.begun && (w.at+1 < oldest || w.at >= w.past && newest-w.at > uint64(w.db.o.MaxLag)):
		return nil, fmt.Errorf("event %d of %d: %w", w.at, newest, ErrSlow)
	case w.at+1 < oldest:
		return nil, fmt.Errorf("events after %d: the oldest kept is %d: %w", w.since, oldest, ErrGone)
	case w.at > newest:
		return nil, fmt.Errorf("events after %d: the newest is %d: %w", w.since, newest, ErrGone)
	}
	if !w.begun {
		w.begun, w.past = true, newest
	}
	return batch, nil
}

func (t *txn) events(after uint64, limit int) ([]job.Event, error) {
	var out []job.Event
	err := t.each(`SELECT seq, body FROM events WHERE seq > ? ORDER BY seq LIMIT ?`, []any{int64(min(after, 1<<62)), limit}, func(scan func(...any) error) error {
		var e job.Event
		var seq uint64
		var raw []byte
		if err := scan(&seq, &raw); err != nil {
			return err
		}
		if err := json.Unmarshal(raw, &e); err != nil {
			return fmt.Errorf("event %d: %w", seq, err)
		}
		e.Seq = seq
		out = append(out, e)
		return nil
	})
	return out, err
}

// WaitLog returns records of a lease's output from a number on, up to about
// maxBytes of them, as soon as there are any. complete says that the contract
// is over and that nothing follows those returned.
func (db *DB) WaitLog(ctx context.Context, lease protocol.MsgID, from uint64, maxBytes int) (records []job.LogRecord, complete bool, err error) {
	for {
		woken, stop := db.bell.listen(leaseKey(lease))
		records, complete, err = db.readLog(ctx, lease, from, maxBytes)
		if err != nil || complete || len(records) > 0 {
			stop()
			return records, complete, err
		}
		select {
		case <-ctx.Done():
			err = fmt.Errorf("wait for the output of lease %s: %w", lease.Short(), ctx.Err())
		case <-db.closing:
			err = ErrClosed
		case <-woken:
		}
		stop()
		if err != nil {
			return nil, false, err
		}
	}
}

func (db *DB) readLog(ctx context.Context, lease protocol.MsgID, from uint64, maxBytes int) (records []job.LogRecord, complete bool, err error) {
	err = db.view(ctx, func(t *txn) error {
		c, err := t.Contract(lease)
		if err != nil {
			return err
		}
		if records, err = t.Log(lease, from, maxBytes); err != nil {
			return err
		}
		if !c.State.Terminal() {
			return nil
		}
		// A provider sends all output before its result.
		rest := from
		if n := len(records); n > 0 {
			rest = records[n-1].Seq + 1
		}
		more, err := t.Log(lease, rest, 1)
		complete = len(more) == 0
		return err
	})
	return records, complete, err
}
