package job

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

// execution is one lease at work on the provider's side: fetch, prepare, start,
// wait, save, report. It can be made again from the store at any point.
type execution struct {
	p     *Provider
	lease protocol.Signed[*protocol.Lease]
	found *sandbox.Recovered // the container of an earlier life
	ctx   context.Context    // of the provider's Run, for what outlives a request

	mu     sync.Mutex
	c      Contract
	stop   context.CancelFunc // ends fetching or preparing; nil outside of them
	gaveUp string             // why this provider itself ended the work
	ailing string             // what was wrong with a card of it, and did not end it
	ails   string             // what is wrong now
	unwell string             // what the last probe of its readiness found

	logSeen atomic.Uint64 // records of output that are known to be there
	reach   reach         // into the container's ports
	visits  visits        // to them
	timing  timing        // of the way to its start

	streamed      []byte // the newest snapshot of the streamed outputs
	streamedBytes uint64
	checkpoints   checkpoints

	running chan struct{} // closed when the container has started
	worked  chan struct{} // closed when the work is over, reported or not
	booked  chan struct{} // closed when the receipt is here
	beat    chan struct{} // asks for a heartbeat now
	reached chan struct{} // tells that the renter answers
}

func (p *Provider) newExecution(lease protocol.Signed[*protocol.Lease], c Contract) *execution {
	e := &execution{
		p: p, lease: lease, c: c, checkpoints: newCheckpoints(),
		running: make(chan struct{}), worked: make(chan struct{}), booked: make(chan struct{}), beat: make(chan struct{}, 1), reached: make(chan struct{}, 1),
	}
	e.sawLog(c.LogSeq)
	e.visits.changed = make(chan struct{}, 1)
	e.reach.make = func(ctx context.Context) (Forwarder, error) { return p.Sandbox.Forward(ctx, e.containerID()) }
	return e
}

func (e *execution) containerID() string { return containerName(e.lease.ID()) }

// containerName is a lease's id, cut to what a container's name may be.
func containerName(lease protocol.MsgID) string { return "l" + lease.String()[:40] }

var containerForm = regexp.MustCompile(`^l[0-9a-f]{40}$`)

func (e *execution) dir() string { return filepath.Join(e.p.Dir, e.containerID()) }

func (e *execution) contract() Contract {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.c
}

// run is the way of one lease. When ctx ends the work is left as it stands, and
// a later run takes it up.
func (e *execution) run(ctx context.Context) {
	defer e.reach.close()
	reports := e.report(ctx)
	e.takeUp(ctx)
	if !e.contract().State.Terminal() {
		e.work(ctx)
	}
	e.reach.close()
	close(e.worked)
	reports.Wait()
	if ctx.Err() != nil && !e.contract().Booked {
		return
	}
	e.cleanUp(ctx)
}

// takeUp finds a container that runs since before the node was restarted: its
// image is in use, and a cancel that came then is carried out.
func (e *execution) takeUp(ctx context.Context) {
	if e.found == nil || !e.found.Running {
		return
	}
	if _, _, err := e.p.Content.Rootfs(ctx, e.lease.Msg.GetImage().GetRoot(), e.containerID()); err != nil {
		e.p.Log.Error("hold the image of a running container", "lease", e.lease.ID().Short(), "err", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.perform(e.c.Pending())
}

// work brings the lease from where it stands to its end.
func (e *execution) work(ctx context.Context) {
	end, err := e.toTheEnd(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		end = e.failure(err)
	}
	if err := e.insist(ctx, func() error { return e.conclude(ctx, end) }); err != nil {
		e.p.Log.Error("lease not concluded", "lease", e.lease.ID().Short(), "err", err)
	}
}

// insist repeats what the store would not take, until ctx is over: work that was
// done is not lost for a disk that is full for a while.
func (e *execution) insist(ctx context.Context, do func() error) error {
	wait := retryFirst
	for {
		err := do()
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrTransition) || errors.Is(err, protocol.ErrTooLarge) {
			return err
		}
		e.p.Log.Error("store what happened", "lease", e.lease.ID().Short(), "err", err)
		if !pause(ctx, &wait, e.contract().Heartbeat, nil) {
			return err
		}
	}
}

func (e *execution) toTheEnd(ctx context.Context) (Ended, error) {
	switch {
	case e.found == nil && e.contract().State.order() >= Starting.order():
		return Ended{}, fault("the container is gone: the machine or its supervisor was stopped")
	case e.found == nil || e.found.Prepared:
		if err := e.prepare(ctx); err != nil {
			return Ended{}, err
		}
		if err := e.begin(ctx); err != nil {
			return Ended{}, err
		}
	}
	if err := e.untilReady(ctx); err != nil {
		return Ended{}, err
	}
	stopStream, stopCheckpoints, leave := e.streamWhileRunning(ctx), e.checkpointWhileRunning(ctx), e.attend(ctx)
	exit, err := e.awaitExit(ctx)
	stopStream()
	stopCheckpoints()
	leave()
	if err != nil {
		return Ended{}, err
	}
	return e.save(ctx, exit)
}

// exitDoubt is how long a container whose end cannot be asked for is let run.
const exitDoubt = time.Minute

// awaitExit waits for the container's end. A machine short of something may fail
// to tell it for a while; what runs on then is not left to itself.
func (e *execution) awaitExit(ctx context.Context) (sandbox.Exit, error) {
	var failing time.Time // since when
	wait := retryFirst
	for {
		begin := e.p.Now()
		exit, err := e.p.Sandbox.Wait(ctx, e.containerID())
		if err == nil || ctx.Err() != nil {
			return exit, err
		}
		now := e.p.Now()
		if failing.IsZero() || now.Sub(begin) > exitDoubt {
			failing, wait = now, retryFirst
		}
		e.p.Log.Error("wait for the container", "lease", e.lease.ID().Short(), "err", err)
		if errors.Is(err, sandbox.ErrNotFound) || errors.Is(err, sandbox.ErrNotRunning) || now.Sub(failing) > exitDoubt {
			e.stopContainer(ctx, 0)
			return exit, fault("wait for the container: %w", err)
		}
		if !pause(ctx, &wait, e.contract().Heartbeat, nil) {
			return exit, ctx.Err()
		}
	}
}

// faultError is a failure that is the provider's and not the job's.
type faultError struct{ error }

func (f faultError) Unwrap() error { return f.error }

func fault(format string, args ...any) error { return faultError{fmt.Errorf(format, args...)} }

// limitError names the limit that ended the work before the container ran.
type limitError struct{ exceeded Exceeded }

func (l limitError) Error() string {
	return fmt.Sprintf("%s limit of %s exceeded", l.exceeded.Limit, time.Duration(l.exceeded.Max)*time.Millisecond)
}

// prepare fetches what the task needs and lays it out for the sandbox.
func (e *execution) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, e.contract().FetchMax)
	defer cancel()
	if !e.begun(cancel) {
		return errors.New("cancelled before it began")
	}
	e.timing.begin(e.p.Now())
	if err := e.enter(ctx, Fetching); err != nil {
		return err
	}
	spec, err := e.fetchAll(ctx)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		limit := uint64(e.contract().FetchMax.Milliseconds())
		return limitError{Exceeded{Limit: "fetch", Max: limit, Seen: limit, At: e.p.Now()}}
	}
	if err != nil {
		return err
	}
	if e.found != nil {
		return nil // prepared before the node was restarted
	}
	if err := e.p.Sandbox.Prepare(ctx, spec); err != nil {
		if errors.Is(err, sandbox.ErrSpec) {
			return fmt.Errorf("prepare the container: %w", err)
		}
		return fault("prepare the container: %w", err)
	}
	return nil
}

// begun lets a cancel end the phase; it reports false when one came already.
func (e *execution) begun(stop context.CancelFunc) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ending() {
		return false
	}
	e.stop = stop
	return true
}

// ending reports whether nobody wants the work any more. The lock is held.
func (e *execution) ending() bool {
	return !e.c.CancelAt.IsZero() || e.gaveUp != "" || e.c.State.Terminal()
}

func (e *execution) fetchAll(ctx context.Context) (sandbox.Spec, error) {
	l := e.lease.Msg
	from := []protocol.PeerID{e.lease.From}
	for _, h := range l.GetHolders() {
		if id, err := peerOf(h); err == nil {
			from = append(from, id)
		}
	}
	if err := errors.Join(e.checkKeys(), e.checkCheckpointKeys()); err != nil {
		return sandbox.Spec{}, err
	}
	if err := e.fetchImage(ctx, from); err != nil {
		return sandbox.Spec{}, fault("fetch the image: %w", err)
	}
	e.p.cached.changed(l.GetImage().GetRoot())
	rootfs, info, err := e.p.Content.Rootfs(ctx, l.GetImage().GetRoot(), e.containerID())
	if err != nil {
		return sandbox.Spec{}, fmt.Errorf("unpack the image: %w", err)
	}
	spec := e.spec(rootfs, info)
	if err := e.passCards(ctx, &spec); err != nil {
		return spec, err
	}
	if err := os.MkdirAll(e.dir(), 0o755); err != nil {
		return spec, fault("make the job's folder: %w", err)
	}
	for i, in := range l.GetSpec().GetInputs() {
		stopped := e.fetching()
		err := e.p.Content.FetchDAG(ctx, in.GetRoot(), from, in.GetSize(), e.progress)
		stopped()
		if err != nil {
			return spec, fault("fetch the input for %s: %w", in.GetTo(), err)
		}
		dest := filepath.Join(e.dir(), "in", strconv.Itoa(i))
		if err := e.layOut(ctx, i, in, dest); err != nil {
			return spec, fmt.Errorf("lay out the input for %s: %w", in.GetTo(), err)
		}
		spec.Mounts = append(spec.Mounts, sandbox.Mount{Source: dest, Dest: in.GetTo(), ReadOnly: true})
	}
	if err := e.mountCaches(ctx, &spec, from); err != nil {
		return spec, err
	}
	for i, out := range l.GetSpec().GetOutputs() {
		dest := e.outDir(i)
		if e.found == nil { // what an attempt that was cut short has laid out there
			if err := sandbox.RemoveTree(dest); err != nil {
				return spec, fault("clear the output folder: %w", err)
			}
		}
		if err := os.MkdirAll(dest, 0o755); err != nil {
			return spec, fault("make the output folder: %w", err)
		}
		// The task's user may be any; the folder lies in a private one.
		if err := os.Chmod(dest, 0o777); err != nil { //nolint:gosec // only the job's own folder
			return spec, fault("open the output folder: %w", err)
		}
		spec.Mounts = append(spec.Mounts, sandbox.Mount{Source: dest, Dest: out})
	}
	return spec, e.fetchCheckpoint(ctx, &spec, from)
}

func (e *execution) outDir(i int) string {
	return filepath.Join(e.dir(), "out", strconv.Itoa(i))
}

// spec is the container of the lease; command and environment follow docker's
// rules for what the image says and what the job says.
func (e *execution) spec(rootfs string, info ImageInfo) sandbox.Spec {
	l := e.lease.Msg
	args := append([]string{}, l.GetSpec().GetEntrypoint()...)
	if len(args) == 0 {
		args = append(args, info.Entrypoint...)
	}
	if len(l.GetSpec().GetCommand()) > 0 {
		args = append(args, l.GetSpec().GetCommand()...)
	} else {
		args = append(args, info.Command...)
	}
	env := append([]string{}, info.Env...)
	for _, v := range l.GetSpec().GetEnv() {
		env = append(env, v.GetName()+"="+v.GetValue())
	}
	cwd := l.GetSpec().GetWorkdir()
	if cwd == "" {
		cwd = info.Workdir
	}
	return sandbox.Spec{
		ID: e.containerID(), Rootfs: rootfs, Args: args, Env: env, Cwd: cwd, User: info.User,
		CPUMillis: int(l.GetResources().GetCpuMillis()), MemoryBytes: l.GetResources().GetMemoryBytes(),
		DiskBytes: l.GetResources().GetDiskBytes(), OutputBytes: l.GetLimits().GetOutputBytes(),
		MaxLogBytes: l.GetLimits().GetLogBytes(), Pids: int(l.GetLimits().GetPids()), RunLimit: e.contract().sandboxLimit(),
		Secrets:   len(l.GetSpec().GetSealedSecrets()) > 0,
		OpenFiles: e.p.Limits.openFiles(l.GetLimits().GetOpenFiles()),
		Savable:   e.every() > 0,
		Outbound:  l.GetNet() == NetworkOutbound,
		NetBytes:  l.GetLimits().GetNetBytes(),
	}
}

// begin starts the container; from here on it outlives this node.
func (e *execution) begin(ctx context.Context) error {
	if err := e.startContainer(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(e.restoreFolder()); err != nil { // it runs, or never will from this
		e.p.Log.Warn("remove the checkpoint's folder", "lease", e.lease.ID().Short(), "err", err)
	}
	e.mu.Lock()
	e.stop = nil
	e.c.Took = e.timing.took(e.p.Now())
	asked := e.ending()
	e.mu.Unlock()
	if asked {
		e.stopContainer(ctx, 0)
	}
	return nil
}

// enter moves the contract to a phase, by a heartbeat that says so.
func (e *execution) enter(ctx context.Context, phase State) error {
	err := e.insist(ctx, func() error {
		_, err := e.makeBeat(ctx, phase)
		return err
	})
	if err != nil {
		return fmt.Errorf("enter %s: %w", phase, err)
	}
	select {
	case e.beat <- struct{}{}:
	default:
	}
	return nil
}

// save keeps the outputs, those of a failed job too, and words the result.
func (e *execution) save(ctx context.Context, exit sandbox.Exit) (Ended, error) {
	end := e.endOf(exit)
	if err := e.enter(ctx, Saving); err != nil {
		return end, err
	}
	if e.contract().State.Terminal() {
		return end, nil // its renter has closed it and waits for nothing
	}
	e.endLog(ctx, &end)
	if e.handOver(ctx) {
		return end, nil // what it put out goes on with it
	}
	if len(e.lease.Msg.GetSpec().GetOutputs()) == 0 {
		return end, nil
	}
	ctx, cancel := context.WithTimeout(ctx, e.contract().SaveMax)
	defer cancel()
	root, size, err := e.saveOutputs(ctx)
	if errors.Is(err, ErrOutputs) {
		return end.without(err), nil
	}
	if err != nil {
		return end, fault("save the outputs: %w", err)
	}
	end.Outputs, end.outputBytes = root, size
	return end, nil
}

// conclude signs the result and commits it with the charge and the event.
func (e *execution) conclude(ctx context.Context, end Ended) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.c.State.Terminal() {
		return nil // its renter has closed it
	}
	end.UsageMs, end.Reason = max(end.UsageMs, e.c.UsageMs), short(end.Reason)
	now := e.p.Now()
	end.Took = e.c.tookInAll(now)
	msg := &protocol.Result{
		LeaseId: idBytes(e.c.ID), Outcome: outcomeOf(end.State), ExitCode: int32(end.ExitCode), ExitSource: end.ExitSource,
		Reason: end.Reason, Outputs: end.Outputs, OutputBytes: end.outputBytes, StartedMs: end.startedMs,
		EndedMs: now.UnixMilli(), UsageMs: end.UsageMs, LogSeq: e.logSeen.Load(), ProviderFault: end.ProviderFault,
		Charge: e.c.due(end.UsageMs).Wire(), NetUpBytes: end.NetUp, NetDownBytes: end.NetDown,
	}
	end.Took.tell(msg)
	if x := end.Exceeded; x != nil {
		msg.Exceeded = &protocol.Exceeded{Limit: x.Limit, Max: x.Max, Seen: x.Seen, AtMs: x.At.UnixMilli()}
	}
	res, err := protocol.Sign(e.p.Signer, msg)
	if err != nil {
		return err
	}
	return e.advance(ctx, end, now, Message{Kind: protocol.KindResult, Raw: res.Raw, At: now})
}

// advance applies an input and commits the transition, its evidence, its money
// and its event together; then it performs the effects. The lock is held.
func (e *execution) advance(ctx context.Context, in Input, now time.Time, evidence ...Message) error {
	next, effects, err := Apply(e.c, in, now)
	if err != nil {
		return err
	}
	before := e.c
	err = e.p.Store.Update(ctx, func(tx Tx) error {
		if err := tx.PutContract(&next); err != nil {
			return err
		}
		for _, m := range evidence {
			if err := tx.AppendMessage(next.ID, m); err != nil {
				return err
			}
		}
		if len(next.Outputs) > 0 && len(before.Outputs) == 0 {
			if err := tx.HoldBlocks("lease:"+next.ID.String(), next.Outputs, now.Add(keepOutputs)); err != nil {
				return err
			}
		}
		if err := bookCharge(tx, &before, &next, now); err != nil {
			return err
		}
		if next.State == before.State && next.Booked == before.Booked {
			return nil
		}
		return tx.Emit(contractEvent(&next, now))
	})
	if err != nil {
		return fmt.Errorf("lease %s: %w", e.c.ID.Short(), err)
	}
	e.c = next
	e.perform(effects)
	if next.started() && !before.started() {
		close(e.running)
	}
	if next.Booked && !before.Booked {
		close(e.booked)
	}
	return nil
}

// keepOutputs is how long a provider keeps what it made for a renter.
const keepOutputs = 24 * time.Hour

// perform does what a transition asks for. The lock is held.
func (e *execution) perform(effects []Effect) {
	for _, eff := range effects {
		switch eff {
		case EffectStop:
			e.endWork(e.c.Grace) // of one that its renter has closed the room is free then
		case EffectRelease:
			e.p.Pool.Release(e.c.ID.String())
		}
	}
}

// endWork ends whichever phase the work is in. A shutdown does not wait for it:
// the next life does it again. The lock is held.
func (e *execution) endWork(grace time.Duration) {
	if e.stop != nil {
		e.stop()
		return
	}
	closed := e.c.Booked
	e.p.group.Go(func() {
		// What it has put out may be told for days; its room is not kept that long.
		if e.stopContainer(e.ctx, grace) && closed {
			e.p.Pool.Release(e.lease.ID().String())
		}
	})
}

// stopContainer ends the container, and reports whether it has ended.
func (e *execution) stopContainer(ctx context.Context, grace time.Duration) bool {
	err := e.p.Sandbox.Stop(ctx, e.containerID(), grace)
	if err == nil || errors.Is(err, sandbox.ErrNotFound) || errors.Is(err, sandbox.ErrNotRunning) {
		return true
	}
	e.p.Log.Error("stop the container", "lease", e.lease.ID().Short(), "err", err)
	return false
}

// cancel takes the renter's wish to end.
func (e *execution) cancel(ctx context.Context, cancel protocol.Signed[*protocol.Cancel]) error {
	in, err := InputOf(cancel.Msg)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.c.State.Terminal() || !e.c.CancelAt.IsZero() {
		return nil
	}
	now := e.p.Now()
	return e.advance(context.WithoutCancel(ctx), in, now, Message{Kind: protocol.KindCancel, Raw: cancel.Raw, At: now})
}

// giveUp ends the work at the provider's own wish.
func (e *execution) giveUp(why string, grace time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.c.State.Terminal() || e.gaveUp != "" {
		return
	}
	e.gaveUp = why
	e.endWork(grace)
}

// cleanUp gives everything back that the lease held on this machine.
func (e *execution) cleanUp(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	if err := e.p.Sandbox.Remove(ctx, e.containerID()); err != nil {
		e.p.Log.Error("remove the container; what it had reserved and still has stays so until the node starts again", "lease", e.lease.ID().Short(), "err", err)
	} else {
		e.p.Pool.Release(e.lease.ID().String())
	}
	e.p.Content.ReleaseRootfs(e.containerID())
	e.releaseCaches()
	e.endStream(ctx)
	e.endCheckpoints(ctx)
	if err := sandbox.RemoveTree(e.dir()); err != nil {
		e.p.Log.Error("remove the job's folder", "lease", e.lease.ID().Short(), "err", err)
	}
}
