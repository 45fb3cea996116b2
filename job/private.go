package job

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/crypto/ssh"

	"github.com/lumbung-net/lumbung/protocol"
)

// How a private job's content is kept from all but its renter and the provider
// that was awarded it:
//
// The renter's node key and a nonce of the job give (HKDF-SHA-256) a secret of
// the job's inputs and one of each task's outputs; nothing of them is stored. A
// secret is the seed of an Ed25519 key, and age encrypts to that as it does to an
// SSH key of the kind. Each input has a key of its own, from the inputs' secret
// and its number, so that one cannot be put in another's place. A lease carries
// the inputs' secret and the public half of the task's output key, encrypted by
// age to the provider, whose peer id is an Ed25519 key; with them stand, to be
// compared, the network, both peers, the job and the task, so that a sealed key
// is of no use in another lease.

// ErrNoKey says that a lease's sealed key does not open what the lease says.
var ErrNoKey = errors.New("the lease's key for private data is not good")

// Lengths and names of what is derived.
const (
	secretSize  = 32
	nonceSize   = 32
	infoInputs  = "lumbung private inputs 1"
	infoInput   = "lumbung private input 1 "
	infoOutputs = "lumbung private outputs 1 "
	sealedHead  = "lumbung private task 1"
)

// Keys derives and opens the keys of private jobs from a node's own key. What
// prints it shows nothing of that.
type Keys struct {
	seed []byte
	own  age.Identity
	id   protocol.PeerID
}

// NewKeys takes a node's key, which must be Ed25519.
func NewKeys(key crypto.PrivKey) (*Keys, error) {
	raw, err := key.Raw()
	if err != nil {
		return nil, fmt.Errorf("the node's key: %w", err)
	}
	if key.Type() != crypto.Ed25519 || len(raw) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("the node's key is of type %s: private jobs need Ed25519", key.Type())
	}
	private := ed25519.PrivateKey(raw)
	own, err := agessh.NewEd25519Identity(private)
	if err != nil {
		return nil, fmt.Errorf("the node's key: %w", err)
	}
	id, err := peer.IDFromPrivateKey(key)
	return &Keys{seed: private.Seed(), own: own, id: id}, err
}

// Format implements fmt.Formatter.
func (k *Keys) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "(the keys of "+k.id.String()+")")
}

// LogValue implements slog.LogValuer.
func (k *Keys) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(k)) }

// MarshalJSON keeps keys out of every record.
func (k *Keys) MarshalJSON() ([]byte, error) { return []byte("null"), nil }

func newNonce() []byte {
	n := make([]byte, nonceSize)
	_, _ = rand.Read(n) // crypto/rand never fails
	return n
}

// derive makes a secret; only a wrong length could fail, and it is right.
func derive(from, salt []byte, info string) ([]byte, error) {
	out, err := hkdf.Key(sha256.New, from, salt, info, secretSize)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	return out, nil
}

func identityOf(secret []byte) (age.Identity, ed25519.PublicKey, error) {
	private := ed25519.NewKeyFromSeed(secret)
	id, err := agessh.NewEd25519Identity(private)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	return id, ed25519.PublicKey(private[ed25519.SeedSize:]), nil
}

func recipientOf(public ed25519.PublicKey) (age.Recipient, error) {
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("use a public key: %w", err)
	}
	r, err := agessh.NewEd25519Recipient(key)
	if err != nil {
		return nil, fmt.Errorf("use a public key: %w", err)
	}
	return r, nil
}

// peerRecipient is what encrypts to a peer: its id is its public key.
func peerRecipient(p protocol.PeerID) (age.Recipient, error) {
	public, err := p.ExtractPublicKey()
	if err != nil {
		return nil, fmt.Errorf("peer %s has no key in its id to encrypt to: %w", p, err)
	}
	raw, err := public.Raw()
	if err != nil || public.Type() != crypto.Ed25519 {
		return nil, errors.Join(fmt.Errorf("peer %s has a key of type %s: private jobs need Ed25519", p, public.Type()), err)
	}
	return recipientOf(raw)
}

func (k *Keys) inputs(nonce []byte) ([]byte, error) { return derive(k.seed, nonce, infoInputs) }

// inputKey is the key of one input.
func inputKey(inputs []byte, i int) (age.Identity, ed25519.PublicKey, error) {
	secret, err := derive(inputs, nil, infoInput+strconv.Itoa(i))
	if err != nil {
		return nil, nil, err
	}
	return identityOf(secret)
}

// InputTo is what encrypts input i of a job.
func (k *Keys) InputTo(j *Job, i int) (age.Recipient, error) {
	inputs, err := k.inputs(j.Nonce)
	if err != nil {
		return nil, err
	}
	_, public, err := inputKey(inputs, i)
	if err != nil {
		return nil, err
	}
	return recipientOf(public)
}

func (k *Keys) output(j *Job, task int) (age.Identity, ed25519.PublicKey, error) {
	secret, err := derive(k.seed, j.Nonce, infoOutputs+strconv.Itoa(task))
	if err != nil {
		return nil, nil, err
	}
	return identityOf(secret)
}

// Outputs opens the outputs of a task of this node's own job.
func (k *Keys) Outputs(j *Job, task int) (age.Identity, error) {
	id, _, err := k.output(j, task)
	return id, err
}

// sealedLines are what a sealed key is for.
func sealedLines(network string, renter, provider protocol.PeerID, job string, task uint32) []byte {
	return headLines(sealedHead, network, renter, provider, job, task)
}

// seal makes the sealed key of a lease of a task.
func (k *Keys) seal(network string, j *Job, task int, to protocol.PeerID) ([]byte, error) {
	inputs, err := k.inputs(j.Nonce)
	if err != nil {
		return nil, err
	}
	_, outputs, err := k.output(j, task)
	if err != nil {
		return nil, err
	}
	recipient, err := peerRecipient(to)
	if err != nil {
		return nil, err
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, recipient)
	if err != nil {
		return nil, fmt.Errorf("seal the key for %s: %w", to, err)
	}
	plain := append(append(sealedLines(network, k.id, to, j.ID, uint32(task)), inputs...), outputs...) //nolint:gosec // a task's number is small
	if _, err = w.Write(plain); err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("seal the key for %s: %w", to, err)
	}
	return sealed.Bytes(), nil
}

// taskKeys are what a provider gets with a private lease.
type taskKeys struct {
	inputs  []byte
	outputs ed25519.PublicKey
}

// open takes the sealed key out of a lease with this node.
func (k *Keys) open(network string, lease protocol.Signed[*protocol.Lease]) (taskKeys, error) {
	l := lease.Msg
	head := sealedLines(network, lease.From, k.id, l.GetJob(), l.GetTask())
	r, err := age.Decrypt(bytes.NewReader(l.GetSpec().GetSealedKey()), k.own)
	if err != nil {
		return taskKeys{}, fmt.Errorf("%w: it is damaged or for another node: %w", ErrNoKey, err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, int64(len(head)+2*secretSize+1)))
	if err != nil {
		return taskKeys{}, fmt.Errorf("%w: it is damaged: %w", ErrNoKey, err)
	}
	keys, ok := bytes.CutPrefix(plain, head)
	if !ok || len(keys) != 2*secretSize {
		return taskKeys{}, fmt.Errorf("%w: it was made for another lease", ErrNoKey)
	}
	return taskKeys{inputs: keys[:secretSize], outputs: keys[secretSize:]}, nil
}

// outputsTo is what encrypts the outputs. The key came from a peer: that it can
// be used is tried.
func (k taskKeys) outputsTo() (age.Recipient, error) {
	r, err := recipientOf(k.outputs)
	if err == nil {
		_, err = age.Encrypt(io.Discard, r)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: outputs cannot be encrypted with it: %w", ErrNoKey, err)
	}
	return r, nil
}

// PrivateInputs is what a renter of private jobs asks of the content store.
type PrivateInputs interface {
	// AddPrivate makes a private file of a file or folder.
	AddPrivate(ctx context.Context, from, dir string, to age.Recipient, progress func(Progress)) (Root, error)
	// SizePrivate is about how large that would be.
	SizePrivate(ctx context.Context, from, dir string) (uint64, error)
}

// PrivateOutputs is what a provider of private jobs asks of the content store.
type PrivateOutputs interface {
	// OpenPrivate writes what AddPrivate took as a file or folder at dest, no more
	// than so many bytes.
	OpenPrivate(ctx context.Context, root []byte, dest string, with age.Identity, maxBytes uint64) error
	// SavePrivate makes a private file of what is in a folder.
	SavePrivate(ctx context.Context, dir string, to age.Recipient) (root []byte, size uint64, err error)
}
