package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"

	"github.com/google/subcommands"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/control/client"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/lumbung-net/lumbung/job/sandbox/runsc/outbound"
)

// envLink holds the number of the descriptor that "run" makes the container's
// network interface of. Package sandbox sets it.
const envLink = "LUMBUNG_NET"

// linkOf finds it, for the command that it is meant for.
func linkOf(args []string, value string) (*os.File, error) {
	if value == "" || !slices.Contains(args, "run") {
		return nil, nil
	}
	fd, err := strconv.Atoi(value)
	if err != nil {
		return nil, fmt.Errorf("%s=%q: %w", envLink, value, err)
	}
	unix.CloseOnExec(fd) // neither the sandbox nor its gofer gets it but by our hand
	return os.NewFile(uintptr(fd), "link"), nil
}

// runLinked is the one command of a process that has a link.
func runLinked(link *os.File) {
	cli.Run(nil, map[util.SubCommand]string{&linkedRun{link: link}: ""}, nil)
}

// linkedRun is "run" for a container with a network of ours. gVisor configures
// one from a network namespace, which needs root, or none: here the sandbox is
// created with none and gets its interface by the same call that gVisor makes.
type linkedRun struct {
	cmd.Run
	link *os.File
}

// Execute implements subcommands.Command.
func (r *linkedRun) Execute(_ context.Context, f *flag.FlagSet, args ...any) subcommands.ExitStatus {
	conf, status := args[0].(*config.Config), args[1].(*unix.WaitStatus)
	if conf.Network != config.NetworkNone {
		return util.Errorf("a link goes with --network=none alone")
	}
	if conf.Rootless {
		if err := specutils.MaybeRunAsRoot(); err != nil {
			return util.Errorf("Error executing inside namespace: %v", err)
		}
	}
	id, spec, err := r.FetchSpec(conf, f)
	if err != nil {
		return util.Errorf("FetchSpec: %v", err)
	}
	ws, err := r.run(conf, container.Args{
		ID: id, Spec: spec, BundleDir: f.Lookup("bundle").Value.String(),
		PIDFile: f.Lookup("pid-file").Value.String(), Attached: true,
	})
	if err != nil {
		// The words of gVisor's own, which package sandbox reads.
		return util.Errorf("running container: %v", err)
	}
	*status = ws
	return subcommands.ExitSuccess
}

func (r *linkedRun) run(conf *config.Config, args container.Args) (unix.WaitStatus, error) {
	c, err := container.New(conf, args)
	if err != nil {
		return 0, fmt.Errorf("creating container: %w", err)
	}
	running := false
	defer func() {
		if !running {
			_ = c.Destroy()
		}
	}()
	if err := setLink(c.Sandbox.ControlSocketPath, conf, r.link); err != nil {
		return 0, fmt.Errorf("setting up network: %w", err)
	}
	if err := r.link.Close(); err != nil {
		return 0, err
	}
	// To gVisor's Start this kind of network is one that it has nothing to set up
	// for. The sandbox itself was made with none, and goes by that.
	ready := *conf
	ready.Network = config.NetworkHost
	if err := c.Start(&ready); err != nil {
		return 0, fmt.Errorf("starting container: %w", err)
	}
	running = true
	return c.Wait()
}

// setLink tells a sandbox that has not started what its network is.
func setLink(socket string, conf *config.Config, link *os.File) error {
	// By descriptor, as the path may be longer than a socket's address can be.
	fd, err := unix.Open(socket, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", socket, err)
	}
	defer func() { _ = unix.Close(fd) }()
	conn, err := client.ConnectTo("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return conn.Call(boot.ContMgrSetNetworkArgs, networkArgs(conf, link), nil)
}

func networkArgs(conf *config.Config, link *os.File) *boot.CreateLinksAndRoutesArgs {
	loopback := boot.DefaultLoopbackLink
	loopback.GVisorGRO = conf.GVisorGRO
	args := &boot.CreateLinksAndRoutesArgs{
		FilePayload:   urpc.FilePayload{Files: []*os.File{link}},
		LoopbackLinks: []boot.LoopbackLink{loopback},
		FDBasedLinks: []boot.FDBasedLink{{
			Name: outbound.InterfaceName, MTU: outbound.MTU, NumChannels: 1, ProcessorsPerChannel: 1,
			// The packets never leave memory.
			TXChecksumOffload: true, RXChecksumOffload: true,
			GSOMaxSize: stack.GVisorGSOMaxSize, GVisorGSOEnabled: true, GVisorGRO: conf.GVisorGRO,
			QDisc: config.QDiscFIFO,
		}},
	}
	l := &args.FDBasedLinks[0]
	for _, a := range []struct {
		addr    string
		gateway net.IP
		to      *boot.DefaultRoute
	}{
		{outbound.Addr4.String(), outbound.Gateway4.AsSlice(), &args.Defaultv4Gateway},
		{outbound.Addr6.String(), outbound.Gateway6.AsSlice(), &args.Defaultv6Gateway},
	} {
		ip, on, err := net.ParseCIDR(a.addr)
		if err != nil {
			panic(err) // a constant
		}
		ones, bits := on.Mask.Size()
		l.Addresses = append(l.Addresses, boot.IPWithPrefix{Address: ip, PrefixLen: ones})
		l.Routes = append(l.Routes, boot.Route{Destination: *on})
		all := net.IPNet{IP: make(net.IP, bits/8), Mask: make(net.IPMask, bits/8)}
		*a.to = boot.DefaultRoute{Name: l.Name, Route: boot.Route{Destination: all, Gateway: a.gateway}}
	}
	return args
}
