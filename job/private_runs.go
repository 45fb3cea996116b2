package job

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/lumbung-net/lumbung/protocol"
)

// validatePrivate refuses what a private job could not keep private.
func (s Spec) validatePrivate() error {
	if !s.Private {
		return nil
	}
	for i, in := range s.Inputs {
		if strings.HasPrefix(in.From, "cid:") {
			return specErr("inputs[%d].from: %q is content that anybody with its CID can read, and the job is private; give the file or folder itself, or name it under `cache` if it may be public", i, in.From)
		}
	}
	for i, out := range s.Outputs {
		if out.Stream {
			return specErr("outputs[%d].stream: a private job's outputs are encrypted together when it has ended; leave out stream, or private", i)
		}
	}
	return nil
}

// publicParts says what of a private job stays open, for its owner to know.
func (s Spec) publicParts() []string {
	var out []string
	for _, c := range s.Caches {
		switch {
		case !s.Private:
		case strings.HasPrefix(c.Key, "cid:"):
			out = append(out, fmt.Sprintf("the cache %s is public content: it is not encrypted, and whoever serves it sees which peer wants it", c.Key))
		default:
			out = append(out, fmt.Sprintf("what the job writes to the cache %q stays on its provider, not encrypted, after the job", c.Key))
		}
	}
	return out
}

// tellPublic tells the owner of a private job what of it stays open.
func (r *Renter) tellPublic(tx Tx, j *Job) error {
	for _, text := range j.Spec.publicParts() {
		if err := tx.Emit(Event{Time: r.Now(), Type: EventNotice, Job: j.ID, Text: text}); err != nil {
			return err
		}
	}
	return nil
}

// addInput brings input i into the store, encrypted when the job is private.
func (r *Renter) addInput(ctx context.Context, j *Job, i int, progress func(Progress)) (Root, error) {
	from := j.Spec.Inputs[i].From
	if !j.Spec.Private {
		return r.Content.AddInput(ctx, from, j.Dir, progress)
	}
	to, err := r.Keys.InputTo(j, i)
	if err != nil {
		return Root{}, err
	}
	return r.Content.AddPrivate(ctx, from, j.Dir, to, progress)
}

// sizeInput is addInput for a quote: of a private input it finds the size alone,
// for what is encrypted twice is never the same.
func (r *Renter) sizeInput(ctx context.Context, j *Job, i int, progress func(Progress)) (Root, error) {
	if !j.Spec.Private {
		return r.addInput(ctx, j, i, progress)
	}
	size, err := r.Content.SizePrivate(ctx, j.Spec.Inputs[i].From, j.Dir)
	return Root{Size: size}, err
}

// sealTask puts the keys of a private job into a task that goes to a provider.
func (r *Renter) sealTask(j *Job, index int, task *protocol.Task, to protocol.PeerID) error {
	if !j.Spec.Private {
		return nil
	}
	sealed, err := r.Keys.seal(r.Signer.Network(), j, index, to)
	if err != nil {
		return err
	}
	task.Private, task.SealedKey = true, sealed
	for _, in := range task.GetInputs() {
		in.Private = true
	}
	return nil
}

// taskKeys opens the lease's sealed key.
func (e *execution) taskKeys() (taskKeys, error) {
	if e.p.Keys == nil {
		return taskKeys{}, fault("this provider has no key for private jobs")
	}
	return e.p.Keys.open(e.p.Signer.Network(), e.lease)
}

// checkKeys finds out before any work whether the task's keys and secrets are
// good. That they are not is the renter's doing.
func (e *execution) checkKeys() error {
	if _, err := e.secrets(); err != nil {
		return err
	}
	if !e.lease.Msg.GetSpec().GetPrivate() {
		return nil
	}
	keys, err := e.taskKeys()
	if err != nil {
		return err
	}
	_, err = keys.outputsTo()
	return err
}

// layOut writes input i to where the container will see it. The plaintext of a
// private one lies in the job's folder alone, and goes with it.
func (e *execution) layOut(ctx context.Context, i int, in *protocol.Input, dest string) error {
	if !in.GetPrivate() {
		return e.p.Content.Materialize(ctx, in.GetRoot(), dest)
	}
	keys, err := e.taskKeys()
	if err != nil {
		return err
	}
	key, _, err := inputKey(keys.inputs, i)
	if err != nil {
		return err
	}
	return e.p.Content.OpenPrivate(ctx, in.GetRoot(), dest, key, in.GetSize())
}

// saveOutputs brings the outputs into the store, encrypted to the renter when the
// task is private.
func (e *execution) saveOutputs(ctx context.Context) (root []byte, size uint64, err error) {
	dir := filepath.Join(e.dir(), "out")
	if !e.lease.Msg.GetSpec().GetPrivate() {
		return e.p.Content.Save(ctx, dir)
	}
	keys, err := e.taskKeys()
	if err != nil {
		return nil, 0, err
	}
	to, err := keys.outputsTo()
	if err != nil {
		return nil, 0, err
	}
	return e.p.Content.SavePrivate(ctx, dir, to)
}
