package main

import (
	"context"
	"fmt"

	"github.com/google/subcommands"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"
)

// restoreName is the command that package sandbox starts a container with whose
// state was saved.
const restoreName = "lumbung-restore"

// restore is what `runsc run` is, from a saved state. Upstream's own command of
// that kind refuses rootless mode, for a reason of how it would be started:
// here the supervisor has the namespaces already, as it has for `run`.
type restore struct {
	bundle, pidFile, image string
	spec                   *specs.Spec
}

var _ util.SubCommand = (*restore)(nil)

// Name implements subcommands.Command.
func (*restore) Name() string { return restoreName }

// Synopsis implements subcommands.Command.
func (*restore) Synopsis() string { return "run a container from a saved state" }

// Usage implements subcommands.Command.
func (*restore) Usage() string {
	return restoreName + " [flags] <container id> - run a container from a saved state.\n"
}

// SetFlags implements subcommands.Command.
func (r *restore) SetFlags(f *flag.FlagSet) {
	f.StringVar(&r.bundle, "bundle", "", "folder of config.json")
	f.StringVar(&r.pidFile, "pid-file", "", "where to write the sandbox's process id")
	f.StringVar(&r.image, "image-path", "", "folder of the saved state")
}

// FetchSpec implements util.SubCommand.
func (r *restore) FetchSpec(conf *config.Config, f *flag.FlagSet) (string, *specs.Spec, error) {
	if f.NArg() != 1 {
		return "", nil, fmt.Errorf("a container id is required")
	}
	if r.spec == nil {
		spec, err := specutils.ReadSpec(r.bundle, conf)
		if err != nil {
			return "", nil, fmt.Errorf("reading spec: %w", err)
		}
		r.spec = spec
	}
	return f.Arg(0), r.spec, nil
}

// Execute implements subcommands.Command.
func (r *restore) Execute(_ context.Context, f *flag.FlagSet, args ...any) subcommands.ExitStatus {
	conf := args[0].(*config.Config)
	if conf.Rootless {
		if err := specutils.MaybeRunAsRoot(); err != nil {
			return util.Errorf("Error executing inside namespace: %v", err)
		}
	}
	id, spec, err := r.FetchSpec(conf, f)
	if err != nil {
		return util.Errorf("FetchSpec: %v", err)
	}
	status, err := r.run(conf, id, spec)
	if err != nil {
		return util.Errorf("restoring container: %v", err)
	}
	*args[1].(*unix.WaitStatus) = status
	return subcommands.ExitSuccess
}

func (r *restore) run(conf *config.Config, id string, spec *specs.Spec) (unix.WaitStatus, error) {
	c, err := container.New(conf, container.Args{
		ID: id, Spec: spec, BundleDir: r.bundle, PIDFile: r.pidFile, Attached: true,
	})
	if err != nil {
		return 0, fmt.Errorf("creating container: %w", err)
	}
	defer func() { _ = c.Destroy() }()
	if err := c.Restore(conf, r.image, false, false, nil); err != nil {
		return 0, err
	}
	return c.Wait()
}
