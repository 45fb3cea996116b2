package job

import (
	"bytes"
	"context"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

const (
	// streamEvery is the least time between two snapshots of streamed outputs.
	streamEvery = 3 * time.Second
	// streamShare bounds what saving snapshots takes: one part in so many.
	streamShare = 10
	// keepStream is how long a snapshot is kept for a renter that may come for it.
	keepStream = 24 * time.Hour
)

// streamOwner is in whose name a lease's snapshots are held on its provider.
func (e *execution) streamOwner() string { return "stream:" + e.lease.ID().String() }

func (e *execution) outFolder() string { return filepath.Join(e.dir(), "out") }

// streams are the names of the output folders that are wanted while the task
// runs. Those of a private task are not: they leave this machine as one
// encrypted file, when it is whole.
func (e *execution) streams() []string {
	spec := e.lease.Msg.GetSpec()
	if spec.GetPrivate() {
		return nil
	}
	var names []string
	for _, i := range spec.GetStreams() {
		names = append(names, strconv.FormatUint(uint64(i), 10))
	}
	return names
}

// streamWhileRunning saves the streamed outputs now and then, and has the next
// heartbeat tell of what changed, until the function it returns is called.
func (e *execution) streamWhileRunning(ctx context.Context) (stop func()) {
	names := e.streams()
	if len(names) == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var g sync.WaitGroup
	g.Go(func() { e.stream(ctx, names) })
	return func() {
		cancel()
		g.Wait()
	}
}

// stream pauses ever longer the longer a snapshot takes, so that the work that
// is paid for keeps the machine.
func (e *execution) stream(ctx context.Context, names []string) {
	t := time.NewTimer(streamEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		began := e.p.Now()
		if err := e.snapshot(ctx, names); err != nil && ctx.Err() == nil {
			e.p.Log.Warn("streamed outputs not saved", "lease", e.lease.ID().Short(), "err", err)
		}
		t.Reset(max(streamEvery, (streamShare-1)*e.p.Now().Sub(began)))
	}
}

// snapshot saves the streamed outputs as they are. One before the last is let
// go: its renter has heard of a newer one since.
func (e *execution) snapshot(ctx context.Context, names []string) error {
	e.mu.Lock()
	last := e.streamed
	e.mu.Unlock()
	root, size, err := e.p.Content.Snapshot(ctx, e.outFolder(), names)
	if err != nil || bytes.Equal(root, last) {
		return err
	}
	err = e.p.Store.Update(ctx, func(tx Tx) error {
		if err := tx.ReleaseBlocks(e.streamOwner()); err != nil {
			return err
		}
		until := e.p.Now().Add(keepStream)
		if len(last) > 0 {
			if err := tx.HoldBlocks(e.streamOwner(), last, until); err != nil {
				return err
			}
		}
		return tx.HoldBlocks(e.streamOwner(), root, until)
	})
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.streamed, e.streamedBytes = root, size
	e.mu.Unlock()
	select {
	case e.beat <- struct{}{}:
	default:
	}
	return nil
}

// endStream lets the snapshots go.
func (e *execution) endStream(ctx context.Context) {
	if len(e.streams()) == 0 {
		return
	}
	e.p.Content.EndSnapshots(e.outFolder())
	if err := e.p.Store.Update(ctx, func(tx Tx) error { return tx.ReleaseBlocks(e.streamOwner()) }); err != nil {
		e.p.Log.Error("let the streamed outputs go, which lapse later by themselves", "lease", e.lease.ID().Short(), "err", err)
	}
}
