package sandbox

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// Drivers lists the versions of NVIDIA's driver that the runtime can pass cards
// of. nvproxy speaks to the driver in its own words, which differ by version.
func (r *Runtime) Drivers(ctx context.Context) ([]string, error) {
	runsc, err := r.Ready(ctx)
	if err != nil {
		return nil, err
	}
	if r.oci != "" {
		return nil, r.onlyGVisor("passes GPUs into a container")
	}
	out, err := exec.CommandContext(ctx, runsc, "nvproxy", "list-supported-drivers").Output() //nolint:gosec // our own runtime
	if err != nil {
		return nil, fmt.Errorf("ask %s for the drivers that it knows: %w", runsc, err)
	}
	return strings.Fields(string(out)), nil
}
