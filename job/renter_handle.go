package job

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

// outputFetch is the transfer of one lease's outputs to this node and the end of
// the contract with it, which is what the receipt waits for.
type outputFetch struct {
	done   chan struct{}
	err    error              // set before done is closed
	cancel context.CancelFunc // ends the transfer, not what follows it
	had    atomic.Uint64      // bytes here, as last heard
	moved  atomic.Int64       // Unix milliseconds of when that changed
}

// stuck reports whether nothing has come for as long as a provider may be silent.
func (f *outputFetch) stuck(heartbeat time.Duration, now time.Time) bool {
	return now.Sub(time.UnixMilli(f.moved.Load())) > MissedHeartbeats*heartbeat
}

// live finds the job and the contract of a message, and checks that its sender
// is the provider. Both are nil when the lease is no longer under way.
func (r *Renter) live(from protocol.PeerID, leaseID []byte) (*activeJob, *liveLease, protocol.MsgID, error) {
	id, err := protocol.ParseMsgID(leaseID)
	if err != nil {
		return nil, nil, id, err
	}
	a := r.ofLease(id)
	if a == nil {
		return nil, nil, id, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.live[id]
	if l == nil {
		return nil, nil, id, nil
	}
	if l.c.Provider != from.String() {
		return nil, nil, id, fmt.Errorf("lease %s is not with %s: %w", id.Short(), from, protocol.ErrBlame)
	}
	return a, l, id, nil
}

// HandleHeartbeat takes a provider's sign of life and answers with what it must
// know: that it shall go on, end, or that all is settled.
func (r *Renter) HandleHeartbeat(ctx context.Context, from protocol.PeerID, hb protocol.Signed[*protocol.Heartbeat]) (protocol.Signed[*protocol.Verdict], error) {
	var none protocol.Signed[*protocol.Verdict]
	a, l, id, err := r.live(from, hb.Msg.GetLeaseId())
	if err != nil {
		return none, err
	}
	if l == nil {
		return r.closedVerdict(ctx, from, id)
	}
	in, err := InputOf(hb.Msg)
	if err != nil {
		return none, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.advance(ctx, l, in, Message{Kind: protocol.KindHeartbeat, Raw: hb.Raw, At: r.Now()}); err != nil {
		if errors.Is(err, ErrOverclaim) || errors.Is(err, ErrTransition) {
			err = fmt.Errorf("%w: %w", protocol.ErrBlame, err)
		}
		return none, err
	}
	if trouble := hb.Msg.GetTrouble(); trouble != l.trouble {
		l.trouble = trouble
		if trouble != "" {
			a.told(l, fmt.Sprintf("trouble where task %d runs: %s", l.c.Task, trouble))
		}
	}
	a.heardStream(l, hb.Msg)
	a.heardCheckpoint(l, hb.Msg)
	return a.verdict(l)
}

// verdict is the answer to a provider whose lease is under way. The lock is
// held.
func (a *activeJob) verdict(l *liveLease) (protocol.Signed[*protocol.Verdict], error) {
	v := &protocol.Verdict{LeaseId: idBytes(l.c.ID), GoOn: l.c.CancelAt.IsZero(), Checkpoint: a.keptCheckpoint(l)}
	if !v.GoOn {
		cancel, err := a.cancelMessage(l)
		if err != nil {
			return protocol.Signed[*protocol.Verdict]{}, err
		}
		v.Cancel = cancel.Raw
	}
	return protocol.Sign(a.r.Signer, v)
}

// closedVerdict answers about a lease that is not under way: with the receipt
// that closed it, made now for an award that was given up before its provider
// was heard.
func (r *Renter) closedVerdict(ctx context.Context, from protocol.PeerID, id protocol.MsgID) (protocol.Signed[*protocol.Verdict], error) {
	receipt, err := r.closing(ctx, from, id)
	if err != nil {
		return protocol.Signed[*protocol.Verdict]{}, err
	}
	return protocol.Sign(r.Signer, &protocol.Verdict{LeaseId: idBytes(id), Receipt: receipt.Raw})
}

// closing is the receipt of a lease that is over.
func (r *Renter) closing(ctx context.Context, from protocol.PeerID, id protocol.MsgID) (protocol.Signed[*protocol.Receipt], error) {
	var none protocol.Signed[*protocol.Receipt]
	var c *Contract
	var stored Message
	err := r.Store.View(ctx, func(tx Tx) error {
		var err error
		if c, err = tx.Contract(id); err != nil {
			return err
		}
		stored, err = tx.LastMessage(id, protocol.KindReceipt)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	})
	switch {
	case errors.Is(err, ErrNotFound), err == nil && (c.Side != SideRenter || c.Provider != from.String()):
		return none, fmt.Errorf("lease %s is not known here: %w", id.Short(), protocol.ErrBlame)
	case err != nil:
		return none, err
	case len(stored.Raw) > 0:
		return protocol.Reopen[*protocol.Receipt](r.Signer.Network(), stored.Raw)
	case !c.State.Terminal():
		return none, fmt.Errorf("lease %s is being taken up again: %w", id.Short(), protocol.ErrRetry)
	}
	return r.closeUnused(ctx, c)
}

// closeUnused signs that an award which was never used costs nothing.
func (r *Renter) closeUnused(ctx context.Context, c *Contract) (protocol.Signed[*protocol.Receipt], error) {
	now := r.Now()
	receipt, err := protocol.Sign(r.Signer, &protocol.Receipt{
		LeaseId: idBytes(c.ID), AtMs: now.UnixMilli(), Charge: c.Charge.Wire(), End: string(Cancelled),
	})
	if err != nil {
		return receipt, err
	}
	err = r.Store.Update(ctx, func(tx Tx) error {
		return tx.AppendMessage(c.ID, Message{Kind: protocol.KindReceipt, Raw: receipt.Raw, At: now})
	})
	return receipt, err
}

// logSlack is what a log may hold over its limit: the sandbox's own remarks.
const logSlack = 64 << 10

// HandleLogs keeps a provider's output and says which record is wanted next;
// none after the lease was settled.
func (r *Renter) HandleLogs(ctx context.Context, from protocol.PeerID, chunk protocol.Signed[*protocol.LogChunk]) (protocol.Signed[*protocol.Verdict], error) {
	var none protocol.Signed[*protocol.Verdict]
	a, l, id, err := r.live(from, chunk.Msg.GetLeaseId())
	if err != nil {
		return none, err
	}
	if l == nil {
		return r.closedVerdict(ctx, from, id)
	}
	records := make([]LogRecord, 0, len(chunk.Msg.GetRecords()))
	for _, rec := range chunk.Msg.GetRecords() {
		records = append(records, LogRecord{
			Seq: rec.GetSeq(), Stream: int(rec.GetStream()), Time: time.UnixMilli(rec.GetAtMs()).UTC(), Data: rec.GetData(),
		})
	}
	a.mu.Lock()
	full := l.logBytes > l.lease.Msg.GetLimits().GetLogBytes()+logSlack
	a.mu.Unlock()
	if full { // taken and not kept: no honest provider sends so much
		return protocol.Sign(r.Signer, &protocol.Verdict{LeaseId: idBytes(id), GoOn: true, LogSeq: chunk.Msg.GetFirstSeq() + uint64(len(records))})
	}
	var next uint64
	err = r.Store.Update(ctx, func(tx Tx) error {
		next, err = tx.AppendLog(id, records)
		return err
	})
	if err != nil {
		return none, fmt.Errorf("store the output of lease %s: %w", id.Short(), err)
	}
	a.mu.Lock()
	for _, rec := range records {
		if rec.Seq >= l.logNext && rec.Seq < next {
			l.logBytes += uint64(len(rec.Data))
		}
	}
	l.logNext = max(l.logNext, next)
	a.mu.Unlock()
	return protocol.Sign(r.Signer, &protocol.Verdict{LeaseId: idBytes(id), GoOn: true, LogSeq: next})
}

// resultPatience is how long a provider is kept on the line while its outputs
// arrive; after that it asks again.
const resultPatience = 10 * time.Second

// HandleResult takes a provider's end. The receipt is given when the outputs
// are here, so that what was paid for cannot be lost with the provider.
func (r *Renter) HandleResult(ctx context.Context, from protocol.PeerID, res protocol.Signed[*protocol.Result]) (protocol.Signed[*protocol.Receipt], error) {
	var none protocol.Signed[*protocol.Receipt]
	a, l, id, err := r.live(from, res.Msg.GetLeaseId())
	if err != nil {
		return none, err
	}
	if l == nil {
		return r.closing(ctx, from, id)
	}
	if len(res.Msg.GetOutputs()) > 0 {
		err = a.outputsHere(ctx, l, res)
	} else {
		err = a.conclude(l, res)
	}
	if errors.Is(err, ErrOverclaim) || errors.Is(err, ErrTransition) {
		err = fmt.Errorf("%w: %w", protocol.ErrBlame, err)
	}
	if err != nil {
		return none, err
	}
	return r.closing(ctx, from, id)
}

// conclude takes a result into the contract; the receipt is signed with it.
func (a *activeJob) conclude(l *liveLease, res protocol.Signed[*protocol.Result]) error {
	in, err := InputOf(res.Msg)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	over := l.c.State.Terminal()
	if err := a.advance(a.ctx, l, in, Message{Kind: protocol.KindResult, Raw: res.Raw, At: a.r.Now()}); err != nil {
		return err
	}
	if !over {
		a.checkLog(l, res.Msg.GetLogSeq())
	}
	if res.Msg.GetOutcome() == protocol.Outcome_OUTCOME_DONE {
		a.r.known.met(res.From, l.lease.Msg.GetImage().GetRoot())
		a.r.cached.note(res.From, l.lease.Msg.GetSpec().GetCaches())
	}
	return nil
}

// checkLog says so when not all of a lease's output has come.
func (a *activeJob) checkLog(l *liveLease, records uint64) {
	if records == 0 {
		return
	}
	here := true
	err := a.r.Store.View(a.ctx, func(tx Tx) error {
		last, err := tx.Log(l.c.ID, records, 1)
		here = len(last) > 0
		return err
	})
	if err != nil {
		a.r.Log.Error("look for the end of the output", "job", a.id, "lease", l.c.ID.Short(), "err", err)
		return
	}
	if !here {
		a.notice(a.ctx, l.c.Task, fmt.Sprintf("output of task %d is incomplete: its provider counts %d records, and not all of them came", l.c.Task, records))
	}
}

// outputsHere waits until a result's outputs are in this node's store and the
// contract has ended with it; that goes on when the caller's patience is over.
func (a *activeJob) outputsHere(ctx context.Context, l *liveLease, res protocol.Signed[*protocol.Result]) error {
	f := a.fetchOutputs(l, res)
	t := time.NewTimer(resultPatience)
	defer t.Stop()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
	case <-t.C:
	}
	return fmt.Errorf("outputs are still on their way: %w", protocol.ErrRetry)
}

// fetchOutputs begins to bring a lease's outputs here and to where the job wants
// them, or finds the transfer that has begun. One that fails is begun again,
// from where it came to, by the provider's next try.
func (a *activeJob) fetchOutputs(l *liveLease, res protocol.Signed[*protocol.Result]) *outputFetch {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l.outputs != nil {
		return l.outputs
	}
	ctx, cancel := context.WithCancel(a.ctx)
	f := &outputFetch{done: make(chan struct{}), cancel: cancel}
	f.moved.Store(a.r.Now().UnixMilli())
	job, limit := a.id, a.job.Spec.Limits.Output
	begun := a.begin(func() {
		defer close(f.done)
		defer cancel()
		a.endStream(l)
		f.err = a.bringOutputs(ctx, f, limit, res)
		if f.err == nil {
			a.export(l, res.Msg.GetOutputs())
			f.err = a.conclude(l, res)
		}
		if f.err != nil {
			a.mu.Lock()
			l.outputs = nil
			a.mu.Unlock()
		}
	})
	if !begun {
		cancel()
		f.err = fmt.Errorf("job %s is no longer followed here: %w", job, protocol.ErrRetry)
		close(f.done)
		return f
	}
	l.outputs = f
	return f
}

// bringOutputs fetches the outputs; they are held from before the first block
// arrives.
func (a *activeJob) bringOutputs(ctx context.Context, f *outputFetch, limit uint64, res protocol.Signed[*protocol.Result]) error {
	err := a.r.Store.Update(ctx, func(tx Tx) error {
		return tx.HoldBlocks("outputs:"+a.id, res.Msg.GetOutputs(), time.Time{})
	})
	if err == nil {
		err = a.r.Content.FetchDAG(ctx, res.Msg.GetOutputs(), []protocol.PeerID{res.From}, limit, func(p Progress) {
			if f.had.Swap(p.Done) != p.Done {
				f.moved.Store(a.r.Now().UnixMilli())
			}
		})
	}
	if err != nil {
		return fmt.Errorf("fetch the outputs: %w: %w", protocol.ErrRetry, err)
	}
	return nil
}
