package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) execCmd() *cobra.Command {
	var stdin, tty bool
	task := 0
	cmd := &cobra.Command{
		Use:               "exec [-it] JOB -- CMD…",
		Short:             "Run a command in a job's container and exit with its code",
		Args:              takes("JOB", "--", "CMD…"),
		ValidArgsFunction: a.completeJobs,
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			command := args[1:]
			if command[0] == "--" {
				command = command[1:]
			}
			return a.exec(ctx, c, args[0], client.ExecRequest{Task: task, Command: command, TTY: tty}, stdin)
		}),
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&stdin, "interactive", "i", false, "pass stdin on")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	cmd.Flags().IntVar(&task, "task", 0, "in `task` N of an array")
	return cmd
}

func (a *app) exec(ctx context.Context, c *client.Client, ref string, r client.ExecRequest, stdin bool) error {
	var in io.Reader
	if stdin {
		in = a.in
	}
	var resize chan [2]int
	if r.TTY {
		if !a.inTTY || !a.con.outTTY {
			return usageErrf("-t needs a terminal on stdin and stdout; leave it away in scripts")
		}
		fd := int(os.Stdin.Fd())
		if cols, rows, err := term.GetSize(fd); err == nil {
			r.Rows, r.Cols = rows, cols
		}
		old, err := term.MakeRaw(fd)
		if err != nil {
			return fmt.Errorf("the terminal: %w", err)
		}
		defer func() { _ = term.Restore(fd, old) }()
		resize = make(chan [2]int, 1)
		defer watchSize(fd, resize)()
	}
	code, err := c.Exec(ctx, ref, r, in, a.con.out, a.con.err, resize)
	if err != nil {
		return err
	}
	if code != 0 {
		return &exitError{code: code}
	}
	return nil
}
