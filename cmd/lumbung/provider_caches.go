package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) cachesCmd() *cobra.Command {
	var drop []string
	cmd := &cobra.Command{
		Use:   "caches [--drop ID|idle]",
		Short: "List the folders that jobs keep on this machine, or remove some",
		Long: "caches lists what jobs have asked to keep here for the jobs to come (`cache` in a job file): a folder of one\n" +
			"renter's own under its key, or content that is named by its CID and read by everybody. Those longest unused go\n" +
			"by themselves when room is wanted.",
		Example: "  lumbung provider caches\n  lumbung provider caches --drop 3f9a --drop 77c1\n  lumbung provider caches --drop idle",
		Args:    takes(),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.Caches(ctx)
			if err != nil {
				return err
			}
			if len(drop) > 0 {
				return a.dropCaches(ctx, c, list, drop)
			}
			return showList(a, list, func(w io.Writer) {
				row(w, "ID", "KEY", "RENTER", "SIZE", "USED", "IN USE")
				for _, k := range list {
					renter := "everybody"
					if k.Renter != "" {
						renter = peerText(k.Renter)
					}
					row(w, k.ID[:12], k.Key, renter, sizeText(k.Bytes), ageText(k.Used, a.now()), k.InUse)
				}
			})
		}),
	}
	cmd.Flags().StringArrayVar(&drop, "drop", nil, "remove the cache of this `id`, or every one that is not in use: idle; may be repeated")
	return a.withOutput(cmd)
}

func (a *app) dropCaches(ctx context.Context, c *client.Client, list []client.Cache, drop []string) error {
	for _, id := range drop {
		if id != "idle" {
			if err := c.DropCache(ctx, id); err != nil {
				return err
			}
			a.con.Notef("removed %s", id)
			continue
		}
		for _, k := range list {
			if k.InUse > 0 {
				continue
			}
			if err := c.DropCache(ctx, k.ID); err != nil {
				return err
			}
			a.con.Notef("removed %s, %s", k.ID[:12], sizeText(k.Bytes))
		}
	}
	return nil
}
