package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) inspectCmd() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:               "inspect JOB",
		Short:             "Show all there is to know of a job: its tasks and every lease",
		Args:              takes("JOB"),
		ValidArgsFunction: a.completeJobs,
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			d, err := c.Job(ctx, args[0])
			if err != nil {
				return err
			}
			return a.show(d, func(w io.Writer) { a.inspect(w, d) })
		}),
	})
}

func (a *app) inspect(w io.Writer, d client.JobDetail) {
	j := d.Job
	row(w, "job", j.ID)
	row(w, "name", orDash(j.Spec.Name))
	row(w, "state", stateText(j))
	if j.Reason != "" {
		row(w, "reason", j.Reason)
	}
	if why := (unplaced{j.Heard, j.Unplaced, j.Cheapest}); !j.Over() && len(j.Unplaced) > 0 {
		row(w, "waiting", why)
	}
	row(w, "image", j.Image.Name+"  "+j.Image.ID+"  "+sizeText(j.Image.Size))
	row(w, "command", fmt.Sprintf("%q", j.Spec.Command))
	for _, p := range j.Spec.Ports {
		row(w, "port", portText(p))
	}
	for _, s := range j.Spec.Secrets {
		row(w, "secret", s.Name)
	}
	if r := j.Spec.Ready; r != nil {
		row(w, "ready", fmt.Sprintf("when GET %s on port %d is answered, within %s", r.HTTP, r.Port, spanText(r.Within)))
	}
	if j.Spec.IdleStop > 0 {
		row(w, "ends", "when nobody has been connected to its ports for "+spanText(j.Spec.IdleStop))
	}
	if every := j.Spec.Checkpoint.Every; every > 0 {
		row(w, "checkpoint", "every "+spanText(every)+newestCheckpoint(d.Tasks))
	}
	if j.Spec.Network == job.NetworkOutbound {
		row(w, "network", networkText(d))
	}
	row(w, "created", j.Created.Local().Format(time.DateTime)+" ("+ageText(j.Created, a.now())+")")
	if j.Over() {
		row(w, "took", spanText(j.Ended.Sub(j.Created)))
	}
	row(w, "spent", moneyText(costSoFar(d)))
	row(w, "")
	row(w, "TASK", "NUMBERS", "STATE", "EXIT", "PROVIDER", "TRIES", "USED", "CHARGE", "REASON")
	for _, t := range d.Tasks {
		numbers := "-"
		if j.Spec.Array != nil {
			numbers = fmt.Sprintf("%d-%d", t.First, t.Last)
		}
		exit := "-"
		if t.Over() {
			exit = fmt.Sprint(t.ExitCode)
		}
		row(w, t.Index, numbers, t.State, exit, orDash(peerText(t.Provider)), t.Attempts, spanText(ms(t.UsageMs)), moneyText(t.Charge), t.Reason)
	}
	a.inspectTimes(w, d)
	if len(d.Contracts) == 0 {
		return
	}
	row(w, "")
	row(w, "LEASE", "TASK", "STATE", "PROVIDER", "PRICE", "USED", "CHARGE", "REASON")
	for _, c := range d.Contracts {
		row(w, c.ID.Short(), c.Task, c.State, peerText(c.Provider), priceText(client.Amount{Asset: c.Asset, Lo: c.Price}),
			spanText(ms(c.UsageMs)), moneyText(c.Charge), orElse(c.Reason, reasonOrNone(c.Refusal)))
	}
}

// inspectTimes tells where the time of each attempt went. The phase that it is
// in counts up to now.
func (*app) inspectTimes(w io.Writer, d client.JobDetail) {
	if len(d.Times) == 0 {
		return
	}
	row(w, "")
	row(w, "TASK", "TRY", "WAITING", "QUOTING", "FETCHING", "PREPARING", "STARTING", "RUNNING", "SAVING", "TOTAL")
	for _, t := range d.Times {
		cells := []any{t.Task, t.Attempt + 1}
		for _, span := range []time.Duration{t.Waiting, t.Quoting, t.Fetching, t.Preparing, t.Starting, t.Running, t.Saving, t.Total} {
			cells = append(cells, spanOrDash(span))
		}
		row(w, cells...)
	}
}

func spanOrDash(d time.Duration) string {
	if d < time.Millisecond {
		return "-"
	}
	return spanText(d)
}

// newestCheckpoint says when the newest checkpoint that is here was made, and how
// often a task has gone on from one.
func newestCheckpoint(tasks []client.Task) string {
	var newest time.Time
	moves := 0
	for _, t := range tasks {
		moves += t.Moves
		if len(t.Checkpoints) > 0 && t.Checkpoints[0].At.After(newest) {
			newest = t.Checkpoints[0].At
		}
	}
	text := ""
	if !newest.IsZero() {
		text += ", the newest of " + newest.Local().Format(time.TimeOnly)
	}
	if moves > 0 {
		text += ", moved " + plural(moves, "time")
	}
	return text
}

// networkText says what the tasks sent and got, and how much each may.
func networkText(d client.JobDetail) string {
	var up, down uint64
	for _, t := range d.Tasks {
		up, down = up+t.NetUp, down+t.NetDown
	}
	return fmt.Sprintf("outbound, %s sent and %s received by tasks that are over; at most %s a task", sizeText(up), sizeText(down), sizeText(d.Job.Spec.Limits.Net))
}

func ms(n int64) time.Duration { return time.Duration(n) * time.Millisecond }

func reasonOrNone(name string) string {
	if name == "" {
		return ""
	}
	return reasonText(name)
}
