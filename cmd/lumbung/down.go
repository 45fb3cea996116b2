package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) downCmd() *cobra.Command {
	var stopJobs bool
	var patience time.Duration
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop the node and wait until it is gone",
		Long: "down stops the node. Containers that run for others go on and are found again by the next `lumbung up`,\n" +
			"unless --stop-jobs ends them.",
		Args: takes(),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			s, err := c.Status(ctx)
			if errors.Is(err, client.ErrNoNode) {
				a.con.Notef("no node runs there")
				return nil
			}
			if err != nil {
				return err
			}
			if err := c.Shutdown(ctx, stopJobs); err != nil {
				return err
			}
			m := a.newMeter("stopping the node")
			defer m.Done()
			ctx, cancel := context.WithTimeoutCause(ctx, patience, withRemedy(
				fmt.Errorf("process %d of the node in %s is still there after %s", s.PID, s.Home, patience),
				"read its log, %s/node.log; kill %d ends it at once", s.Home, s.PID))
			defer cancel()
			err = poll(ctx, func() (bool, error) { return !alive(s.PID), nil })
			if err == nil {
				a.con.Notef("the node is down")
			}
			return err
		}),
	}
	cmd.Flags().BoolVar(&stopJobs, "stop-jobs", false, "also end the containers that run for others")
	cmd.Flags().DurationVar(&patience, "timeout", time.Minute, "`time` to wait until it is gone")
	return cmd
}
