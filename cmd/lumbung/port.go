package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/node/client"
)

// maxLocalConns bounds the connections that one `lumbung port` carries.
const maxLocalConns = 256

func (a *app) portCmd() *cobra.Command {
	task := 0
	cmd := &cobra.Command{
		Use:   "port JOB LOCAL:REMOTE…",
		Short: "Reach ports of a job's container from this machine",
		Long: "port listens on 127.0.0.1:LOCAL and leads each connection to the port REMOTE of the job's container, through\n" +
			"the network's own encrypted streams: the container needs no network. REMOTE alone takes any free local port.\n" +
			"It ends with ^C or with the job. `lumbung run -p` and `ports:` of a job file do the same for a job's whole life.",
		Example:           "  lumbung port myjob 8080:80",
		Args:              takes("JOB", "LOCAL:REMOTE…"),
		ValidArgsFunction: a.completeJobs,
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			ports := make([]job.PortSpec, 0, len(args)-1)
			for _, text := range args[1:] {
				p, err := job.ParsePort(text)
				if err != nil {
					return usageErrf("%w", err)
				}
				ports = append(ports, p)
			}
			return a.forward(ctx, c, args[0], task, ports)
		}),
	}
	cmd.Flags().IntVar(&task, "task", 0, "of `task` N of an array")
	return cmd
}

func portText(p job.PortSpec) string {
	return fmt.Sprintf("127.0.0.1:%d leads to port %d of the container", p.Local, p.Remote)
}

// forward carries connections until the job is over or ctx ends.
func (a *app) forward(ctx context.Context, c *client.Client, ref string, task int, ports []job.PortSpec) error {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	slots := make(chan struct{}, maxLocalConns)
	var lc net.ListenConfig
	for _, p := range ports {
		ln, err := lc.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(p.Local))))
		if err != nil {
			return &usageError{err: fmt.Errorf("port %d of this machine: %w", p.Local, err), remedy: fmt.Sprintf("choose another local port, or none: %d", p.Remote)}
		}
		a.con.Notef("%s leads to port %d of job %s; ^C ends it", ln.Addr(), p.Remote, ref)
		group.Go(func() { a.carry(ctx, c, ln, ref, task, p.Remote, slots, &group) })
	}
	d, err := c.WaitJob(ctx, ref)
	if err != nil {
		return err
	}
	a.con.Notef("job %s is over: %s", d.Job.ID, d.Job.State)
	return nil
}

func (a *app) carry(ctx context.Context, c *client.Client, ln net.Listener, ref string, task int, port uint16, slots chan struct{}, group *sync.WaitGroup) {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				a.con.Notef("port %d is closed: %v", port, err)
			}
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			a.con.Notef("port %d: over %d connections at once, one more was turned away", port, maxLocalConns)
			_ = conn.Close()
			continue
		}
		group.Go(func() {
			defer func() { <-slots }()
			a.carryOne(ctx, c, conn.(*net.TCPConn), ref, task, port)
		})
	}
}

func (a *app) carryOne(ctx context.Context, c *client.Client, conn *net.TCPConn, ref string, task int, port uint16) {
	far, err := c.Connect(ctx, ref, task, port)
	if err != nil {
		if ctx.Err() == nil {
			a.con.Notef("port %d: %v", port, err)
		}
		_ = conn.SetLinger(0) // as a reset
		_ = conn.Close()
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = far.Close(); _ = conn.Close() })
	defer stop()
	sandbox.Join(conn, far)
}
