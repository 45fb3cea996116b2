package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) netcheckCmd() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:   "netcheck",
		Short: "Check how this node is connected, and what stands in the way",
		Args:  takes(),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			m := a.newMeter("checking the network")
			n, err := c.Netcheck(ctx)
			m.Done()
			if err != nil {
				return err
			}
			e := endingOf(n.Findings)
			doc := struct {
				client.Netcheck
				ending
			}{n, e}
			err = a.show(doc, func(w io.Writer) {
				row(w, "reachability", n.Reachability)
				row(w, "connected", fmt.Sprintf("%d peers", n.Connected))
				row(w, "DHT", fmt.Sprintf("%s, %d peers", n.DHTMode, n.DHTPeers))
				rows(w, "listening", n.Listen)
				rows(w, "announced", n.Announced)
				rows(w, "bootstrap", n.Bootstrap)
				rows(w, "relays", n.Relays)
				if len(n.Findings) > 0 {
					row(w, "")
				}
				a.showFindings(w, n.Findings)
			})
			if err != nil {
				return err
			}
			return e.exit()
		}),
	})
}

func rows(w io.Writer, name string, values []string) {
	if len(values) == 0 {
		values = []string{"-"}
	}
	for _, v := range values {
		row(w, name, v)
		name = ""
	}
}

// showFindings lists what was found, each with its remedy.
func (a *app) showFindings(w io.Writer, list []client.Finding) {
	for _, f := range list {
		row(w, f.Level, f.What, f.Detail)
		if f.Remedy != "" {
			row(w, "", "", "try: "+f.Remedy)
		}
	}
}

// endingOf fails when something does not work, with the remedy of the first.
func endingOf(list []client.Finding) ending {
	for _, f := range list {
		if f.Level == levelFail {
			return ending{sourceLumbung, exitFailed, orElse(f.Remedy, defaultRemedy(verdict{Code: exitFailed}))}
		}
	}
	return ending{ExitSource: sourceLumbung}
}

// The levels of a finding.
const (
	levelOK   = "ok"
	levelWarn = "warn"
	levelFail = "fail"
)
