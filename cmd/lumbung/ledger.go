package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) ledgerCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "ledger", Short: "The journal of what was charged"}
	cmd.AddCommand(a.statementCmd())
	return cmd
}

func (a *app) statementCmd() *cobra.Command {
	var since string
	cmd := &cobra.Command{
		Use:   "statement",
		Short: "List every lease that was charged, with totals",
		Args:  takes(),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			from, err := parseSince(since, a.now())
			if err != nil {
				return err
			}
			s, err := c.Statement(ctx, from)
			if err != nil {
				return err
			}
			return a.show(s, func(w io.Writer) { showStatement(w, s) })
		}),
	}
	cmd.Flags().StringVar(&since, "since", "", "only what was booked after a `time`, such as 24h or 2026-01-02T15:04:05Z")
	return a.withOutput(cmd)
}

func showStatement(w io.Writer, s client.Statement) {
	row(w, "BOOKED", "SIDE", "WITH", "JOB", "TASK", "END", "USED", "PRICE", "CHARGE")
	for _, r := range s.Rows {
		row(w, r.Time.Local().Format(time.DateTime), r.Side, peerText(r.Peer), r.Job, r.Task, r.State, spanText(ms(r.Usage)), priceText(r.Price), moneyText(r.Charge))
	}
	row(w, "")
	row(w, "you owe", moneyText(s.Owed))
	row(w, "owed to you", moneyText(s.Due))
}
