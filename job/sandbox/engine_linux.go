package sandbox

import (
	"context"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// engine runs the container of one shim: gVisor, or an OCI runtime of the host
// where an operator has chosen one.
type engine interface {
	// mount lays out the root in the shim's own mount namespace.
	mount() error
	// limits puts what launch will start under the limits the kernel holds.
	limits() error
	// launch begins to start the container. The group ends with its output.
	launch(ctx context.Context) (*sync.WaitGroup, error)
	// speaks returns when it is known whether what comes from the container's
	// output is the job's.
	speaks() bool
	// wait returns when the program has ended, or why it could not run.
	wait() error
	// awaitRunning returns true when the program runs, false when it has ended
	// or will not run.
	awaitRunning(ctx context.Context) bool
	// watchDisk holds the limit of the writable layer until the end.
	watchDisk()
	// observe starts what keeps counters and holds the number of processes.
	observe(ctx context.Context, wg *sync.WaitGroup)
	// memory is what programs, /tmp and /dev/shm take now, in bytes. One
	// goroutine asks.
	memory() uint64
	signal(ctx context.Context, sig unix.Signal) error
	// kill ends everything of the container at once.
	kill()
}

// insider is an engine whose containers only their shim can enter.
type insider interface {
	// exec runs a program that the files of a folder describe; see execution.
	exec(ctx context.Context, conn *net.UnixConn, folder string, files []*os.File)
	// dial connects to a port of the container's loopback.
	dial(ctx context.Context, port uint16) (*os.File, error)
}

// refusal says why a program was never run.
type refusal struct {
	code           int
	source, reason string
}

func (s *shim) newEngine() engine {
	if s.plan.OCI != "" {
		return newOCI(s)
	}
	return &gvisor{shim: s}
}

// gvisor is the engine by runsc: most of it is the shim's own.
type gvisor struct {
	*shim
	meter *meter
}

func (g *gvisor) mount() error { return mountRoot(g.dir, g.plan.Spec.Rootfs) }

func (g *gvisor) limits() error {
	g.enterLimits()
	return nil
}

// speaks: runsc's own words go to its log.
func (g *gvisor) speaks() bool { return true }

func (g *gvisor) wait() error { return g.cmd.Wait() }

func (g *gvisor) observe(ctx context.Context, wg *sync.WaitGroup) {
	wg.Go(func() { g.watchStatus(ctx) })
	wg.Go(func() { g.watchSentry(ctx) })
	wg.Go(func() { g.watchCPU(ctx) })
}

func (g *gvisor) memory() uint64 {
	if g.meter == nil {
		g.mu.Lock()
		g.meter = &meter{pid: g.sandbox}
		g.mu.Unlock()
	}
	return g.meter.look()
}

// kill ends runsc too, so that it writes nothing into the job's stderr; what
// both leave is cleaned up by the shim.
func (g *gvisor) kill() {
	g.mu.Lock()
	sandbox, process := g.sandbox, g.process
	g.mu.Unlock()
	if sandbox > 0 {
		killOwn(g.dir, sandbox)
	}
	if process != nil { // else launch does it
		_ = process.Kill()
	}
}
