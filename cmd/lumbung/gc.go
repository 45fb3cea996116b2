package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) gcCmd() *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Give back the room of blocks that nothing needs",
		Long: "gc removes the blocks that no image, pin or job needs, and gives their room back to the disk.\n" +
			"Everything goes on meanwhile.\n\n" +
			"With --check it removes nothing that is sound: it reads every block and compares it with the digest that\n" +
			"names it. Damaged ones are taken out of the store, so that nobody is given them, and are told with their\n" +
			"place on the disk and with what needs them; they can be fetched again. It exits with 1 when there are any.",
		Example: "  lumbung gc\n  lumbung gc --check -o json",
		Args:    takes(),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			if check {
				return a.checkBlocks(ctx, c)
			}
			m := a.newMeter("collecting")
			got, err := c.GC(ctx)
			m.Done()
			if err != nil {
				return err
			}
			return a.show(got, func(w io.Writer) { row(w, fmt.Sprintf("%d blocks, %s", got.Blocks, sizeText(got.Bytes))) })
		}),
	}
	cmd.Flags().BoolVar(&check, "check", false, "read every block and take out the damaged ones, instead of collecting")
	return a.withOutput(cmd)
}

func (a *app) checkBlocks(ctx context.Context, c *client.Client) error {
	m := a.newMeter("checking")
	got, err := c.CheckBlocks(ctx, m.Update)
	m.Done()
	if err != nil {
		return err
	}
	e := ending{ExitSource: sourceLumbung}
	if got.Damaged > 0 {
		e.Code, e.Remedy = exitFailed, "lumbung pin ROOT fetches the damaged blocks again from whoever has them; and check the disk"
	}
	doc := struct {
		client.Checked
		ending
	}{got, e}
	if err := a.show(doc, func(w io.Writer) { showChecked(w, got) }); err != nil || e.Code == 0 {
		return err
	}
	a.con.Notef("the damaged blocks were taken out of the store")
	a.con.Notef("  try: %s", e.Remedy)
	return e.exit()
}

func showChecked(w io.Writer, got client.Checked) {
	row(w, fmt.Sprintf("%d blocks, %s, %d damaged", got.Blocks, sizeText(got.Bytes), got.Damaged))
	if len(got.Found) == 0 {
		return
	}
	row(w, "")
	row(w, "BLOCK", "PACK", "OFFSET", "SIZE", "ROOT", "NEEDED BY", "WHY")
	for _, d := range got.Found {
		if len(d.Roots) == 0 {
			d.Roots = []client.DamagedRoot{{CID: "-", What: "nothing"}}
		}
		for _, r := range d.Roots {
			if r.What == "" {
				r.What = "a job"
			}
			row(w, d.CID, d.Pack, fmt.Sprint(d.Offset), sizeText(d.Bytes), r.CID, r.What, d.Reason)
		}
	}
	if more := got.Damaged - uint64(len(got.Found)); more > 0 {
		row(w, fmt.Sprintf("… and %d more", more))
	}
}
