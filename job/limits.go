package job

import (
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

// HeldLimits is how far a provider's machine can hold jobs to their limits. The
// zero value holds each.
type HeldLimits struct {
	// Unheld are the limits, by the sandbox's names, that the machine cannot hold.
	Unheld []string
	// OpenFiles is the most that one process can be given; 0 is no bound.
	OpenFiles uint32
	// Pids is the most processes that one job may have; 0 is no bound.
	Pids uint32
}

// lack names the limit of an offer that cannot be held here, or "".
func (h HeldLimits) lack(o *protocol.Offer, total Capacity) string {
	if h.OpenFiles > 0 && o.GetOpenFiles() > h.OpenFiles {
		return sandbox.LimitFiles
	}
	for _, name := range h.Unheld {
		// A job that is given every CPU cannot use more.
		if name == sandbox.LimitCPU && o.GetResources().GetCpuMillis() >= total.CPUMillis {
			continue
		}
		return name
	}
	return ""
}

// openFiles is what a container is given that asks for so many; 0 leaves it to
// the sandbox.
func (h HeldLimits) openFiles(asked uint32) int {
	if asked == 0 && h.OpenFiles > 0 {
		return int(min(h.OpenFiles, sandbox.DefaultOpenFiles))
	}
	return int(asked)
}
