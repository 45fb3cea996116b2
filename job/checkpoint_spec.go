package job

import (
	"fmt"
	"strings"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

// CheckpointSpec says how often the state of a task is saved with its renter, so
// that another provider can go on from there; zero is never.
type CheckpointSpec struct {
	Every time.Duration `json:"every,omitempty"`
}

// checkpoints reports whether the state of the job's tasks is saved.
func (s Spec) checkpoints() bool { return s.Checkpoint.Every != 0 }

// validateCheckpoint refuses a job whose state could not be moved.
func (s Spec) validateCheckpoint() error {
	switch every := s.Checkpoint.Every; {
	case !s.checkpoints():
		return nil
	case every < protocol.MinCheckpointEvery || every > 365*24*time.Hour:
		return specErr("checkpoint.every: %s is not between %s and a year", every, protocol.MinCheckpointEvery)
	case s.GPUs.Count > 0 || s.GPUs.All:
		return specErr("checkpoint: the memory of a GPU cannot be saved; leave out checkpoint, or gpus, and have the program save its own state to an output with `stream: true`")
	case s.Network != "none":
		return specErr("checkpoint: connections to the outside cannot be moved with the program; leave out checkpoint, or network")
	}
	for i, c := range s.Caches {
		if !strings.HasPrefix(c.Key, "cid:") {
			return specErr("checkpoint: the cache %q stays on its provider, so that a program that uses it cannot be moved; leave out checkpoint, or cache[%d]", c.Key, i)
		}
	}
	return nil
}

// savableOpenFiles is how many files a process of a job with checkpoints may have
// open when nothing is said: few enough for most machines.
const savableOpenFiles = 1 << 14

// openFiles is what the job's leases allow. A saved state can only go on under the
// very limit that it was made under, so that is left to no provider then.
func (s Spec) openFiles() uint32 {
	if s.Limits.OpenFiles == 0 && s.checkpoints() {
		return savableOpenFiles
	}
	return s.Limits.OpenFiles
}

// checkpointRoom is how large the state of a task may be: its memory, all it
// wrote, and what describes it.
func checkpointRoom(r *protocol.Resources, outputs uint64) uint64 {
	plain := r.GetMemoryBytes() + r.GetDiskBytes() + outputs
	return plain + plain/8 + 64<<20
}

// CheckpointRecord is a checkpoint that is here.
type CheckpointRecord struct {
	Root    []byte         `json:"root"`
	Bytes   uint64         `json:"bytes"` // unpacked
	At      time.Time      `json:"at"`
	Lease   protocol.MsgID `json:"lease"` // under which it was made
	Attempt int            `json:"attempt"`
	Engine  string         `json:"engine"`
	CPU     []byte         `json:"cpu"`
	// Failed counts the leases that went on from it and came to grief before they
	// made one of their own.
	Failed int `json:"failed,omitempty"`
}

// keepCheckpoints is how many checkpoints of a task are kept: the newest, and one
// in case that it cannot be used.
const keepCheckpoints = 2

// checkpointTries is how many leases may begin from one checkpoint and make none
// of their own before it is given up for an older one.
const checkpointTries = 2

// origin is the checkpoint that the task's next lease goes on from; nil begins
// anew.
func (t *TaskRecord) origin() *CheckpointRecord {
	if len(t.Checkpoints) == 0 {
		return nil
	}
	return &t.Checkpoints[0]
}

func (c *CheckpointRecord) portability() *protocol.Portability {
	return &protocol.Portability{Engine: c.Engine, Cpu: c.CPU}
}

func wirePortability(p sandbox.Portability) *protocol.Portability {
	return &protocol.Portability{Engine: p.Engine, Cpu: p.CPU}
}

// carries reports whether this provider can do what an offer asks of checkpoints.
func (p *Provider) carries(want *protocol.Portability) bool {
	switch {
	case want == nil:
		return true
	case p.Portability == nil:
		return false
	case want.GetEngine() == "":
		return true
	}
	return p.Portability.Holds(sandbox.Portability{Engine: want.GetEngine(), CPU: want.GetCpu()}) == nil
}

// unasked names what a lease asks of checkpoints and its offer did not.
func unasked(l *protocol.Lease, o *protocol.Offer) string {
	switch {
	case l.GetSpec().GetCheckpointEveryMs() > 0 && o.GetPortability() == nil:
		return "checkpoints"
	case len(l.GetSpec().GetRestore()) > 0 && o.GetPortability().GetEngine() == "":
		return "a checkpoint to go on from"
	}
	return ""
}

func (c *CheckpointRecord) String() string {
	return fmt.Sprintf("checkpoint of %s", c.At.Format(time.TimeOnly))
}
