package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) pinCmd() *cobra.Command {
	var remove bool
	var from []string
	cmd := &cobra.Command{
		Use:   "pin [CID[/PATH]]",
		Short: "Keep content from collection, fetching what is not here; without CID list what is kept",
		Long: "pin keeps what a CID names, and all below it, until `pin --rm`. Of CID/PATH it keeps what lies there, under\n" +
			"the CID that it prints. What is not here is fetched: from the nodes\n" +
			"of this network that have it or, with --from, from an IPFS node by bitswap. The node must have been started\n" +
			"with --ipfs for that. Whoever sends a block, it is verified before it is kept.",
		Example: "  lumbung pin bafybeib…\n" +
			"  lumbung pin bafybeib…/weights\n" +
			"  lumbung pin QmY7… --from /ip4/203.0.113.7/tcp/4001/p2p/12D3KooW…\n" +
			"  lumbung pin ls\n" +
			"  lumbung pin --rm bafybeib…",
		Args: takes("[CID[/PATH]]"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			switch {
			case len(args) == 0 && remove:
				return usageErrf("--rm needs the CID to let go")
			case len(args) == 0 && len(from) > 0:
				return usageErrf("--from needs the CID to fetch")
			case remove && len(from) > 0:
				return usageErrf("--rm lets go, --from fetches: give one of them")
			case len(args) == 0:
				return a.listPins(ctx, c)
			case remove:
				if err := c.Unpin(ctx, args[0]); err != nil {
					return err
				}
				a.con.Notef("let go; `lumbung gc` then gives its room back")
				return nil
			}
			m := a.newMeter("pinning")
			added, err := c.Pin(ctx, client.PinRequest{CID: args[0], From: from}, m.Update)
			m.Done()
			if err != nil {
				return err
			}
			return a.show(added, func(w io.Writer) { row(w, added.CID, sizeText(added.Bytes)) })
		}),
	}
	cmd.Flags().BoolVar(&remove, "rm", false, "let it go again")
	cmd.Flags().StringArrayVar(&from, "from", nil, "fetch from the IPFS node at this `address`, with /p2p/…; may be repeated")
	cmd.AddCommand(a.pinLsCmd())
	return a.withOutput(cmd)
}

func (a *app) pinLsCmd() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:   "ls",
		Short: "List what is kept",
		Args:  takes(),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			return a.listPins(ctx, c)
		}),
	})
}

func (a *app) listPins(ctx context.Context, c *client.Client) error {
	pins, err := c.Pins(ctx)
	if err != nil {
		return err
	}
	return showList(a, pins, func(w io.Writer) {
		row(w, "CID", "SIZE", "SINCE")
		for _, p := range pins {
			row(w, p.CID, sizeText(p.Bytes), ageText(p.Created, a.now()))
		}
	})
}
