package job

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// liveLease is a contract under way, with what the runner must remember of it.
type liveLease struct {
	c          Contract
	lease      protocol.Signed[*protocol.Lease]
	stream     streamFetch // of outputs while it runs
	checkpoint checkpointFetch
	outputs    *outputFetch // once a result with outputs is here
	exported   bool         // they are where the job wants them
	logNext    uint64       // number of the log record that is wanted next
	logBytes   uint64       // of output stored since this node started
	cancelling bool
	trouble    string // what its provider said last
	notices    int    // of what its provider said
}

// mostNotices bounds the events that one lease's provider makes by what it says.
const mostNotices = 100

// told notes what a provider says of a lease, unless it says too much. The lock is
// held.
func (a *activeJob) told(l *liveLease, text string) {
	if l.notices++; l.notices <= mostNotices {
		task := l.c.Task
		a.begin(func() { a.notice(a.ctx, task, text) })
	}
}

// activeJob is one job under way. Its lock guards the job, its tasks and its
// contracts, and is held while a transition is committed, so that what is in
// memory is what is on disk.
type activeJob struct {
	r    *Renter
	id   string
	wake chan struct{}
	// secrets are the job's, sealed as they are stored.
	secrets []byte
	ctx     context.Context // of the renter's Run, for what outlives a request

	mu         sync.Mutex
	job        *Job
	tasks      []*TaskRecord
	live       map[protocol.MsgID]*liveLease
	rounds     int       // rounds in a row that placed nothing
	noes       int       // of them, those in a row after which nobody may say yes later
	heardAt    time.Time // when a provider was last heard, or the job taken up again
	refusals   map[protocol.PeerID]refusal
	lastSearch time.Time // when providers were last looked for widely
	busy       int       // cancels, fetches and exports under way
	rest       sync.Cond // on mu: busy has become less
	ended      bool      // nothing more begins
}

func newActiveJob(r *Renter, j *Job, tasks []*TaskRecord, secrets []byte) *activeJob {
	a := &activeJob{
		r: r, id: j.ID, wake: make(chan struct{}, 1), secrets: secrets, job: j, tasks: tasks, live: map[protocol.MsgID]*liveLease{},
		refusals: map[protocol.PeerID]refusal{},
	}
	a.rest.L = &a.mu
	return a
}

// begin runs f beside the job's loop, which waits for it in the end; it reports
// false when that has come. A peer's message may arrive at any moment, so
// nothing less than the lock tells the one from the other. The lock is held.
func (a *activeJob) begin(f func()) bool {
	if a.ended {
		return false
	}
	a.busy++
	go func() {
		defer func() {
			a.mu.Lock()
			a.busy--
			a.rest.Broadcast()
			a.mu.Unlock()
		}()
		f()
	}()
	return true
}

// finish waits for all that has begun, and lets nothing begin after.
func (a *activeJob) finish() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.busy > 0 {
		a.rest.Wait()
	}
	a.ended = true
}

// nudge makes the loop look again.
func (a *activeJob) nudge() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// run is the way of one job: place what waits, watch what runs, until all is
// over.
func (a *activeJob) run(again bool) {
	ctx := a.ctx
	defer a.finish()
	if again {
		a.resume(ctx)
	}
	// A round of placing waits for others; the watch and a stop do not wait for it.
	placing, stopPlacing := context.WithCancel(ctx)
	defer stopPlacing()
	var placed chan int // of the round under way
	var next time.Time  // no round before then
	for ctx.Err() == nil && !a.over(ctx) {
		a.tick(ctx)
		if needs := a.needs(); placed == nil && len(needs) > 0 && !a.r.Now().Before(next) {
			round := make(chan int, 1)
			a.mu.Lock()
			a.begin(func() { round <- a.place(placing, needs) })
			a.mu.Unlock()
			placed = round
		}
		t := time.NewTimer(a.r.Heartbeat / 4)
		select {
		case <-ctx.Done():
		case <-a.wake:
			next = time.Time{}
		case n := <-placed:
			placed, next = nil, a.r.Now().Add(a.restAfter(n))
		case <-t.C:
		}
		t.Stop()
	}
}

// resume takes up contracts that an earlier life left open: it asks where each
// stands, so that nothing runs twice and nothing said meanwhile is lost.
func (a *activeJob) resume(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.heardAt = a.r.Now()
	for _, l := range a.live {
		if err := a.advance(ctx, l, Resumed{}); err != nil {
			a.r.Log.Error("resume", "lease", l.c.ID.Short(), "err", err)
		}
		a.begin(func() { a.reattach(ctx, l) })
	}
}

// restAfter is how long the next round waits, unless something happens: longer
// when nothing could be placed and nothing runs.
func (a *activeJob) restAfter(placed int) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if placed > 0 || len(a.live) > 0 {
		return a.r.Heartbeat / 4
	}
	return a.r.Window / 2
}

// needs are the tasks that want a place now, no more than may run at once.
func (a *activeJob) needs() []Need {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.job.StopAsked.IsZero() {
		return nil
	}
	room := a.job.Spec.Parallel() - len(a.live)
	now := a.r.Now()
	var out []Need
	for _, t := range a.tasks {
		if len(out) >= room {
			break
		}
		if t.State != TaskQueued || now.Before(t.NotUntil) {
			continue
		}
		need := Need{Task: t.Index}
		if a.job.Spec.Retry.AvoidFailed && a.job.Spec.On == "" {
			need.Avoid = t.Avoid
		}
		out = append(out, need)
	}
	return out
}

// tick passes time over every contract.
func (a *activeJob) tick(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.live {
		if l.outputs != nil {
			// The transfer is a sign of life as long as something comes; one that
			// stands still with its provider ends, and the next tick sees the loss.
			if now := a.r.Now(); l.c.Silent(now) && l.outputs.stuck(l.c.Heartbeat, now) {
				l.outputs.cancel()
			}
			continue
		}
		if err := a.advance(ctx, l, Tick{}); err != nil {
			a.r.Log.Error("watch", "job", a.id, "lease", l.c.ID.Short(), "err", err)
		}
	}
}

// advance applies an input to a contract and commits the transition with its
// evidence, its money, its task, its job and its events. A receipt that the
// transition asks for is signed and applied within the same commit. The lock is
// held.
func (a *activeJob) advance(ctx context.Context, l *liveLease, in Input, evidence ...Message) error {
	now := a.r.Now()
	next, effects, err := Apply(l.c, in, now)
	if err != nil {
		return err
	}
	var done []Effect
	for slices.Contains(effects, EffectSettle) {
		receipt, m, err := a.receipt(&next, evidence, now)
		if err != nil {
			return err
		}
		done = append(done, effects...)
		evidence = append(evidence, m)
		if next, effects, err = Apply(next, receipt, now); err != nil {
			return err
		}
	}
	done = append(done, effects...)
	if len(done) == 0 && len(evidence) == 0 && next.State == l.c.State {
		l.c = next
		return nil
	}
	if err := a.commit(ctx, l, next, done, evidence, now); err != nil {
		return err
	}
	a.perform(l, done)
	return nil
}

// receipt signs what is booked: the contract's own end, with the result that it is
// of, or that its provider is lost.
func (a *activeJob) receipt(c *Contract, evidence []Message, now time.Time) (Input, Message, error) {
	end, charge := c.State, c.Charge
	if !c.State.Terminal() {
		end, charge = Lost, c.due(c.UsageMs)
	}
	msg := &protocol.Receipt{
		LeaseId: idBytes(c.ID), AtMs: now.UnixMilli(), UsageMs: c.UsageMs, Charge: charge.Wire(), End: string(end),
	}
	for _, m := range evidence {
		if m.Kind == protocol.KindResult {
			msg.ResultId = idBytes(protocol.IDOf(m.Raw))
		}
	}
	s, err := protocol.Sign(a.r.Signer, msg)
	if err != nil {
		return nil, Message{}, err
	}
	in, err := InputOf(msg)
	return in, Message{Kind: protocol.KindReceipt, Raw: s.Raw, At: now}, err
}

// commit writes a transition. What is in memory changes only when it is on
// disk.
func (a *activeJob) commit(ctx context.Context, l *liveLease, next Contract, effects []Effect, evidence []Message, now time.Time) error {
	j, t := *a.job, *a.tasks[next.Task]
	a.follow(&t, &next, effects, now)
	t.Exported = l.exported && t.Over()
	spent, err := j.Spent.Add(delta(l.c.Charge, next.Charge))
	if err != nil {
		return err
	}
	j.Spent = spent
	a.judge(&j, &t, now)
	ctx = context.WithoutCancel(ctx)
	err = a.r.Store.Update(ctx, func(tx Tx) error {
		errs := []error{tx.PutContract(&next), tx.PutTask(&t), tx.PutJob(&j)}
		for _, m := range evidence {
			errs = append(errs, tx.AppendMessage(next.ID, m))
		}
		errs = append(errs, bookCharge(tx, &l.c, &next, now))
		if t.State != a.tasks[t.Index].State || t.Fetched != a.tasks[t.Index].Fetched {
			errs = append(errs, tx.Emit(taskEvent(&t, now)))
		}
		if j.State != a.job.State {
			errs = append(errs, tx.Emit(jobEvent(&j, now)))
		}
		if j.Over() {
			errs = append(errs, tx.ReleaseBlocks("job:"+j.ID), forgetSecrets(tx, &j))
		}
		if j.Spec.checkpoints() && t.Over() {
			errs = append(errs, holdCheckpoints(tx, &t))
		}
		if j.Spec.streams() && t.Over() && len(t.Outputs) > 0 {
			errs = append(errs, tx.ReleaseBlocks(streamOwner(j.ID, t.Index)))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return fmt.Errorf("job %s, lease %s: %w", j.ID, next.ID.Short(), err)
	}
	l.c, *a.job, *a.tasks[t.Index] = next, j, t
	if next.State.Terminal() && next.Booked {
		delete(a.live, next.ID)
	}
	if next.State.Terminal() && l.checkpoint.cancel != nil {
		l.checkpoint.cancel()
	}
	return nil
}

// delta is what a charge grew by; a renter's charge never shrinks.
func delta(before, after ledger.Amount) ledger.Amount {
	d, err := after.Sub(before)
	if err != nil {
		return ledger.Units(after.Asset, 0)
	}
	return d
}

// perform does what a committed transition asks for. The lock is held.
func (a *activeJob) perform(l *liveLease, effects []Effect) {
	for _, eff := range effects {
		switch eff {
		case EffectSendCancel:
			a.sendCancel(l)
		case EffectDecide:
			a.nudge()
		}
	}
}

// export writes a lease's outputs to where the job wants them. A place that
// cannot be written is told of and costs nothing: the outputs are here.
func (a *activeJob) export(l *liveLease, outputs []byte) {
	if a.r.Export == nil {
		return
	}
	a.mu.Lock()
	j, t := *a.job, *a.tasks[l.c.Task]
	a.mu.Unlock()
	t.Outputs = outputs
	err := a.r.Export(a.ctx, &j, &t)
	if err != nil {
		a.notice(a.ctx, t.Index, fmt.Sprintf("outputs of task %d not written: %v; `lumbung get %s DIR` writes them elsewhere", t.Index, err, j.ID))
		return
	}
	a.mu.Lock()
	l.exported = true
	a.mu.Unlock()
}

// notice leaves a line in the events that a person may want to read.
func (a *activeJob) notice(ctx context.Context, task int, text string) {
	a.r.Log.Warn(text, "job", a.id, "task", task)
	err := a.r.Store.Update(context.WithoutCancel(ctx), func(tx Tx) error {
		return tx.Emit(Event{Time: a.r.Now(), Type: EventNotice, Job: a.id, Task: task, Text: text})
	})
	if err != nil {
		a.r.Log.Error("store a notice", "job", a.id, "err", err)
	}
}

// follow brings a task to where its contract stands, and decides what becomes
// of it when that is over.
func (a *activeJob) follow(t *TaskRecord, c *Contract, effects []Effect, now time.Time) {
	if t.Lease != c.ID {
		return
	}
	t.Fetched, t.ToFetch = c.Fetched, c.ToFetch
	if t.Started.IsZero() {
		t.Started = c.RunningAt
	}
	if !slices.Contains(effects, EffectDecide) {
		// The task is over for its owner only when it is booked.
		if !c.State.Terminal() {
			t.State = string(c.State)
		}
		return
	}
	if sum, err := t.Charge.Add(c.Charge); err == nil {
		t.Charge = sum
	}
	t.UsageMs += c.UsageMs
	t.NetUp, t.NetDown = t.NetUp+c.NetUp, t.NetDown+c.NetDown
	t.ExitCode, t.Source, t.Reason, t.Exceeded = c.ExitCode, c.ExitSource, c.Reason, c.Exceeded
	if len(c.Outputs) > 0 {
		t.Outputs, t.Streamed = c.Outputs, nil
	}
	t.State, t.Ended = string(c.State), now
	badOrigin := a.judgeOrigin(t, c)
	switch {
	case a.moves(t, c):
		t.Moves++
		if c.Reason != movedReason { // one that is drained says no by itself, until it is open again
			a.avoid(t, c)
		}
		a.requeue(t, now, 0)
	case badOrigin && a.job.StopAsked.IsZero():
		a.avoid(t, c)
		a.requeue(t, now, 0)
	case c.State == Refused:
		a.requeue(t, now, refusedWait)
	case a.retries(t, c):
		t.Retries++
		a.avoid(t, c)
		a.requeue(t, now, 0)
	case c.State != Lost && c.State != Cancelled:
	case a.job.StopAsked.IsZero():
		t.State, t.ExitCode, t.Source = string(Failed), 125, "sandbox"
	default:
		t.State = string(Cancelled) // its owner wanted no more of it
	}
	if t.Over() {
		t.Checkpoints = nil
	}
}

// refusedWait keeps a refused award from being repeated in a tight loop.
const refusedWait = 100 * time.Millisecond

func (a *activeJob) requeue(t *TaskRecord, now time.Time, wait time.Duration) {
	t.State, t.Lease, t.Ended, t.Started, t.Provider = TaskQueued, protocol.MsgID{}, time.Time{}, time.Time{}, ""
	t.NotUntil = now.Add(wait)
}

// retries reports whether a task that came to grief gets another provider.
func (a *activeJob) retries(t *TaskRecord, c *Contract) bool {
	retry := a.job.Spec.Retry
	switch {
	case !a.job.StopAsked.IsZero() || t.Retries >= retry.Max:
		return false
	case c.State == Lost, c.State == Failed && c.ProviderFault:
		return true
	case c.State == Cancelled: // by this node's watch, for a limit that its provider did not keep
		return true
	case c.State != Failed || !retry.Given:
		return false
	}
	// The same program would meet the same limit, or not be found, elsewhere. Its
	// log being cut is no reason to fail.
	return (c.Exceeded == nil || c.Exceeded.Limit == sandbox.LimitLog) && c.ExitCode != 126 && c.ExitCode != 127
}

// judge brings the job to where its tasks stand; t is the one that is about to
// change.
func (a *activeJob) judge(j *Job, t *TaskRecord, now time.Time) {
	counts := maps.Clone(j.Counts)
	if before := a.tasks[t.Index].State; before != t.State {
		if counts[before]--; counts[before] == 0 {
			delete(counts, before)
		}
		counts[t.State]++
	}
	j.Counts = counts
	failed, cancelled := counts[string(Failed)], counts[string(Cancelled)]
	over := counts[string(Done)] + failed + cancelled
	var worst *TaskRecord
	if failed > j.Spec.MaxFailed() {
		worst = a.firstFailed(t)
	}
	if j.StopAsked.IsZero() && failed > j.Spec.MaxFailed() && over < len(a.tasks) {
		j.StopAsked, j.Reason = now, fmt.Sprintf("%d tasks failed where %d may: %s", failed, j.Spec.MaxFailed(), worst.Reason)
	}
	switch {
	case over < len(a.tasks):
		if counts[TaskQueued] < len(a.tasks) && j.State == JobQueued {
			j.State = JobRunning
		}
		return
	case failed > j.Spec.MaxFailed():
		j.State, j.ExitCode = JobFailed, worst.ExitCode
		if j.Reason == "" {
			j.Reason = worst.Reason
		}
	case cancelled > 0:
		j.State, j.ExitCode = JobCancelled, 130
	default:
		j.State = JobDone
		if len(a.tasks) == 1 && j.Reason == "" {
			j.Reason = t.Reason
		}
	}
	if j.State == JobFailed && j.ExitCode == 0 {
		j.ExitCode = 125
	}
	j.Ended = now
}

// firstFailed is the failed task that a job's end is told by; t is the one that
// is about to change.
func (a *activeJob) firstFailed(t *TaskRecord) *TaskRecord {
	for _, other := range a.tasks {
		if other.Index == t.Index {
			other = t
		}
		if State(other.State) == Failed {
			return other
		}
	}
	return t
}

// recount counts all tasks by state.
func (a *activeJob) recount() map[string]int {
	counts := map[string]int{}
	for _, t := range a.tasks {
		counts[t.State]++
	}
	return counts
}

// over reports whether the job is; a stop that was asked for is carried out
// first.
func (a *activeJob) over(ctx context.Context) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.job.Over() {
		return true
	}
	if a.job.StopAsked.IsZero() {
		return false
	}
	a.carryOutStop(ctx)
	return a.job.Over()
}

// stop notes the owner's wish to end the job.
func (a *activeJob) stop(ctx context.Context, reason string, grace time.Duration) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.job.Over() || !a.job.StopAsked.IsZero() {
		return nil
	}
	j := *a.job
	j.StopAsked, j.Reason, j.Grace = a.r.Now(), reason, grace
	err := a.r.Store.Update(ctx, func(tx Tx) error { return errors.Join(tx.PutJob(&j), tx.Emit(jobEvent(&j, a.r.Now()))) })
	if err != nil {
		return fmt.Errorf("stop job %s: %w", j.ID, err)
	}
	*a.job = j
	a.nudge()
	return nil
}

// carryOutStop cancels what runs and what waits. The lock is held.
func (a *activeJob) carryOutStop(ctx context.Context) {
	for _, l := range a.live {
		if !l.c.CancelAt.IsZero() || l.c.State.Terminal() {
			continue
		}
		in := CancelAsked{Reason: a.job.Reason, Grace: a.job.Grace}
		if err := a.advance(ctx, l, in); err != nil {
			a.r.Log.Error("cancel", "job", a.id, "lease", l.c.ID.Short(), "err", err)
		}
	}
	a.endTasks(ctx, Cancelled, "", func(t *TaskRecord) bool { return t.State == TaskQueued })
}
