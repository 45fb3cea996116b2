package job

import (
	"fmt"
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

// phases between the wire and the contract.
var phases = map[protocol.Phase]State{
	protocol.Phase_PHASE_FETCHING: Fetching,
	protocol.Phase_PHASE_STARTING: Starting,
	protocol.Phase_PHASE_RUNNING:  Running,
	protocol.Phase_PHASE_SAVING:   Saving,
}

func phaseOf(s State) protocol.Phase {
	for p, state := range phases {
		if state == s {
			return p
		}
	}
	return protocol.Phase_PHASE_FETCHING
}

var outcomes = map[protocol.Outcome]State{
	protocol.Outcome_OUTCOME_DONE:      Done,
	protocol.Outcome_OUTCOME_FAILED:    Failed,
	protocol.Outcome_OUTCOME_CANCELLED: Cancelled,
}

func outcomeOf(s State) protocol.Outcome {
	for o, state := range outcomes {
		if state == s {
			return o
		}
	}
	return protocol.Outcome_OUTCOME_FAILED
}

// InputOf is the contract's input that a signed message stands for.
func InputOf(msg protocol.Message) (Input, error) {
	switch m := msg.(type) {
	case *protocol.Decision:
		if m.GetAccepted() {
			return Accepted{}, nil
		}
		return Rejected{Reason: m.GetReason().String(), Detail: m.GetDetail()}, nil
	case *protocol.Heartbeat:
		return Beat{
			Seq: m.GetSeq(), Phase: phases[m.GetPhase()], UsageMs: m.GetUsageMs(), LogSeq: m.GetLogSeq(),
			Fetched: m.GetFetchedBytes(), ToFetch: m.GetFetchBytes(),
		}, nil
	case *protocol.Cancel:
		return CancelAsked{Reason: m.GetReason(), Grace: time.Duration(m.GetGraceMs()) * time.Millisecond}, nil
	case *protocol.Result:
		return Ended{
			State: outcomes[m.GetOutcome()], ExitCode: int(m.GetExitCode()), ExitSource: m.GetExitSource(),
			Reason: m.GetReason(), Exceeded: exceededOf(m.GetExceeded()), Outputs: m.GetOutputs(),
			UsageMs: m.GetUsageMs(), LogSeq: m.GetLogSeq(), ProviderFault: m.GetProviderFault(), Took: tookOf(m),
			NetUp: m.GetNetUpBytes(), NetDown: m.GetNetDownBytes(),
		}, nil
	case *protocol.Receipt:
		return Settled{End: State(m.GetEnd()), UsageMs: m.GetUsageMs()}, nil
	}
	return nil, fmt.Errorf("%s: %w", msg.Kind(), ErrTransition)
}

func exceededOf(e *protocol.Exceeded) *Exceeded {
	if e == nil {
		return nil
	}
	return &Exceeded{Limit: e.GetLimit(), Max: e.GetMax(), Seen: e.GetSeen(), At: time.UnixMilli(e.GetAtMs()).UTC()}
}
