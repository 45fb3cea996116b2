package job

import (
	"errors"
	"fmt"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// Side is the side of a contract that this node is on.
type Side string

// The two sides.
const (
	SideRenter   Side = "renter"
	SideProvider Side = "provider"
)

// State is where a contract stands.
type State string

// The states of a contract. The last five are terminal.
const (
	Proposed  State = "proposed" // the renter has signed and asked
	Leased    State = "leased"   // the provider has signed too
	Fetching  State = "fetching"
	Starting  State = "starting" // its container runs and is not ready yet; nothing is billed
	Running   State = "running"
	Saving    State = "saving"
	Done      State = "done"
	Failed    State = "failed"
	Cancelled State = "cancelled"
	Lost      State = "lost"    // the provider fell silent; the renter said so
	Refused   State = "refused" // it never bound
)

// Terminal reports whether nothing but bookkeeping can follow.
func (s State) Terminal() bool {
	switch s {
	case Done, Failed, Cancelled, Lost, Refused:
		return true
	}
	return false
}

// order ranks the states of a contract under way: it only moves up.
func (s State) order() int {
	switch s {
	case Proposed:
		return 0
	case Leased:
		return 1
	case Fetching:
		return 2
	case Starting:
		return 3
	case Running:
		return 4
	case Saving:
		return 5
	}
	return 6
}

// MissedHeartbeats is how many may be missing before a provider counts as lost.
const MissedHeartbeats = 3

// Contract is one lease as both sides see it: the fold of its signed messages.
// Times are the node's own; usage is what the provider has signed.
type Contract struct {
	ID       protocol.MsgID `json:"id"`
	Side     Side           `json:"side"`
	State    State          `json:"state"`
	Job      string         `json:"job"`
	Task     int            `json:"task"`
	Attempt  int            `json:"attempt"`
	Renter   string         `json:"renter"`
	Provider string         `json:"provider"`

	Asset     string        `json:"asset"`
	Price     uint64        `json:"price_per_hour"`
	Budget    ledger.Amount `json:"budget"`
	Heartbeat time.Duration `json:"heartbeat"`
	FetchMax  time.Duration `json:"fetch_max"`
	RunMax    time.Duration `json:"run_max"`
	SaveMax   time.Duration `json:"save_max"`
	// ReadyMax is how long the container may take to be ready; 0 is ready at once.
	ReadyMax time.Duration `json:"ready_max,omitempty"`

	AskedAt    time.Time `json:"asked_at,omitzero"` // when the renter's auction for it began
	ProposedAt time.Time `json:"proposed_at"`
	AcceptBy   time.Time `json:"accept_by"`
	LeasedAt   time.Time `json:"leased_at,omitzero"`
	FetchingAt time.Time `json:"fetching_at,omitzero"`
	StartingAt time.Time `json:"starting_at,omitzero"`
	RunningAt  time.Time `json:"running_at,omitzero"`
	SavingAt   time.Time `json:"saving_at,omitzero"`
	EndedAt    time.Time `json:"ended_at,omitzero"`

	LastBeat  time.Time `json:"last_beat,omitzero"`
	ResumedAt time.Time `json:"resumed_at,omitzero"` // when this node last came back
	BeatSeq   uint64    `json:"beat_seq"`
	UsageMs   int64     `json:"usage_ms"`
	LogSeq    uint64    `json:"log_seq"`
	Fetched   uint64    `json:"fetched,omitempty"`
	ToFetch   uint64    `json:"to_fetch,omitempty"`

	CancelAt     time.Time     `json:"cancel_at,omitzero"`
	CancelReason string        `json:"cancel_reason,omitempty"`
	Grace        time.Duration `json:"grace,omitempty"`

	// TimeUp is why the provider ends the work itself, such as LimitReady.
	TimeUp   string    `json:"time_up,omitempty"`
	TimeUpAt time.Time `json:"time_up_at,omitzero"`
	// WaitedBefore is how long the image was waited for before it was ready.
	WaitedBefore time.Duration `json:"waited_before,omitempty"`

	Took          Took          `json:"took,omitzero"`
	ExitCode      int           `json:"exit_code"`
	ExitSource    string        `json:"exit_source,omitempty"`
	Reason        string        `json:"reason,omitempty"`
	Refusal       string        `json:"refusal,omitempty"` // the name of a protocol.Reason
	Exceeded      *Exceeded     `json:"exceeded,omitempty"`
	Outputs       []byte        `json:"outputs,omitempty"`
	ProviderFault bool          `json:"provider_fault,omitempty"`
	NetUp         uint64        `json:"net_up,omitempty"`   // bytes to the internet
	NetDown       uint64        `json:"net_down,omitempty"` // and from it
	Cards         []string      `json:"cards,omitempty"`    // UUIDs of the provider's GPUs that the lease holds
	Charge        ledger.Amount `json:"charge"`
	Booked        bool          `json:"booked"` // the receipt is signed and the charge stands
}

// NewContract is the contract of a lease that was signed at the time now.
func NewContract(side Side, lease protocol.Signed[*protocol.Lease], now time.Time) Contract {
	l := lease.Msg
	ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
	return Contract{
		ID: lease.ID(), Side: side, State: Proposed,
		Job: l.GetJob(), Task: int(l.GetTask()), Attempt: int(l.GetAttempt()),
		Renter: lease.From.String(), Provider: l.GetProvider(),
		Asset: l.GetAsset(), Price: l.GetPricePerHour(), Budget: ledger.FromWire(l.GetBudget()),
		Heartbeat: ms(l.GetHeartbeatMs()), FetchMax: ms(l.GetLimits().GetFetchMs()),
		RunMax: ms(l.GetLimits().GetRunMs()), SaveMax: ms(l.GetLimits().GetSaveMs()),
		ReadyMax:   ms(l.GetSpec().GetReady().GetWithinMs()),
		ProposedAt: now, AcceptBy: time.UnixMilli(l.GetAcceptByMs()),
		Charge: ledger.Units(l.GetAsset(), 0),
	}
}

// Input is something that happened to a contract.
type Input interface{ input() }

// The inputs. Those with a signed message behind them are kept as evidence.
type (
	// Accepted is the provider's yes.
	Accepted struct{}
	// Rejected is the provider's no; Reason is the name of a protocol.Reason.
	Rejected struct{ Reason, Detail string }
	// Beat is a heartbeat of the provider.
	Beat struct {
		Seq              uint64
		Phase            State
		UsageMs          int64
		LogSeq           uint64
		Fetched, ToFetch uint64
	}
	// CancelAsked is the renter's wish to end.
	CancelAsked struct {
		Reason string
		Grace  time.Duration
	}
	// TimeUp says that the provider ends the work itself, for what is Of.
	TimeUp struct {
		Of    string
		Grace time.Duration
	}
	// Ended is the provider's result.
	Ended struct {
		State         State // Done, Failed or Cancelled
		ExitCode      int
		ExitSource    string
		Reason        string
		Exceeded      *Exceeded
		Outputs       []byte
		UsageMs       int64
		LogSeq        uint64
		ProviderFault bool
		Took          Took
		NetUp         uint64 // bytes to the internet
		NetDown       uint64 // and from it

		outputBytes uint64 // for the message alone
		startedMs   int64
	}
	// Settled is the renter's receipt, which closes the contract for both. A
	// Lost end is the renter's word that the provider fell silent.
	Settled struct {
		End     State
		UsageMs int64
	}
	// Resumed says that this node was away and can blame nobody for silence.
	Resumed struct{}
	// Tick is the passing of time.
	Tick struct{}
)

func (Accepted) input()    {}
func (Rejected) input()    {}
func (Beat) input()        {}
func (CancelAsked) input() {}
func (TimeUp) input()      {}
func (Ended) input()       {}
func (Settled) input()     {}
func (Resumed) input()     {}
func (Tick) input()        {}

// Effect is something that the runner must do after a transition is committed.
// Each may be repeated.
type Effect string

// The effects.
const (
	// EffectSendCancel: the renter tells the provider to end.
	EffectSendCancel Effect = "send-cancel"
	// EffectSettle: the renter signs the receipt of an ended or lost contract.
	EffectSettle Effect = "settle"
	// EffectStop: the provider stops the work.
	EffectStop Effect = "stop"
	// EffectRelease: the provider gives back what was reserved.
	EffectRelease Effect = "release"
	// EffectBook: the charge is booked with the transition itself.
	EffectBook Effect = "book"
	// EffectDecide: the renter decides what becomes of the task.
	EffectDecide Effect = "decide"
)

// ErrTransition says that an input cannot follow the state.
var ErrTransition = errors.New("the contract does not allow that")

// ErrOverclaim says that a provider claims more than it can have done.
var ErrOverclaim = errors.New("more usage claimed than can be")

// Apply is the contract's whole law: the state that follows, and what must be
// done about it. It changes nothing else.
func Apply(c Contract, in Input, now time.Time) (Contract, []Effect, error) {
	switch in := in.(type) {
	case Accepted:
		return c.accepted(now)
	case Rejected:
		return c.rejected(in, now)
	case Beat:
		return c.beat(in, now)
	case CancelAsked:
		return c.cancelAsked(in, now)
	case TimeUp:
		return c.timeUp(in, now)
	case Ended:
		return c.ended(in, now)
	case Settled:
		return c.settled(in, now)
	case Resumed:
		return c.resumed(now), nil, nil
	case Tick:
		return c.tick(now)
	}
	return c, nil, fmt.Errorf("input %T: %w", in, ErrTransition)
}

// resumed begins the waits again that this node's absence may have used up.
func (c Contract) resumed(now time.Time) Contract {
	if c.State.Terminal() {
		return c
	}
	if c.State == Proposed { // the provider may have taken it, and is asked first
		asked := c.ProposedAt
		if !c.ResumedAt.IsZero() {
			asked = c.ResumedAt
		}
		c.AcceptBy = now.Add(c.AcceptBy.Sub(asked))
	}
	c.LastBeat, c.ResumedAt = now, now
	if !c.CancelAt.IsZero() {
		c.CancelAt = now // it is sent again
	}
	return c
}

func (c Contract) accepted(now time.Time) (Contract, []Effect, error) {
	if c.State != Proposed {
		return c, nil, nil
	}
	c.State, c.LeasedAt, c.LastBeat = Leased, now, now
	if !c.ResumedAt.IsZero() {
		c.LeasedAt = c.ProposedAt // it was taken while this node was away
	}
	if c.Side == SideRenter && !c.CancelAt.IsZero() {
		return c, []Effect{EffectSendCancel}, nil
	}
	return c, nil, nil
}

func (c Contract) rejected(in Rejected, now time.Time) (Contract, []Effect, error) {
	if c.State.Terminal() {
		return c, nil, nil
	}
	if c.State != Proposed {
		return c, nil, fmt.Errorf("a refusal after %s: %w", c.State, ErrTransition)
	}
	c.State, c.EndedAt, c.Refusal, c.Reason, c.Booked = Refused, now, in.Reason, in.Detail, true
	return c, c.overEffects(), nil
}

// overEffects are the effects of a contract that came to its end.
func (c Contract) overEffects() []Effect {
	if c.Side == SideProvider {
		return []Effect{EffectRelease}
	}
	return []Effect{EffectDecide}
}

func (c Contract) beat(in Beat, now time.Time) (Contract, []Effect, error) {
	if c.State.Terminal() || in.Seq <= c.BeatSeq {
		return c, nil, nil
	}
	switch in.Phase {
	case Fetching, Starting, Running, Saving:
	default:
		return c, nil, fmt.Errorf("a heartbeat in phase %q: %w", in.Phase, ErrTransition)
	}
	if in.Phase.order() < Running.order() && in.UsageMs > 0 {
		return c, nil, fmt.Errorf("%d ms of work while %s: %w", in.UsageMs, in.Phase, ErrOverclaim)
	}
	if err := c.checkUsage(in.UsageMs, now); err != nil {
		return c, nil, err
	}
	// A heartbeat proves acceptance even when the answer to the award was lost.
	if c.State == Proposed {
		c.LeasedAt = c.ProposedAt
	}
	c.BeatSeq, c.LastBeat = in.Seq, now
	c.UsageMs = max(c.UsageMs, in.UsageMs)
	c.LogSeq, c.Fetched, c.ToFetch = max(c.LogSeq, in.LogSeq), in.Fetched, in.ToFetch
	c.enter(in.Phase, now)
	if c.Side == SideRenter && !c.CancelAt.IsZero() {
		return c, []Effect{EffectSendCancel}, nil
	}
	return c, nil, nil
}

// enter moves up to a phase; phases that a heartbeat never showed are taken as
// passed at the same moment.
func (c *Contract) enter(phase State, now time.Time) {
	if phase.order() <= c.State.order() {
		return
	}
	c.State = phase
	for _, step := range []struct {
		at     *time.Time
		state  State
		passed bool // though no heartbeat showed it
	}{
		{&c.FetchingAt, Fetching, true},
		{&c.StartingAt, Starting, c.ReadyMax > 0},
		{&c.RunningAt, Running, c.ReadyMax == 0 || c.UsageMs > 0},
		{&c.SavingAt, Saving, true},
	} {
		if (step.state == phase || step.passed && step.state.order() < phase.order()) && step.at.IsZero() {
			*step.at = now
		}
	}
}

// clockSlack is how far apart two clocks may measure the same work.
const clockSlack = 2 * time.Second

// checkUsage holds a provider's claim against the renter's own clock.
func (c Contract) checkUsage(ms int64, now time.Time) error {
	if c.Side != SideRenter {
		return nil
	}
	since := c.LeasedAt
	if since.IsZero() {
		since = c.ProposedAt
	}
	if elapsed := now.Sub(since) + clockSlack; ms > elapsed.Milliseconds() {
		return fmt.Errorf("%d ms of work in %d ms: %w", ms, elapsed.Milliseconds(), ErrOverclaim)
	}
	if limit := c.RunMax + c.RunMax/50 + clockSlack; ms > limit.Milliseconds() {
		return fmt.Errorf("%d ms of work where %d were allowed: %w", ms, c.RunMax.Milliseconds(), ErrOverclaim)
	}
	return nil
}

func (c Contract) cancelAsked(in CancelAsked, now time.Time) (Contract, []Effect, error) {
	if c.State.Terminal() || !c.CancelAt.IsZero() {
		return c, nil, nil
	}
	c.CancelAt, c.CancelReason, c.Grace = now, in.Reason, in.Grace
	if c.Side == SideProvider {
		return c, []Effect{EffectStop}, nil
	}
	return c, []Effect{EffectSendCancel}, nil
}

func (c Contract) ended(in Ended, now time.Time) (Contract, []Effect, error) {
	if c.State.Terminal() {
		return c, nil, nil
	}
	switch in.State {
	case Done, Failed, Cancelled:
	default:
		return c, nil, fmt.Errorf("a result of %q: %w", in.State, ErrTransition)
	}
	if in.UsageMs < c.UsageMs {
		return c, nil, fmt.Errorf("a result of %d ms after a heartbeat of %d: %w", in.UsageMs, c.UsageMs, ErrTransition)
	}
	if in.UsageMs > 0 && in.Exceeded != nil && in.Exceeded.Limit == LimitReady {
		return c, nil, fmt.Errorf("%d ms of work of what was never ready: %w", in.UsageMs, ErrOverclaim)
	}
	if err := c.checkUsage(in.UsageMs, now); err != nil {
		return c, nil, err
	}
	c.State, c.EndedAt = in.State, now
	c.UsageMs, c.LogSeq = in.UsageMs, max(c.LogSeq, in.LogSeq)
	c.ExitCode, c.ExitSource, c.Reason = in.ExitCode, in.ExitSource, in.Reason
	c.Exceeded, c.Outputs, c.ProviderFault, c.Took = in.Exceeded, in.Outputs, in.ProviderFault, in.Took
	c.NetUp, c.NetDown = in.NetUp, in.NetDown
	c.Charge = c.due(c.UsageMs)
	if c.Side == SideProvider {
		return c, []Effect{EffectRelease, EffectBook}, nil
	}
	return c, []Effect{EffectBook, EffectSettle}, nil
}

// due is the charge of a usage: never more than the budget.
func (c Contract) due(ms int64) ledger.Amount {
	charge := ledger.Charge(c.Asset, c.Price, ms)
	if c.Budget.Asset == "" {
		return charge
	}
	return charge.Min(c.Budget)
}

func (c Contract) settled(in Settled, now time.Time) (Contract, []Effect, error) {
	if c.Booked {
		return c, nil, nil
	}
	over := c.State.Terminal()
	switch {
	case c.Side == SideRenter && over && in.End != c.State:
		return c, nil, fmt.Errorf("a receipt of %q for what ended %s: %w", in.End, c.State, ErrTransition)
	case in.End == Lost, in.End == Cancelled && c.Side == SideProvider && !over:
		return c.closedByRenter(in, now)
	case !over:
		return c, nil, fmt.Errorf("a receipt while %s: %w", c.State, ErrTransition)
	}
	c.Booked = true
	if c.Side == SideRenter {
		return c, []Effect{EffectDecide}, nil
	}
	c.UsageMs = min(c.UsageMs, in.UsageMs)
	c.Charge = c.due(c.UsageMs)
	return c, []Effect{EffectBook}, nil
}

// closedByRenter ends a contract whose provider the renter gave up: the usage
// is the last one that it had heard of.
func (c Contract) closedByRenter(in Settled, now time.Time) (Contract, []Effect, error) {
	underWay := !c.State.Terminal()
	c.State, c.Booked = in.End, true
	if c.EndedAt.IsZero() {
		c.EndedAt = now
	}
	if c.Side == SideProvider {
		c.UsageMs = in.UsageMs
		c.Charge = c.due(c.UsageMs)
		if underWay { // its room is given back when its container is gone
			c.Grace = 0 // nobody pays for it
			return c, []Effect{EffectBook, EffectStop}, nil
		}
		return c, []Effect{EffectBook}, nil
	}
	c.Reason, c.ProviderFault = fmt.Sprintf("provider fell silent: %d heartbeats missing", MissedHeartbeats), true
	if now.Sub(c.LastBeat) <= MissedHeartbeats*c.Heartbeat {
		c.Reason = "provider did not end when it was told to: " + c.CancelReason
	}
	c.Charge = c.due(c.UsageMs)
	return c, []Effect{EffectBook, EffectDecide}, nil
}

// tick is the renter's watch over what was promised; the provider's runner
// holds its own limits where the work is.
func (c Contract) tick(now time.Time) (Contract, []Effect, error) {
	if c.Side != SideRenter || c.State.Terminal() {
		return c, nil, nil
	}
	if c.State == Proposed {
		if now.Before(c.AcceptBy) {
			return c, nil, nil
		}
		return c.rejected(Rejected{Reason: protocol.Reason_REASON_EXPIRED.String(), Detail: "the provider did not answer the award"}, now)
	}
	if now.Sub(c.LastBeat) > MissedHeartbeats*c.Heartbeat {
		return c, []Effect{EffectSettle}, nil
	}
	if !c.CancelAt.IsZero() {
		// A provider that is told to end and goes on is given up like a silent one.
		if now.Sub(c.CancelAt) > c.Grace+c.SaveMax+c.slack() {
			return c, []Effect{EffectSettle}, nil
		}
		return c, nil, nil
	}
	if !c.ResumedAt.IsZero() && !c.LastBeat.After(c.ResumedAt) {
		return c, nil, nil // the phase may have passed unheard
	}
	if reason := c.overdue(now); reason != "" {
		return c.cancelAsked(CancelAsked{Reason: reason, Grace: 0}, now)
	}
	return c, nil, nil
}

// slack is what a provider has to notice that a time is over before its renter
// does.
func (c Contract) slack() time.Duration { return MissedHeartbeats*c.Heartbeat + clockSlack }

// overdue names the limit that the work outlasted by more than the slack.
func (c Contract) overdue(now time.Time) string {
	since := func(t time.Time) time.Duration {
		if t.IsZero() {
			t = c.LeasedAt
		}
		return now.Sub(t) - c.slack()
	}
	switch {
	case c.State.order() <= Fetching.order() && since(c.LeasedAt) > c.FetchMax:
		return fmt.Sprintf("fetch limit of %s exceeded", c.FetchMax)
	case c.State == Starting && since(c.LeasedAt) > c.FetchMax+c.ReadyMax: // which may wait for its image
		return fmt.Sprintf("not ready within %s", c.ReadyMax)
	case c.State == Running && since(c.RunningAt) > c.RunMax:
		return fmt.Sprintf("run limit of %s exceeded", c.RunMax)
	case c.State == Saving && since(c.SavingAt) > c.SaveMax:
		return fmt.Sprintf("saving took more than %s", c.SaveMax)
	}
	return ""
}

// Silent reports whether the provider has been silent for too long at now.
func (c Contract) Silent(now time.Time) bool {
	return !c.State.Terminal() && c.State != Proposed && now.Sub(c.LastBeat) > MissedHeartbeats*c.Heartbeat
}

// Pending are the effects that a node which was away must perform again.
func (c Contract) Pending() []Effect {
	switch {
	case c.Side == SideRenter && c.State.Terminal() && !c.Booked:
		return []Effect{EffectSettle}
	case c.Side == SideRenter && !c.State.Terminal() && !c.CancelAt.IsZero():
		return []Effect{EffectSendCancel}
	case c.Side == SideProvider && !c.State.Terminal() && (!c.CancelAt.IsZero() || c.TimeUp != ""):
		return []Effect{EffectStop}
	}
	return nil
}
