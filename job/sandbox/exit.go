package sandbox

import (
	"fmt"
	"time"
)

// Names of limits, as in Exceeded and in Finding.
const (
	LimitCPU    = "cpu"
	LimitMemory = "memory"
	LimitPids   = "pids"
	LimitDisk   = "disk"
	LimitOutput = "output"
	LimitCache  = "cache"
	LimitLog    = "log"
	LimitTime   = "time"
	LimitNet    = "net"
	LimitFiles  = "open files"
)

// Who ended the container.
const (
	SourceJob     = "job"     // the program: its code, a signal, a limit it exceeded
	SourceSandbox = "sandbox" // the sandbox failed or was killed; the code is 125
)

// Exceeded names the limit that a job went over.
type Exceeded struct {
	Limit string `json:"limit"`
	// Max and Seen are bytes (memory, disk, output, cache, log, net), a count
	// (pids) or nanoseconds (time).
	Max  uint64    `json:"max"`
	Seen uint64    `json:"seen"`
	At   time.Time `json:"at"`
	// Killed says that the sandbox ended the job for it. Otherwise the job got
	// the error Linux gives (ENOSPC, a reset connection), or lost output, and ended
	// by itself.
	Killed bool `json:"killed"`
}

// String is for people: "memory limit 512 MiB exceeded at 14:02:11 UTC (seen 530 MiB)".
func (e *Exceeded) String() string {
	amount := func(n uint64) string {
		switch e.Limit {
		case LimitPids:
			return fmt.Sprint(n)
		case LimitTime:
			return time.Duration(min(n, 1<<62)).Round(time.Millisecond).String() //nolint:gosec // bounded by min
		}
		return bytesText(n)
	}
	verb := "exceeded"
	if !e.Killed {
		verb = "reached"
	}
	return fmt.Sprintf("%s limit %s %s at %s UTC (seen %s)", e.Limit, amount(e.Max), verb, e.At.UTC().Format("15:04:05"), amount(e.Seen))
}

func bytesText(n uint64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.4g %ciB", v, units[i])
}

// Exit says how a container ended.
type Exit struct {
	// Code is the program's own, or docker's: 124 timeout, 125 sandbox failed,
	// 126 cannot execute, 127 not found, 128+n killed by signal n.
	Code int `json:"code"`
	// Signal is what killed the program, 0 if it exited by itself.
	Signal  int       `json:"signal,omitempty"`
	Started time.Time `json:"started"` // zero if the program never ran
	Ended   time.Time `json:"ended"`
	// Found says that its supervisor did not see the end: Ended is when it was
	// noticed, which may be long after.
	Found bool `json:"found,omitempty"`
	// Exceeded is nil unless a limit was met.
	Exceeded *Exceeded `json:"exceeded,omitempty"`
	// Stopped says that Stop ended it, OOM that memory ran out.
	Stopped bool `json:"stopped,omitempty"`
	OOM     bool `json:"oom,omitempty"`
	// LogDropped is how many bytes of output the log limit cut off.
	LogDropped uint64 `json:"log_dropped,omitempty"`
	Source     string `json:"source"`
	// Reason is a sentence where the code alone does not say it.
	Reason string `json:"reason,omitempty"`
	Usage  Usage  `json:"usage"`
}

// Usage is what a container has used so far.
type Usage struct {
	CPU        time.Duration `json:"cpu"`         // the sandbox's own included
	Memory     uint64        `json:"memory"`      // bytes, now
	MemoryPeak uint64        `json:"memory_peak"` // bytes, as sampled
	Disk       uint64        `json:"disk"`        // bytes of the writable layer
	Output     uint64        `json:"output"`      // bytes in writable mounts
	Pids       uint64        `json:"pids"`
	NetUp      uint64        `json:"net_up,omitempty"`   // bytes to the internet
	NetDown    uint64        `json:"net_down,omitempty"` // and from it
	// Waited is how much of the time since the start at least one read of the
	// program waited for a part of its image that had not arrived.
	Waited time.Duration `json:"waited,omitempty"`
}

// Recovered is a container found after a restart of the node.
type Recovered struct {
	ID      string
	Running bool
	// Prepared says that it was never started.
	Prepared bool
	Exit     Exit // when neither running nor prepared
}

// Finding is one line of `lumbung doctor`.
type Finding struct {
	Name   string // a limit, or "runtime", "namespaces", "container", "network"
	OK     bool   // held, or there
	Weaker bool   // there, and less than the default
	How    string // by which means, or what is missing
	Remedy string // what to do where OK is false
}
