package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node/client"
)

func (a *app) runCmd() *cobra.Command {
	var f runFlags
	var detach, yes, dry bool
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND…]",
		Short: "Quote, submit and follow a job; exits with the job's own code",
		Long: "run asks providers for their price, submits the job and follows it: states and notices on stderr, the job's\n" +
			"own output where it belongs. It exits with the job's own code; 124 is a timeout, 125 a failure of lumbung,\n" +
			"126 and 127 a command that cannot be executed or found, 2 a job that nobody could take.\n\n" +
			"IMAGE is a name from `lumbung image ls`, oci:DIR, docker-archive:FILE, docker://ref or cid:….\n" +
			"The first ^C leaves the job running, a second one right after cancels it.",
		Example: "  lumbung run --gpus rtx4090 --in ./scene:/in --out /out:./frames oci:./blender blender -b /in/shot.blend\n" +
			"  lumbung run --array 1-240:4 --budget 12 --out /out:./frames oci:./blender render.sh",
		Args:              takes("IMAGE", "[COMMAND…]"),
		ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := f.request(cmd, args)
			if err != nil {
				return err
			}
			if err := a.readSecrets(&req); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			return a.runJob(cmd.Context(), c, req, runMode{detach: detach, yes: yes, dry: dry})
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "print the job's id and leave it running")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "quote only, submit nothing")
	return a.withOutput(cmd)
}

type runMode struct{ detach, yes, dry bool }

func (a *app) runJob(ctx context.Context, c *client.Client, req client.SubmitRequest, mode runMode) error {
	job, err := a.place(ctx, c, req, mode)
	if err != nil || job.ID == "" {
		return err
	}
	for _, p := range job.Spec.Ports {
		a.con.Notef("%s", portText(p))
	}
	if r := job.Spec.Ready; r != nil {
		a.con.Notef("billed from when GET %s on port %d of the container is answered, within %s", r.HTTP, r.Port, spanText(r.Within))
	}
	if job.Spec.IdleStop > 0 {
		a.con.Notef("ends when nobody has been connected to its ports for %s", spanText(job.Spec.IdleStop))
	}
	if mode.detach {
		a.con.Notef("follow it: lumbung logs -f %s; its files: lumbung get %s", job.ID, job.ID)
		return a.show(job, func(w io.Writer) { row(w, job.ID) })
	}
	f := newFollower(a, c, job.ID)
	d, err := f.attended(ctx)
	if err != nil {
		return err
	}
	return a.conclude(ctx, c, d)
}

// place quotes and submits; a signal until then means that nothing happens. No
// job and no error is a quote alone.
func (a *app) place(ctx context.Context, c *client.Client, req client.SubmitRequest, mode runMode) (client.Job, error) {
	ctx, stop := a.interruptible(ctx)
	defer stop()
	job, err := a.quoteAndSubmit(ctx, c, req, mode)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return client.Job{}, cause
	}
	return job, err
}

func (a *app) quoteAndSubmit(ctx context.Context, c *client.Client, req client.SubmitRequest, mode runMode) (client.Job, error) {
	q, err := a.askQuote(ctx, c, req)
	if err != nil {
		return client.Job{}, err
	}
	if mode.dry {
		return client.Job{}, a.showQuote(q)
	}
	if len(q.Bids) == 0 {
		return client.Job{}, &unplacedError{why: whyNot(q)}
	}
	a.con.Notef("%s", quoteLine(q))
	if !mode.yes && a.inTTY && a.con.errTTY {
		ok, err := a.ask(ctx, "submit it? [y/N] ")
		if err != nil {
			return client.Job{}, err
		}
		if !ok {
			a.con.Notef("nothing was submitted")
			return client.Job{}, fmt.Errorf("nothing was submitted: %w", errInterrupted)
		}
	}
	m := a.newMeter("submitting")
	defer m.Done()
	return c.Submit(ctx, req, m.Update)
}

// ask puts a question to the person at the terminal.
func (a *app) ask(ctx context.Context, question string) (bool, error) {
	if _, err := io.WriteString(a.con.err, question); err != nil {
		return false, fmt.Errorf("asking: %w", err)
	}
	answer := make(chan string, 1)
	go func() { // ends with the process where nobody answers
		line, _ := bufio.NewReader(a.in).ReadString('\n')
		answer <- line
	}()
	select {
	case <-ctx.Done():
		return false, context.Cause(ctx)
	case line := <-answer:
		line = strings.ToLower(strings.TrimSpace(line))
		return line == "y" || line == "yes", nil
	}
}
