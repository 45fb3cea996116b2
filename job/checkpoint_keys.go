package job

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"io"
	"strconv"
	"strings"

	"filippo.io/age"

	"github.com/lumbung-net/lumbung/protocol"
)

// Checkpoints are encrypted whether their job is private or not: they hold all
// that the program had in its memory. Each attempt of a task has a key of its
// own, from the job's nonce as those of private data are. Its provider gets the
// public half, and the secret of the one checkpoint that it is to go on from: it
// can read neither what comes after it nor another task's.
const (
	infoCheckpoints = "lumbung checkpoints 1 "
	checkpointHead  = "lumbung checkpoints of a task 1"
)

// checkpointKeys are what a provider gets with a lease that makes checkpoints.
type checkpointKeys struct {
	to   ed25519.PublicKey
	from []byte // of the one to go on from; nil for none
}

func (k *Keys) checkpoint(j *Job, task, attempt int) ([]byte, error) {
	return derive(k.seed, j.Nonce, infoCheckpoints+strconv.Itoa(task)+" "+strconv.Itoa(attempt))
}

func checkpointLines(network string, renter, provider protocol.PeerID, job string, task, attempt uint32) []byte {
	return []byte(strings.Join([]string{
		checkpointHead, network, renter.String(), provider.String(), job,
		strconv.FormatUint(uint64(task), 10), strconv.FormatUint(uint64(attempt), 10), "",
	}, "\n"))
}

// sealCheckpoints makes the key of a lease of a task's next attempt.
func (k *Keys) sealCheckpoints(network string, j *Job, t *TaskRecord, to protocol.PeerID) ([]byte, error) {
	secret, err := k.checkpoint(j, t.Index, t.Attempts)
	if err != nil {
		return nil, err
	}
	_, public, err := identityOf(secret)
	if err != nil {
		return nil, err
	}
	plain := append(checkpointLines(network, k.id, to, j.ID, uint32(t.Index), uint32(t.Attempts)), public...) //nolint:gosec // small numbers
	if from := t.origin(); from != nil {
		secret, err := k.checkpoint(j, t.Index, from.Attempt)
		if err != nil {
			return nil, err
		}
		plain = append(plain, secret...)
	}
	recipient, err := peerRecipient(to)
	if err != nil {
		return nil, err
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, recipient)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("seal the checkpoints' key for %s: %w", to, err)
	}
	return sealed.Bytes(), nil
}

// openCheckpoints takes the checkpoints' key out of a lease with this node.
func (k *Keys) openCheckpoints(network string, lease protocol.Signed[*protocol.Lease]) (checkpointKeys, error) {
	l := lease.Msg
	head := checkpointLines(network, lease.From, k.id, l.GetJob(), l.GetTask(), l.GetAttempt())
	r, err := age.Decrypt(bytes.NewReader(l.GetSpec().GetCheckpointKey()), k.own)
	if err != nil {
		return checkpointKeys{}, fmt.Errorf("%w: it is damaged or for another node: %w", ErrNoKey, err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, int64(len(head)+2*secretSize+1)))
	if err != nil {
		return checkpointKeys{}, fmt.Errorf("%w: it is damaged: %w", ErrNoKey, err)
	}
	want := secretSize
	if len(l.GetSpec().GetRestore()) > 0 {
		want += secretSize
	}
	keys, ok := bytes.CutPrefix(plain, head)
	if !ok || len(keys) != want {
		return checkpointKeys{}, fmt.Errorf("%w: it was made for another lease", ErrNoKey)
	}
	out := checkpointKeys{to: keys[:secretSize]}
	if want > secretSize {
		out.from = keys[secretSize:]
	}
	return out, nil
}

// recipient is what encrypts the checkpoints. The key came from a peer: that it
// can be used is tried.
func (k checkpointKeys) recipient() (age.Recipient, error) {
	r, err := recipientOf(k.to)
	if err == nil {
		_, err = age.Encrypt(io.Discard, r)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: checkpoints cannot be encrypted with it: %w", ErrNoKey, err)
	}
	return r, nil
}

// checkpointKeys opens the lease's key for checkpoints.
func (e *execution) checkpointKeys() (checkpointKeys, error) {
	if e.p.Keys == nil {
		return checkpointKeys{}, fault("this provider has no key for checkpoints")
	}
	return e.p.Keys.openCheckpoints(e.p.Signer.Network(), e.lease)
}

// keepNonce gives a job whose data is encrypted what its keys are made with.
func (r *Renter) keepNonce(j *Job) error {
	if !j.Spec.Private && !j.Spec.checkpoints() {
		return nil
	}
	if r.Keys == nil {
		return specErr("private, checkpoint: this node has no key for encrypted jobs")
	}
	j.Nonce = newNonce()
	return nil
}
