package job

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// half is one side of a lease in the tests: its contract as it is stored, its
// journal, and what it has said that the other may hear again.
type half struct {
	name    string
	c       *Contract // nil before the award
	away    bool      // crashed and not yet resumed
	entries []ledger.Entry
	log     []string // what happened, for scenarios
}

// world is a renter, a provider, the lease between them and the time.
type world struct {
	now              time.Time
	renter, provider half
	lease            Contract // as proposed
	decision, beat   protocol.Message
	cancel, result   protocol.Message
	receipt          protocol.Message
	seq              uint64
}

func newWorld(price, budget uint64) *world {
	w := &world{now: noon, renter: half{name: "renter"}, provider: half{name: "provider"}}
	w.lease = Contract{
		ID: protocol.IDOf([]byte("lease")), State: Proposed, Job: "j1", Renter: "R", Provider: "P", Asset: Asset, Price: price,
		Budget: ledger.Units(Asset, budget), Heartbeat: time.Second, FetchMax: 10 * time.Second, RunMax: 20 * time.Second, SaveMax: 5 * time.Second,
		ProposedAt: noon, AcceptBy: noon.Add(3 * time.Second), Charge: ledger.Units(Asset, 0),
	}
	c := w.lease
	c.Side = SideRenter
	w.renter.c = &c
	return w
}

// errCheck is a broken invariant.
var errCheck = errors.New("broken invariant")

// take applies an input to one side as its runner does: a receipt that is asked
// for is made and applied at once, and the journal follows each step.
func (w *world) take(h *half, in Input) ([]Effect, error) {
	if h.c == nil || h.away {
		return nil, nil
	}
	before := *h.c
	next, effects, err := Apply(before, in, w.now)
	if err != nil {
		if !sameContract(next, before) {
			return nil, fmt.Errorf("%T changed the contract and failed: %w", in, errCheck)
		}
		return nil, err
	}
	all := slices.Clone(effects)
	if slices.Contains(effects, EffectSettle) && h.c.Side == SideRenter {
		end, charge := next.State, next.Charge
		if !next.State.Terminal() {
			end, charge = Lost, next.due(next.UsageMs)
		}
		w.receipt = &protocol.Receipt{UsageMs: next.UsageMs, Charge: charge.Wire(), End: string(end)}
		receipt, err := InputOf(w.receipt)
		if err != nil {
			return nil, err
		}
		if next, effects, err = Apply(next, receipt, w.now); err != nil {
			return nil, fmt.Errorf("its own receipt: %w", err)
		}
		all = append(all, effects...)
	}
	if err := checkStep(&before, &next, in); err != nil {
		return nil, err
	}
	if err := h.book(&before, &next, w.now); err != nil {
		return nil, err
	}
	// What is stored is what a later life reads.
	raw, err := json.Marshal(next)
	if err != nil {
		return nil, err
	}
	stored := Contract{}
	if err := json.Unmarshal(raw, &stored); err != nil {
		return nil, err
	}
	if !sameContract(stored, next) {
		return nil, fmt.Errorf("the contract does not survive storing: %w", errCheck)
	}
	h.c = &stored
	return all, nil
}

// book keeps each cause and kind once; another booking of the same is broken.
func (h *half) book(before, after *Contract, now time.Time) error {
	for _, e := range ledger.ContractEntries(ledger.ContractCharge{
		Lease: after.ID.String(), Job: after.Job, RenterSide: after.Side == SideRenter, Renter: after.Renter, Provider: after.Provider,
		Before: before.Charge, After: after.Charge, Time: now,
	}) {
		if err := e.Check(); err != nil {
			return err
		}
		for _, have := range h.entries {
			if have.Kind == e.Kind {
				return fmt.Errorf("%s books a second %s: %w", h.name, e.Kind, errCheck)
			}
		}
		h.entries = append(h.entries, e)
	}
	return nil
}

// checkStep holds one transition against what is always true.
func checkStep(before, after *Contract, in Input) error {
	_, receipt := in.(Settled)
	broken := func(what string) error {
		return fmt.Errorf("%s: %T brought %s from %s to %s: %w", what, in, before.Side, before.State, after.State, errCheck)
	}
	switch {
	case !slices.Contains(allStates, after.State):
		return broken("came to a state that there is not")
	case after.Budget.Cmp(after.Charge) < 0:
		return broken("charged over the budget")
	case before.Booked && !sameContract(*before, *after):
		return broken("changed after it was closed")
	case before.State.Terminal() && after.State != before.State && (!receipt || after.Side != SideProvider || after.State != Lost):
		return broken("changed its end")
	case !after.State.Terminal() && after.State.order() < before.State.order():
		return broken("went back")
	case after.Side == SideRenter && after.UsageMs < before.UsageMs:
		return broken("usage fell")
	case !receipt && after.UsageMs < before.UsageMs:
		return broken("usage fell without a receipt")
	case !after.State.Terminal() && !after.Charge.IsZero():
		return broken("charged before its end")
	case after.State.Terminal() && after.State != Refused && after.Charge.Cmp(after.due(after.UsageMs)) != 0:
		return broken("charged another sum than its usage costs")
	case after.State.Terminal() && after.EndedAt.IsZero():
		return broken("ended at no time")
	case after.Booked && !after.State.Terminal():
		return broken("closed while under way")
	}
	return nil
}

func sameContract(a, b Contract) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// hear delivers a signed message to a side; nil is one that was never made.
func (w *world) hear(h *half, m protocol.Message) error {
	if m == nil {
		return nil
	}
	in, err := InputOf(m)
	if err != nil {
		return err
	}
	effects, err := w.take(h, in)
	h.note(effects, err)
	if errors.Is(err, errCheck) {
		return err
	}
	return nil
}

// note remembers what a side did, for scenarios.
func (h *half) note(effects []Effect, err error) {
	if h.c == nil || h.away {
		h.log = append(h.log, "away")
		return
	}
	line := fmt.Sprintf("%s usage=%dms charge=%s", h.c.State, h.c.UsageMs, h.c.Charge)
	if h.c.Booked {
		line += " closed"
	}
	if !h.c.CancelAt.IsZero() && !h.c.State.Terminal() {
		line += " cancelling"
	}
	if h.c.State.Terminal() && h.c.Reason != "" {
		line += fmt.Sprintf(" %q", h.c.Reason)
	}
	if len(effects) > 0 {
		line += fmt.Sprint(" ", effects)
	}
	if err != nil {
		line += " error: " + err.Error()
	}
	h.log = append(h.log, line)
}

// accept is the provider's yes to the award, if it is in time and new to it.
func (w *world) accept() {
	if w.provider.away || w.provider.c != nil {
		return
	}
	c := w.lease
	c.Side = SideProvider
	w.provider.c = &c
	w.decision = &protocol.Decision{Accepted: true}
}

// makeBeat is the provider's heartbeat, kept by itself first.
func (w *world) makeBeat(phase State, usage int64) error {
	if w.provider.c == nil || w.provider.away || w.provider.c.State.Terminal() {
		return nil
	}
	phase = maxState(phase, w.provider.c.State)
	w.seq++
	w.beat = &protocol.Heartbeat{Seq: w.seq, Phase: phaseOf(phase), UsageMs: max(usage, w.provider.c.UsageMs)}
	return w.hear(&w.provider, w.beat)
}

func maxState(a, b State) State {
	if b.order() > a.order() && !b.Terminal() {
		return b
	}
	return a
}

// makeResult is the provider's end, kept by itself first.
func (w *world) makeResult(end State, code int32, usage int64) error {
	if w.provider.c == nil || w.provider.away || w.provider.c.State.Terminal() {
		return nil
	}
	usage = max(usage, w.provider.c.UsageMs)
	w.result = &protocol.Result{
		Outcome: outcomeOf(end), ExitCode: code, ExitSource: "job", UsageMs: usage, Charge: w.provider.c.due(usage).Wire(),
	}
	return w.hear(&w.provider, w.result)
}

// askCancel is the renter's wish to end, kept by itself first.
func (w *world) askCancel(grace time.Duration) error {
	if w.renter.away || w.renter.c.State.Terminal() {
		return nil
	}
	w.cancel = &protocol.Cancel{Reason: "stopped by its owner", GraceMs: grace.Milliseconds()}
	return w.hear(&w.renter, w.cancel)
}

// answer is what a renter says of a lease that is closed on its side.
func (w *world) answer() protocol.Message {
	if w.receipt == nil && w.renter.c.State == Refused {
		w.receipt = &protocol.Receipt{Charge: w.renter.c.Charge.Wire(), End: string(Cancelled)}
	}
	return w.receipt
}

func (w *world) tick(h *half) error {
	effects, err := w.take(h, Tick{})
	h.note(effects, err)
	return err
}

func (w *world) resume(h *half) error {
	h.away = false
	effects, err := w.take(h, Resumed{})
	if h.c != nil {
		effects = append(effects, h.c.Pending()...)
	}
	h.note(effects, err)
	return err
}
