package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/protocol"
)

// eventsKey is rung when there are new events.
const eventsKey = "events"

// leaseKey is rung when a lease's contract or log has changed.
func leaseKey(id protocol.MsgID) string { return string(id[:]) }

// Emit implements job.Tx. Numbers follow each other without a gap; the oldest
// events make room for new ones.
func (t *txn) Emit(e job.Event) error {
	if e.Time.IsZero() {
		e.Time = t.db.o.Now()
	}
	e.Seq = 0 // the row's number counts
	raw, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("event %s: %w", e.Type, err)
	}
	res, err := t.exec(`INSERT INTO events (body) VALUES (?)`, raw)
	if err != nil {
		return fmt.Errorf("event %s: %w", e.Type, err)
	}
	seq, err := res.LastInsertId()
	if err != nil {
		return fmt.Errorf("event %s: %w", e.Type, err)
	}
	t.ring(eventsKey)
	keep := int64(t.db.o.Events)
	if seq%min(max(keep/16, 1), 1024) != 0 || seq <= keep {
		return nil
	}
	_, err = t.exec(`DELETE FROM events WHERE seq <= ?`, seq-keep)
	return wrap(err, "drop old events")
}

// HoldBlocks implements job.Tx. The same owner and root again replaces the
// time.
func (t *txn) HoldBlocks(owner string, root []byte, until time.Time) error {
	if owner == "" {
		return errors.New("hold blocks: nobody is named as the owner")
	}
	if _, err := cid.Cast(root); err != nil {
		return fmt.Errorf("hold blocks for %s: %w", owner, err)
	}
	_, err := t.exec(`INSERT INTO holds (owner, root, until) VALUES (?1, ?2, ?3)
		ON CONFLICT (owner, root) DO UPDATE SET until = ?3`, owner, root, nanos(until))
	return wrap(err, "hold blocks for %s", owner)
}

// ReleaseBlocks implements job.Tx.
func (t *txn) ReleaseBlocks(owner string) error {
	_, err := t.exec(`DELETE FROM holds WHERE owner = ?`, owner)
	return wrap(err, "release the blocks of %s", owner)
}
