package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/node/client"
)

// errOver ends a stream of events when the job is.
var errOver = errors.New("over")

// follower shows a job until it is over: the states of its tasks as they
// change, and their output as it comes.
type follower struct {
	a      *app
	c      *client.Client
	id     string
	array  bool
	job    job.Job
	tasks  map[int]job.TaskRecord
	logs   *logPrinter
	waited string // what was last said about waiting
	fetch  *meter // runs while a task fetches
	base   uint64 // bytes that had come when it was started
}

func newFollower(a *app, c *client.Client, id string) *follower {
	return &follower{a: a, c: c, id: id, tasks: map[int]job.TaskRecord{}}
}

// graceOnCancel is how long a job gets to end by itself when it is cancelled.
const graceOnCancel = 10 * time.Second

// secondChance is how long after the first ^C a second one still cancels.
const secondChance = 3 * time.Second

// attended follows a job with somebody, or nobody, at the terminal: there the
// first signal leaves the job running and the second cancels it; without a
// terminal the first one cancels, and the second leaves.
func (f *follower) attended(ctx context.Context) (client.JobDetail, error) {
	following, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	signalled := make(chan struct{})
	go func() {
		defer close(signalled)
		select {
		case <-following.Done():
			return
		case <-f.a.signals:
		}
		if f.a.con.errTTY && f.a.inTTY {
			leave(errDetached)
			return
		}
		f.cancel(ctx)
		select {
		case <-following.Done():
		case <-f.a.signals:
			leave(errInterrupted)
		}
	}()
	d, err := f.follow(following)
	cause := context.Cause(following)
	leave(nil)
	<-signalled
	switch {
	case err == nil:
		return d, nil
	case errors.Is(cause, errDetached):
		return f.detached(ctx)
	case errors.Is(cause, errInterrupted):
		return d, f.leftCancelling()
	}
	return d, withRemedy(fmt.Errorf("following job %s, which goes on: %w", f.id, err), "lumbung status, then lumbung logs -f %s", f.id)
}

// errDetached says that the user left and the job goes on.
var errDetached = errors.New("detached")

// detached says what the job has cost so far and how to end it, and waits a
// little for the second ^C.
func (f *follower) detached(ctx context.Context) (client.JobDetail, error) {
	f.a.con.Live("")
	d, err := f.c.Job(ctx, f.id)
	if err != nil {
		return d, err
	}
	f.a.con.Notef("detached: job %s goes on, %s so far", f.id, moneyText(costSoFar(d)))
	f.a.con.Notef("  follow: lumbung logs -f %s    stop: lumbung stop %s    (^C again within %s cancels it)", f.id, f.id, f.a.second)
	t := time.NewTimer(f.a.second)
	defer t.Stop()
	select {
	case <-t.C:
		if f.a.wantsJSON() {
			if err := f.a.concludeJSON(leftRunning(d)); err != nil {
				return d, err
			}
		}
		return d, &exitError{code: 0}
	case <-f.a.signals:
	}
	f.cancel(ctx)
	following, stop := f.a.interruptible(ctx)
	defer stop()
	if d, err = f.follow(following); err != nil && context.Cause(following) != nil {
		return d, f.leftCancelling()
	}
	return d, err
}

// leftRunning is the outcome of a job that its user has left, and that goes on.
func leftRunning(d client.JobDetail) outcome {
	return outcome{
		Job: d.Job.ID, State: d.Job.State, ExitSource: sourceLumbung, Reason: "detached: the job goes on",
		Remedy: "lumbung logs -f " + d.Job.ID, Spent: costSoFar(d), Tasks: d.Tasks,
	}
}

// leftCancelling says that nobody waits for the end of a job that was cancelled.
func (f *follower) leftCancelling() error {
	f.a.con.Notef("the job is being cancelled: lumbung wait %s", f.id)
	return withRemedy(fmt.Errorf("job %s is being cancelled: %w", f.id, errInterrupted), "lumbung wait %s", f.id)
}

func (f *follower) cancel(ctx context.Context) {
	f.a.con.Notef("cancelling job %s", f.id)
	if _, err := f.c.StopJob(ctx, f.id, graceOnCancel); err != nil {
		f.a.con.Notef("%s not cancelled: %v; try: lumbung stop %s", f.a.con.red("error:"), err, f.id)
	}
}

// costSoFar is what a job has been charged and what its running tasks have used
// since.
func costSoFar(d client.JobDetail) ledger.Amount {
	sum := d.Job.Spent
	for _, c := range d.Contracts {
		if c.State.Terminal() {
			continue
		}
		if more, err := sum.Add(ledger.Charge(c.Asset, c.Price, c.UsageMs)); err == nil {
			sum = more
		}
	}
	return sum
}

// follow shows the job until it is over.
func (f *follower) follow(ctx context.Context) (client.JobDetail, error) {
	// The number comes first, so that what happens in between is told of too.
	last, err := f.c.LastEvent(ctx)
	if err != nil {
		return client.JobDetail{}, err
	}
	d, err := f.c.Job(ctx, f.id)
	if err != nil {
		return d, err
	}
	defer f.a.con.Live("")
	defer f.endFetch()
	f.array = d.Job.Spec.Array != nil
	if f.logs == nil {
		f.logs = f.a.newLogPrinter(f.array)
	}
	for _, t := range d.Tasks {
		f.task(t)
	}
	f.jobIs(d.Job)

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	logged := make(chan error, 1)
	go func() {
		defer close(logged)
		logged <- f.logs.follow(ctx, f.c, f.id)
	}()
	if !d.Job.Over() {
		if err = f.events(ctx, last); err != nil {
			stop()
			for range logged { // only its end is waited for: err says more
			}
			return d, err
		}
	}
	if err := f.lastWords(ctx, logged); err != nil {
		f.a.con.Notef("%s the job's output could not be read to its end: %v; try: lumbung logs %s", f.a.con.yellow("warning:"), err, f.id)
	}
	return f.c.Job(ctx, f.id)
}

// logSilence is how long the last output of a job that is over is waited for.
const logSilence = 15 * time.Second

// lastWords waits for the rest of the output as long as it keeps coming.
func (f *follower) lastWords(ctx context.Context, logged <-chan error) error {
	t := time.NewTicker(logSilence)
	defer t.Stop()
	for seen := f.logs.count.Load(); ; {
		select {
		case err := <-logged:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			if f.logs.count.Load() == seen {
				return fmt.Errorf("nothing more came within %s", logSilence)
			}
			seen = f.logs.count.Load()
		}
	}
}

func (f *follower) events(ctx context.Context, last uint64) error {
	err := f.c.Events(ctx, last, func(e client.Event) error {
		if e.Job != f.id {
			return nil
		}
		if f.a.format == "jsonl" {
			if err := f.a.encode(e, ""); err != nil {
				return err
			}
		}
		switch e.Type {
		case job.EventTask:
			var t job.TaskRecord
			if err := json.Unmarshal(e.Data, &t); err != nil {
				return fmt.Errorf("event %d: %w", e.Seq, err)
			}
			f.task(t)
		case job.EventJob:
			var j job.Job
			if err := json.Unmarshal(e.Data, &j); err != nil {
				return fmt.Errorf("event %d: %w", e.Seq, err)
			}
			f.jobIs(j)
			if j.Over() {
				return errOver
			}
		case job.EventNotice:
			f.a.con.Notef("%s %s", f.a.con.yellow("notice:"), clean(e.Text))
		}
		return nil
	})
	if errors.Is(err, errOver) {
		return nil
	}
	return err
}

// task shows what became of a task, once per state.
func (f *follower) task(t job.TaskRecord) {
	was, known := f.tasks[t.Index]
	f.tasks[t.Index] = t
	if !known || was.State != t.State {
		if line := taskLine(t, known); line != "" {
			if f.array {
				line = fmt.Sprintf("task %-3d %s", t.Index, line)
			}
			f.a.con.Notef("%s", f.a.con.tint(t.State, line))
		}
	}
	f.live(t)
}

// live keeps the last line of the terminal: how far fetching is, or how many
// tasks there are in which state. Elsewhere fetching says how far it is now and
// then.
func (f *follower) live(t job.TaskRecord) {
	label := "fetching"
	if f.array {
		label = f.counts()
	}
	if f.fetches(label) {
		return
	}
	switch {
	case f.array:
		f.a.con.Live(label)
	case t.State == job.TaskQueued:
		f.a.con.Live("waiting for a provider")
	case t.State == string(job.Starting):
		f.a.con.Live("starting: not billed before it is ready")
	default:
		f.a.con.Live("")
	}
}

// fetches keeps the meter of what is being fetched, and reports whether the last
// line is the meter's.
func (f *follower) fetches(label string) bool {
	done, total, fetching := uint64(0), uint64(0), false
	for _, t := range f.tasks {
		done, total = done+t.ToFetch, total+t.ToFetch
		if t.State == string(job.Fetching) && t.ToFetch > 0 {
			fetching = true
			done -= t.ToFetch - min(t.Fetched, t.ToFetch)
		}
	}
	if !fetching {
		f.endFetch()
		return false
	}
	if f.fetch == nil {
		f.fetch, f.base = f.a.newMeter(label), done
	}
	// A task that is fetched again elsewhere takes back what had come.
	f.base = min(f.base, done)
	f.fetch.relabel(label)
	f.fetch.Update(client.Progress{Done: done - f.base, Total: total - f.base})
	return f.fetch.visible()
}

func (f *follower) endFetch() {
	if f.fetch != nil {
		f.fetch.relabel("fetched")
		f.fetch.Done()
		f.fetch = nil
	}
}

func (f *follower) counts() string {
	counts := map[string]int{}
	for _, t := range f.tasks {
		counts[t.State]++
	}
	line := plural(len(f.tasks), "task") + ":"
	for _, s := range []string{job.TaskQueued, "proposed", "leased", "fetching", "starting", "running", "saving", "done", "failed", "cancelled"} {
		if counts[s] > 0 {
			line += fmt.Sprintf("  %d %s", counts[s], s)
		}
	}
	return line
}

// taskLine is a task's state in words; empty where there is nothing to say.
func taskLine(t job.TaskRecord, known bool) string {
	on := " on " + peerText(t.Provider)
	switch t.State {
	case job.TaskQueued:
		if known && t.Attempts > 0 {
			return "again     " + orElse(clean(t.Reason), "the provider did not take it")
		}
		return ""
	case string(job.Proposed):
		return ""
	case string(job.Leased), string(job.Fetching), string(job.Starting), string(job.Running), string(job.Saving):
		return fmt.Sprintf("%-9s", t.State) + on
	case string(job.Done):
		line := fmt.Sprintf("done      exit %d in %s", t.ExitCode, spanText(time.Duration(t.UsageMs)*time.Millisecond))
		if t.Reason != "" {
			line += ": " + clean(t.Reason)
		}
		return line + ", " + moneyText(t.Charge)
	}
	line := fmt.Sprintf("%-9s exit %d", t.State, t.ExitCode)
	if t.Exceeded != nil && !strings.Contains(t.Reason, t.Exceeded.Limit+" limit") {
		line += ", " + t.Exceeded.Limit + " limit exceeded"
	}
	if t.Reason != "" && t.Reason != plainReason(t.ExitCode) {
		line += ": " + clean(t.Reason)
	}
	return line + ", " + moneyText(t.Charge)
}

// plainReason is a reason that says no more than the exit code does.
func plainReason(code int) string { return fmt.Sprintf("exit code %d", code) }

// jobIs notes the state of the whole job.
func (f *follower) jobIs(j job.Job) {
	f.job = j
	if j.Over() || j.State != job.JobQueued || j.Unplaced == nil && j.Heard == 0 {
		return
	}
	why := unplaced{Heard: j.Heard, Reasons: j.Unplaced, Cheapest: j.Cheapest}
	if text := why.String(); text != f.waited {
		f.waited = text
		f.a.con.Notef("waiting: %s", text)
	}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// tint colours a line by the state that it tells of.
func (c *console) tint(state, line string) string {
	switch state {
	case string(job.Done):
		return c.green(line)
	case string(job.Failed), string(job.Lost):
		return c.red(line)
	case string(job.Cancelled), job.TaskQueued:
		return c.yellow(line)
	}
	return c.dim(line)
}
