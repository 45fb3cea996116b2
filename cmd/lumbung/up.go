package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node"
	"github.com/lumbung-net/lumbung/node/client"
)

type upMode struct {
	detach     bool
	logFile    string
	withParent bool
}

func (a *app) upCmd() *cobra.Command {
	var m upMode
	cmd := &cobra.Command{
		Use:   "up [-d] [--role renter,provider,bootstrap]",
		Short: "Start the node: a renter by default",
		Long: "up starts the node of a home and stays in the foreground; with -d it leaves it running and returns once the\n" +
			"node answers. Every setting may also stand in the environment, as LUMBUNG_NAME, or in config.yaml in the home\n" +
			"(or in the XDG configuration folder where no home is named), as `name: value`. Flags win over the environment,\n" +
			"the environment over the file.",
		Example: "  lumbung up -d --bootstrap /ip4/203.0.113.7/tcp/4011/p2p/12D3KooW…\n" +
			"  lumbung up --role provider --price-gpu 0.35\n" +
			"  lumbung up --role bootstrap --listen /ip4/0.0.0.0/tcp/4011 --public /dns4/boot.example.net/tcp/4011",
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			outliveReaders()
			cfg, err := a.nodeConfig(cmd)
			if err != nil {
				return err
			}
			ctx, stop := a.interruptible(cmd.Context())
			defer stop()
			if err := a.nobodyThere(ctx, cfg.Home); err != nil {
				return err
			}
			if m.detach {
				return a.upDetached(ctx, cfg, m)
			}
			return a.up(ctx, cfg, m)
		},
	}
	nodeFlags(cmd)
	cmd.Flags().BoolVarP(&m.detach, "detach", "d", false, "leave the node running; its log goes to node.log in the home")
	cmd.Flags().StringVar(&m.logFile, "log-file", "", "write the log to `file`, which is rotated by size")
	cmd.Flags().BoolVar(&m.withParent, "with-parent", false, "end, with all jobs, when stdin does")
	_ = cmd.Flags().MarkHidden("with-parent")
	return cmd
}

// nobodyThere says who holds a home that is in use.
func (a *app) nobodyThere(ctx context.Context, home string) error {
	c, err := client.New(home)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	s, err := c.Status(ctx)
	if err != nil {
		return nil //nolint:nilerr // nobody answers; the node's own lock decides
	}
	return withRemedy(
		fmt.Errorf("a node runs already in %s: process %d, peer %s, up since %s", home, s.PID, s.PeerID, s.Started.Local().Format(time.DateTime)),
		"lumbung status, or lumbung down, or --home DIR for one more node",
	)
}

// up runs a node until a signal or a shutdown.
func (a *app) up(ctx context.Context, cfg node.Config, m upMode) (err error) {
	log, closeLog, err := a.nodeLog(cfg, m)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeLog()) }()
	n, err := node.New(ctx, cfg, log)
	if err != nil {
		return err
	}
	if m.logFile == "" {
		a.banner(n, cfg)
	}
	go a.secondSignal(ctx)
	if m.withParent {
		go endWithParent(ctx, cfg.Home)
	}
	return errors.Join(n.Run(ctx), n.Close())
}

// secondSignal ends the process where the first signal's way out takes too long.
func (a *app) secondSignal(ctx context.Context) {
	<-ctx.Done()
	<-a.signals
	a.con.Notef("stopped in the middle of shutting down")
	os.Exit(exitInterrupt)
}

// partingTime is how long a node that lost its parent may take to end.
const partingTime = 25 * time.Second

// endWithParent shuts the node and its jobs down when stdin ends: it does when
// the process that started this one is gone, however that came.
func endWithParent(ctx context.Context, home string) {
	_, _ = io.Copy(io.Discard, os.Stdin)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), partingTime)
	defer cancel()
	if c, err := client.New(home); err == nil {
		_ = c.Shutdown(ctx, true)
		_ = c.Close()
	}
	<-ctx.Done() // the process ends before, unless something hangs
	os.Exit(exitFailed)
}

func (a *app) nodeLog(cfg node.Config, m upMode) (*slog.Logger, func() error, error) {
	level := slog.LevelInfo
	to := a.con.err
	closer := func() error { return nil }
	switch {
	case m.logFile != "":
		f, err := openLog(m.logFile)
		if err != nil {
			return nil, nil, err
		}
		to, closer = f, f.Close
	case a.con.errTTY:
		level = slog.LevelWarn
	}
	if cfg.Debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(to, &slog.HandlerOptions{Level: level})), closer, nil
}

// banner says who the node is and what to do next.
func (a *app) banner(n *node.Node, cfg node.Config) {
	_ = a.table(func(w io.Writer) {
		row(w, "peer", n.PeerID())
		row(w, "network", cfg.Network)
		row(w, "roles", strings.Join(cfg.Roles, ", "))
		row(w, "home", cfg.Home)
		rows(w, "addresses", n.Addrs())
		rowAPI(w, cfg)
	})
	for _, line := range nextSteps(cfg) {
		a.con.Notef("%s", line)
	}
}

// rowAPI says how programs reach the API over TCP, where that was asked for.
func rowAPI(w io.Writer, cfg node.Config) {
	if cfg.API != "" {
		row(w, "API", "http://"+cfg.API+", for callers with the token in "+filepath.Join(cfg.Home, "api.token"))
	}
}

// nextSteps are the commands that a newcomer needs after `lumbung up`.
func nextSteps(cfg node.Config) []string {
	out := []string{"", "in another terminal:"}
	if cfg.Has(node.RoleRenter) {
		out = append(out, "  lumbung offers                  who lets what", "  lumbung run IMAGE COMMAND       run a job there")
	}
	if cfg.Has(node.RoleProvider) {
		out = append(out, "  lumbung status                  what is free, what runs, what was earned", "  lumbung doctor --role provider  what holds jobs back from this machine")
	}
	if cfg.Has(node.RoleBootstrap) {
		out = append(out, "  lumbung id                      the addresses that others give to --bootstrap", "  lumbung netcheck                whether they can reach it")
	}
	if len(cfg.Bootstrap) == 0 && !cfg.Has(node.RoleBootstrap) {
		out = append(out, "", "this node knows no other: join a network with --bootstrap ADDRESS, or see one with lumbung devnet")
	}
	return append(out, "^C ends it")
}

// startWait is how long a detached node may take until it answers.
const startWait = 60 * time.Second

// upDetached starts the node as a process of its own and waits until it answers.
func (a *app) upDetached(ctx context.Context, cfg node.Config, m upMode) error {
	if m.logFile == "" {
		m.logFile = filepath.Join(cfg.Home, "node.log")
	}
	if err := os.MkdirAll(cfg.Home, 0o700); err != nil {
		return fmt.Errorf("make the node's home: %w", err)
	}
	p, err := startProcess(ctx, process{
		args:    detachedArgs(a.args, m.logFile),
		logFile: m.logFile,
	})
	if err != nil {
		return err
	}
	c, err := client.New(cfg.Home)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	meter := a.newMeter("starting the node")
	s, err := p.answers(ctx, c, startWait)
	meter.Done()
	if err != nil {
		if ctx.Err() != nil {
			p.kill()
		}
		return err
	}
	a.con.Notef("the node is up: process %d, log in %s", s.PID, m.logFile)
	return a.table(func(w io.Writer) {
		row(w, "peer", s.PeerID)
		row(w, "network", s.Network)
		row(w, "roles", strings.Join(s.Roles, ", "))
		rows(w, "addresses", s.Addrs)
		rowAPI(w, cfg)
	})
}

// detachedArgs are this process's arguments for the node that it leaves running:
// the last -d counts, however the first is spelled, so that the node does not
// detach once more, and its own not again.
func detachedArgs(args []string, logFile string) []string {
	return append(slices.Clone(args), "--detach=false", "--log-file", logFile)
}
