package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/node/client"
)

// outcome is how a job ended, for scripts.
type outcome struct {
	Job        string               `json:"job"`
	State      string               `json:"state"`
	ExitSource string               `json:"exit_source"` // job, sandbox or lumbung
	Code       int                  `json:"code"`
	Reason     string               `json:"reason,omitempty"`
	Remedy     string               `json:"remedy"`
	Spent      client.Amount        `json:"spent"`
	Unplaced   *unplaced            `json:"unplaced,omitempty"`
	Tasks      []client.Task        `json:"tasks,omitempty"`
	Outputs    []client.FetchedTask `json:"outputs,omitempty"`
}

// outcomeOf tells a job's end: its own code, or what lumbung says in its place.
func outcomeOf(d client.JobDetail) outcome {
	o := outcome{
		Job: d.Job.ID, State: d.Job.State, ExitSource: sourceJob, Code: d.Job.ExitCode,
		Reason: d.Job.Reason, Remedy: d.Job.Remedy, Spent: d.Job.Spent, Tasks: d.Tasks,
	}
	switch d.Job.State {
	case job.JobDone:
		o.Code = 0
		return o
	case job.JobCancelled:
		o.ExitSource = sourceLumbung
		if o.Code == 0 {
			o.Code = exitInterrupt
		}
		return o
	}
	worst := worstTask(d)
	if worst == nil || worst.Source == "" || worst.Source == sourceLumbung {
		o.ExitSource = sourceLumbung
	} else {
		o.ExitSource = worst.Source
	}
	if o.Code == 0 {
		o.Code = exitFailed
	}
	if worst == nil {
		return o
	}
	if worst.Reason == job.ReasonUnplaced {
		why := unplaced{Heard: d.Job.Heard, Reasons: d.Job.Unplaced, Cheapest: d.Job.Cheapest}
		o.Unplaced, o.Code, o.Reason, o.Remedy = &why, exitUsage, why.String(), why.remedy()
		return o
	}
	if o.Reason == "" {
		o.Reason = worst.Reason
	}
	if o.Remedy == "" {
		o.Remedy = taskRemedy(d.Job.ID, worst)
	}
	return o
}

// worstTask is the failed task that the job's code is of.
func worstTask(d client.JobDetail) *client.Task {
	var first *client.Task
	for i := range d.Tasks {
		t := &d.Tasks[i]
		if t.State != string(job.Failed) {
			continue
		}
		if t.ExitCode == d.Job.ExitCode {
			return t
		}
		if first == nil {
			first = t
		}
	}
	return first
}

// taskRemedy is what the owner can do about a task that failed.
func taskRemedy(id string, t *client.Task) string {
	if t.Exceeded != nil {
		switch t.Exceeded.Limit {
		case sandbox.LimitMemory:
			return "more --memory (memory: in a job file)"
		case sandbox.LimitDisk:
			return "more --disk (disk: in a job file)"
		case sandbox.LimitTime, "run":
			return "a longer --timeout (limits.run in a job file)"
		case "fetch":
			return "a longer --fetch-timeout (limits.fetch in a job file), or --on a provider with a better link"
		case job.LimitReady:
			return "lumbung logs " + id + " shows what it did; a longer --ready-within (ready.within in a job file) if it needs more time"
		case sandbox.LimitPids:
			return "a larger limits.pids in a job file"
		case sandbox.LimitOutput:
			return "a larger limits.output in a job file"
		case sandbox.LimitNet:
			return "a larger limits.net in a job file"
		case "budget":
			return "a larger --budget (pay.budget in a job file)"
		}
	}
	switch t.ExitCode {
	case sandbox.CodeTimeout:
		return "a longer --timeout (limits.run in a job file)"
	case sandbox.CodeCannotExecute:
		return "check that the command is a program for the image's platform and may be executed"
	case sandbox.CodeNotFound:
		return "check the command's path: there is no such file in the image"
	case sandbox.CodeSandbox:
		return "lumbung inspect " + id + "; then the same again: another provider may do better"
	}
	return readLogs(id)
}

// conclude brings the outputs to where the job wants them, says how it ended
// and exits with its code. A job that is done, and whose outputs could not be
// brought, ends with lumbung's own code.
func (a *app) conclude(ctx context.Context, c *client.Client, d client.JobDetail) error {
	o := outcomeOf(d)
	outputs, err := a.bringOutputs(ctx, c, d)
	o.Outputs = outputs
	if err != nil && a.wantsJSON() {
		v := judge(err)
		if o.Code == 0 {
			o.ExitSource, o.Code, o.Reason, o.Remedy = v.ExitSource, v.Code, v.Error, v.Remedy
		}
		a.sayError(v)
	}
	if a.wantsJSON() {
		return a.concludeJSON(o)
	}
	a.sayOutcome(d, o, true)
	if o.Code == 0 {
		return err
	}
	if err != nil {
		a.sayError(judge(err))
	}
	return &exitError{code: o.Code}
}

// concludeJSON prints the one document that a job's end is to a program.
func (a *app) concludeJSON(o outcome) error {
	indent := "  "
	if a.format == "jsonl" {
		indent = ""
	}
	if err := a.encode(o, indent); err != nil || o.Code == 0 {
		return err
	}
	return &exitError{code: o.Code}
}

// sayOutcome tells how a job ended; followed says that its output was shown.
func (a *app) sayOutcome(d client.JobDetail, o outcome, followed bool) {
	if o.Code == 0 {
		if n := failedTasks(d); n > 0 {
			a.con.Notef("job %s done, %s of %d failed, %s", o.Job, plural(n, "task"), len(d.Tasks), moneyText(o.Spent))
			return
		}
		why := ""
		if o.Reason != "" && !followed {
			why = ": " + clean(o.Reason)
		}
		a.con.Notef("job %s done%s, %s", o.Job, why, moneyText(o.Spent))
		return
	}
	switch {
	case o.State == job.JobCancelled:
		a.con.Notef("%s", a.con.yellow(fmt.Sprintf("job %s cancelled: %s, %s", o.Job, orElse(clean(o.Reason), "stopped"), moneyText(o.Spent))))
		return
	case o.ExitSource == sourceJob && (o.Reason == "" || o.Reason == plainReason(o.Code)):
		a.con.Notef("job %s %s with exit code %d, %s", o.Job, o.State, o.Code, moneyText(o.Spent))
	default:
		reason := ""
		if o.Reason != "" {
			reason = ": " + clean(o.Reason)
		}
		a.con.Notef("%s job %s %s (exit %d, by %s)%s, %s", a.con.red("error:"), o.Job, o.State, o.Code, o.ExitSource, reason, moneyText(o.Spent))
	}
	if o.Remedy != "" && (!followed || o.Remedy != readLogs(o.Job)) {
		a.con.Notef("  try: %s", o.Remedy)
	}
}

// readLogs is the remedy where nothing better is known.
func readLogs(id string) string { return "lumbung logs " + id }

func failedTasks(d client.JobDetail) int {
	n := 0
	for _, t := range d.Tasks {
		if t.State == string(job.Failed) {
			n++
		}
	}
	return n
}

// bringOutputs fetches what the tasks left, failed ones too, to where the job
// says.
func (a *app) bringOutputs(ctx context.Context, c *client.Client, d client.JobDetail) ([]client.FetchedTask, error) {
	left, named, there := false, false, true
	for _, t := range d.Tasks {
		left = left || len(t.Outputs) > 0
		there = there && (t.Exported || len(t.Outputs) == 0)
	}
	for _, out := range d.Job.Spec.Outputs {
		named = named || out.To != ""
	}
	if !left {
		return nil, nil
	}
	if !named {
		a.con.Notef("its outputs are kept: lumbung get %s", d.Job.ID)
		return nil, nil
	}
	if there {
		got := client.Fetched{Tasks: writtenOutputs(d)}
		a.con.Notef("%s", fetchedLine(got))
		return got.Tasks, nil
	}
	ctx, stop := a.interruptible(ctx)
	defer stop()
	m := a.newMeter("fetching outputs")
	got, err := c.GetOutputs(ctx, d.Job.ID, "", client.AllTasks, m.Update)
	m.Done()
	if err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
		err = errInterrupted
	}
	if err != nil {
		return nil, withRemedy(fmt.Errorf("the outputs of job %s: %w", d.Job.ID, err), "lumbung get %s DIR", d.Job.ID)
	}
	a.con.Notef("%s", fetchedLine(got))
	return got.Tasks, nil
}

// writtenOutputs are the places that the node has written the outputs to by
// itself.
func writtenOutputs(d client.JobDetail) []client.FetchedTask {
	var out []client.FetchedTask
	for _, t := range d.Tasks {
		if len(t.Outputs) == 0 {
			continue
		}
		f := client.FetchedTask{Task: t.Index, State: t.State}
		for _, o := range d.Job.Spec.Outputs {
			switch {
			case o.To == "":
			case filepath.IsAbs(o.To):
				f.Paths = append(f.Paths, o.To)
			default:
				f.Paths = append(f.Paths, filepath.Join(d.Job.Dir, o.To))
			}
		}
		out = append(out, f)
	}
	return out
}

// fetchedLine says what was written where.
func fetchedLine(f client.Fetched) string {
	var bytes uint64
	var paths []string
	seen := map[string]bool{}
	for _, t := range f.Tasks {
		bytes += t.Bytes
		for _, p := range t.Paths {
			if !seen[p] {
				seen[p] = true
				paths = append(paths, p)
			}
		}
	}
	if len(paths) == 0 {
		return "no outputs"
	}
	const most = 3
	text := strings.Join(paths[:min(most, len(paths))], ", ")
	if len(paths) > most {
		text += fmt.Sprintf(" and %d more", len(paths)-most)
	}
	if bytes > 0 {
		text = sizeText(bytes) + " in " + text
	}
	return "outputs: " + text
}

// showFetched prints what `lumbung get` wrote.
func (a *app) showFetched(f client.Fetched) error {
	return a.show(f, func(w io.Writer) {
		for _, t := range f.Tasks {
			for _, p := range t.Paths {
				row(w, p)
			}
		}
	})
}
