package job

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/lumbung-net/lumbung/protocol"
)

const (
	retryFirst = 100 * time.Millisecond
	retryMost  = time.Minute
	keepTrying = 7 * 24 * time.Hour // a result whose renter never comes back
)

func peerOf(s string) (protocol.PeerID, error) { return peer.Decode(s) }

// report starts the goroutines that tell the renter: heartbeats while the work
// is under way, the log as it grows, and in the end the result. The group ends
// when the receipt is here or ctx is over.
func (e *execution) report(ctx context.Context) *sync.WaitGroup {
	var g sync.WaitGroup
	logs := make(chan struct{})
	beats, stopBeats := context.WithCancel(ctx)
	g.Go(func() { e.heartbeats(beats) })
	g.Go(func() {
		defer close(logs)
		e.sendLogs(ctx)
	})
	g.Go(func() {
		defer stopBeats()
		e.sendResult(ctx, logs)
	})
	return &g
}

// makeBeat signs a heartbeat and commits it to this side's contract first.
func (e *execution) makeBeat(ctx context.Context, phase State) (protocol.Signed[*protocol.Heartbeat], error) {
	waited := e.waited(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.p.Now()
	switch {
	case e.c.State.Terminal():
		phase = Saving // over, but the renter has not said that it has everything
	case phase == "":
		phase = e.c.State
	}
	beat, err := protocol.Sign(e.p.Signer, &protocol.Heartbeat{
		LeaseId: idBytes(e.c.ID), Seq: max(uint64(now.UnixMilli()), e.c.BeatSeq+1), AtMs: now.UnixMilli(),
		Phase: phaseOf(phase), UsageMs: e.usage(now, phase, waited), FetchedBytes: e.c.Fetched, FetchBytes: e.c.ToFetch,
		LogSeq: e.logSeen.Load(), Outputs: e.streamed, OutputBytes: e.streamedBytes,
		Checkpoint: e.checkpoints.newest, CheckpointFailed: e.checkpoints.failed,
		Trouble: short(e.ails),
	})
	if err != nil || e.c.State.Terminal() {
		return beat, err
	}
	in, err := InputOf(beat.Msg)
	if err != nil {
		return beat, err
	}
	return beat, e.advance(ctx, in, now, Message{Kind: protocol.KindHeartbeat, Raw: beat.Raw, At: now})
}

// usage is what has run so far. The lock is held.
func (e *execution) usage(now time.Time, phase State, waited time.Duration) int64 {
	if e.c.State != Running || phase != Running || e.checkpoints.moved { // how long it ran is known by its end
		return e.c.UsageMs
	}
	ran := e.c.paidTime(now.Sub(e.c.RunningAt), waited)
	if e.c.ReadyMax > 0 { // its limit is held by this node, which may have been away
		ran = min(ran, e.c.paidLimit().Milliseconds())
	}
	return max(e.c.UsageMs, ran)
}

// heartbeats tells the renter, at the pace that the lease asks for and at each
// new phase, until the work is over.
func (e *execution) heartbeats(ctx context.Context) {
	every := time.NewTicker(e.contract().Heartbeat)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.booked:
			return
		case <-e.beat:
		case <-every.C:
		}
		if e.contract().State.order() < Fetching.order() {
			continue
		}
		beat, err := e.makeBeat(ctx, "")
		if err != nil {
			e.p.Log.Error("make a heartbeat", "lease", e.lease.ID().Short(), "err", err)
			continue
		}
		e.sendBeat(ctx, beat)
	}
}

func (e *execution) sendBeat(ctx context.Context, beat protocol.Signed[*protocol.Heartbeat]) {
	// One that is lost must leave time for others before the renter gives up.
	ctx, cancel := context.WithTimeout(ctx, e.contract().Heartbeat)
	defer cancel()
	verdict, err := e.p.Net.Heartbeat(ctx, e.lease.From, beat)
	if err != nil {
		e.p.Log.Debug("heartbeat not delivered", "lease", e.lease.ID().Short(), "peer", e.lease.From, "err", err)
		return
	}
	select {
	case e.reached <- struct{}{}:
	default:
	}
	if err := e.obey(ctx, verdict.Msg); err != nil {
		e.p.Log.Warn("the renter's verdict was not understood", "lease", e.lease.ID().Short(), "peer", e.lease.From, "err", err)
	}
}

// obey takes the signed words that a verdict carries.
func (e *execution) obey(ctx context.Context, v *protocol.Verdict) error {
	e.noteKept(v.GetCheckpoint())
	if raw := v.GetCancel(); len(raw) > 0 {
		cancel, err := protocol.Reopen[*protocol.Cancel](e.p.Signer.Network(), raw)
		if err != nil {
			return err
		}
		if cancel.From != e.lease.From || string(cancel.Msg.GetLeaseId()) != string(idBytes(e.lease.ID())) {
			return fmt.Errorf("a cancel of another lease: %w", protocol.ErrInvalid)
		}
		if err := e.cancel(ctx, cancel); err != nil {
			return err
		}
	}
	if raw := v.GetReceipt(); len(raw) > 0 {
		receipt, err := protocol.Reopen[*protocol.Receipt](e.p.Signer.Network(), raw)
		if err != nil {
			return err
		}
		return e.settle(ctx, receipt)
	}
	return nil
}

// settle takes the receipt that closes the lease.
func (e *execution) settle(ctx context.Context, receipt protocol.Signed[*protocol.Receipt]) error {
	if receipt.From != e.lease.From || string(receipt.Msg.GetLeaseId()) != string(idBytes(e.lease.ID())) {
		return fmt.Errorf("a receipt of another lease: %w", protocol.ErrInvalid)
	}
	in, err := InputOf(receipt.Msg)
	if err != nil {
		return err
	}
	if id := receipt.Msg.GetResultId(); len(id) > 0 {
		if res, err := e.storedResult(ctx); err != nil || string(id) != string(idBytes(res.ID())) {
			return fmt.Errorf("a receipt of another result: %w", errors.Join(err, protocol.ErrInvalid))
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.c.Booked {
		return nil
	}
	claimed, now := e.c.Charge, e.p.Now()
	if err := e.advance(context.WithoutCancel(ctx), in, now, Message{Kind: protocol.KindReceipt, Raw: receipt.Raw, At: now}); err != nil {
		return err
	}
	if e.c.Charge.Cmp(claimed) < 0 {
		e.p.Log.Warn("the renter's receipt is below the claim", "lease", e.c.ID.Short(), "peer", e.lease.From, "claim", claimed, "receipt", e.c.Charge)
	}
	return nil
}

// sendResult tells the end until the renter's receipt is here.
func (e *execution) sendResult(ctx context.Context, logs <-chan struct{}) {
	select {
	case <-ctx.Done():
		return
	case <-e.worked:
	}
	if !e.awaitLogs(ctx, logs) {
		return
	}
	raw, err := e.storedResult(ctx)
	if err != nil {
		if ctx.Err() == nil && !e.contract().Booked {
			e.p.Log.Error("find the result", "lease", e.lease.ID().Short(), "err", err)
		}
		return
	}
	wait := retryFirst
	for !e.contract().Booked {
		err := e.deliver(ctx, raw)
		if err == nil || ctx.Err() != nil {
			return
		}
		e.p.Log.Debug("result not taken yet", "lease", e.lease.ID().Short(), "peer", e.lease.From, "err", err)
		if e.forgotten() {
			e.p.Log.Warn("the renter never took the result", "lease", e.lease.ID().Short(), "peer", e.lease.From)
			return
		}
		most := retryMost
		if errors.Is(err, protocol.ErrRetry) {
			most = e.contract().Heartbeat
		}
		if !pause(ctx, &wait, most, e.reached) {
			return
		}
	}
}

// forgotten reports whether the renter has not come for its result in so long
// that it never will.
func (e *execution) forgotten() bool {
	c := e.contract()
	return c.State.Terminal() && e.p.Now().Sub(c.EndedAt) > keepTrying
}

func (e *execution) storedResult(ctx context.Context) (protocol.Signed[*protocol.Result], error) {
	var m Message
	err := e.p.Store.View(ctx, func(tx Tx) error {
		var err error
		m, err = tx.LastMessage(e.lease.ID(), protocol.KindResult)
		return err
	})
	if err != nil {
		return protocol.Signed[*protocol.Result]{}, err
	}
	return protocol.Reopen[*protocol.Result](e.p.Signer.Network(), m.Raw)
}

func (e *execution) deliver(ctx context.Context, res protocol.Signed[*protocol.Result]) error {
	ctx, cancel := context.WithTimeout(ctx, resultPatience+5*time.Second)
	defer cancel()
	receipt, err := e.p.Net.Result(ctx, e.lease.From, res)
	if err != nil {
		return err
	}
	return e.settle(ctx, receipt)
}

// pause waits, or until it is cut short, and doubles the wait, up to most; false
// when ctx is over.
func pause(ctx context.Context, wait *time.Duration, most time.Duration, short <-chan struct{}) bool {
	t := time.NewTimer(min(*wait, most))
	defer t.Stop()
	*wait = min(2**wait, most)
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-short:
	}
	return true
}

// progress notes how far a fetch is, for the next heartbeat.
func (e *execution) progress(p Progress) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.c.Fetched, e.c.ToFetch = p.Done, p.Total
}
