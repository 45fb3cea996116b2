package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// unplaced notes why nothing could be placed, and gives up when the owner asked
// for one provider alone or nobody at all could ever do it.
// Tasks that would go on from states that nobody can take begin from older ones
// instead, or anew.
func (a *activeJob) unplaced(ctx context.Context, auction *Auction, needs []Need, goOn *protocol.Portability) {
	a.mu.Lock()
	defer a.mu.Unlock()
	j := *a.job
	j.Unplaced, j.Heard = auction.Reasons(), auction.Heard()
	j.Cheapest = ledger.Amount{}
	if c := auction.Cheapest(); c > 0 {
		j.Cheapest = ledger.Units(Asset, c)
	}
	a.rounds++
	hopeless := a.hopeless(&j, goOn.GetEngine() != "", a.r.Now())
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
	switch {
	case !hopeless || len(a.live) > 0:
	case goOn.GetEngine() != "" && j.Heard > 0:
		a.unplacedOrigins(ctx, needs)
	default:
		a.endTasks(ctx, Failed, ReasonUnplaced, func(t *TaskRecord) bool {
			return t.State == TaskQueued && (t.origin() == nil || j.Heard == 0)
		})
	}
}

// mostPatience bounds how long a task waits for somebody to go on from its
// checkpoint.
const mostPatience = 24 * time.Hour

// unplacedOrigins has tasks whose checkpoints nobody takes try those that they came
// from too, then wait for as long as they have run, in which what they have done
// could not be done again, and give the checkpoints up after that. The lock is held.
func (a *activeJob) unplacedOrigins(ctx context.Context, needs []Need) {
	now := a.r.Now()
	if a.forgive(ctx, needs) {
		return
	}
	needs = slices.DeleteFunc(slices.Clone(needs), func(n Need) bool {
		t := a.tasks[n.Task]
		return now.Before(t.NotUntil.Add(min(time.Duration(t.UsageMs)*time.Millisecond, mostPatience)))
	})
	if len(needs) > 0 {
		a.giveUpOrigins(ctx, needs)
	}
}

// forgive lets tasks go to the providers that they came from too, and says whether
// there were any. The lock is held.
func (a *activeJob) forgive(ctx context.Context, needs []Need) bool {
	var changed []TaskRecord
	for _, n := range needs {
		if t := *a.tasks[n.Task]; len(t.Avoid) > 0 && t.origin() != nil {
			t.Avoid = nil
			changed = append(changed, t)
		}
	}
	if len(changed) == 0 {
		return false
	}
	err := a.r.Store.Update(context.WithoutCancel(ctx), func(tx Tx) error {
		var errs []error
		for i := range changed {
			errs = append(errs, tx.PutTask(&changed[i]))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		a.r.Log.Error("let tasks go back to their providers", "job", a.id, "err", err)
		return false
	}
	for _, t := range changed {
		*a.tasks[t.Index] = t
	}
	a.noes = 0
	a.nudge()
	return true
}

// giveUpOrigins takes the checkpoints that tasks would go on from away. The lock
// is held.
func (a *activeJob) giveUpOrigins(ctx context.Context, needs []Need) {
	var changed []TaskRecord
	err := a.r.Store.Update(context.WithoutCancel(ctx), func(tx Tx) error {
		changed = nil
		var errs []error
		for _, n := range needs {
			t := *a.tasks[n.Task]
			if t.origin() == nil {
				continue
			}
			text := fmt.Sprintf("nobody can go on from task %d's %s: it is given up", t.Index, t.origin())
			t.Checkpoints = slices.Clone(t.Checkpoints[1:])
			changed = append(changed, t)
			errs = append(errs, holdCheckpoints(tx, &t), tx.PutTask(&t),
				tx.Emit(Event{Time: a.r.Now(), Type: EventNotice, Job: a.id, Task: t.Index, Text: text}))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		a.r.Log.Error("give up checkpoints", "job", a.id, "err", err)
		return
	}
	for _, t := range changed {
		*a.tasks[t.Index] = t
	}
	a.noes = 0
	a.nudge()
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
func (a *activeJob) hopeless(j *Job, goesOn bool, now time.Time) bool {
	if j.Heard == 0 && !a.heardAt.IsZero() {
		return now.Sub(a.heardAt) >= silencePatience
	}
	if j.Heard > 0 {
		a.heardAt = now
	}
	a.noes++
	if waitable(j.Unplaced, goesOn) {
		a.noes = 0
	}
	return a.noes >= hopelessRounds
}

// waitable reports whether some provider may say yes later. One that is paused may
// be so for good: a task that goes on does not wait for it beside others, which
// could begin it anew.
func waitable(reasons map[string]int, goesOn bool) bool {
	paused := protocol.Reason_REASON_PAUSED.String()
	for why, n := range reasons {
		switch {
		case n == 0:
		case why == protocol.Reason_REASON_BUSY.String(), why == protocol.Reason_REASON_EXPIRED.String():
			return true
		case why == paused && (!goesOn || len(reasons) == 1):
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

// endTasks ends tasks that have no contract. The lock is held.
func (a *activeJob) endTasks(ctx context.Context, end State, reason string, which func(*TaskRecord) bool) {
	now := a.r.Now()
	j := *a.job
	var ended []TaskRecord
	for _, t := range a.tasks {
		if !which(t) {
			continue
		}
		next := *t
		next.State, next.Ended, next.Reason, next.Checkpoints = string(end), now, reason, nil
		switch {
		case end == Failed && t.ExitCode != 0: // a retry that found no place: what failed says more
			next.Reason = fmt.Sprintf("%s; tried again: %s", t.Reason, reason)
		case end == Failed:
			next.ExitCode, next.Source = 125, "lumbung"
		}
		ended = append(ended, next)
	}
	if len(ended) == 0 {
		return
	}
	before := make([]TaskRecord, 0, len(ended))
	for _, t := range ended {
		before = append(before, *a.tasks[t.Index])
		*a.tasks[t.Index] = t
	}
	j.Counts = a.recount()
	a.judge(&j, a.tasks[ended[0].Index], now)
	err := a.r.Store.Update(context.WithoutCancel(ctx), func(tx Tx) error {
		errs := []error{tx.PutJob(&j)}
		for i := range ended {
			errs = append(errs, tx.PutTask(&ended[i]), tx.Emit(taskEvent(&ended[i], now)))
			if j.Spec.checkpoints() {
				errs = append(errs, holdCheckpoints(tx, &ended[i]))
			}
		}
		if j.State != a.job.State {
			errs = append(errs, tx.Emit(jobEvent(&j, now)))
		}
		if j.Over() {
			errs = append(errs, tx.ReleaseBlocks("job:"+j.ID), forgetSecrets(tx, &j))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		for _, t := range before {
			*a.tasks[t.Index] = t
		}
		a.r.Log.Error("end tasks", "job", j.ID, "err", err)
		return
	}
	*a.job = j
}
