package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) walletCmd() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:   "wallet",
		Short: "Show what this node owes and is owed",
		Args:  takes(),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			wallet, err := c.Wallet(ctx)
			if err != nil {
				return err
			}
			return a.show(wallet, func(w io.Writer) {
				row(w, "RAIL", "PEER", "YOU OWE", "OWES YOU", "TRUST")
				for _, b := range wallet.Balances {
					row(w, b.Rail, b.Peer, moneyText(b.Owed), moneyText(b.Due), b.Trust)
				}
			})
		}),
	})
}
