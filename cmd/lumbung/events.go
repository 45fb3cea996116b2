package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

// recentEvents is how many events are shown where none are asked for by number.
const recentEvents = 100

func (a *app) eventsCmd() *cobra.Command {
	var follow bool
	var since uint64
	var only string
	cmd := &cobra.Command{
		Use:   "events [-f]",
		Short: "Show what happened on the node, and with -f what happens",
		Args:  takes(),
	}
	cmd.RunE = a.call(func(ctx context.Context, c *client.Client, _ []string) error {
		last, err := c.LastEvent(ctx)
		if err != nil {
			return err
		}
		from := since
		if !cmd.Flags().Changed("since") {
			from = last - min(last, recentEvents)
			if follow {
				from = last
			}
		}
		if !follow && from >= last {
			return nil
		}
		err = c.Events(ctx, from, func(e client.Event) error {
			if only == "" || e.Job == only {
				if err := a.showEvent(e); err != nil {
					return err
				}
			}
			if !follow && e.Seq >= last {
				return errOver
			}
			return nil
		})
		if errors.Is(err, errOver) {
			return nil
		}
		return err
	})
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "wait for more")
	cmd.Flags().Uint64Var(&since, "since", 0, "those after `number` N (default the last 100, or with -f only new ones)")
	cmd.Flags().StringVar(&only, "job", "", "only those of `JOB`, by its id")
	return a.withOutput(cmd)
}

func (a *app) showEvent(e client.Event) error {
	switch a.format {
	case "json", "jsonl":
		return a.encode(e, "")
	}
	what := e.Type
	if e.Job != "" {
		what += " " + e.Job
		if e.Type != "job" {
			what += fmt.Sprintf("/%d", e.Task)
		}
	}
	line := fmt.Sprintf("%6d  %s  %-24s %-10s", e.Seq, e.Time.Local().Format(time.TimeOnly), what, e.State)
	if e.Peer != "" {
		line += " " + peerText(e.Peer)
	}
	if e.Text != "" {
		line += "  " + e.Text
	}
	_, err := fmt.Fprintln(a.con.out, clean(line))
	return err
}
