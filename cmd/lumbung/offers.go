package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/protocol"
)

func (a *app) offersCmd() *cobra.Command {
	var gpu string
	var short bool
	cmd := &cobra.Command{
		Use:   "offers",
		Short: "Show who offers what, now, found through the DHT",
		Args:  takes(),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			m := a.newMeter("looking for providers")
			offers, err := c.Offers(ctx, gpu)
			m.Done()
			if err != nil {
				return err
			}
			if len(offers) == 0 && (a.format == "" || a.format == "text") {
				a.con.Notef("no provider found; `lumbung netcheck` tells whether this node is connected")
			}
			return showList(a, offers, func(w io.Writer) { showOffers(w, offers, short) })
		}),
	}
	cmd.Flags().StringVar(&gpu, "gpu", "", "only providers with this `model`, such as rtx4090")
	cmd.Flags().BoolVar(&short, "short", false, "shorten peer ids")
	_ = cmd.RegisterFlagCompletionFunc("gpu", func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		var names []cobra.Completion
		for _, m := range protocol.Models() {
			names = append(names, m.Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
	return a.withOutput(cmd)
}

func showOffers(w io.Writer, offers []client.ProviderOffer, short bool) {
	row(w, "PEER", "GPU", "VRAM", "FREE", "GPU/H", "CORES", "MEMORY", "CORE/H", "REGION", "REACH", "STATE")
	for _, o := range offers {
		peer := o.Peer
		if short {
			peer = peerText(peer)
		}
		state := "live"
		switch {
		case o.Paused:
			state = "paused"
		case !o.Live:
			state = "silent"
		}
		rest := []any{
			cpuText(o.CPUFree) + "/" + cpuText(o.CPUMillis), sizeText(o.MemFree),
			priceText(o.CPUPrice), orDash(o.Region), orDash(o.Reachability), state,
		}
		if len(o.GPUs) == 0 {
			row(w, append([]any{peer, "-", "-", "-", "-"}, rest...)...)
		}
		for _, g := range o.GPUs {
			name := g.Model
			if g.Fake {
				name += " (fake)"
			}
			row(w, append([]any{peer, name, sizeText(g.VRAM), fmt.Sprintf("%d/%d", g.Free, g.Count), priceText(g.Price)}, rest...)...)
		}
	}
}
