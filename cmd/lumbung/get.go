package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) getCmd() *cobra.Command {
	task := client.AllTasks
	cmd := &cobra.Command{
		Use:   "get JOB|CID[/PATH] [DIR]",
		Short: "Fetch what a job has put out, a failed one too, or what a CID names; to DIR, or to where the job says",
		Long: "get JOB writes a job's outputs to where the job says, or below DIR. While the job runs that is what it streams,\n" +
			"as it was last.\n\n" +
			"get CID[/PATH] writes a file or folder of a DAG, fetching what is not here; without DIR beside you, under its\n" +
			"own name. A word that is a CID is taken as one.",
		Args:              takes("JOB|CID[/PATH]", "[DIR]"),
		ValidArgsFunction: a.completeJobs,
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			dest := ""
			if isCIDPath(args[0]) {
				return a.getPath(ctx, c, args[0], strings.Join(args[1:], ""))
			}
			if len(args) == 2 {
				abs, err := filepath.Abs(args[1])
				if err != nil {
					return fmt.Errorf("%s: %w", args[1], err)
				}
				dest = abs
			}
			m := a.newMeter("fetching outputs")
			got, err := c.GetOutputs(ctx, args[0], dest, task, m.Update)
			m.Done()
			if err != nil {
				return err
			}
			a.con.Notef("%s", fetchedLine(got))
			for _, t := range got.Tasks {
				if t.Partial {
					a.con.Notef("task %d is not over: these are its streamed outputs as they were last", t.Task)
				}
			}
			return a.showFetched(got)
		}),
	}
	cmd.Flags().IntVar(&task, "task", client.AllTasks, "only `task` N of an array (default all)")
	return a.withOutput(cmd)
}

// isCIDPath tells a CID, with a path below it or without, from a job. A job's id
// is far shorter than any CID.
func isCIDPath(s string) bool {
	rest, ipfs := strings.CutPrefix(s, "/ipfs/")
	name, _, _ := strings.Cut(rest, "/")
	_, err := cid.Decode(name)
	return ipfs || err == nil
}
