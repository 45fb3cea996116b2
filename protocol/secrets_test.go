package protocol

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
)

func sampleSecrets() Secrets {
	return Secrets{"TOKEN": []byte("hunter2"), "db.key": {0, 255, '\n'}, "a-b": bytes.Repeat([]byte("k"), 300)}
}

// The form is stored, sealed, by renters and providers: it does not change.
func TestSecretsForm(t *testing.T) {
	const golden = "05544f4b454e" + "0768756e74657232" + "03612d62" + "ac02"
	raw := sampleSecrets().Encode()
	if got := hex.EncodeToString(raw); !strings.HasPrefix(got, golden) || len(raw) != 331 {
		t.Errorf("%d bytes: %s", len(raw), got)
	}
	got, err := DecodeSecrets(raw)
	if err != nil || !maps.EqualFunc(got, sampleSecrets(), bytes.Equal) {
		t.Errorf("%q %v", got.Encode(), err)
	}
	if got, err := DecodeSecrets(nil); err != nil || len(got) > 0 {
		t.Errorf("%v %v", got, err)
	}
	most := Secrets{}
	for i := range MaxSecrets {
		most[fmt.Sprintf("%064d", i)] = make([]byte, MaxSecretBytes/MaxSecrets)
	}
	if got, err := DecodeSecrets(most.Encode()); err != nil || len(got) != MaxSecrets {
		t.Errorf("%v %v", got, err)
	}
}

func TestSecretsRefused(t *testing.T) {
	many := Secrets{}
	for i := range MaxSecrets + 1 {
		many[fmt.Sprint("n", i)] = []byte("v")
	}
	for name, s := range map[string]Secrets{
		"many": many, "large": {"A": make([]byte, MaxSecretBytes), "B": {1}}, "empty": {"A": nil}, "no name": {"": {1}},
		"dots": {"..": {1}}, "a path": {"a/b": {1}}, "a zero": {"a\x00": {1}}, "a line": {"a\n": {1}}, "hidden": {".a": {1}},
		"a flag": {"-a": {1}}, "long": {strings.Repeat("n", 65): {1}}, "not ASCII": {"é": {1}},
	} {
		if err := s.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := DecodeSecrets(s.Encode()); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s decoded: %v", name, err)
		}
	}
	for name, raw := range map[string]string{
		"cut off": "\x01A\x05abc", "length alone": "\x01", "no value": "\x01A", "out of order": "\x01B\x01x\x01A\x01x",
		"twice": "\x01A\x01x\x01A\x01x", "long varint": "\x81\x00A\x01x", "huge": "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01A",
		"endless varint": strings.Repeat("\xff", 11), "too long": strings.Repeat("\x01A\x01x", maxSealedSecrets),
	} {
		if s, err := DecodeSecrets([]byte(raw)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v %v", name, s, err)
		}
	}
}

func TestSealedSecretsBounded(t *testing.T) {
	if err := (&Task{SealedSecrets: make([]byte, maxSealedSecrets)}).check(); err != nil {
		t.Error(err)
	}
	if err := (&Task{SealedSecrets: make([]byte, maxSealedSecrets+1)}).check(); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
}

func TestSecretsPrintNoValue(t *testing.T) {
	s := sampleSecrets()
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Error("x", "secrets", s, "in", struct{ S Secrets }{s})
	slog.New(slog.NewJSONHandler(&log, nil)).Error("x", "secrets", s)
	in := struct{ S Secrets }{s}
	text := fmt.Sprintf("%v %+v %#v %s %q %x %d %v %+v %#v", s, s, s, s, s, s, s, in, &in, in) + log.String()
	text += fmt.Sprint(Secrets{"A": nil, "B": []byte("hunter2")}.Validate())
	for _, form := range []string{"hunter2", hex.EncodeToString([]byte("hunter2")), "aHVudGVy", "104 117", "0x68"} {
		if strings.Contains(text, form) {
			t.Errorf("%q is in %s", form, text)
		}
	}
	if !strings.Contains(text, "(the secrets TOKEN, a-b, db.key)") {
		t.Error(text)
	}
	// JSON has them, for the local API.
	raw, err := json.Marshal(s)
	var back Secrets
	if err == nil {
		err = json.Unmarshal(raw, &back)
	}
	if err != nil || !maps.EqualFunc(back, s, bytes.Equal) {
		t.Errorf("%s %v", raw, err)
	}
}

func FuzzSecrets(f *testing.F) {
	f.Add(sampleSecrets().Encode())
	f.Add([]byte("\x01A\x01x\x01B\x02yz"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := DecodeSecrets(data)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("an error that blames nobody: %v", err)
			}
			return
		}
		if err := s.Validate(); err != nil || !bytes.Equal(s.Encode(), data) {
			t.Errorf("accepted, but %v", err)
		}
	})
}
