package protocol

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/record"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"
)

// TestEnvelopesAreBound opens every kind's envelope in every wrong way.
func TestEnvelopesAreBound(t *testing.T) {
	all := samples()
	for i, msg := range all {
		s, err := Seal(testKey(t, 1), testNet, msg)
		if err != nil {
			t.Fatal(err)
		}
		other := all[(i+1)%len(all)]
		if _, _, err := open(other, s.Raw); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s was opened as %s: %v", msg.Kind(), other.Kind(), err)
		}
		for j := 0; j < len(s.Raw); j += 1 + len(s.Raw)/64 {
			bad := bytes.Clone(s.Raw)
			bad[j] ^= 0x10
			if read, from, err := open(msg, bad); err == nil && (from != s.From || !proto.Equal(read, msg)) {
				t.Errorf("%s with byte %d changed was opened as another message", msg.Kind(), j)
			}
		}
		foreign, err := Seal(testKey(t, 1), "test-two", msg)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := open(msg, foreign.Raw); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s of another network was opened: %v", msg.Kind(), err)
		}
		if _, _, err := open(msg, make([]byte, MaxSize(msg.Kind())+1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s over its size: %v", msg.Kind(), err)
		}
		if _, _, err := open(msg, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("an empty %s: %v", msg.Kind(), err)
		}
	}
}

func TestSealRefusesWhatOpenWould(t *testing.T) {
	big := &LeaseStatus{LeaseId: fill(5, 32), Result: make([]byte, MaxStatus)}
	if _, err := Seal(testKey(t, 1), testNet, big); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a message over its size was signed: %v", err)
	}
}

func TestKindsAndDomainsDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range allKinds {
		p := &payload{network: testNet, kind: k}
		for _, s := range []string{p.Domain(), string(p.Codec())} {
			if seen[s] {
				t.Errorf("%s is used twice", s)
			}
			seen[s] = true
		}
	}
}

// drawMessage fills a message with anything its types allow.
func drawMessage(t *rapid.T, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !rapid.Bool().Draw(t, "set") {
			continue
		}
		switch {
		case f.IsList():
			list := m.Mutable(f).List()
			for range rapid.IntRange(0, 3).Draw(t, "items") {
				if f.Kind() == protoreflect.MessageKind {
					item := list.NewElement()
					drawMessage(t, item.Message(), depth+1)
					list.Append(item)
				} else {
					list.Append(drawValue(t, f))
				}
			}
		case f.Kind() == protoreflect.MessageKind:
			if depth < 3 {
				drawMessage(t, m.Mutable(f).Message(), depth+1)
			}
		default:
			m.Set(f, drawValue(t, f))
		}
	}
}

func drawValue(t *rapid.T, f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rapid.Bool().Draw(t, "bool"))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(rapid.Int32Range(0, 20).Draw(t, "enum")))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(rapid.Int32().Draw(t, "int32"))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(rapid.Int64().Draw(t, "int64"))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(rapid.Uint32().Draw(t, "uint32"))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(rapid.Uint64().Draw(t, "uint64"))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(rapid.StringN(0, 8, 32).Draw(t, "string"))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "bytes"))
	}
	panic(fmt.Sprintf("field %s of a kind that no message has", f.FullName()))
}

// TestRoundTrips seals messages of any content and reads them again: the same
// fields, the same bytes, the same id, and Validate never panics.
func TestRoundTrips(t *testing.T) {
	for _, sample := range samples() {
		t.Run(string(sample.Kind()), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				msg, ok := sample.ProtoReflect().New().Interface().(Message)
				if !ok {
					rt.Fatal("not a message")
				}
				drawMessage(rt, msg.ProtoReflect(), 0)
				_ = msg.Validate(time.UnixMilli(rapid.Int64Range(-1<<40, 1<<42).Draw(rt, "now")))
				s, err := Seal(testKey(t, 2), testNet, msg)
				if errors.Is(err, ErrTooLarge) {
					return
				}
				if err != nil {
					rt.Fatal(err)
				}
				p := &payload{network: testNet, kind: msg.Kind()}
				if _, err := record.ConsumeTypedEnvelope(s.Raw, p); err != nil {
					rt.Fatal(err)
				}
				read := sample.ProtoReflect().New().Interface()
				if err := proto.Unmarshal(p.body, read); err != nil {
					rt.Fatal(err)
				}
				if !proto.Equal(read, msg) {
					rt.Fatalf("read %v, want %v", read, msg)
				}
				again, err := Seal(testKey(t, 2), testNet, msg)
				if err != nil || again.ID() != s.ID() {
					rt.Fatalf("sealed twice, with two ids: %v", err)
				}
				got, from, err := open(msg, s.Raw)
				if verr := msg.Validate(testNow); (verr == nil) != (err == nil) {
					rt.Fatalf("Validate says %v, Open says %v", verr, err)
				}
				if err == nil && (from != s.From || !proto.Equal(got, msg)) {
					rt.Fatalf("opened %v from %s", got, from)
				}
			})
		})
	}
}

func TestMsgID(t *testing.T) {
	s, err := Seal(testKey(t, 1), testNet, &LeaseQuery{LeaseId: fill(1, 32)})
	if err != nil {
		t.Fatal(err)
	}
	id := s.ID()
	back, err := ParseMsgID(id[:])
	if err != nil || back != id || id.IsZero() || len(id.String()) != 64 || id.String()[:12] != id.Short() {
		t.Errorf("%s read back as %s, %v", id, back, err)
	}
	var text MsgID
	if b, err := id.MarshalText(); err != nil || text.UnmarshalText(b) != nil || text != id {
		t.Errorf("%s through text is %s, %v", id, text, err)
	}
	if err := text.UnmarshalText([]byte("xyz")); err == nil {
		t.Error("text that is no id was read")
	}
	if _, err := ParseMsgID(id[:31]); !errors.Is(err, ErrInvalid) {
		t.Errorf("an id of 31 bytes: %v", err)
	}
	if !(MsgID{}).IsZero() || !(Signed[*Ping]{}).IsZero() || s.IsZero() {
		t.Error("IsZero is wrong")
	}
}

func TestStatuses(t *testing.T) {
	for err, want := range map[error]Status{
		nil: StatusOK, ErrRetry: StatusRetry, ErrElsewhere: StatusElsewhere, ErrBlame: StatusBlame,
		ErrInvalid: StatusBlame, ErrTooLarge: StatusBlame, ErrStale: StatusBlame, errors.New("other"): StatusRetry,
	} {
		if got := StatusOf(err); got != want {
			t.Errorf("%v is status %d, want %d", err, got, want)
		}
	}
	for s, want := range map[Status]error{StatusOK: nil, StatusRetry: ErrRetry, StatusElsewhere: ErrElsewhere, StatusBlame: ErrBlame, 77: ErrBlame} {
		if got := s.Err(); !errors.Is(got, want) {
			t.Errorf("status %d is %v, want %v", s, got, want)
		}
	}
}
