package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node"
	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) statusCmd() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:   "status",
		Short: "Show the node at a glance",
		Args:  takes(),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			s, err := c.Status(ctx)
			if err != nil {
				return err
			}
			return a.show(s, func(w io.Writer) { a.showStatus(w, s) })
		}),
	})
}

func (a *app) showStatus(w io.Writer, s client.Status) {
	row(w, "node", s.PeerID)
	row(w, "network", s.Network)
	row(w, "roles", strings.Join(s.Roles, ", "))
	row(w, "running", fmt.Sprintf("pid %d, started %s, %s, %s of memory", s.PID, ageText(s.Started, a.now()), s.Version, sizeText(s.Memory)))
	row(w, "home", s.Home)
	row(w, "peers", fmt.Sprintf("%d connected, %d in the DHT, reachability %s", s.Peers, s.DHTPeers, s.Reachable))
	row(w, "store", fmt.Sprintf("%s in %d blocks, %s on disk", sizeText(s.Store.Bytes), s.Store.Blocks, sizeText(s.Store.Disk)))
	for _, t := range s.Transfers {
		row(w, transferName(t), transferText(t))
	}
	if r := s.Renter; r != nil && (slices.Contains(s.Roles, node.RoleRenter) || r.Open > 0 || !r.Spent.IsZero()) {
		row(w, "renting", fmt.Sprintf("%s under way, %s active, %s spent", plural(r.Open, "job"), plural(r.Tasks, "task"), moneyText(r.Spent)))
	}
	if p := s.Provider; p != nil {
		row(w, "letting", fmt.Sprintf("%s, %s, %s earned", p.State, plural(p.Leases, "lease"), moneyText(p.Earned)))
		row(w, "  free", fmt.Sprintf("%s of %s cores, %s of %s memory, %s of %s disk", cpuText(p.CPUFree), cpuText(p.CPUMillis),
			sizeText(p.MemFree), sizeText(p.Memory), sizeText(p.DiskFree), sizeText(p.Disk)))
		for _, g := range p.GPUs {
			fake := ""
			if g.Fake {
				fake = " (fake)"
			}
			row(w, "  GPU", fmt.Sprintf("%d of %d %s%s free, %s each, %s", g.Free, g.Count, g.Model, fake, sizeText(g.VRAM), priceText(g.Price)))
		}
		row(w, "  prices", fmt.Sprintf("core %s, GPU %s", priceText(p.Prices.CPU), priceText(p.Prices.GPU)))
		row(w, "  sandbox", p.Sandbox)
	}
	for _, warning := range s.Warnings {
		row(w, "warning", warning)
	}
}

func transferName(t client.Transfer) string {
	if t.Direction == "in" {
		return "fetching"
	}
	return "serving"
}

// transferText says what is moved, how far it is and how fast.
func transferText(t client.Transfer) string {
	what := "blocks"
	if t.Root != "" {
		what = peerText(t.Root)
	}
	if t.Direction != "in" {
		return fmt.Sprintf("%s to %s: %s, %s/s", what, peerText(t.Peer), sizeText(t.Bytes), sizeText(t.Rate))
	}
	text := fmt.Sprintf("%s from %s: %s of %s, %s/s", what, plural(t.Peers, "peer"), sizeText(t.Bytes), sizeText(max(t.Total, t.Bytes)), sizeText(t.Rate))
	if t.ETA > 0 {
		text += fmt.Sprintf(", %s left", t.ETA)
	}
	return text
}
