package job

import (
	"context"
	"errors"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// unplaced notes why nothing could be placed, and gives up when the owner asked
// for one provider alone or nobody at all could ever do it.
func (a *activeJob) unplaced(ctx context.Context, auction *Auction) {
	a.mu.Lock()
	defer a.mu.Unlock()
	j := *a.job
	j.Unplaced, j.Heard = auction.Reasons(), auction.Heard()
	j.Cheapest = ledger.Amount{}
	if c := auction.Cheapest(); c > 0 {
		j.Cheapest = ledger.Units(Asset, c)
	}
	a.rounds++
	hopeless := a.hopeless(&j, a.r.Now())
	err := a.r.Store.Update(context.WithoutCancel(ctx), func(tx Tx) error {
		if a.rounds > 1 && sameCounts(j.Unplaced, a.job.Unplaced) && (j.Heard == 0) == (a.job.Heard == 0) {
			return tx.PutJob(&j)
		}
		return errors.Join(tx.PutJob(&j), tx.Emit(jobEvent(&j, a.r.Now())))
	})
	if err != nil {
		a.r.Log.Error("note why nothing was placed", "job", j.ID, "err", err)
		return
	}
	*a.job = j
	if hopeless && len(a.live) == 0 {
		a.endTasks(ctx, Failed, ReasonUnplaced, func(t *TaskRecord) bool { return t.State == TaskQueued })
	}
}

// ReasonUnplaced is the reason of a task that found no provider.
const ReasonUnplaced = "nothing could be placed"

const (
	// hopelessRounds is how often in a row every provider must have said what
	// time will not change before a job is given up.
	hopelessRounds = 3
	// silencePatience is how long nobody may be heard by a job that had been
	// placed, or answered, or taken up again: it is this node's own network that
	// is gone then, or all of it together, and both come back.
	silencePatience = 10 * time.Minute
)

// hopeless reports whether a job that could not be placed is to be given up: all
// that are there have said no for good, or nobody is there. The lock is held.
func (a *activeJob) hopeless(j *Job, now time.Time) bool {
	if j.Heard == 0 && !a.heardAt.IsZero() {
		return now.Sub(a.heardAt) >= silencePatience
	}
	if j.Heard > 0 {
		a.heardAt = now
	}
	a.noes++
	if waitable(j.Unplaced) {
		a.noes = 0
	}
	return a.noes >= hopelessRounds
}

// waitable reports whether some provider may say yes later.
func waitable(reasons map[string]int) bool {
	for _, why := range []protocol.Reason{protocol.Reason_REASON_BUSY, protocol.Reason_REASON_PAUSED, protocol.Reason_REASON_EXPIRED} {
		if reasons[why.String()] > 0 {
			return true
		}
	}
	return false
}

func sameCounts(a, b map[string]int) bool {
	if len(a) != len(b) {
		return false
	}
	for k, n := range a {
		if b[k] != n {
			return false
		}
	}
	return true
}
