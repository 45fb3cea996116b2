package job

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/protocol"
)

func someSecrets() protocol.Secrets {
	return protocol.Secrets{"TOKEN": []byte("correct horse battery"), "db.key": bytes.Repeat([]byte{0, 7, 255}, 1000)}
}

func sameSecrets(a, b protocol.Secrets) bool { return maps.EqualFunc(a, b, bytes.Equal) }

// secretLease is a lease with secrets, as renter 100 gives it to a peer.
func secretLease(t testing.TB, task int, to *Keys) protocol.Signed[*protocol.Lease] {
	t.Helper()
	sealed, err := keysOf(t, 100).sealSecrets(testNet, &Job{ID: "j1"}, task, to.id, someSecrets())
	if err != nil {
		t.Fatal(err)
	}
	return protocol.Signed[*protocol.Lease]{
		From: keysOf(t, 100).id, Msg: &protocol.Lease{Job: "j1", Task: uint32(task), Spec: &protocol.Task{SealedSecrets: sealed}},
	}
}

func TestSecretsAtRest(t *testing.T) {
	kept, err := keysOf(t, 100).keepSecrets("j1", someSecrets())
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range valueForms(someSecrets()) {
		if strings.Contains(string(kept), form) {
			t.Errorf("%q is stored", form)
		}
	}
	// A node started again has its key, and no more.
	if s, err := keysOf(t, 100).keptSecrets("j1", kept); err != nil || !sameSecrets(s, someSecrets()) {
		t.Errorf("%v %v", s, err)
	}
	again, err := keysOf(t, 100).keepSecrets("j1", someSecrets())
	if err != nil || bytes.Equal(kept, again) {
		t.Errorf("the same twice is seen to be the same: %v", err)
	}
	for name, open := range map[string]func() (protocol.Secrets, error){
		"another node": func() (protocol.Secrets, error) { return keysOf(t, 1).keptSecrets("j1", kept) },
		"another job":  func() (protocol.Secrets, error) { return keysOf(t, 100).keptSecrets("j2", kept) },
		"changed": func() (protocol.Secrets, error) {
			return keysOf(t, 100).keptSecrets("j1", append(kept[:len(kept)-1:len(kept)-1], kept[len(kept)-1]^1))
		},
		"cut":    func() (protocol.Secrets, error) { return keysOf(t, 100).keptSecrets("j1", kept[:len(kept)-1]) },
		"nobody": func() (protocol.Secrets, error) { return keysOf(t, 100).keptSecrets("j1", nil) },
	} {
		if s, err := open(); !errors.Is(err, ErrNoSecrets) {
			t.Errorf("%s: %v %v", name, s, err)
		}
	}
}

func TestSealedSecrets(t *testing.T) {
	provider := keysOf(t, 1)
	lease := secretLease(t, 3, provider)
	if s, err := provider.openSecrets(testNet, lease); err != nil || !sameSecrets(s, someSecrets()) {
		t.Errorf("%v %v", s, err)
	}
	if s, err := provider.openSecrets(testNet, protocol.Signed[*protocol.Lease]{Msg: &protocol.Lease{}}); s != nil || err != nil {
		t.Errorf("of a lease without: %v %v", s, err)
	}
	for _, k := range []*Keys{keysOf(t, 2), keysOf(t, 100)} { // a bidder that lost, and the renter itself
		if s, err := k.openSecrets(testNet, lease); !errors.Is(err, ErrNoSecrets) {
			t.Errorf("%v opens them: %v %v", k, s, err)
		}
	}
	good := lease.Msg.GetSpec().GetSealedSecrets()
	toProvider, err := peerRecipient(provider.id)
	if err != nil {
		t.Fatal(err)
	}
	head := string(headLines(secretsHead, testNet, keysOf(t, 100).id, provider.id, "j1", 3))
	key := string(sealedLines(testNet, keysOf(t, 100).id, provider.id, "j1", 3))
	set := func(b []byte) func(*protocol.Signed[*protocol.Lease]) {
		return func(l *protocol.Signed[*protocol.Lease]) { l.Msg.Spec.SealedSecrets = b }
	}
	for name, change := range map[string]func(*protocol.Signed[*protocol.Lease]){
		"another renter":  func(l *protocol.Signed[*protocol.Lease]) { l.From = keysOf(t, 7).id },
		"another job":     func(l *protocol.Signed[*protocol.Lease]) { l.Msg.Job = "j2" },
		"another task":    func(l *protocol.Signed[*protocol.Lease]) { l.Msg.Task = 2 },
		"of another node": func(l *protocol.Signed[*protocol.Lease]) { *l = secretLease(t, 3, keysOf(t, 2)) },
		"cut":             set(good[:len(good)-1]),
		"longer":          set(append(bytes.Clone(good), 0)),
		"changed":         set(append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1)),
		"no secrets":      set(encrypted(t, head, toProvider)),
		"no form":         set(encrypted(t, head+"\x01A", toProvider)),
		"a path":          set(encrypted(t, head+"\x04../A\x01x", toProvider)),
		"nothing":         set(encrypted(t, "", toProvider)),
		"too much":        set(encrypted(t, head+strings.Repeat("\x01A\x01x", 1<<20), toProvider)),
		"a private key":   set(encrypted(t, key+"\x01A\x01x", toProvider)), // what is sealed for the one is no use for the other
	} {
		l := secretLease(t, 3, provider)
		change(&l)
		if s, err := provider.openSecrets(testNet, l); !errors.Is(err, ErrNoSecrets) {
			t.Errorf("%s: %v %v", name, s, err)
		}
	}
	if _, err := provider.openSecrets("other", lease); !errors.Is(err, ErrNoSecrets) {
		t.Errorf("in another network: %v", err)
	}
}

// The most that the bounds allow still makes a lease.
func TestMostSecretsFit(t *testing.T) {
	most := protocol.Secrets{}
	for i := range protocol.MaxSecrets {
		most[fmt.Sprintf("%064d", i)] = make([]byte, protocol.MaxSecretBytes/protocol.MaxSecrets)
	}
	sealed, err := keysOf(t, 100).sealSecrets(strings.Repeat("n", 32), &Job{ID: strings.Repeat("j", 64)}, 99_999, keysOf(t, 1).id, most)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(sealed); n > protocol.MaxLease-protocol.MaxExec {
		t.Errorf("%d bytes", n)
	}
}

func FuzzSealedSecrets(f *testing.F) {
	provider := keysOf(f, 1)
	to, err := peerRecipient(provider.id)
	if err != nil {
		f.Fatal(err)
	}
	head := headLines(secretsHead, testNet, keysOf(f, 100).id, provider.id, "j1", 0)
	f.Add([]byte("\x01A\x01x"), true)
	f.Add(someSecrets().Encode(), true)
	f.Add([]byte("age-encryption.org/v1\n-> ssh-ed25519 "), false)
	f.Fuzz(func(t *testing.T, data []byte, inside bool) {
		if inside {
			data = encrypted(t, string(head)+string(data), to)
		}
		l := protocol.Signed[*protocol.Lease]{
			From: keysOf(t, 100).id, Msg: &protocol.Lease{Job: "j1", Spec: &protocol.Task{SealedSecrets: data}},
		}
		s, err := provider.openSecrets(testNet, l)
		if err != nil && !errors.Is(err, ErrNoSecrets) || err == nil && s.Validate() != nil {
			t.Errorf("%v %v", s, err)
		}
	})
}

// valueForms are secrets' values in the forms in which they could be written.
func valueForms(s protocol.Secrets) (out []string) {
	for _, v := range s {
		v = v[:21] // of more than that the beginning; base64 of so much has no rest
		out = append(out, string(v), hex.EncodeToString(v), base64.StdEncoding.EncodeToString(v), base64.URLEncoding.EncodeToString(v),
			strings.Trim(fmt.Sprintf("%d", v), "[]"))
	}
	return out
}

func TestSecretsMatchTheSpec(t *testing.T) {
	s := Spec{Image: "x", Secrets: []SecretSpec{{Name: "A"}, {Name: "B", File: "f"}}}
	for name, c := range map[string]struct {
		given protocol.Secrets
		says  string
	}{
		"both":     {protocol.Secrets{"A": {1}, "B": {2}}, ""},
		"none":     {nil, "no value of A"},
		"one":      {protocol.Secrets{"A": {1}}, "no value of B"},
		"too many": {protocol.Secrets{"A": {1}, "B": {2}, "C": {3}}, `a value of "C"`},
		"empty":    {protocol.Secrets{"A": {}, "B": {2}}, "A is empty"},
		"large":    {protocol.Secrets{"A": {1}, "B": make([]byte, protocol.MaxSecretBytes)}, "over 131072 bytes"},
	} {
		err := s.matchSecrets(c.given)
		if c.says == "" && err != nil || c.says != "" && (!errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
