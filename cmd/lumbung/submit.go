package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) submitCmd() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:   "submit FILE.yaml",
		Short: "Submit a job file and print the job's id",
		Args:  takes("FILE.yaml"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := fileRequest(args[0])
			if err != nil {
				return err
			}
			if err := a.readSecrets(&req); err != nil {
				return err
			}
			return a.call(func(ctx context.Context, c *client.Client, _ []string) error {
				m := a.newMeter("submitting")
				job, err := c.Submit(ctx, req, m.Update)
				m.Done()
				if err != nil {
					return err
				}
				a.con.Notef("follow it: lumbung logs -f %s; wait for it: lumbung wait %s", job.ID, job.ID)
				return a.show(job, func(w io.Writer) { row(w, job.ID) })
			})(cmd, args)
		},
	})
}
