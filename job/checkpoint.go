package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"filippo.io/age"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

const (
	// checkpointShare bounds what making checkpoints takes of a program's time: one
	// part in so many.
	checkpointShare = 4
	// mostSkips is how many rounds in a row make none because the newest is not with
	// the renter yet: one that is replaced too soon would never get there.
	mostSkips = 6
	// keepCheckpoint is how long a provider keeps a checkpoint for a renter that
	// may come for it.
	keepCheckpoint = 24 * time.Hour
	// movedReason is how a lease ends whose task goes on elsewhere.
	movedReason = "its provider is being drained; the task goes on elsewhere from its last state"
	// checkpointTree is the name of the state in its private file.
	checkpointTree = "0"
)

// checkpointer is a sandbox that can save the state of a container.
type checkpointer interface {
	// Checkpoint saves the state into an empty folder; with end, the container
	// ends with it.
	Checkpoint(ctx context.Context, id, dir string, end bool) error
}

// CheckpointContent is what a provider of jobs with checkpoints asks of the
// content store.
type CheckpointContent interface {
	// FetchWholeImage is FetchImage that returns when all of the image is here:
	// one that arrives while its container runs could not be saved.
	FetchWholeImage(ctx context.Context, im *protocol.Image, from []protocol.PeerID, progress func(Progress)) error
	// SaveCheckpoint is SavePrivate for what another soon takes the place of.
	SaveCheckpoint(ctx context.Context, dir string, to age.Recipient) (root []byte, size uint64, err error)
}

// checkpoints is what an execution remembers of its checkpoints; the execution's
// lock guards it.
type checkpoints struct {
	newest *protocol.Checkpoint
	failed string // why the last could not be made
	kept   []byte // the one that is with the renter
	moved  bool   // the container ended with the last one

	look chan struct{} // asks whether the provider drains
	told chan struct{} // says that kept is another
}

func newCheckpoints() checkpoints {
	return checkpoints{look: make(chan struct{}, 1), told: make(chan struct{}, 1)}
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (e *execution) every() time.Duration {
	return time.Duration(e.lease.Msg.GetSpec().GetCheckpointEveryMs()) * time.Millisecond
}

// checkpointOwner is in whose name a lease's checkpoints are held on its provider.
func (e *execution) checkpointOwner() string { return "checkpoint:" + e.lease.ID().String() }

// restoreFolder is where the checkpoint lies that the container goes on from.
func (e *execution) restoreFolder() string { return filepath.Join(e.dir(), "restore") }

// checkCheckpointKeys finds out before any work whether the checkpoints' keys are
// good. That they are not is the renter's doing.
func (e *execution) checkCheckpointKeys() error {
	if e.every() == 0 {
		return nil
	}
	keys, err := e.checkpointKeys()
	if err != nil {
		return err
	}
	_, err = keys.recipient()
	return err
}

// fetchImage brings the image here: whole, where the state is to be saved.
func (e *execution) fetchImage(ctx context.Context, from []protocol.PeerID) error {
	defer e.fetching()()
	if e.every() > 0 {
		return e.p.Content.FetchWholeImage(ctx, e.lease.Msg.GetImage(), from, e.progress)
	}
	return e.p.Content.FetchImage(ctx, e.lease.Msg.GetImage(), from, e.progress)
}

// fetchCheckpoint lays out the checkpoint that the container goes on from.
func (e *execution) fetchCheckpoint(ctx context.Context, spec *sandbox.Spec, from []protocol.PeerID) error {
	root := e.lease.Msg.GetSpec().GetRestore()
	if len(root) == 0 {
		return nil
	}
	keys, err := e.checkpointKeys()
	if err != nil {
		return err
	}
	key, _, err := identityOf(keys.from)
	if err != nil {
		return err
	}
	size := e.lease.Msg.GetRestoreBytes()
	if most := checkpointRoom(e.lease.Msg.GetResources(), e.lease.Msg.GetLimits().GetOutputBytes()); size > most {
		return fmt.Errorf("the checkpoint has %d bytes, and the task's limits make no more than %d", size, most)
	}
	stopped := e.fetching()
	err = e.p.Content.FetchDAG(ctx, root, from, size, e.progress)
	stopped()
	if err != nil {
		return fault("fetch the checkpoint: %w", err)
	}
	if err := os.RemoveAll(e.restoreFolder()); err != nil {
		return fault("clear the checkpoint's folder: %w", err)
	}
	if err := e.p.Content.OpenPrivate(ctx, root, e.restoreFolder(), key, size); err != nil {
		return fault("lay out the checkpoint: %w", err) // whose fault it is only its maker knows
	}
	spec.Restore = e.restoreFolder()
	return nil
}

// checkpointWhileRunning saves the container's state now and then, and a last time
// when the provider drains, until the function it returns is called: that waits
// for a last one.
func (e *execution) checkpointWhileRunning(ctx context.Context) (stop func()) {
	if _, ok := e.p.Sandbox.(checkpointer); !ok || e.every() == 0 {
		return func() {}
	}
	rounds, cancel := context.WithCancel(ctx)
	var g sync.WaitGroup
	g.Go(func() { e.checkpointRounds(ctx, rounds) })
	return func() {
		cancel()
		g.Wait()
	}
}

// checkpointRounds pauses ever longer the longer a checkpoint takes. ctx outlives
// the container, rounds ends with it.
func (e *execution) checkpointRounds(ctx, rounds context.Context) {
	t := time.NewTimer(e.every())
	defer t.Stop()
	skipped := 0
	for {
		began := e.p.Now()
		if e.p.draining() {
			err := e.move(ctx)
			if err == nil || rounds.Err() != nil {
				return
			}
			e.p.Log.Warn("task not moved, and goes on here", "lease", e.lease.ID().Short(), "err", err)
			t.Reset(max(e.every(), (checkpointShare-1)*e.p.Now().Sub(began)))
		}
		select {
		case <-rounds.Done():
			return
		case <-e.checkpoints.look:
			continue
		case <-t.C:
		}
		if e.p.draining() {
			t.Reset(e.every()) // in case that it no longer does by then
			continue
		}
		if e.toldToEnd() { // what is saved of it would end at once elsewhere
			return
		}
		if skipped++; skipped <= mostSkips && e.underway() {
			t.Reset(e.every())
			continue
		}
		skipped, began = 0, e.p.Now()
		err := e.checkpoint(rounds, false)
		if rounds.Err() != nil {
			return
		}
		e.noteFailed(err)
		t.Reset(max(e.every(), (checkpointShare-1)*e.p.Now().Sub(began)))
	}
}

// underway reports whether the newest checkpoint is not with the renter yet.
func (e *execution) underway() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	newest := e.checkpoints.newest
	return newest != nil && !bytes.Equal(newest.GetRoot(), e.checkpoints.kept)
}

// noteFailed has the next heartbeat tell why there is no checkpoint; nil is that
// there is.
func (e *execution) noteFailed(err error) {
	why := ""
	if err != nil {
		why = short(err.Error())
		e.p.Log.Warn("checkpoint not made", "lease", e.lease.ID().Short(), "err", err)
	}
	e.mu.Lock()
	changed := e.checkpoints.failed != why
	e.checkpoints.failed = why
	e.mu.Unlock()
	if changed {
		poke(e.beat)
	}
}

// move saves the state a last time and ends the container with it.
func (e *execution) move(ctx context.Context) error {
	if e.toldToEnd() {
		return errors.New("it is being ended")
	}
	return e.checkpoint(ctx, true)
}

func (e *execution) toldToEnd() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ending() || e.c.TimeUp != ""
}

// checkpoint saves the state of the container, and has a heartbeat tell of it.
func (e *execution) checkpoint(ctx context.Context, end bool) error {
	sb, _ := e.p.Sandbox.(checkpointer)
	keys, err := e.checkpointKeys()
	if err != nil {
		return err
	}
	to, err := keys.recipient()
	if err != nil {
		return err
	}
	dir := filepath.Join(e.dir(), "checkpoint")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	state := filepath.Join(dir, checkpointTree)
	if err := os.MkdirAll(state, 0o700); err != nil {
		return err
	}
	at, where := e.p.Now(), e.p.Portability
	if where == nil {
		return errors.New("this provider's sandbox did not say where states can go on")
	}
	if err := sb.Checkpoint(ctx, e.containerID(), state, end); err != nil {
		return err
	}
	if end { // there is no way back
		e.mu.Lock()
		e.checkpoints.moved = true
		if e.gaveUp == "" {
			e.gaveUp = movedReason
		}
		e.mu.Unlock()
	}
	size, err := folderSize(state)
	if err != nil {
		return err
	}
	keep := func() error {
		root, stored, err := e.p.Content.SaveCheckpoint(ctx, dir, to)
		if err != nil {
			return fmt.Errorf("keep the checkpoint: %w", err)
		}
		return e.holdCheckpoint(ctx, &protocol.Checkpoint{
			Root: root, Bytes: max(size, stored), AtMs: at.UnixMilli(), Portability: wirePortability(*where), Last: end,
		})
	}
	if !end {
		return keep()
	}
	// It is all that is left of the program: a disk that is full for a while does
	// not lose it.
	patient, cancel := context.WithTimeoutCause(ctx, lastSaveMax, errors.New("the last state cannot be stored"))
	defer cancel()
	return e.insist(patient, keep)
}

// lastSaveMax is how long it is tried to store the state of a program that has
// been ended for it.
const lastSaveMax = 10 * time.Minute

func folderSize(dir string) (total uint64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += uint64(info.Size()) //nolint:gosec // not negative
		}
		return err
	})
	return max(total, 1), err
}

// holdCheckpoint keeps a checkpoint, and the one before: its renter may be on its
// way with that.
func (e *execution) holdCheckpoint(ctx context.Context, c *protocol.Checkpoint) error {
	e.mu.Lock()
	last := e.checkpoints.newest
	e.mu.Unlock()
	err := e.p.Store.Update(ctx, func(tx Tx) error {
		if err := tx.ReleaseBlocks(e.checkpointOwner()); err != nil {
			return err
		}
		until := e.p.Now().Add(keepCheckpoint)
		if last != nil {
			if err := tx.HoldBlocks(e.checkpointOwner(), last.GetRoot(), until); err != nil {
				return err
			}
		}
		return tx.HoldBlocks(e.checkpointOwner(), c.GetRoot(), until)
	})
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.checkpoints.newest = c
	e.mu.Unlock()
	poke(e.beat)
	return nil
}

// endCheckpoints lets the checkpoints go.
func (e *execution) endCheckpoints(ctx context.Context) {
	if e.every() == 0 {
		return
	}
	if err := e.p.Store.Update(ctx, func(tx Tx) error { return tx.ReleaseBlocks(e.checkpointOwner()) }); err != nil {
		e.p.Log.Error("let the checkpoints go, which lapse later by themselves", "lease", e.lease.ID().Short(), "err", err)
	}
}

// noteKept takes the renter's word of which checkpoint it has.
func (e *execution) noteKept(root []byte) {
	if len(root) == 0 {
		return
	}
	e.mu.Lock()
	e.checkpoints.kept = bytes.Clone(root)
	e.mu.Unlock()
	poke(e.checkpoints.told)
}

// handOver waits until the last checkpoint is with the renter, as long as a lease
// may save; it reports whether the container ended with one.
func (e *execution) handOver(ctx context.Context) bool {
	e.mu.Lock()
	moved := e.checkpoints.moved
	e.mu.Unlock()
	if !moved {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, e.contract().SaveMax)
	defer cancel()
	look := time.NewTicker(e.contract().Heartbeat)
	defer look.Stop()
	for !e.handedOver() {
		select {
		case <-ctx.Done():
			return true
		case <-e.checkpoints.told:
		case <-look.C:
		}
	}
	return true
}

// handedOver reports whether nothing is to be waited for: the renter has the last
// checkpoint, or wants no more of the task, or there is none.
func (e *execution) handedOver() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.checkpoints.newest
	return !e.c.CancelAt.IsZero() || e.c.State.Terminal() || !c.GetLast() || bytes.Equal(c.GetRoot(), e.checkpoints.kept)
}

// draining reports whether what runs is to be moved away.
func (p *Provider) draining() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state == ProviderDraining
}

// moveAll has every task whose state can be moved go on elsewhere. The lock is
// held.
func (p *Provider) moveAll() {
	for _, e := range p.runs {
		poke(e.checkpoints.look)
	}
}
