//go:build !linux

package sandbox

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

// ShimArg is the first argument that makes main call ShimMain.
const ShimArg = "sandbox-shim"

func none() error {
	return fmt.Errorf("%w: containers run on Linux only; renting works here", ErrNoRuntime)
}

// Runtime runs nothing on this system.
type Runtime struct{}

// LogReader reads nothing on this system.
type LogReader struct{}

// ShimMain fails: there is no sandbox on this system.
func ShimMain([]string) int {
	fmt.Fprintln(os.Stderr, none())
	return 1
}

// New fails with ErrNoRuntime.
func New(Options) (*Runtime, error) { return nil, none() }

// Check says that there is no sandbox on this system.
func Check(context.Context, Options) []Finding {
	return []Finding{{Name: "runtime", How: none().Error(), Remedy: "run providers on Linux"}}
}

// RemoveTree removes a folder.
func RemoveTree(dir string) error { return os.RemoveAll(dir) }

// Ready fails with ErrNoRuntime.
func (*Runtime) Ready(context.Context) (string, error) { return "", none() }

// Drivers fails with ErrNoRuntime.
func (*Runtime) Drivers(context.Context) ([]string, error) { return nil, none() }

// Check says that there is no sandbox on this system.
func (*Runtime) Check(ctx context.Context) []Finding { return Check(ctx, Options{}) }

// Unheld is empty.
func (*Runtime) Unheld() []Finding { return nil }

// OpenFiles is none.
func (*Runtime) OpenFiles() int { return 0 }

// Pids is none.
func (*Runtime) Pids() int { return 0 }

// Describe fails with ErrNoRuntime.
func (*Runtime) Describe(context.Context) (string, error) { return "", none() }

// Prepare fails with ErrNoRuntime.
func (*Runtime) Prepare(context.Context, Spec) error { return none() }

// Start fails with ErrNoRuntime.
func (*Runtime) Start(context.Context, string, protocol.Secrets) (Handle, error) {
	return Handle{}, none()
}

// Wait fails with ErrNoRuntime.
func (*Runtime) Wait(context.Context, string) (Exit, error) { return Exit{}, none() }

// Stop fails with ErrNoRuntime.
func (*Runtime) Stop(context.Context, string, time.Duration) error { return none() }

// Exec fails with ErrNoRuntime.
func (*Runtime) Exec(context.Context, string, ExecSpec) (int, error) { return CodeSandbox, none() }

// Forward fails with ErrNoRuntime.
func (*Runtime) Forward(context.Context, string) (*Forwarder, error) { return nil, none() }

// Forwarder does not exist on this system.
type Forwarder struct{}

// Dial fails with ErrNoRuntime.
func (*Forwarder) Dial(context.Context, uint16) (Conn, error) { return nil, none() }

// Ended is nil.
func (*Forwarder) Ended() <-chan struct{} { return nil }

// Close does nothing.
func (*Forwarder) Close() error { return nil }

// CanArrive fails with ErrNoRuntime.
func (*Runtime) CanArrive(context.Context) error { return none() }

// Checkpoint fails with ErrNoRuntime.
func (*Runtime) Checkpoint(context.Context, string, string, bool) error { return none() }

// Portability fails with ErrNoRuntime.
func (*Runtime) Portability(context.Context) (Portability, error) { return Portability{}, none() }

// CanOutbound fails with ErrNoRuntime.
func (*Runtime) CanOutbound(context.Context) error { return none() }

// Arriving fails with ErrNoRuntime.
func (*Runtime) Arriving() ([]string, error) { return nil, none() }

// Supply fails with ErrNoRuntime.
func (*Runtime) Supply(context.Context, string, Supplier) error { return none() }

// Usage fails with ErrNoRuntime.
func (*Runtime) Usage(context.Context, string) (Usage, error) { return Usage{}, none() }

// Recover fails with ErrNoRuntime.
func (*Runtime) Recover(context.Context) ([]Recovered, error) { return nil, none() }

// Remove fails with ErrNoRuntime.
func (*Runtime) Remove(context.Context, string) error { return none() }

// Logs fails with ErrNoRuntime.
func (*Runtime) Logs(string) (*LogReader, error) { return nil, none() }

// ReadFrom fails with ErrNoRuntime.
func (*LogReader) ReadFrom(context.Context, uint64, int) ([]Record, uint64, bool, error) {
	return nil, 0, false, none()
}

// Next fails with ErrNoRuntime.
func (*LogReader) Next(context.Context, uint64, int) ([]Record, uint64, bool, error) {
	return nil, 0, false, none()
}

// Close does nothing.
func (*LogReader) Close() error { return nil }
