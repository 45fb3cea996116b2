package job

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
)

// endOf words how a container ended.
func (e *execution) endOf(exit sandbox.Exit) Ended {
	e.mu.Lock()
	defer e.mu.Unlock()
	end := Ended{
		State: Done, ExitCode: exit.Code, ExitSource: exit.Source, Reason: exit.Reason,
		startedMs: exit.Started.UnixMilli(), UsageMs: e.c.paid(exit),
		NetUp: exit.Usage.NetUp, NetDown: exit.Usage.NetDown,
	}
	if exit.Exceeded != nil {
		end.Exceeded = e.exceeded(exit.Exceeded)
		if end.Reason == "" {
			end.Reason = exit.Exceeded.String()
		}
	}
	switch {
	case !e.c.CancelAt.IsZero():
		end.State, end.Reason, end.Exceeded = Cancelled, e.c.CancelReason, nil
	case e.gaveUp != "":
		end.State, end.ProviderFault, end.ExitSource, end.Reason = Failed, true, sandbox.SourceSandbox, e.gaveUp
	case e.serviceEnd(&end, exit):
	case exit.Stopped && exit.Code != 0 && !killedFor(exit): // by an earlier life of this node
		end.State, end.ProviderFault, end.ExitSource, end.Reason = Failed, true, sandbox.SourceSandbox, "its provider stopped it"
	case exit.Code != 0:
		end.State = Failed
		end.ProviderFault = exit.Source == sandbox.SourceSandbox && exit.Code == sandbox.CodeSandbox
		if end.Reason == "" {
			end.Reason = fmt.Sprintf("exit code %d", exit.Code)
		}
		if e.ailing != "" {
			end.Reason += "; meanwhile " + e.ailing
		}
	}
	if end.Exceeded != nil && end.Exceeded.Limit == "budget" {
		end.Reason = fmt.Sprintf("the task's budget of %s is spent", e.c.Budget)
	}
	return end
}

// killedFor reports whether a limit ended the container; others only limit it.
func killedFor(exit sandbox.Exit) bool { return exit.Exceeded != nil && exit.Exceeded.Killed }

// exceeded turns the sandbox's word into the contract's: times in milliseconds,
// and the budget named where it was what cut the time short.
func (e *execution) exceeded(x *sandbox.Exceeded) *Exceeded {
	out := &Exceeded{Limit: x.Limit, Max: x.Max, Seen: x.Seen, At: x.At}
	if x.Limit != sandbox.LimitTime {
		return out
	}
	out.Max, out.Seen = x.Max/uint64(time.Millisecond), x.Seen/uint64(time.Millisecond)
	if e.c.affordable() < e.c.RunMax {
		out.Limit, out.Max, out.Seen = "budget", e.c.Budget.Lo, e.c.Budget.Lo
	}
	return out
}

// failure is the end of a lease whose work broke off.
func (e *execution) failure(err error) Ended {
	e.mu.Lock()
	defer e.mu.Unlock()
	end := Ended{State: Failed, ExitCode: 125, ExitSource: sandbox.SourceSandbox, Reason: short(err.Error()), UsageMs: e.c.UsageMs}
	var f faultError
	var l limitError
	switch {
	case !e.c.CancelAt.IsZero():
		end.State, end.Reason = Cancelled, e.c.CancelReason
	case e.gaveUp != "":
		end.ProviderFault, end.Reason = true, e.gaveUp
	case errors.As(err, &l):
		end.ExitCode, end.Exceeded, end.ProviderFault = 124, &l.exceeded, true
	case errors.As(err, &f):
		end.ProviderFault = true
	}
	return end
}

// ErrOutputs says that a job has left what cannot be handed over, as a pipe.
var ErrOutputs = errors.New("the outputs cannot be saved")

// without is an end whose outputs could not be saved, by its job's fault.
func (end Ended) without(err error) Ended {
	switch end.State {
	case Done:
		end.State, end.Reason = Failed, err.Error()
		if end.ExitCode == 0 {
			end.ExitCode, end.ExitSource = sandbox.CodeSandbox, sandbox.SourceSandbox
		}
	case Failed:
		end.Reason += "; " + err.Error()
	}
	return end
}

// short keeps a reason within what a message may carry.
func short(s string) string {
	const most = 500
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "?"), "?")
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most-3], "") + "..."
}
