package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

// streamRest is the least time between the fetches of two snapshots, whatever
// their provider tells.
const streamRest = time.Second

// streamFetch brings a lease's snapshots here, one at a time, the newest next.
// The job's lock guards it.
type streamFetch struct {
	next   []byte // root that waits, nil for none
	cancel context.CancelFunc
	done   chan struct{} // closed when no snapshot is on its way; nil before the first
	over   bool          // the final outputs come
}

// streamOwner is in whose name a task's newest snapshot is held here.
func streamOwner(job string, task int) string { return fmt.Sprintf("stream:%s:%d", job, task) }

// streams reports whether the job wants outputs while it runs.
func (s Spec) streams() bool {
	for _, o := range s.Outputs {
		if o.Stream {
			return !s.Private
		}
	}
	return false
}

// heardStream takes what a heartbeat tells of streamed outputs. The lock is
// held.
func (a *activeJob) heardStream(l *liveLease, hb *protocol.Heartbeat) {
	root := hb.GetOutputs()
	t := a.tasks[l.c.Task]
	if len(root) == 0 || !a.job.Spec.streams() || l.stream.over || l.outputs != nil || t.Lease != l.c.ID || bytes.Equal(root, t.Streamed) {
		return
	}
	l.stream.next = bytes.Clone(root)
	if l.stream.done != nil {
		select {
		case <-l.stream.done:
		default:
			return // whoever fetches looks again
		}
	}
	ctx, cancel := context.WithCancel(a.ctx)
	done := make(chan struct{})
	l.stream.cancel, l.stream.done = cancel, done
	begun := a.begin(func() {
		defer close(done)
		defer cancel()
		a.followStream(ctx, l)
	})
	if !begun { // the job is over
		cancel()
		close(done)
	}
}

// followStream fetches snapshots until none waits.
func (a *activeJob) followStream(ctx context.Context, l *liveLease) {
	for {
		a.mu.Lock()
		root := l.stream.next
		l.stream.next = nil
		if root == nil || l.stream.over || ctx.Err() != nil {
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		if err := a.bringStream(ctx, l, root); err != nil && ctx.Err() == nil {
			a.r.Log.Info("streamed outputs not here yet", "job", a.id, "lease", l.lease.ID().Short(), "err", err)
		}
		wait := streamRest
		if !pause(ctx, &wait, streamRest, nil) {
			return
		}
	}
}

// bringStream fetches one snapshot, keeps it in place of the one before, and
// writes it to where the job wants it.
func (a *activeJob) bringStream(ctx context.Context, l *liveLease, root []byte) error {
	from, err := peerOf(l.lease.Msg.GetProvider())
	if err != nil {
		return err
	}
	a.mu.Lock()
	j, before := *a.job, *a.tasks[l.lease.Msg.GetTask()]
	a.mu.Unlock()
	owner := streamOwner(a.id, before.Index)
	if err := a.r.Store.Update(ctx, func(tx Tx) error { return tx.HoldBlocks(owner, root, time.Time{}) }); err != nil {
		return err
	}
	if err := a.r.Content.FetchDAG(ctx, root, []protocol.PeerID{from}, j.Spec.Limits.Output, func(Progress) {}); err != nil {
		// What was held for it goes; the snapshot before is held anew.
		return fmt.Errorf("fetch streamed outputs: %w", errors.Join(err, a.holdStream(owner, before.Streamed)))
	}
	t, err := a.keepStream(l, owner, root)
	if err != nil || a.r.ExportStream == nil {
		return err
	}
	if err := a.r.ExportStream(ctx, &j, &t); err != nil && ctx.Err() == nil {
		a.notice(a.ctx, t.Index, fmt.Sprintf("streamed outputs of task %d not written: %v; `lumbung get %s DIR` writes them elsewhere", t.Index, err, a.id))
	}
	return nil
}

// holdStream makes root all that is held in a name; nil is nothing.
func (a *activeJob) holdStream(owner string, root []byte) error {
	return a.r.Store.Update(context.WithoutCancel(a.ctx), func(tx Tx) error { return holdOnly(tx, owner, root) })
}

func holdOnly(tx Tx, owner string, root []byte) error {
	if err := tx.ReleaseBlocks(owner); err != nil || len(root) == 0 {
		return err
	}
	return tx.HoldBlocks(owner, root, time.Time{})
}

// keepStream notes a snapshot that is here, with an event that says so.
func (a *activeJob) keepStream(l *liveLease, owner string, root []byte) (TaskRecord, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := *a.tasks[l.lease.Msg.GetTask()]
	if t.Lease != l.c.ID || l.stream.over {
		return t, context.Canceled
	}
	t.Streamed = root
	now := a.r.Now()
	err := a.r.Store.Update(context.WithoutCancel(a.ctx), func(tx Tx) error {
		if err := holdOnly(tx, owner, root); err != nil {
			return err
		}
		if err := tx.PutTask(&t); err != nil {
			return err
		}
		e := taskEvent(&t, now)
		e.Type, e.Text = EventOutput, "outputs as they are now"
		return tx.Emit(e)
	})
	if err == nil {
		*a.tasks[t.Index] = t
	}
	return t, err
}

// endStream stops fetching snapshots before the final outputs are fetched and
// written: nothing older may come after them.
func (a *activeJob) endStream(l *liveLease) {
	a.mu.Lock()
	l.stream.over = true
	cancel, done := l.stream.cancel, l.stream.done
	a.mu.Unlock()
	if done == nil {
		return
	}
	cancel()
	<-done
}
