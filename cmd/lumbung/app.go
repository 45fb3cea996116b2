package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lumbung-net/lumbung/node/client"
)

// app is what every command works with: where it reads and writes, and what the
// flags of all commands say.
type app struct {
	in      io.Reader
	con     *console
	inTTY   bool
	env     func(string) string
	now     func() time.Time
	signals <-chan os.Signal
	second  time.Duration // after the first ^C, in which another cancels
	args    []string
	home    string
	homeSet bool
	format  string // text, json or jsonl
}

func newApp(signals <-chan os.Signal) *app {
	a := &app{
		in: os.Stdin, inTTY: term.IsTerminal(int(os.Stdin.Fd())), env: os.Getenv, now: time.Now, signals: signals, second: secondChance,
		con: &console{
			out: os.Stdout, err: os.Stderr,
			outTTY: term.IsTerminal(int(os.Stdout.Fd())), errTTY: term.IsTerminal(int(os.Stderr.Fd())),
			width: terminalWidth(os.Stderr), outWidth: terminalWidth(os.Stdout),
		},
	}
	a.con.colour = a.con.errTTY && a.env("NO_COLOR") == "" && a.env("TERM") != "dumb"
	return a
}

// terminalWidth tells the columns of a terminal as they are now, 80 where it
// does not say.
func terminalWidth(f *os.File) func() int {
	return func() int {
		w, _, err := term.GetSize(int(f.Fd()))
		if err != nil || w < 20 {
			return 80
		}
		return w
	}
}

// main runs the command line and returns the exit code.
func (a *app) main(args []string) int {
	a.args = args
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.con.out)
	root.SetErr(a.con.err)
	return a.finish(root.ExecuteContext(context.Background()))
}

// interruptible gives a command a context that the first signal ends.
func (a *app) interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-a.signals:
			cancel(errInterrupted)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(context.Canceled) }
}

// do is the RunE of a command that a signal simply ends.
func (a *app) do(fn func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, stop := a.interruptible(cmd.Context())
		defer stop()
		if err := fn(ctx, args); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
		return nil
	}
}

// call is do for a command that talks to the node.
func (a *app) call(fn func(ctx context.Context, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return a.do(func(ctx context.Context, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		return fn(ctx, c, args)
	})
}

func (a *app) client() (*client.Client, error) {
	home, err := a.homeDir()
	if err != nil {
		return nil, err
	}
	return client.New(home)
}

// homeDir is the folder of the node: --home, LUMBUNG_HOME or the XDG data
// folder.
func (a *app) homeDir() (string, error) {
	dir := a.home
	if dir == "" {
		dir = a.env("LUMBUNG_HOME")
	}
	a.homeSet = dir != ""
	if dir == "" {
		base, err := a.dataDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(base, "lumbung")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", usageErrf("--home %s: %v", dir, err)
	}
	return abs, nil
}

func (a *app) dataDir() (string, error) {
	if dir := a.env("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return dir, nil
	}
	if runtime.GOOS == "windows" {
		if dir := a.env("LOCALAPPDATA"); dir != "" {
			return dir, nil
		}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", usageErrf("no folder for the node: neither --home, LUMBUNG_HOME nor HOME is set")
	}
	return filepath.Join(home, ".local", "share"), nil
}

// configDir is the folder of the configuration file where no home was named.
func (a *app) configDir() string {
	if dir := a.env("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "lumbung")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".config", "lumbung")
}

// versionText is what was built.
func versionText() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	rev, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-changed"
		}
	}
	if rev == "" {
		return "unknown"
	}
	return rev + dirty
}
