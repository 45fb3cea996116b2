package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) devnetCmd() *cobra.Command {
	var o devnetOptions
	var cmd *cobra.Command
	cmd = &cobra.Command{
		Use:   "devnet [--providers N] [--fake-gpu rtx4090] [--seed S]",
		Short: "Start a whole network on this machine: bootstrap, providers and a renter",
		Long: "devnet starts a bootstrap node, providers and a renter as processes of their own on loopback, shows how to use\n" +
			"them, and stops them all at ^C. Money and, with --fake-gpu, cards are play things.",
		Args: takes(),
		RunE: a.do(func(ctx context.Context, _ []string) error {
			outliveReaders()
			if o.dir == "" && cmd.Flags().Changed("home") {
				o.dir = a.home
			}
			d, err := a.startDevnet(ctx, o)
			if err != nil {
				return err
			}
			defer d.stop()
			a.devnetHelp(d)
			return d.watch(ctx)
		}),
	}
	o.flags(cmd)
	return cmd
}

func (o *devnetOptions) flags(cmd *cobra.Command) {
	cmd.Flags().IntVar(&o.providers, "providers", 3, "`number` of providers, 1 to 32")
	cmd.Flags().StringVar(&o.fakeGPU, "fake-gpu", "", "give each provider `model`[:count] cards that are none")
	cmd.Flags().StringVar(&o.seed, "seed", "", "`word` that fixes the peer ids and the network's name")
	cmd.Flags().StringVar(&o.dir, "dir", "", "`folder` of the network, kept afterwards (default --home, else a temporary one)")
	cmd.Flags().IntVar(&o.cpus, "cpus", max(1, min(4, runtime.NumCPU())), "`cores` that each provider lets")
	cmd.Flags().StringVar(&o.memory, "memory", "4GB", "memory that each provider lets, a `size`")
}

func (a *app) devnetHelp(d *devnet) {
	a.con.Notef("")
	_ = a.table(func(w io.Writer) {
		row(w, "NODE", "PEER", "HOME")
		for _, n := range d.nodes {
			row(w, n.name, n.id.PeerID, n.home)
		}
	})
	for _, line := range []string{
		"",
		"the network " + d.network + " is up; in another terminal:",
		"  export LUMBUNG_HOME=" + d.renter().home,
		"  lumbung offers",
		"  lumbung run IMAGE COMMAND",
		"logs are in " + filepath.Join(d.dir, "*", "node.log") + "; ^C stops everything",
	} {
		a.con.Notef("%s", line)
	}
}

// watch waits for the end: a signal, or a node that died by itself.
func (d *devnet) watch(ctx context.Context) error {
	died := make(chan *devNode, len(d.nodes))
	for _, n := range d.nodes {
		go func() { // ends with its process, which stop ends
			<-n.proc.exited
			died <- n
		}()
	}
	gone := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			d.a.con.Notef("stopping %d nodes", len(d.nodes)-len(gone))
			if errors.Is(context.Cause(ctx), errInterrupted) {
				return nil
			}
			return context.Cause(ctx)
		case n := <-died:
			gone[n.name] = true
			d.a.con.Notef("%s %s ended; its log is %s", d.a.con.yellow("warning:"), n.name, n.proc.logFile)
			if len(gone) == len(d.nodes) {
				return errors.New("every node of the network has ended")
			}
		}
	}
}

// devnetDir makes the network's folder; temporary says that it goes afterwards.
func devnetDir(dir string) (path string, temporary bool, err error) {
	if dir == "" {
		path, err = os.MkdirTemp("", "lumbung-devnet-")
		if err != nil {
			return "", false, fmt.Errorf("folder of the network: %w", err)
		}
		return path, true, nil
	}
	if path, err = filepath.Abs(dir); err == nil {
		err = os.MkdirAll(path, 0o700)
	}
	if err != nil {
		return "", false, fmt.Errorf("folder of the network: %w", err)
	}
	if strings.ContainsAny(path, ",\n") {
		return "", false, usageErrf("--dir %s: no comma may be in it", path)
	}
	return path, false, nil
}
