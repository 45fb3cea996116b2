package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// exit says how it ended, from what runsc returned and what was done to it.
func (s *shim) exit(launched time.Time, waitErr error) Exit {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := Exit{
		Started: s.started, Ended: time.Now(), Exceeded: s.exceeded,
		Stopped: s.stopped, Source: SourceJob, Usage: s.usage,
	}
	x.Usage.CPU = max(x.Usage.CPU, childCPU())
	x.Usage.Waited = s.waitedRunning()
	failure := lastError(filepath.Join(s.dir, fileError))
	var ee *exec.ExitError
	x.Code = 0
	if errors.As(waitErr, &ee) {
		x.Code = ee.ExitCode()
	} else if waitErr != nil {
		failure = join(failure, waitErr.Error())
	}
	lost := x.Code < 0 || failure != "" || x.Code == codeSignal+int(unix.SIGKILL) && s.mute
	switch {
	case s.exceeded != nil && s.exceeded.Killed:
		x.Code = codeSignal + int(unix.SIGKILL)
		x.OOM = s.exceeded.Limit == LimitMemory
		if s.exceeded.Limit == LimitTime {
			x.Code = CodeTimeout
		}
		x.Reason = s.exceeded.String()
	case s.failure != "":
		x.Code, x.Source, x.Reason = CodeSandbox, SourceSandbox, join(s.failure, failure)
	case !s.killed && restoreFailed(s.plan.Spec, failure): // the sandbox may say for a moment that it runs
		x.Started, x.Code, x.Source, x.Reason = time.Time{}, CodeSandbox, SourceSandbox, failure
		return x
	case s.status != nil && s.status.Exited(): // also when it was killed a moment later
		x.Code = s.status.ExitStatus()
	case s.status != nil:
		x.Signal = int(s.status.Signal())
		x.Code = codeSignal + x.Signal
	case s.killed && lost:
		x.Code = codeSignal + int(unix.SIGKILL)
	case s.cg.oomKills() > 0 && (lost || x.Code == codeSignal+int(unix.SIGKILL)):
		x.Code, x.OOM = codeSignal+int(unix.SIGKILL), true
		x.Exceeded = &Exceeded{Limit: LimitMemory, Max: s.plan.Spec.MemoryBytes, Seen: max(s.usage.MemoryPeak, s.plan.Spec.MemoryBytes), At: x.Ended, Killed: true}
		x.Reason = x.Exceeded.String()
	case s.refused != nil:
		x.Code, x.Source, x.Reason = s.refused.code, s.refused.source, s.refused.reason
		return x
	case failure != "" && s.started.IsZero():
		x.Code, x.Source, x.Reason = startFailure(failure)
		return x
	case lost:
		x.Code, x.Source, x.Reason = CodeSandbox, SourceSandbox, join("the sandbox was killed from outside", failure)
	}
	// The last look may have come before the last write: a failed job with its
	// disk nearly full is told of it.
	if limit := s.plan.Spec.DiskBytes; x.Exceeded == nil && x.Code != 0 && s.usage.Disk >= limit-limit/10 {
		x.Exceeded = &Exceeded{Limit: LimitDisk, Max: limit, Seen: s.usage.Disk, At: x.Ended}
	}
	if x.Exceeded == nil {
		x.Exceeded = s.log.exceeded()
	}
	if x.Source == SourceJob && s.status == nil && x.Code > codeSignal && x.Code <= codeSignal+64 {
		x.Signal = x.Code - codeSignal
	}
	if x.Started.IsZero() && x.Source == SourceJob {
		x.Started = launched // it ended before it was seen to run
	}
	if e := x.Exceeded; e != nil && e.At.Before(x.Started) { // met before it was seen to run
		at := *e
		at.At = x.Started
		x.Exceeded = &at
	}
	return x
}

// childCPU is the CPU time of everything below the shim that has ended.
func childCPU() time.Duration {
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_CHILDREN, &ru) != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + ": " + b
}

// lastError gives the last error in runsc's JSON log.
func lastError(file string) (msg string) {
	data, err := readBounded(file, 16<<20)
	if err != nil {
		return ""
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		var e struct {
			Msg   string `json:"msg"`
			Level string `json:"level"`
		}
		if err := dec.Decode(&e); err != nil {
			return msg
		}
		if e.Level == "error" {
			msg = e.Msg
		}
	}
}
