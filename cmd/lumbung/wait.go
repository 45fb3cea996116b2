package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) waitCmd() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:               "wait JOB",
		Short:             "Wait until a job is over and exit with its code",
		Args:              takes("JOB"),
		ValidArgsFunction: a.completeJobs,
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			m := a.newMeter("waiting for job " + args[0])
			d, err := c.WaitJob(ctx, args[0])
			m.Done()
			if err != nil {
				return err
			}
			o := outcomeOf(d)
			if err := a.show(o, func(w io.Writer) { row(w, o.State) }); err != nil {
				return err
			}
			if o.Code == 0 {
				return nil
			}
			if a.format == "" || a.format == "text" {
				a.sayOutcome(d, o, false)
			}
			return &exitError{code: o.Code}
		}),
	})
}
