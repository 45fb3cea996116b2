package protocol

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	"google.golang.org/protobuf/proto"
)

// PeerID names a node; it is the hash of its public key.
type PeerID = peer.ID

// MsgID is the SHA-256 of a message's envelope.
type MsgID [sha256.Size]byte

// String is the id in hexadecimal.
func (id MsgID) String() string { return hex.EncodeToString(id[:]) }

// Short is the first 12 hexadecimal digits, for people.
func (id MsgID) Short() string { return hex.EncodeToString(id[:6]) }

// IsZero reports whether the id was never set.
func (id MsgID) IsZero() bool { return id == MsgID{} }

// MarshalText makes JSON show the id as String does; empty when it was never
// set.
func (id MsgID) MarshalText() ([]byte, error) {
	if id.IsZero() {
		return nil, nil
	}
	return []byte(id.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (id *MsgID) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*id = MsgID{}
		return nil
	}
	raw := make([]byte, hex.DecodedLen(len(text)))
	if _, err := hex.Decode(raw, text); err != nil {
		return fmt.Errorf("message id %.80q is not hexadecimal: %w", text, ErrInvalid)
	}
	parsed, err := ParseMsgID(raw)
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// ParseMsgID reads an id from its raw bytes.
func ParseMsgID(b []byte) (MsgID, error) {
	var id MsgID
	if len(b) != len(id) {
		return id, fmt.Errorf("message id of %d bytes, want %d: %w", len(b), len(id), ErrInvalid)
	}
	copy(id[:], b)
	return id, nil
}

// IDOf is the id of an envelope's bytes.
func IDOf(raw []byte) MsgID { return sha256.Sum256(raw) }

// Signed is a message with its signer and with the envelope exactly as it was
// made or received: Raw is what is stored, hashed and passed on.
type Signed[M Message] struct {
	Msg  M
	From PeerID
	Raw  []byte
}

// ID is the message's id.
func (s Signed[M]) ID() MsgID { return IDOf(s.Raw) }

// IsZero reports whether there is no message.
func (s Signed[M]) IsZero() bool { return len(s.Raw) == 0 }

// Signer signs messages as one node on one network.
type Signer struct {
	key     crypto.PrivKey
	network string
	id      PeerID
}

// NewSigner makes the signer of a node's key on a network.
func NewSigner(key crypto.PrivKey, network string) (*Signer, error) {
	if err := CheckNetwork(network); err != nil {
		return nil, err
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("peer id of the signing key: %w", err)
	}
	return &Signer{key: key, network: network, id: id}, nil
}

// ID is the peer id of the key.
func (s *Signer) ID() PeerID { return s.id }

// Network is the network that the signatures are for.
func (s *Signer) Network() string { return s.network }

// Sign seals a message with a signer's key.
func Sign[M Message](s *Signer, msg M) (Signed[M], error) { return Seal(s.key, s.network, msg) }

// Seal signs a message for one network.
func Seal[M Message](key crypto.PrivKey, network string, msg M) (Signed[M], error) {
	var none Signed[M]
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(msg)
	if err != nil {
		return none, fmt.Errorf("encode %s: %w", msg.Kind(), err)
	}
	env, err := record.Seal(&payload{network: network, kind: msg.Kind(), body: body}, key)
	if err != nil {
		return none, fmt.Errorf("sign %s: %w", msg.Kind(), err)
	}
	raw, err := env.Marshal()
	if err != nil {
		return none, fmt.Errorf("encode envelope of %s: %w", msg.Kind(), err)
	}
	if len(raw) > MaxSize(msg.Kind()) {
		return none, fmt.Errorf("%s of %d bytes is over its limit of %d: %w", msg.Kind(), len(raw), MaxSize(msg.Kind()), ErrTooLarge)
	}
	from, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return none, fmt.Errorf("peer id of the signing key: %w", err)
	}
	return Signed[M]{Msg: msg, From: from, Raw: raw}, nil
}

// Open checks the size, the signature and the fields of an envelope received
// on a network. The bytes are kept, not copied: the caller no longer writes to
// them. Errors wrap ErrTooLarge or ErrInvalid and put the blame on the sender.
func Open[M Message](network string, raw []byte, now time.Time) (Signed[M], error) {
	s, err := Reopen[M](network, raw)
	if err != nil {
		return s, err
	}
	if err := s.Msg.Validate(now); err != nil {
		return Signed[M]{}, fmt.Errorf("%s from %s: %w", s.Msg.Kind(), s.From, err)
	}
	return s, nil
}

// Reopen is Open for bytes that this node has accepted before: the signature
// is checked again, the time and the fields are not.
func Reopen[M Message](network string, raw []byte) (Signed[M], error) {
	var none Signed[M]
	msg := newMessage[M]()
	kind := msg.Kind()
	if len(raw) > MaxSize(kind) {
		return none, fmt.Errorf("%s of %d bytes is over its limit of %d: %w", kind, len(raw), MaxSize(kind), ErrTooLarge)
	}
	p := &payload{network: network, kind: kind}
	env, err := record.ConsumeTypedEnvelope(raw, p)
	if err != nil {
		return none, fmt.Errorf("%s: envelope: %w", kind, errors.Join(ErrInvalid, err))
	}
	if !bytes.Equal(env.PayloadType, p.Codec()) {
		return none, fmt.Errorf("%s: the envelope holds another kind: %w", kind, ErrInvalid)
	}
	if err := proto.Unmarshal(p.body, msg); err != nil {
		return none, fmt.Errorf("%s: %w", kind, errors.Join(ErrInvalid, err))
	}
	from, err := peer.IDFromPublicKey(env.PublicKey)
	if err != nil {
		return none, fmt.Errorf("%s: signer: %w", kind, errors.Join(ErrInvalid, err))
	}
	return Signed[M]{Msg: msg, From: from, Raw: raw}, nil
}

// KindOf is the kind of a message type.
func KindOf[M Message]() Kind { return newMessage[M]().Kind() }

// newMessage makes the struct that the pointer type M points to.
func newMessage[M Message]() M {
	var zero M
	return reflect.New(reflect.TypeOf(zero).Elem()).Interface().(M)
}

// payload fits a message's bytes to libp2p's envelopes.
type payload struct {
	network string
	kind    Kind
	body    []byte
}

func (p *payload) Domain() string {
	return "lumbung/" + p.network + "/" + string(p.kind) + "/" + Version
}

func (p *payload) Codec() []byte { return []byte("/lumbung/" + string(p.kind)) }

func (p *payload) MarshalRecord() ([]byte, error) { return p.body, nil }

func (p *payload) UnmarshalRecord(b []byte) error {
	p.body = b
	return nil
}
