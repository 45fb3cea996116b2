package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) psCmd() *cobra.Command {
	var all, quiet bool
	cmd := &cobra.Command{
		Use:   "ps [-a]",
		Short: "List the jobs that are under way, or all",
		Args:  takes(),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			jobs, err := c.Jobs(ctx, all)
			if err != nil {
				return err
			}
			return showList(a, jobs, func(w io.Writer) {
				if quiet {
					for _, j := range jobs {
						row(w, j.ID)
					}
					return
				}
				row(w, "JOB", "NAME", "IMAGE", "STATE", "TASKS", "CREATED", "SPENT")
				for _, j := range jobs {
					row(w, j.ID, cut(orDash(j.Spec.Name), 32), cut(j.Image.Name, 32), stateText(j), tasksText(j), ageText(j.Created, a.now()), moneyText(j.Spent))
				}
			})
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also jobs that are over")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "ids only")
	return a.withOutput(cmd)
}

// stateText is a job's state, with its code where it failed.
func stateText(j client.Job) string {
	if j.State == job.JobFailed {
		return fmt.Sprintf("failed (%d)", j.ExitCode)
	}
	return j.State
}

// tasksText is how many tasks are done, of how many.
func tasksText(j client.Job) string {
	text := fmt.Sprintf("%d/%d", j.Counts[string(job.Done)], j.Spec.Tasks())
	for _, s := range []job.State{job.Starting, job.Running, job.Failed} {
		if n := j.Counts[string(s)]; n > 0 {
			text += fmt.Sprintf(", %d %s", n, s)
		}
	}
	return text
}
