package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) stopCmd() *cobra.Command {
	var grace time.Duration
	var nowait bool
	cmd := &cobra.Command{
		Use:               "stop JOB",
		Short:             "End a job: its tasks are asked to stop, then killed",
		Args:              takes("JOB"),
		ValidArgsFunction: a.completeJobs,
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			j, err := c.StopJob(ctx, args[0], grace)
			if err != nil {
				return err
			}
			if !nowait && !j.Over() {
				m := a.newMeter("stopping job " + j.ID)
				d, err := c.WaitJob(ctx, j.ID)
				m.Done()
				if err != nil {
					return err
				}
				j = d.Job
			}
			return a.show(j, func(w io.Writer) { row(w, j.ID, j.State, moneyText(j.Spent)) })
		}),
	}
	cmd.Flags().DurationVar(&grace, "grace", graceOnCancel, "`time` that tasks get to stop by themselves")
	cmd.Flags().BoolVar(&nowait, "no-wait", false, "do not wait until it is over")
	return a.withOutput(cmd)
}
