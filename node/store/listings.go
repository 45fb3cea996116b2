package store

import (
	"context"
	"errors"
	"time"

	"github.com/lumbung-net/lumbung/job"
)

const (
	// maxListings bounds all listings together, in bytes: some 600,000 files.
	maxListings = 64 << 20
	// usedGrain is how exactly a listing's last use is kept.
	usedGrain = 24 * time.Hour
)

// Recall returns what Remember was last given for a folder, nil for nothing.
func (db *DB) Recall(ctx context.Context, folder string) ([]byte, error) {
	var body []byte
	var used int64
	err := db.view(ctx, func(t *txn) error {
		return t.get(`SELECT used, body FROM listings WHERE folder = ?`, []any{folder}, &used, &body)
	})
	if errors.Is(err, job.ErrNotFound) {
		return nil, nil
	}
	if now := db.o.Now(); err == nil && now.Sub(fromNanos(used)) >= usedGrain {
		err = db.update(ctx, func(t *txn) error {
			_, err := t.exec(`UPDATE listings SET used = ? WHERE folder = ?`, nanos(now), folder)
			return err
		})
	}
	return body, wrap(err, "recall the listing of %s", folder)
}

// Remember keeps listings under their folders' names. Those used longest ago go
// where all together are too large.
func (db *DB) Remember(ctx context.Context, listings map[string][]byte) error {
	now := nanos(db.o.Now())
	return db.update(ctx, func(t *txn) error {
		for folder, body := range listings {
			if body == nil {
				body = []byte{}
			}
			_, err := t.exec(`INSERT INTO listings (folder, used, bytes, body) VALUES (?1, ?2, ?3, ?4)
				ON CONFLICT (folder) DO UPDATE SET used = ?2, bytes = ?3, body = ?4`, folder, now, len(body), body)
			if err != nil {
				return wrap(err, "remember the listing of %s", folder)
			}
		}
		_, err := t.exec(`DELETE FROM listings WHERE folder IN (SELECT folder FROM
			(SELECT folder, SUM(bytes) OVER (ORDER BY used DESC, folder) AS total FROM listings) WHERE total > ?)`, maxListings)
		return wrap(err, "forget old listings")
	})
}
