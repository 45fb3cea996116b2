package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) pingCmd() *cobra.Command {
	count := 1
	cmd := &cobra.Command{
		Use:   "ping PEER",
		Short: "Measure the round trip to a peer, and tell whether it is reached directly",
		Args:  takes("PEER"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			for range max(1, count) {
				m := a.newMeter("pinging " + peerText(args[0]))
				p, err := c.Ping(ctx, args[0])
				m.Done()
				if err != nil {
					return err
				}
				err = a.show(p, func(w io.Writer) {
					row(w, "answer from "+p.Peer+": "+p.RTT.Round(10*time.Microsecond).String()+" "+p.Via)
				})
				if err != nil {
					return err
				}
			}
			return nil
		}),
	}
	cmd.Flags().IntVarP(&count, "count", "c", 1, "`times` to ping")
	return a.withOutput(cmd)
}
