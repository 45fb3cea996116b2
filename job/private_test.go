package job

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/lumbung-net/lumbung/protocol"
)

// keysOf are the keys of the node that signerOf makes.
func keysOf(t testing.TB, n int) *Keys {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(chacha(byte(n)))
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewKeys(key)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// encrypted is text as age encrypts it.
func encrypted(t testing.TB, text string, to age.Recipient) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := age.Encrypt(&b, to)
	if err == nil {
		_, err = io.WriteString(w, text)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func decrypted(data []byte, with age.Identity) (string, error) {
	r, err := age.Decrypt(bytes.NewReader(data), with)
	if err != nil {
		return "", err
	}
	out, err := io.ReadAll(r)
	return string(out), err
}

// privateLease is a lease of a private task, as renter 100 gives it to a peer.
func privateLease(t testing.TB, j *Job, task int, to *Keys) protocol.Signed[*protocol.Lease] {
	t.Helper()
	sealed, err := keysOf(t, 100).seal(testNet, j, task, to.id)
	if err != nil {
		t.Fatal(err)
	}
	return protocol.Signed[*protocol.Lease]{
		From: keysOf(t, 100).id,
		Msg:  &protocol.Lease{Job: j.ID, Task: uint32(task), Spec: &protocol.Task{Private: true, SealedKey: sealed}},
	}
}

func TestPrivateKeys(t *testing.T) {
	renter, provider, other := keysOf(t, 100), keysOf(t, 1), keysOf(t, 2)
	if renter.id != signerOf(t, 100).ID() {
		t.Fatal("keys and signer are of two nodes")
	}
	j := &Job{ID: "j1", Nonce: newNonce(), Spec: Spec{Private: true}}
	var in [2][]byte
	for i := range in {
		to, err := renter.InputTo(j, i)
		if err != nil {
			t.Fatal(err)
		}
		in[i] = encrypted(t, fmt.Sprint("input ", i), to)
	}
	lease := privateLease(t, j, 3, provider)
	if n := len(lease.Msg.GetSpec().GetSealedKey()); n > 1024 {
		t.Errorf("the sealed key has %d bytes", n)
	}
	keys, err := provider.open(testNet, lease)
	if err != nil {
		t.Fatal(err)
	}
	for i := range in {
		own, _, err := inputKey(keys.inputs, i)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := decrypted(in[i], own); err != nil || text != fmt.Sprint("input ", i) {
			t.Errorf("input %d: %q %v", i, text, err)
		}
		if _, err := decrypted(in[1-i], own); err == nil {
			t.Errorf("the key of input %d opens the other", i)
		}
	}
	to, err := keys.outputsTo()
	if err != nil {
		t.Fatal(err)
	}
	out := encrypted(t, "output", to)
	// A renter started again has its node's key and the job's nonce, and no more.
	mine, err := keysOf(t, 100).Outputs(&Job{ID: "j1", Nonce: j.Nonce}, 3)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := decrypted(out, mine); err != nil || text != "output" {
		t.Errorf("output: %q %v", text, err)
	}
	for name, k := range map[string]func() (age.Identity, error){
		"another task's key": func() (age.Identity, error) { return renter.Outputs(j, 2) },
		"the provider":       func() (age.Identity, error) { return provider.Outputs(j, 3) },
		"an input's key":     func() (age.Identity, error) { id, _, err := inputKey(keys.inputs, 0); return id, err },
		"another job's key":  func() (age.Identity, error) { return renter.Outputs(&Job{ID: "j1", Nonce: newNonce()}, 3) },
	} {
		id, err := k()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decrypted(out, id); err == nil {
			t.Errorf("%s opens the outputs", name)
		}
	}
	if _, err := other.open(testNet, lease); !errors.Is(err, ErrNoKey) {
		t.Errorf("another provider opens the key: %v", err)
	}
}

// A sealed key that is cut, changed or taken from another lease opens nothing.
func TestSealedKeyTampered(t *testing.T) {
	provider := keysOf(t, 1)
	j := &Job{ID: "j1", Nonce: newNonce(), Spec: Spec{Private: true}}
	good := privateLease(t, j, 0, provider).Msg.GetSpec().GetSealedKey()
	toProvider, err := peerRecipient(provider.id)
	if err != nil {
		t.Fatal(err)
	}
	head := string(sealedLines(testNet, keysOf(t, 100).id, provider.id, "j1", 0))
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	for name, c := range map[string]func(l *protocol.Signed[*protocol.Lease]){
		"none":             func(l *protocol.Signed[*protocol.Lease]) { l.Msg.Spec.SealedKey = nil },
		"cut":              func(l *protocol.Signed[*protocol.Lease]) { l.Msg.Spec.SealedKey = good[:len(good)-1] },
		"header cut":       func(l *protocol.Signed[*protocol.Lease]) { l.Msg.Spec.SealedKey = good[:50] },
		"longer":           func(l *protocol.Signed[*protocol.Lease]) { l.Msg.Spec.SealedKey = append(bytes.Clone(good), 0) },
		"header changed":   func(l *protocol.Signed[*protocol.Lease]) { l.Msg.Spec.SealedKey = flip(70) },
		"key changed":      func(l *protocol.Signed[*protocol.Lease]) { l.Msg.Spec.SealedKey = flip(len(good) - 20) },
		"another renter":   func(l *protocol.Signed[*protocol.Lease]) { l.From = keysOf(t, 7).id },
		"another job":      func(l *protocol.Signed[*protocol.Lease]) { l.Msg.Job = "j2" },
		"another task":     func(l *protocol.Signed[*protocol.Lease]) { l.Msg.Task = 1 },
		"another provider": func(l *protocol.Signed[*protocol.Lease]) { *l = privateLease(t, j, 0, keysOf(t, 2)) },
		"too much in it": func(l *protocol.Signed[*protocol.Lease]) {
			l.Msg.Spec.SealedKey = encrypted(t, head+strings.Repeat("x", 2*secretSize+1), toProvider)
		},
		"too little in it": func(l *protocol.Signed[*protocol.Lease]) { l.Msg.Spec.SealedKey = encrypted(t, head, toProvider) },
		"nothing in it":    func(l *protocol.Signed[*protocol.Lease]) { l.Msg.Spec.SealedKey = encrypted(t, "", toProvider) },
	} {
		l := privateLease(t, j, 0, provider)
		c(&l)
		if _, err := provider.open(testNet, l); !errors.Is(err, ErrNoKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Points of a small order, with which everybody could read.
	for _, public := range [][]byte{make([]byte, 32), append([]byte{1}, make([]byte, 31)...)} {
		if _, err := (taskKeys{outputs: public}).outputsTo(); !errors.Is(err, ErrNoKey) {
			t.Errorf("outputs to %x: %v", public, err)
		}
	}
}

func FuzzSealedKey(f *testing.F) {
	provider := keysOf(f, 1)
	j := &Job{ID: "j1", Nonce: bytes.Repeat([]byte{7}, nonceSize)}
	good := privateLease(f, j, 0, provider)
	f.Add(good.Msg.GetSpec().GetSealedKey())
	f.Add([]byte("age-encryption.org/v1\n-> ssh-ed25519 "))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, sealed []byte) {
		l := privateLease(t, j, 0, provider)
		l.Msg.Spec.SealedKey = sealed
		if keys, err := provider.open(testNet, l); err == nil && (len(keys.inputs) != secretSize || len(keys.outputs) != secretSize) {
			t.Errorf("keys of %d and %d bytes", len(keys.inputs), len(keys.outputs))
		}
	})
}

func TestPeerRecipient(t *testing.T) {
	key, _, err := crypto.GenerateKeyPair(crypto.RSA, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s, err := protocol.NewSigner(key, testNet)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := peerRecipient(s.ID()); err == nil || !strings.Contains(err.Error(), s.ID().String()) {
		t.Errorf("%v", err)
	}
	if _, err := NewKeys(key); err == nil {
		t.Error("a node key of RSA is taken")
	}
}

// secretsOf are a job's secrets in the forms in which they could be written.
func secretsOf(t testing.TB, k *Keys, j *Job) []string {
	t.Helper()
	inputs, err := k.inputs(j.Nonce)
	if err != nil {
		t.Fatal(err)
	}
	outputs, err := derive(k.seed, j.Nonce, infoOutputs+"0")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, secret := range [][]byte{k.seed, inputs, outputs} {
		out = append(out, string(secret), hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(secret),
			base64.RawURLEncoding.EncodeToString(secret), strings.Trim(fmt.Sprintf("%d", secret), "[]"), fmt.Sprintf("%#v", secret)[7:])
	}
	return out
}

func TestKeysAreNotPrinted(t *testing.T) {
	k := keysOf(t, 100)
	j := &Job{ID: "j1", Nonce: newNonce(), Spec: Spec{Private: true}}
	var text bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Info("x", "keys", k, "in", struct{ K *Keys }{k})
	slog.New(slog.NewJSONHandler(&text, nil)).Info("x", "keys", k, "in", struct{ K *Keys }{k})
	raw, err := json.Marshal(map[string]any{"keys": k, "job": j})
	if err != nil {
		t.Fatal(err)
	}
	text.Write(raw)
	fmt.Fprintf(&text, "%v %+v %#v %s %x %v", k, k, k, k, k, []*Keys{k})
	for _, secret := range secretsOf(t, k, j) {
		if strings.Contains(text.String(), secret) {
			t.Errorf("%q is printed", secret)
		}
	}
}

func TestPrivateSpec(t *testing.T) {
	base := Spec{Image: "x", Private: true, Inputs: []InputSpec{{From: "a", To: "/in"}}, Outputs: []OutputSpec{{From: "/out"}}}.WithDefaults()
	if err := base.Validate(); err != nil {
		t.Fatal(err)
	}
	s := base
	s.Inputs = []InputSpec{{From: "cid:bafy", To: "/in"}}
	if err := s.Validate(); !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), "inputs[0].from") {
		t.Errorf("%v", err)
	}
	s = base
	s.Outputs = []OutputSpec{{From: "/out", Stream: true}}
	if err := s.Validate(); !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), "outputs[0].stream") {
		t.Errorf("%v", err)
	}
	s = base
	s.Caches = []CacheSpec{{Key: "cid:bafy", To: "/c"}, {Key: "weights", To: "/w"}}
	if texts := s.publicParts(); len(texts) != 2 || !strings.Contains(texts[0], "cid:bafy") || !strings.Contains(texts[1], "weights") {
		t.Errorf("%q", texts)
	}
	if s.Private = false; len(s.publicParts()) > 0 {
		t.Error("a job that is not private is warned of")
	}
}
