package job

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"filippo.io/age"
	"github.com/goccy/go-yaml/ast"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

// A job's record has the names of its secrets alone. Their values come with the
// request and are stored beside the record, encrypted by age to a key that
// follows (HKDF-SHA-256) from the renter's node key and the job's id. For each
// lease they are opened and encrypted again, to the provider that was awarded it,
// together with what they are for. That provider stores the lease as it came, and
// opens them when it starts the container.

// SecretSpec is a secret of a job by its name, which is that of its file in the
// container's /run/secrets too.
type SecretSpec struct {
	Name string `json:"name"`
	// File is where whoever submits the job takes the value from: "-" is stdin,
	// empty the environment's variable of that name. It is the submitter's alone.
	File string `json:"-"`
}

// ErrNoSecrets says that sealed secrets do not open, or not as what they are
// said to be.
var ErrNoSecrets = errors.New("the secrets are not good")

// What secrets are sealed for.
const (
	infoSecrets = "lumbung secrets at rest 1 "
	secretsHead = "lumbung secrets of a task 1"
)

// secretNames are the names of a job's secrets.
func (s Spec) secretNames() []string {
	var out []string
	for _, v := range s.Secrets {
		out = append(out, v.Name)
	}
	return out
}

func (s Spec) validateSecrets() error {
	if len(s.Secrets) > protocol.MaxSecrets {
		return specErr("secrets: %d, over %d", len(s.Secrets), protocol.MaxSecrets)
	}
	seen := map[string]bool{}
	for i, v := range s.Secrets {
		if err := protocol.SecretName(v.Name); err != nil {
			return specErr("secrets[%d]: %v", i, err)
		}
		if seen[v.Name] {
			return specErr("secrets[%d]: %q is used twice", i, v.Name)
		}
		seen[v.Name] = true
	}
	if len(s.Secrets) == 0 {
		return nil
	}
	for _, to := range s.mountedOn() {
		if to == "/run" || to == sandbox.SecretsDir || strings.HasPrefix(to, sandbox.SecretsDir+"/") {
			return specErr("secrets: they lie in %s, and so nothing else may come to %s", sandbox.SecretsDir, to)
		}
	}
	return nil
}

// matchSecrets holds the values that were given against the names of the spec.
func (s Spec) matchSecrets(given protocol.Secrets) error {
	for _, name := range s.secretNames() {
		if _, ok := given[name]; !ok {
			return specErr("secrets: no value of %s came with the job", name)
		}
	}
	for _, name := range given.Names() {
		if !slices.Contains(s.secretNames(), name) {
			return specErr("secrets: a value of %q came with the job, which names no such secret", name)
		}
	}
	if err := given.Validate(); err != nil {
		return specErr("secrets: %v", err)
	}
	return nil
}

// secrets reads a list of NAME, or of {name, file}.
func (f *specFile) secrets(n ast.Node, at string) (out []SecretSpec, err error) {
	err = f.list(n, at, func(n ast.Node, at string) error {
		var v SecretSpec
		var err error
		if isScalar(n) {
			v.Name, err = f.scalarText(n, at)
		} else {
			err = f.mapping(n, at, keys{"name": f.text(&v.Name), "file": f.text(&v.File)})
		}
		out = append(out, v)
		return err
	})
	return out, err
}

// restKey is what a job's secrets are kept under while the job is open.
func (k *Keys) restKey(job string) (age.Identity, age.Recipient, error) {
	seed, err := derive(k.seed, nil, infoSecrets+job)
	if err != nil {
		return nil, nil, err
	}
	id, public, err := identityOf(seed)
	if err != nil {
		return nil, nil, err
	}
	to, err := recipientOf(public)
	return id, to, err
}

// keepSecrets makes what is stored of a job's secrets.
func (k *Keys) keepSecrets(job string, s protocol.Secrets) ([]byte, error) {
	_, to, err := k.restKey(job)
	if err != nil {
		return nil, err
	}
	return encrypt(s.Encode(), to)
}

// keptSecrets opens what keepSecrets made.
func (k *Keys) keptSecrets(job string, kept []byte) (protocol.Secrets, error) {
	id, _, err := k.restKey(job)
	if err != nil {
		return nil, err
	}
	return decryptSecrets(kept, nil, id)
}

// sealSecrets makes the sealed secrets of a lease.
func (k *Keys) sealSecrets(network string, j *Job, task int, to protocol.PeerID, s protocol.Secrets) ([]byte, error) {
	recipient, err := peerRecipient(to)
	if err != nil {
		return nil, err
	}
	head := headLines(secretsHead, network, k.id, to, j.ID, uint32(task)) //nolint:gosec // a task's number is small
	return encrypt(append(head, s.Encode()...), recipient)
}

// openSecrets takes the secrets out of a lease with this node; nil where it has
// none.
func (k *Keys) openSecrets(network string, lease protocol.Signed[*protocol.Lease]) (protocol.Secrets, error) {
	l := lease.Msg
	if len(l.GetSpec().GetSealedSecrets()) == 0 {
		return nil, nil
	}
	head := headLines(secretsHead, network, lease.From, k.id, l.GetJob(), l.GetTask())
	return decryptSecrets(l.GetSpec().GetSealedSecrets(), head, k.own)
}

// headLines say what something is sealed for.
func headLines(head, network string, renter, provider protocol.PeerID, job string, task uint32) []byte {
	return []byte(strings.Join([]string{head, network, renter.String(), provider.String(), job, strconv.FormatUint(uint64(task), 10), ""}, "\n"))
}

func encrypt(plain []byte, to age.Recipient) ([]byte, error) {
	defer clear(plain)
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, to)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("seal secrets: %w", err)
	}
	return sealed.Bytes(), nil
}

// decryptSecrets opens secrets that stand behind head.
func decryptSecrets(sealed, head []byte, with age.Identity) (protocol.Secrets, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), with)
	if err != nil {
		return nil, fmt.Errorf("%w: damaged, or for another node: %w", ErrNoSecrets, err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, int64(len(head)+2*protocol.MaxSecretBytes)))
	if err != nil {
		return nil, fmt.Errorf("%w: damaged: %w", ErrNoSecrets, err)
	}
	raw, ok := bytes.CutPrefix(plain, head)
	if !ok {
		return nil, fmt.Errorf("%w: made for another lease", ErrNoSecrets)
	}
	s, err := protocol.DecodeSecrets(raw)
	if err == nil && len(s) == 0 {
		err = errors.New("there are none")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoSecrets, err)
	}
	return s, nil
}
