package main

import (
	"context"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) catCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "cat CID[/PATH]",
		Short: "Write a file's content to stdout",
		Args:  takes("CID[/PATH]"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			if a.con.outTTY { // the file itself is what is seen to come
				return c.Cat(ctx, args[0], a.con.out)
			}
			return a.catMetered(ctx, c, args[0])
		}),
	}
}

// catMetered shows how far a file is: first fetched, where it is not here, then
// written.
func (a *app) catMetered(ctx context.Context, c *client.Client, path string) error {
	list, err := c.List(ctx, path)
	if err != nil {
		return err
	}
	file := client.DirEntry{}
	if len(list) == 1 {
		file = list[0]
	}
	m := a.newMeter("cat")
	defer m.Done()
	to := &metered{w: a.con.out, m: m}
	to.p.Total = file.Size
	watching, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { watchFetch(watching, c, file.CID, m) })
	defer watch.Wait()
	defer stop()
	return c.Cat(ctx, path, writerFunc(func(p []byte) (int, error) {
		stop()
		watch.Wait()
		return to.Write(p)
	}))
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// fetchLook is how often a fetch is looked at.
const fetchLook = 500 * time.Millisecond

// watchFetch shows what the node fetches under a root, until ctx ends.
func watchFetch(ctx context.Context, c *client.Client, root string, m *meter) {
	for sleep(ctx, fetchLook) == nil {
		s, err := c.Status(ctx)
		if err != nil {
			continue // cat says what is wrong
		}
		for _, t := range s.Transfers {
			if t.Direction == "in" && t.Root == root {
				m.Update(client.Progress{Phase: "fetching", Done: t.Bytes, Total: t.Total})
			}
		}
	}
}
