package job

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// configDigest is the digest behind an image's id, "sha256:…".
func configDigest(id string) []byte {
	b, err := hex.DecodeString(strings.TrimPrefix(id, "sha256:"))
	if err != nil {
		return nil
	}
	return b
}

// makeLease signs the lease of a task for a bid.
func (a *activeJob) makeLease(j *Job, t *TaskRecord, p Placement, offer protocol.Signed[*protocol.Offer], budget ledger.Amount, now time.Time) (protocol.Signed[*protocol.Lease], error) {
	var nonce [16]byte
	_, _ = rand.Read(nonce[:]) // crypto/rand never fails
	task, err := wireTask(j, t.Index)
	if err == nil {
		err = a.r.sealTask(j, t.Index, task, p.On.Peer)
	}
	if err == nil {
		err = a.sealSecrets(j, t.Index, task, p.On.Peer)
	}
	var restore uint64
	if err == nil {
		restore, err = a.r.checkpointTask(j, t, task, p.On.Peer)
	}
	if err != nil {
		return protocol.Signed[*protocol.Lease]{}, err
	}
	bid := p.On.Bid
	return protocol.Sign(a.r.Signer, &protocol.Lease{
		Nonce: nonce[:], OfferId: idBytes(offer.ID()), BidId: idBytes(bid.ID()), Provider: p.On.Peer.String(),
		Job: j.ID, Task: uint32(t.Index), Attempt: uint32(t.Attempts), IssuedMs: now.UnixMilli(),
		AcceptByMs: now.Add(acceptWithin).UnixMilli(), Resources: offer.Msg.GetResources(), Image: offer.Msg.GetImage(),
		Spec: task, Limits: &protocol.Limits{
			FetchMs: j.Spec.Limits.Fetch.Milliseconds(), RunMs: j.Spec.Limits.Run.Milliseconds(), SaveMs: saveLimit.Milliseconds(),
			LogBytes: j.Spec.Limits.Logs, OutputBytes: j.Spec.outputLimit(), Pids: j.Spec.Limits.Pids,
			OpenFiles: j.Spec.openFiles(), NetBytes: j.Spec.Limits.Net,
		},
		Net: j.Spec.Network, Asset: Asset, PricePerHour: bid.Msg.GetPricePerHour(), Budget: budget.Wire(),
		HeartbeatMs: a.r.Heartbeat.Milliseconds(), Addrs: offer.Msg.GetAddrs(), Holders: a.holders(j, p.On.Peer),
		RestoreBytes: restore,
	})
}

// rehearse makes an offer and a lease that nobody gets, so that a job which the
// protocol cannot carry is refused when it is submitted and not by every
// provider in turn.
func (r *Renter) rehearse(j *Job, secrets []byte) error {
	offer, err := r.makeOffer(j, j.Spec.Parallel(), nil)
	if err == nil {
		err = offer.Msg.Validate(r.Now())
	}
	if err != nil {
		return specErr("it makes no offer: %w", err)
	}
	bid := Candidate{Peer: r.Signer.ID(), Bid: protocol.Signed[*protocol.Bid]{Msg: &protocol.Bid{}}}
	for _, task := range []int{0, j.Spec.Tasks() - 1} { // the last has the longest numbers
		t := &TaskRecord{Job: j.ID, Index: task}
		lease, err := newActiveJob(r, j, nil, secrets).makeLease(j, t, Placement{Task: task, On: bid}, offer, ledger.Units(Asset, 0), r.Now())
		if err == nil {
			err = lease.Msg.Validate(r.Now())
		}
		if errors.Is(err, ErrSpec) {
			return err
		}
		if err != nil {
			return specErr("task %d makes no lease: %w", task, err)
		}
	}
	return nil
}

// holders are other providers that are known to have the image.
func (a *activeJob) holders(j *Job, but protocol.PeerID) []string {
	var out []string
	for _, p := range a.r.known.list(j.Image.Root, 8) {
		if p != but {
			out = append(out, p.String())
		}
	}
	return out
}

func wireTask(j *Job, index int) (*protocol.Task, error) {
	command, env, err := Expand(j.Spec, j.ID, index)
	if err != nil {
		return nil, err
	}
	task := &protocol.Task{Command: command, Workdir: j.Spec.Workdir}
	for name, value := range env {
		task.Env = append(task.Env, &protocol.EnvVar{Name: name, Value: value})
	}
	slices.SortFunc(task.Env, func(x, y *protocol.EnvVar) int { return strings.Compare(x.Name, y.Name) })
	for _, in := range j.Inputs {
		task.Inputs = append(task.Inputs, &protocol.Input{Root: in.CID, To: in.To, Size: in.Size})
	}
	for i, out := range j.Spec.Outputs {
		task.Outputs = append(task.Outputs, out.From)
		if out.Stream {
			task.Streams = append(task.Streams, uint32(i))
		}
	}
	task.Caches = wireCaches(j)
	wireService(j.Spec, task)
	return task, nil
}

// taskBudget is what one lease may cost: what it would at the run limit, and no
// more than its share of what the job has left.
func taskBudget(j *Job, price uint64, share ledger.Amount) ledger.Amount {
	most := ledger.Charge(Asset, price, j.Spec.Limits.Run.Milliseconds())
	if j.Spec.Pay.Budget.IsZero() {
		return most
	}
	return most.Min(share)
}

// award proposes a lease: stored first, then sent. It reports whether the task
// now has a provider.
func (a *activeJob) award(ctx context.Context, auction *Auction, p Placement, share ledger.Amount) bool {
	l, err := a.propose(ctx, auction, p, share)
	if err != nil {
		a.r.Log.Error("propose a lease", "job", a.id, "task", p.Task, "peer", p.On.Peer, "err", err)
		if errors.Is(err, errNoLease) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.refused(p.On.Peer, ReasonNoLease, a.r.Now())
		}
		return false
	}
	if l == nil {
		return false
	}
	callCtx, cancel := context.WithTimeout(ctx, acceptWithin)
	defer cancel()
	decision, err := a.r.Net.Propose(callCtx, p.On.Peer, l.lease)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.r.Log.Info("award not answered", "job", a.id, "task", p.Task, "peer", p.On.Peer, "err", err)
		a.unanswered(ctx, l, err)
		return false
	}
	if err := a.decided(ctx, l, decision); err != nil {
		a.r.Log.Error("take the decision", "job", a.id, "lease", l.c.ID.Short(), "err", err)
		return false
	}
	if l.c.State == Refused {
		a.refused(p.On.Peer, l.c.Refusal, a.r.Now())
		a.r.Log.Info("award refused", "job", a.id, "task", p.Task, "peer", p.On.Peer, "reason", l.c.Refusal, "detail", l.c.Reason)
		return false
	}
	a.rounds, a.noes, a.heardAt = 0, 0, a.r.Now()
	delete(a.refusals, p.On.Peer)
	a.r.known.met(p.On.Peer, nil)
	return true
}

// errNoLease says that a lease cannot be made for a bid, whatever the store does.
var errNoLease = errors.New("no lease can be made for it")

// propose stores the lease and the task's claim to it.
func (a *activeJob) propose(ctx context.Context, auction *Auction, p Placement, share ledger.Amount) (*liveLease, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	j, t, now := *a.job, *a.tasks[p.Task], a.r.Now()
	if t.State != TaskQueued || !j.StopAsked.IsZero() {
		return nil, nil
	}
	budget := taskBudget(&j, p.On.Bid.Msg.GetPricePerHour(), share)
	lease, err := a.makeLease(&j, &t, p, auction.Offer, budget, now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoLease, err)
	}
	l := &liveLease{c: NewContract(SideRenter, lease, now), lease: lease}
	l.c.AskedAt = time.UnixMilli(auction.Offer.Msg.GetIssuedMs()).UTC()
	t.State, t.Lease, t.Provider = string(Proposed), l.c.ID, l.c.Provider
	t.Attempts++
	j.Unplaced, j.Heard, j.Cheapest = nil, 0, ledger.Amount{}
	a.judge(&j, &t, now)
	err = a.r.Store.Update(ctx, func(tx Tx) error {
		errs := []error{
			tx.PutContract(&l.c), tx.PutTask(&t), tx.PutJob(&j), tx.Emit(taskEvent(&t, now)),
			tx.AppendMessage(l.c.ID, Message{Kind: protocol.KindLease, Raw: lease.Raw, At: now}),
			tx.AppendMessage(l.c.ID, Message{Kind: protocol.KindBid, Raw: p.On.Bid.Raw, At: now}),
			a.tellOrigin(tx, &t, now),
		}
		if j.State != a.job.State {
			errs = append(errs, tx.Emit(jobEvent(&j, now)))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return nil, err
	}
	*a.job, *a.tasks[t.Index] = j, t
	a.live[l.c.ID] = l
	a.r.mu.Lock()
	a.r.leases[l.c.ID] = a
	a.r.mu.Unlock()
	return l, nil
}

// unanswered handles an award whose answer did not come: a clear no frees the
// task at once, silence is asked about until the award lapses. The lock is held.
func (a *activeJob) unanswered(ctx context.Context, l *liveLease, cause error) {
	if l.c.State != Proposed {
		return
	}
	if !errors.Is(cause, protocol.ErrElsewhere) && !errors.Is(cause, protocol.ErrBlame) {
		a.begin(func() { a.reattach(a.ctx, l) }) // a heartbeat may show it too
		return
	}
	to, err := peerOf(l.c.Provider)
	if err == nil {
		a.refused(to, protocol.Reason_REASON_EXPIRED.String(), a.r.Now())
	}
	if err := a.advance(ctx, l, Rejected{Reason: protocol.Reason_REASON_EXPIRED.String(), Detail: short(cause.Error())}); err != nil {
		a.r.Log.Error("free the task", "lease", l.c.ID.Short(), "err", err)
	}
}

// decided takes the provider's decision. The lock is held.
func (a *activeJob) decided(ctx context.Context, l *liveLease, d protocol.Signed[*protocol.Decision]) error {
	if d.From.String() != l.c.Provider || string(d.Msg.GetLeaseId()) != string(idBytes(l.c.ID)) {
		return fmt.Errorf("a decision about another lease: %w", protocol.ErrInvalid)
	}
	in, err := InputOf(d.Msg)
	if err != nil {
		return err
	}
	return a.advance(ctx, l, in, Message{Kind: protocol.KindDecision, Raw: d.Raw, At: a.r.Now()})
}

// sendCancel tells the provider to end a lease; it is repeated by the next
// heartbeat's verdict until the result comes. The lock is held.
func (a *activeJob) sendCancel(l *liveLease) {
	if l.cancelling || l.c.State == Proposed {
		return
	}
	to, err := peerOf(l.c.Provider)
	if err != nil {
		return
	}
	cancel, err := a.cancelMessage(l)
	if err != nil {
		a.r.Log.Error("sign a cancel", "lease", l.c.ID.Short(), "err", err)
		return
	}
	l.cancelling = a.begin(func() {
		ctx, end := context.WithTimeout(a.ctx, acceptWithin)
		defer end()
		if _, err := a.r.Net.Cancel(ctx, to, cancel); err != nil {
			a.r.Log.Info("cancel not delivered yet", "lease", cancel.ID().Short(), "peer", to, "err", err)
		}
		a.mu.Lock()
		l.cancelling = false
		a.mu.Unlock()
	})
}

func (a *activeJob) cancelMessage(l *liveLease) (protocol.Signed[*protocol.Cancel], error) {
	return protocol.Sign(a.r.Signer, &protocol.Cancel{
		LeaseId: idBytes(l.c.ID), AtMs: l.c.CancelAt.UnixMilli(), GraceMs: l.c.Grace.Milliseconds(), Reason: short(l.c.CancelReason),
	})
}

// reattach asks the provider of an open lease where it stands, until it answers
// or is lost.
func (a *activeJob) reattach(ctx context.Context, l *liveLease) {
	to, err := peerOf(l.lease.Msg.GetProvider())
	if err != nil {
		return
	}
	q, err := protocol.Sign(a.r.Signer, &protocol.LeaseQuery{LeaseId: idBytes(l.lease.ID())})
	if err != nil {
		return
	}
	wait := retryFirst
	for {
		status, err := a.leaseStatus(ctx, to, q)
		if err == nil {
			err = a.learn(ctx, l, status.Msg)
		}
		if err == nil {
			a.r.Log.Info("lease re-attached", "job", a.id, "lease", l.lease.ID().Short(), "peer", to)
			return
		}
		a.r.Log.Info("lease not re-attached yet", "lease", l.lease.ID().Short(), "peer", to, "err", err)
		a.mu.Lock()
		over := l.c.State.Terminal()
		a.mu.Unlock()
		if over || !pause(ctx, &wait, a.r.Heartbeat, nil) {
			return
		}
	}
}

func (a *activeJob) leaseStatus(ctx context.Context, to protocol.PeerID, q protocol.Signed[*protocol.LeaseQuery]) (protocol.Signed[*protocol.LeaseStatus], error) {
	ctx, cancel := context.WithTimeout(ctx, acceptWithin)
	defer cancel()
	return a.r.Net.LeaseStatus(ctx, to, q)
}

// learn takes what a provider has signed about a lease while this node was
// away. A provider that knows nothing of an award never got it.
func (a *activeJob) learn(ctx context.Context, l *liveLease, s *protocol.LeaseStatus) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !s.GetKnown() {
		if l.c.State == Proposed {
			return a.advance(ctx, l, Rejected{Reason: protocol.Reason_REASON_EXPIRED.String(), Detail: "the provider never got the award"})
		}
		return nil // the heartbeat's absence will say so
	}
	if raw := s.GetDecision(); len(raw) > 0 && l.c.State == Proposed {
		d, err := protocol.Reopen[*protocol.Decision](a.r.Signer.Network(), raw)
		if err != nil {
			return err
		}
		return a.decided(ctx, l, d)
	}
	return nil
}
