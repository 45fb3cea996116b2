package job

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// HandleLease takes an award: the lease must be what the bid was for, and the
// room must be there. The decision is durable before it is sent; the same lease
// again gets the same decision.
func (p *Provider) HandleLease(ctx context.Context, from protocol.PeerID, lease protocol.Signed[*protocol.Lease]) (protocol.Signed[*protocol.Decision], error) {
	if from != lease.From || lease.Msg.GetProvider() != p.Signer.ID().String() {
		return protocol.Signed[*protocol.Decision]{}, fmt.Errorf("lease %s is not between us two: %w", lease.ID().Short(), protocol.ErrBlame)
	}
	p.awards.Lock()
	defer p.awards.Unlock()
	if d, err := p.decided(ctx, lease.ID()); err == nil {
		return d, nil
	} else if !errors.Is(err, ErrNotFound) {
		return d, err
	}
	now := p.Now()
	room, why, detail := p.admit(lease, now)
	if why != protocol.Reason_REASON_UNSPECIFIED {
		return protocol.Sign(p.Signer, &protocol.Decision{
			LeaseId: idBytes(lease.ID()), AtMs: now.UnixMilli(), Reason: why, Detail: detail,
		})
	}
	d, err := p.accept(ctx, lease, room, now)
	if err != nil {
		p.Pool.Release(lease.ID().String())
	}
	return d, err
}

func (p *Provider) decided(ctx context.Context, id protocol.MsgID) (protocol.Signed[*protocol.Decision], error) {
	var m Message
	err := p.Store.View(ctx, func(tx Tx) error {
		var err error
		m, err = tx.LastMessage(id, protocol.KindDecision)
		return err
	})
	if err != nil {
		return protocol.Signed[*protocol.Decision]{}, err
	}
	return protocol.Reopen[*protocol.Decision](p.Signer.Network(), m.Raw)
}

// admit holds a lease against its bid and takes the room for it.
func (p *Provider) admit(lease protocol.Signed[*protocol.Lease], now time.Time) (Reservation, protocol.Reason, string) {
	why, detail := p.judgeLease(lease, now)
	if why != protocol.Reason_REASON_UNSPECIFIED {
		return Reservation{}, why, detail
	}
	room, ok := p.Pool.Take(lease.ID().String(), hexID(lease.Msg.GetOfferId()), lease.From.String(), roomOfLease(lease.Msg), now)
	if !ok {
		return Reservation{}, protocol.Reason_REASON_BUSY, "the room has gone to another lease"
	}
	return room, protocol.Reason_REASON_UNSPECIFIED, ""
}

func hexID(b []byte) string {
	id, err := protocol.ParseMsgID(b)
	if err != nil {
		return ""
	}
	return id.String()
}

// judgeLease holds a lease against the bid that it takes up.
func (p *Provider) judgeLease(lease protocol.Signed[*protocol.Lease], now time.Time) (protocol.Reason, string) {
	l := lease.Msg
	bidID, err := protocol.ParseMsgID(l.GetBidId())
	if err != nil {
		return protocol.Reason_REASON_UNKNOWN_BID, "no bid id"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	b, ok := p.bids[bidID]
	switch {
	case p.ctx == nil || p.Sandbox == nil:
		return protocol.Reason_REASON_NO_SANDBOX, "this provider runs nothing now"
	case p.stands() != ProviderOpen:
		return protocol.Reason_REASON_PAUSED, "this provider is " + p.stands()
	case !ok || b.renter != lease.From || hexID(l.GetOfferId()) != b.offer.ID().String():
		return protocol.Reason_REASON_UNKNOWN_BID, "no such bid was made to you, or it has lapsed"
	case now.UnixMilli() > b.bid.Msg.GetValidUntilMs() || now.UnixMilli() > l.GetAcceptByMs():
		return protocol.Reason_REASON_EXPIRED, "the bid or the award came too late"
	case l.GetAsset() != b.bid.Msg.GetAsset() || l.GetPricePerHour() < b.bid.Msg.GetPricePerHour():
		return protocol.Reason_REASON_PRICE, fmt.Sprintf("the bid was %d", b.bid.Msg.GetPricePerHour())
	case !proto.Equal(l.GetResources(), b.offer.Msg.GetResources()), l.GetNet() != b.offer.Msg.GetNet(), !proto.Equal(l.GetImage(), b.offer.Msg.GetImage()):
		return protocol.Reason_REASON_LIMITS, "the lease differs from the offer that was bid for"
	}
	if what := unasked(l, b.offer.Msg); what != "" {
		return protocol.Reason_REASON_LIMITS, "the lease asks for " + what + ", which the offer that was bid for did not"
	}
	if most := p.Limits.Pids; most > 0 && l.GetLimits().GetPids() > most {
		return protocol.Reason_REASON_LIMITS, fmt.Sprintf("the lease asks for %d processes, and this machine has room for %d: lower limits.pids", l.GetLimits().GetPids(), most)
	}
	if what := beyond(l.GetLimits(), b.offer.Msg); what != "" {
		return protocol.Reason_REASON_LIMITS, "the lease asks for more " + what + " than the offer that was bid for"
	}
	return protocol.Reason_REASON_UNSPECIFIED, ""
}

// beyond names what a lease's limits have more of than its offer said.
func beyond(l *protocol.Limits, o *protocol.Offer) string {
	switch {
	case l.GetFetchMs() > o.GetFetchLimitMs():
		return "time to fetch"
	case l.GetRunMs() > o.GetRunLimitMs():
		return "time to run"
	case l.GetOutputBytes() > o.GetOutputBytes():
		return "room for outputs"
	case l.GetLogBytes() > o.GetLogBytes():
		return "room for its log"
	case l.GetOpenFiles() > o.GetOpenFiles():
		return "open files"
	case l.GetNetBytes() > o.GetNetBytes():
		return "bytes of the internet"
	}
	return ""
}

// accept signs, stores and starts a lease whose room is taken.
func (p *Provider) accept(ctx context.Context, lease protocol.Signed[*protocol.Lease], room Reservation, now time.Time) (protocol.Signed[*protocol.Decision], error) {
	decision, err := protocol.Sign(p.Signer, &protocol.Decision{LeaseId: idBytes(lease.ID()), AtMs: now.UnixMilli(), Accepted: true})
	if err != nil {
		return decision, err
	}
	c, _, err := Apply(NewContract(SideProvider, lease, now), Accepted{}, now)
	if err != nil {
		return decision, err
	}
	c.Cards = room.GPUs
	err = p.Store.Update(ctx, func(tx Tx) error {
		return errors.Join(
			tx.PutContract(&c),
			tx.AppendMessage(c.ID, Message{Kind: protocol.KindLease, Raw: lease.Raw, At: now}),
			tx.AppendMessage(c.ID, Message{Kind: protocol.KindDecision, Raw: decision.Raw, At: now}),
			holdInputs(tx, lease, &c, now),
			tx.Emit(contractEvent(&c, now)),
		)
	})
	if err != nil {
		return decision, fmt.Errorf("store lease %s: %w", c.ID.Short(), err)
	}
	p.Net.Learn(lease.From, lease.Msg.GetAddrs())
	if !p.start(p.newExecution(lease, c)) {
		return decision, ErrNotRunning
	}
	p.Log.Info("lease accepted", "lease", c.ID.Short(), "job", c.Job, "task", c.Task, "peer", c.Renter)
	p.Changed()
	return decision, nil
}

// inputsSlack is what a lease's inputs are held longer than they may take to
// fetch and lay out.
const inputsSlack = time.Minute

// inputsOwner is in whose name a lease's inputs are held.
func inputsOwner(id protocol.MsgID) string { return "inputs:" + id.String() }

// holdInputs keeps a lease's inputs from collection until they are laid out.
func holdInputs(tx Tx, lease protocol.Signed[*protocol.Lease], c *Contract, now time.Time) error {
	for _, in := range lease.Msg.GetSpec().GetInputs() {
		if err := tx.HoldBlocks(inputsOwner(c.ID), in.GetRoot(), now.Add(c.FetchMax+inputsSlack)); err != nil {
			return err
		}
	}
	if root := lease.Msg.GetSpec().GetRestore(); len(root) > 0 {
		if err := tx.HoldBlocks(inputsOwner(c.ID), root, now.Add(c.FetchMax+inputsSlack)); err != nil {
			return err
		}
	}
	for _, w := range lease.Msg.GetSpec().GetCaches() {
		root, ok := cacheRoot(w.GetKey())
		if !ok {
			continue
		}
		if err := tx.HoldBlocks(inputsOwner(c.ID), root, now.Add(c.FetchMax+inputsSlack)); err != nil {
			return err
		}
	}
	return nil
}

// releaseInputs gives up what holdInputs held.
func (p *Provider) releaseInputs(ctx context.Context, lease protocol.Signed[*protocol.Lease]) {
	if s := lease.Msg.GetSpec(); len(s.GetInputs())+len(s.GetCaches())+len(s.GetRestore()) == 0 {
		return
	}
	err := p.Store.Update(ctx, func(tx Tx) error { return tx.ReleaseBlocks(inputsOwner(lease.ID())) })
	if err != nil && ctx.Err() == nil {
		p.Log.Error("release the inputs, which lapse later by themselves", "lease", lease.ID().Short(), "err", err)
	}
}

// HandleCancel ends a lease at its renter's wish, and says where it stands.
func (p *Provider) HandleCancel(ctx context.Context, from protocol.PeerID, cancel protocol.Signed[*protocol.Cancel]) (protocol.Signed[*protocol.LeaseStatus], error) {
	id, err := protocol.ParseMsgID(cancel.Msg.GetLeaseId())
	if err != nil {
		return protocol.Signed[*protocol.LeaseStatus]{}, err
	}
	if e := p.running(id); e != nil && e.lease.From == from {
		if err := e.cancel(ctx, cancel); err != nil {
			return protocol.Signed[*protocol.LeaseStatus]{}, err
		}
	}
	return p.leaseStatus(ctx, from, id)
}

// HandleLeaseQuery says where a lease stands, in words signed before.
func (p *Provider) HandleLeaseQuery(ctx context.Context, from protocol.PeerID, q protocol.Signed[*protocol.LeaseQuery]) (protocol.Signed[*protocol.LeaseStatus], error) {
	id, err := protocol.ParseMsgID(q.Msg.GetLeaseId())
	if err != nil {
		return protocol.Signed[*protocol.LeaseStatus]{}, err
	}
	return p.leaseStatus(ctx, from, id)
}

func (p *Provider) leaseStatus(ctx context.Context, from protocol.PeerID, id protocol.MsgID) (protocol.Signed[*protocol.LeaseStatus], error) {
	status := &protocol.LeaseStatus{LeaseId: idBytes(id)}
	err := p.Store.View(ctx, func(tx Tx) error {
		c, err := tx.Contract(id)
		if errors.Is(err, ErrNotFound) || err == nil && (c.Side != SideProvider || c.Renter != from.String()) {
			return nil
		}
		if err != nil {
			return err
		}
		status.Known = true
		for kind, to := range map[protocol.Kind]*[]byte{
			protocol.KindDecision: &status.Decision, protocol.KindHeartbeat: &status.Heartbeat, protocol.KindResult: &status.Result,
		} {
			m, err := tx.LastMessage(id, kind)
			if err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
			*to = m.Raw
		}
		return nil
	})
	if err != nil {
		return protocol.Signed[*protocol.LeaseStatus]{}, fmt.Errorf("lease %s: %w", id.Short(), err)
	}
	return protocol.Sign(p.Signer, status)
}

// Exec runs a command in the container of a lease for its renter.
func (p *Provider) Exec(ctx context.Context, from protocol.PeerID, lease protocol.MsgID, spec sandbox.ExecSpec) (int, error) {
	e := p.running(lease)
	if e == nil || e.lease.From != from {
		return 0, fmt.Errorf("lease %s has no container here: %w", lease.Short(), protocol.ErrElsewhere)
	}
	return p.Sandbox.Exec(ctx, e.containerID(), spec)
}

func contractEvent(c *Contract, now time.Time) Event {
	return Event{
		Time: now, Type: EventContract, Job: c.Job, Task: c.Task, Lease: c.ID.String(),
		Peer: other(c), State: string(c.State), Text: c.Reason, Data: jsonOf(c),
	}
}

// other is the peer on the other side of a contract.
func other(c *Contract) string {
	if c.Side == SideRenter {
		return c.Provider
	}
	return c.Renter
}

// bookCharge posts what a transition moved; the entry of the result comes
// first, a correction when the receipt says less.
func bookCharge(tx Tx, before, after *Contract, now time.Time) error {
	for _, e := range ledger.ContractEntries(ledger.ContractCharge{
		Lease: after.ID.String(), Job: after.Job, RenterSide: after.Side == SideRenter,
		Renter: after.Renter, Provider: after.Provider,
		Before: before.Charge, After: after.Charge, Time: now,
	}) {
		if err := tx.Post(e); err != nil {
			return fmt.Errorf("book %s: %w", after.Charge, err)
		}
	}
	return nil
}
