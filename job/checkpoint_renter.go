package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

// checkpointFetch brings a lease's checkpoints here, one at a time, the newest
// next. The job's lock guards it.
type checkpointFetch struct {
	next   *protocol.Checkpoint // that waits, nil for none
	cancel context.CancelFunc   // of the fetch under way
	busy   bool
	failed string // what its provider said last of why there is none
	keptAt time.Time
}

// checkpointOwner is in whose name a task's checkpoints are held here.
func checkpointOwner(job string, task int) string { return fmt.Sprintf("checkpoint:%s:%d", job, task) }

// heardCheckpoint takes what a heartbeat tells of checkpoints. The lock is held.
func (a *activeJob) heardCheckpoint(l *liveLease, hb *protocol.Heartbeat) {
	if !a.job.Spec.checkpoints() {
		return
	}
	if why := hb.GetCheckpointFailed(); why != l.checkpoint.failed {
		l.checkpoint.failed = why
		if why != "" {
			a.told(l, fmt.Sprintf("no checkpoint of task %d: %s", l.c.Task, why))
		}
	}
	c, t := hb.GetCheckpoint(), a.tasks[l.c.Task]
	if c == nil || t.Lease != l.c.ID || l.c.State.Terminal() || c.GetBytes() > checkpointRoom(a.job.Spec.Resources(), a.job.Spec.outputLimit()) {
		return
	}
	if have := t.origin(); have.is(c) || have != nil && have.Lease == l.c.ID && c.GetAtMs() < have.At.UnixMilli() {
		return
	}
	// One that makes them faster than it was asked to would fill this disk.
	if at := l.checkpoint.keptAt; !at.IsZero() && !c.GetLast() && a.r.Now().Sub(at) < a.job.Spec.Checkpoint.Every/2 {
		return
	}
	l.checkpoint.next = c
	if l.checkpoint.busy {
		return // whoever fetches looks again
	}
	ctx, cancel := context.WithCancel(a.ctx)
	l.checkpoint.cancel = cancel
	l.checkpoint.busy = a.begin(func() {
		defer cancel()
		a.followCheckpoints(ctx, l)
	})
	if !l.checkpoint.busy { // the job is over
		cancel()
	}
}

// is says whether a provider tells of the very checkpoint that is here.
func (c *CheckpointRecord) is(told *protocol.Checkpoint) bool {
	return c != nil && told != nil && bytes.Equal(c.Root, told.GetRoot())
}

// followCheckpoints fetches checkpoints until none waits.
func (a *activeJob) followCheckpoints(ctx context.Context, l *liveLease) {
	for {
		a.mu.Lock()
		c := l.checkpoint.next
		l.checkpoint.next = nil
		if a.tasks[l.c.Task].origin().is(c) { // told again while it was fetched
			a.mu.Unlock()
			continue
		}
		if c == nil || ctx.Err() != nil {
			l.checkpoint.busy = false
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		if err := a.bringCheckpoint(ctx, l, c); err != nil && ctx.Err() == nil {
			a.r.Log.Info("checkpoint not here yet", "job", a.id, "lease", l.lease.ID().Short(), "err", err)
		}
	}
}

// bringCheckpoint fetches one checkpoint and keeps it, with the one before.
func (a *activeJob) bringCheckpoint(ctx context.Context, l *liveLease, c *protocol.Checkpoint) error {
	from, err := peerOf(l.lease.Msg.GetProvider())
	if err != nil {
		return err
	}
	owner := checkpointOwner(a.id, int(l.lease.Msg.GetTask()))
	// Held from before the first block arrives.
	if err := a.r.Store.Update(ctx, func(tx Tx) error { return tx.HoldBlocks(owner, c.GetRoot(), time.Time{}) }); err != nil {
		return err
	}
	if err := a.r.Content.FetchDAG(ctx, c.GetRoot(), []protocol.PeerID{from}, c.GetBytes(), func(Progress) {}); err != nil {
		return fmt.Errorf("fetch a checkpoint: %w", errors.Join(err, a.holdCheckpoints(int(l.lease.Msg.GetTask()))))
	}
	return a.keepCheckpoint(l, c)
}

// holdCheckpoints makes what a task has all that is held for it.
func (a *activeJob) holdCheckpoints(task int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.tasks[task]
	return a.r.Store.Update(context.WithoutCancel(a.ctx), func(tx Tx) error { return holdCheckpoints(tx, t) })
}

func holdCheckpoints(tx Tx, t *TaskRecord) error {
	owner := checkpointOwner(t.Job, t.Index)
	errs := []error{tx.ReleaseBlocks(owner)}
	for _, c := range t.Checkpoints {
		errs = append(errs, tx.HoldBlocks(owner, c.Root, time.Time{}))
	}
	return errors.Join(errs...)
}

// keepCheckpoint notes a checkpoint that is here, with an event that says so.
func (a *activeJob) keepCheckpoint(l *liveLease, c *protocol.Checkpoint) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := *a.tasks[l.c.Task]
	if t.Lease != l.c.ID || l.c.State.Terminal() {
		return errors.Join(context.Canceled, a.r.Store.Update(context.WithoutCancel(a.ctx), func(tx Tx) error { return holdCheckpoints(tx, &t) }))
	}
	record := CheckpointRecord{
		Root: bytes.Clone(c.GetRoot()), Bytes: c.GetBytes(), At: time.UnixMilli(c.GetAtMs()), Lease: l.c.ID, Attempt: l.c.Attempt,
		Engine: c.GetPortability().GetEngine(), CPU: bytes.Clone(c.GetPortability().GetCpu()),
	}
	t.Checkpoints = keepWith(record, t.Checkpoints)
	now := a.r.Now()
	err := a.r.Store.Update(context.WithoutCancel(a.ctx), func(tx Tx) error {
		e := taskEvent(&t, now)
		e.Type, e.Text = EventCheckpoint, record.String()+" is here"
		return errors.Join(holdCheckpoints(tx, &t), tx.PutTask(&t), tx.Emit(e))
	})
	if err == nil {
		*a.tasks[t.Index], l.checkpoint.keptAt = t, now
	}
	return err
}

// keepWith puts the newest checkpoint to those of before and leaves out what is
// too old: two stay, and the newest of another lease, since those of one provider
// may be bad together.
func keepWith(newest CheckpointRecord, before []CheckpointRecord) []CheckpointRecord {
	out, other := []CheckpointRecord{newest}, false
	for _, c := range before {
		if len(out) < keepCheckpoints || !other && c.Lease != newest.Lease {
			out = append(out, c)
			other = other || c.Lease != newest.Lease
		}
	}
	return out
}

// keptCheckpoint is what a lease's provider is told of: its own newest checkpoint
// that is here. The lock is held.
func (a *activeJob) keptCheckpoint(l *liveLease) []byte {
	if have := a.tasks[l.c.Task].origin(); have != nil && have.Lease == l.c.ID {
		return have.Root
	}
	return nil
}

// moves reports whether a task whose provider is gone, or at fault, goes on from
// a checkpoint that it made. Each such lease brought the task further, so none
// counts as a retry.
func (a *activeJob) moves(t *TaskRecord, c *Contract) bool {
	have := t.origin()
	return have != nil && have.Lease == c.ID && a.job.StopAsked.IsZero() && (c.State == Lost || c.State == Failed && c.ProviderFault)
}

// avoid keeps a task from the provider that it came to grief on.
func (a *activeJob) avoid(t *TaskRecord, c *Contract) {
	t.Avoid = append(slices.DeleteFunc(slices.Clone(t.Avoid), func(p string) bool { return p == c.Provider }), c.Provider)
}

// judgeOrigin notes that a lease came to grief at once where it went on from a
// checkpoint, and gives that up when it is not the first.
//
// It says whether it did: the task is then offered again, and none of its retries
// is used up.
func (a *activeJob) judgeOrigin(t *TaskRecord, c *Contract) bool {
	have := t.origin()
	if have == nil || have.Lease == c.ID || c.State != Failed || !c.ProviderFault || c.UsageMs >= a.job.Spec.Checkpoint.Every.Milliseconds() {
		return false
	}
	t.Checkpoints = slices.Clone(t.Checkpoints)
	if t.Checkpoints[0].Failed++; t.Checkpoints[0].Failed >= checkpointTries {
		t.Checkpoints = t.Checkpoints[1:]
	}
	return true
}

// sameOrigin are those of the tasks that can be offered together: whose states
// were written by the same engine on the same kind of processor, with what that
// is. Each round that places nothing takes the next kind, so that one that nobody
// can take holds nothing up. The lock is held.
func (a *activeJob) sameOrigin(needs []Need) ([]Need, *protocol.Portability) {
	if !a.job.Spec.checkpoints() || len(needs) == 0 {
		return needs, nil
	}
	var kinds []*protocol.Portability
	of := make(map[*protocol.Portability][]Need)
	for _, n := range needs {
		p := &protocol.Portability{}
		if c := a.tasks[n.Task].origin(); c != nil {
			p = c.portability()
		}
		i := slices.IndexFunc(kinds, func(k *protocol.Portability) bool {
			return k.GetEngine() == p.GetEngine() && bytes.Equal(k.GetCpu(), p.GetCpu())
		})
		if i < 0 {
			i, kinds = len(kinds), append(kinds, p)
		}
		of[kinds[i]] = append(of[kinds[i]], n)
	}
	kind := kinds[a.rounds%len(kinds)]
	return of[kind], kind
}

// checkpointTask puts what a job wants of checkpoints into a task that goes to a
// provider; size is of the one to go on from.
func (r *Renter) checkpointTask(j *Job, t *TaskRecord, task *protocol.Task, to protocol.PeerID) (size uint64, err error) {
	if !j.Spec.checkpoints() {
		return 0, nil
	}
	task.CheckpointEveryMs = j.Spec.Checkpoint.Every.Milliseconds()
	if task.CheckpointKey, err = r.Keys.sealCheckpoints(r.Signer.Network(), j, t, to); err != nil {
		return 0, err
	}
	if from := t.origin(); from != nil {
		task.Restore, size = from.Root, from.Bytes
	}
	return size, nil
}

// offeredPortability is what an offer of a job says of checkpoints.
func (j *Job) offeredPortability(goOn *protocol.Portability) *protocol.Portability {
	switch {
	case !j.Spec.checkpoints():
		return nil
	case goOn != nil:
		return goOn
	}
	return &protocol.Portability{}
}

// tellOrigin says in the events that a task goes on, and from when.
func (a *activeJob) tellOrigin(tx Tx, t *TaskRecord, now time.Time) error {
	from := t.origin()
	if from == nil {
		return nil
	}
	text := fmt.Sprintf("task %d goes on from its %s", t.Index, from)
	return tx.Emit(Event{Time: now, Type: EventNotice, Job: a.id, Task: t.Index, Peer: t.Provider, Text: text})
}
