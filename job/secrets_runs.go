package job

import (
	"context"
	"errors"

	"github.com/lumbung-net/lumbung/protocol"
)

// keepSecrets makes what is stored of the secrets that came with a job; nil where
// it has none.
func (r *Renter) keepSecrets(id string, spec Spec, given protocol.Secrets) ([]byte, error) {
	if err := spec.matchSecrets(given); err != nil || len(given) == 0 {
		return nil, err
	}
	if r.Keys == nil {
		return nil, specErr("secrets: this node has no key to seal them with")
	}
	return r.Keys.keepSecrets(id, given)
}

// putSecrets stores them beside the job, as long as that is open.
func putSecrets(tx Tx, j *Job, kept []byte) error {
	if len(j.Spec.Secrets) == 0 {
		return nil
	}
	return tx.PutSecrets(j.ID, kept)
}

// forgetSecrets does so with a job that is over.
func forgetSecrets(tx Tx, j *Job) error {
	if len(j.Spec.Secrets) == 0 {
		return nil
	}
	return tx.DropSecrets(j.ID)
}

// loadSecrets finds what an earlier life has stored of a job's secrets.
func loadSecrets(tx Tx, j *Job) ([]byte, error) {
	if len(j.Spec.Secrets) == 0 {
		return nil, nil
	}
	kept, err := tx.Secrets(j.ID)
	if errors.Is(err, ErrNotFound) {
		return nil, nil // no lease can be made of it, which its owner is told
	}
	return kept, err
}

// sealSecrets puts a job's secrets into a task that goes to a provider.
func (a *activeJob) sealSecrets(j *Job, index int, task *protocol.Task, to protocol.PeerID) error {
	if len(j.Spec.Secrets) == 0 {
		return nil
	}
	secrets, err := a.r.Keys.keptSecrets(j.ID, a.secrets)
	if err != nil {
		return err
	}
	task.SealedSecrets, err = a.r.Keys.sealSecrets(a.r.Signer.Network(), j, index, to, secrets)
	return err
}

// secrets opens those of the lease; nil where it has none. That they do not open
// is the renter's doing.
func (e *execution) secrets() (protocol.Secrets, error) {
	if len(e.lease.Msg.GetSpec().GetSealedSecrets()) == 0 {
		return nil, nil
	}
	if e.p.Keys == nil {
		return nil, fault("this provider has no key to open secrets with")
	}
	return e.p.Keys.openSecrets(e.p.Signer.Network(), e.lease)
}

// startContainer hands them to the container as it starts; until then, also over
// a restart of the node, they are nowhere but in the lease.
func (e *execution) startContainer(ctx context.Context) error {
	secrets, err := e.secrets()
	if err != nil {
		return err
	}
	if err := e.p.Sandbox.Start(ctx, e.containerID(), secrets); err != nil {
		return fault("start the container: %w", err)
	}
	return nil
}
