package protocol

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Bounds of a task's secrets.
const (
	MaxSecrets     = 64
	MaxSecretBytes = 128 << 10 // of all values together
	// maxSealedSecrets leaves room for the names, for what the secrets are sealed
	// with and for what age adds.
	maxSealedSecrets = MaxSecretBytes + 8<<10
)

// Secrets are the values of a task's secrets by their names. What prints them
// shows the names alone; JSON has them, for they reach their node as that.
type Secrets map[string][]byte

// Format implements fmt.Formatter.
func (s Secrets) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "(the secrets "+strings.Join(s.Names(), ", ")+")")
}

// LogValue implements slog.LogValuer.
func (s Secrets) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(s)) }

// Names are the names in their order.
func (s Secrets) Names() []string { return slices.Sorted(maps.Keys(s)) }

// Validate reports the first thing that is out of bounds. It names no value.
func (s Secrets) Validate() error {
	if len(s) > MaxSecrets {
		return bad("%d secrets, over %d", len(s), MaxSecrets)
	}
	size := 0
	for _, name := range s.Names() {
		if err := SecretName(name); err != nil {
			return err
		}
		if len(s[name]) == 0 {
			return bad("the secret %s is empty", name)
		}
		if size += len(s[name]); size > MaxSecretBytes {
			return bad("the secrets have over %d bytes in all", MaxSecretBytes)
		}
	}
	return nil
}

var secretNameForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`)

// SecretName says what is wrong with the name of a secret, which is also that of
// its file. It does not repeat it: a value may stand there by mistake.
func SecretName(name string) error {
	if !secretNameForm.MatchString(name) {
		return bad("a secret's name is up to 64 letters, digits and ._- and begins with a letter, a digit or _")
	}
	return nil
}

// Encode writes secrets in the order of their names, as length and name, length
// and value; lengths are unsigned LEB128 varints.
func (s Secrets) Encode() []byte {
	var out []byte
	for _, name := range s.Names() {
		out = append(binary.AppendUvarint(out, uint64(len(name))), name...)
		out = append(binary.AppendUvarint(out, uint64(len(s[name]))), s[name]...)
	}
	return out
}

// DecodeSecrets reads what Encode wrote, and nothing else; it is ErrInvalid.
func DecodeSecrets(data []byte) (Secrets, error) {
	if len(data) > maxSealedSecrets {
		return nil, bad("secrets of %d bytes, over %d", len(data), maxSealedSecrets)
	}
	s := Secrets{}
	for rest := data; len(rest) > 0; {
		if len(s) == MaxSecrets {
			return nil, bad("over %d secrets", MaxSecrets)
		}
		var name, value []byte
		var ok bool
		if name, rest, ok = cutSized(rest); ok {
			value, rest, ok = cutSized(rest)
		}
		if !ok {
			return nil, bad("the secrets are cut off")
		}
		s[string(name)] = value
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if !bytes.Equal(s.Encode(), data) { // out of order, twice the same, a long varint
		return nil, bad("the secrets are not written in their one form")
	}
	return s, nil
}

// cutSized takes a length and as many bytes off the front.
func cutSized(data []byte) (head, rest []byte, ok bool) {
	n, used := binary.Uvarint(data)
	if used <= 0 || n > uint64(len(data)-used) {
		return nil, nil, false
	}
	end := used + int(n) //nolint:gosec // it is within data
	return data[used:end:end], data[end:], true
}

func (t *Task) checkSecrets() error {
	if n := len(t.GetSealedSecrets()); n > maxSealedSecrets {
		return bad("sealed secrets of %d bytes, over %d", n, maxSealedSecrets)
	}
	return nil
}
