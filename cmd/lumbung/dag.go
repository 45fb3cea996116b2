package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) dagCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "dag", Short: "Whole DAGs in and out, as CAR files"}
	cmd.AddCommand(a.dagExportCmd(), a.dagImportCmd())
	return cmd
}

// exported is what `dag export` wrote to a file.
type exported struct {
	CID   string `json:"cid"`
	File  string `json:"file"`
	Bytes uint64 `json:"bytes"` // of the file
}

func (a *app) dagExportCmd() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:   "export CID [FILE|-]",
		Short: "Write what a CID names, and all below it, as a CAR; to stdout without FILE",
		Long: "export writes a CARv1: the root first, then depth first, each block once, as `ipfs dag export` does. The same\n" +
			"CID always gives the same bytes. FILE is there when all of it is, and not before.",
		Example: "  lumbung dag export bafybeib… data.car\n" +
			"  lumbung dag export bafybeib… | ssh other lumbung dag import -",
		Args: takes("CID", "[FILE|-]"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			if len(args) == 2 && args[1] != "-" {
				return a.exportTo(ctx, c, args[0], args[1])
			}
			if a.con.outTTY {
				return usageErrf("a CAR is no text for a terminal: name a FILE, or send stdout somewhere else")
			}
			_, err := a.export(ctx, c, args[0], a.con.out)
			return err
		}),
	})
}

// exportTo writes a CAR to a file beside the one that is meant, and gives it its
// name when all is in it.
func (a *app) exportTo(ctx context.Context, c *client.Client, cid, name string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".part-*")
	if err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close() // it may be closed
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	n, err := a.export(ctx, c, cid, f)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return fmt.Errorf("name %s: %w", name, err)
	}
	out := exported{CID: cid, File: name, Bytes: n}
	return a.show(out, func(w io.Writer) { row(w, out.File, sizeText(out.Bytes)) })
}

func (a *app) export(ctx context.Context, c *client.Client, cid string, w io.Writer) (uint64, error) {
	m := a.newMeter("exporting")
	to := &metered{w: w, m: m}
	err := c.ExportDAG(ctx, cid, to)
	m.Done()
	return to.p.Done, err
}

func (a *app) dagImportCmd() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:   "import FILE|-",
		Short: "Take a CAR in, verify it and pin its roots; - is stdin",
		Long: "import takes CARs of version 1 and 2, and keeps their roots until `lumbung pin --rm`. Every block is verified.\n" +
			"One that is not what its CID says ends the import and is named; the blocks before it are kept.",
		Example: "  lumbung dag import data.car\n  ipfs dag export QmY7… | lumbung dag import -",
		Args:    takes("FILE|-"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			from, total, done, err := a.openCAR(args[0])
			if err != nil {
				return err
			}
			defer done()
			m := a.newMeter("importing")
			got, err := c.ImportDAG(ctx, from, func(p client.Progress) {
				p.Total = total
				m.Update(p)
			})
			m.Done()
			if err != nil {
				return err
			}
			a.con.Notef("%s in %s", sizeText(got.Bytes), plural(int(got.Blocks), "block")) //nolint:gosec // a count
			return a.show(got, func(w io.Writer) {
				for _, root := range got.Roots {
					row(w, root)
				}
			})
		}),
	})
}

// openCAR opens what is to be imported; total is 0 where nobody knows it.
func (a *app) openCAR(name string) (from io.Reader, total uint64, done func(), err error) {
	if name == "-" {
		if a.inTTY {
			return nil, 0, nil, usageErrf("stdin is a terminal: name a FILE, or send a CAR in")
		}
		return a.in, 0, func() {}, nil
	}
	f, err := os.Open(name) //nolint:gosec // the file that the user named
	if err != nil {
		return nil, 0, nil, withRemedy(fmt.Errorf("CAR: %w", err), "name a file that is there, or - for stdin")
	}
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		total = uint64(max(0, info.Size()))
	}
	return f, total, func() { _ = f.Close() }, nil
}

// metered tells a meter what passes through.
type metered struct {
	w io.Writer
	m *meter
	p client.Progress
}

func (m *metered) Write(b []byte) (int, error) {
	n, err := m.w.Write(b)
	m.p.Done += uint64(n) //nolint:gosec // what was written
	m.m.Update(m.p)
	return n, err
}
