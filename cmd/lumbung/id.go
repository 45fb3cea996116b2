package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) idCmd() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:   "id",
		Short: "Show this node's peer id and the addresses to give to others",
		Args:  takes(),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			id, err := c.Identity(ctx)
			if err != nil {
				return err
			}
			return a.show(id, func(w io.Writer) {
				row(w, id.PeerID)
				for _, addr := range id.Addrs {
					row(w, addr)
				}
			})
		}),
	})
}
