package store

import (
	"context"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
)

// A reader that leaves at any moment, also while its transaction begins, leaves
// its connection fit for the next one.
func TestViewLeftAtAnyMoment(t *testing.T) {
	db := openTest(t, quiet())
	for i := range 20_000 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%100)*time.Microsecond)
		_ = db.View(ctx, func(job.Tx) error { return nil })
		cancel()
	}
	// More readers in turn than there are connections.
	for range 64 {
		view(t, db, func(job.Tx) error { return nil })
	}
}
