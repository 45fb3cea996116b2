package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

// addedPath is what one path of `lumbung add` became.
type addedPath struct {
	Path string `json:"path"`
	client.Added
}

func (a *app) addCmd() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "add PATH…|-",
		Short: "Make content-addressed blocks of files or folders and print the CID of each",
		Long: "add makes the blocks that `ipfs add` makes under the unixfs-v1-2025 profile, and pins them: they stay until\n" +
			"`lumbung pin --rm CID`. Files that have not changed since they were last added (by size, times and inode) are\n" +
			"not read again. - is a file that comes from stdin.",
		Example: "  lumbung add ./project ./weights.safetensors\n  tar c . | lumbung add -q -",
		Args:    takes("PATH…|-"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			var all []addedPath
			for _, path := range args {
				added, err := a.addOne(ctx, c, path)
				if err != nil {
					return err
				}
				if !quiet {
					a.con.Notef("%s in %s", sizeText(added.Bytes), plural(added.Files, "file"))
				}
				all = append(all, addedPath{path, added})
			}
			if len(all) == 1 {
				return a.show(all[0], func(w io.Writer) { row(w, all[0].CID) })
			}
			return showList(a, all, func(w io.Writer) {
				for _, p := range all {
					if quiet {
						row(w, p.CID)
					} else {
						row(w, p.CID, p.Path)
					}
				}
			})
		}),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print CIDs and nothing else")
	return a.withOutput(cmd)
}

func (a *app) addOne(ctx context.Context, c *client.Client, path string) (client.Added, error) {
	if path == "-" {
		if a.inTTY {
			return client.Added{}, usageErrf("- reads a file from stdin, which is a terminal: name a PATH, or send something there")
		}
		m := a.newMeter("adding stdin")
		defer m.Done()
		return c.AddStream(ctx, a.in, m.Update)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return client.Added{}, fmt.Errorf("%s: %w", path, err)
	}
	m := a.newMeter("adding " + filepath.Base(abs))
	defer m.Done()
	return c.Add(ctx, client.PathRequest{Path: abs}, m.Update)
}

func (a *app) lsCmd() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:   "ls CID[/PATH]",
		Short: "List a folder: kinds, sizes and CIDs of what is in it",
		Long: "ls lists the folder that a CID, or a path below it, leads to, or the one file. Where the folder is not in this\n" +
			"node's store its own blocks are fetched from peers that have it, and not the files in it.",
		Args: takes("CID[/PATH]"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			m := a.newMeter("looking for " + args[0])
			list, err := c.List(ctx, args[0])
			m.Done()
			if err != nil {
				return err
			}
			return showList(a, list, func(w io.Writer) {
				row(w, "KIND", "MODE", "SIZE", "NAME", "CID")
				for _, e := range list {
					size := "-"
					if e.Kind == "file" {
						size = sizeText(e.Size)
					}
					row(w, e.Kind, fmt.Sprintf("%04o", e.Mode), size, orDash(e.Name), e.CID)
				}
			})
		}),
	})
}

// getPath writes what a CID and a path below it lead to to the disk.
func (a *app) getPath(ctx context.Context, c *client.Client, path, dest string) error {
	if dest == "" {
		dest = filepath.Base(path)
	}
	abs, err := filepath.Abs(dest)
	if err != nil {
		return fmt.Errorf("%s: %w", dest, err)
	}
	m := a.newMeter("fetching " + path)
	got, err := c.GetPath(ctx, client.GetRequest{Path: path, Dest: abs}, m.Update)
	m.Done()
	if err != nil {
		return err
	}
	if n := len(got.Skipped); n > 0 {
		a.con.Notef("%s that lead outside were left out, the first is %s", plural(n, "link"), got.Skipped[0])
	}
	return a.show(got, func(w io.Writer) { row(w, got.Path, plural(int(got.Files), "file"), sizeText(got.Bytes)) }) //nolint:gosec // bounded by the export
}
