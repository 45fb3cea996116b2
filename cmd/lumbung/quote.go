package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) quoteCmd() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "quote FILE.yaml | quote [run flags] IMAGE [COMMAND…]",
		Short: "Show who would run a job, and for how much; nothing is submitted",
		Args:  takes("FILE.yaml|IMAGE", "[COMMAND…]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := f.fileOrFlags(cmd, args)
			if err != nil {
				return err
			}
			return a.call(func(ctx context.Context, c *client.Client, _ []string) error {
				q, err := a.askQuote(ctx, c, req)
				if err != nil {
					return err
				}
				return a.showQuote(q)
			})(cmd, args)
		},
	}
	f.add(cmd.Flags())
	return a.withOutput(cmd)
}

// fileOrFlags takes a lone argument that is a YAML file as a job file.
func (f *runFlags) fileOrFlags(cmd *cobra.Command, args []string) (client.SubmitRequest, error) {
	if len(args) == 1 && isJobFile(args[0]) {
		return fileRequest(args[0])
	}
	return f.request(cmd, args)
}

func isJobFile(name string) bool {
	if !strings.HasSuffix(name, ".yaml") && !strings.HasSuffix(name, ".yml") {
		return false
	}
	info, err := os.Stat(name)
	return err != nil || info.Mode().IsRegular()
}

func (a *app) askQuote(ctx context.Context, c *client.Client, req client.SubmitRequest) (client.Quote, error) {
	m := a.newMeter("asking for prices")
	defer m.Done()
	return c.Quote(ctx, req, m.Update)
}

func whyNot(q client.Quote) unplaced {
	return unplaced{Heard: q.Heard, Reasons: q.Reasons, Cheapest: q.Cheapest}
}

// quoteLine is a quote in one line.
func quoteLine(q client.Quote) string {
	best := q.Bids[0]
	line := fmt.Sprintf("%s, best %s on %s, starts in %s", plural(len(q.Bids), "bid"), priceText(best.Price), peerText(best.Peer), spanText(best.StartIn))
	if best.ToFetch > 0 {
		line += ", " + sizeText(best.ToFetch) + " to fetch"
	}
	most := moneyText(q.MostPerTask)
	if q.Tasks > 1 {
		return line + fmt.Sprintf("; at most %s for each of %s", most, plural(q.Tasks, "task"))
	}
	return line + "; at most " + most
}

// showQuote prints a quote; one without bids is an error that says why.
func (a *app) showQuote(q client.Quote) error {
	if len(q.Bids) == 0 {
		return &unplacedError{why: whyNot(q)}
	}
	return a.show(q, func(w io.Writer) {
		row(w, "PEER", "PRICE", "SLOTS", "STARTS IN", "CACHED", "TO FETCH", "ROUND TRIP", "VALID")
		for _, b := range q.Bids {
			row(w, b.Peer, priceText(b.Price), b.Slots, spanText(b.StartIn), sizeText(b.Cached), sizeText(b.ToFetch),
				b.RTT.Round(100*time.Microsecond), spanText(b.ValidFor))
		}
		row(w, "")
		row(w, quoteLine(q))
		if left := whyNot(q); len(q.Reasons) > 0 {
			row(w, strings.Replace(left.String(), "nothing could be placed: ", "", 1))
		}
	})
}
