package protocol

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
)

var update = flag.Bool("update", false, "write the golden bytes anew; only for a new Version")

// TestGoldenBytes keeps the bytes of every message as they are: nodes of
// different builds must read each other, and signatures hold for bytes.
func TestGoldenBytes(t *testing.T) {
	seen := map[Kind]bool{}
	for _, msg := range samples() {
		kind := msg.Kind()
		seen[kind] = true
		t.Run(string(kind), func(t *testing.T) {
			s, err := Seal(testKey(t, 1), testNet, msg)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", "golden", string(kind)+"-"+Version+".hex")
			if *update {
				writeGolden(t, file, s.Raw)
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := hex.DecodeString(strings.Join(strings.Fields(string(want)), ""))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(raw, s.Raw) {
				t.Errorf("%s is now encoded as\n%x\nwant\n%x", kind, s.Raw, raw)
			}
			read, from := openAs(t, msg, raw)
			if !proto.Equal(read, msg) {
				t.Errorf("read\n%v\nwant\n%v", read, msg)
			}
			if from != s.From {
				t.Errorf("signed by %s, want %s", from, s.From)
			}
			everyFieldSet(t, msg)
		})
	}
	if len(seen) != len(allKinds) {
		t.Errorf("%d kinds have golden bytes, of %d", len(seen), len(allKinds))
	}
}

var allKinds = []Kind{
	KindCapacity, KindCapacityQuery, KindOffer, KindBid, KindDecline, KindAnswer, KindLease, KindDecision, KindHeartbeat,
	KindVerdict, KindLogChunk, KindResult, KindReceipt, KindCancel, KindLeaseQuery, KindLeaseStatus, KindExec, KindPort, KindPing, KindAck,
}

func writeGolden(t *testing.T, file string, raw []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for text := hex.EncodeToString(raw); text != ""; {
		n := min(96, len(text))
		lines.WriteString(text[:n] + "\n")
		text = text[n:]
	}
	if err := os.WriteFile(file, []byte(lines.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// everyFieldSet keeps the samples worth their name. A field that excludes
// another, or whose zero is the wanted value, is excepted here.
func everyFieldSet(t *testing.T, msg Message) {
	t.Helper()
	except := map[string]bool{"Answer.decline": true, "Capacity.paused": true, "Resources.gpu_all": true}
	fields := msg.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name := string(msg.ProtoReflect().Descriptor().Name()) + "." + string(f.Name())
		if !msg.ProtoReflect().Has(f) && !except[name] {
			t.Errorf("the sample leaves %s unset", name)
		}
	}
}

// openAs opens bytes as the kind that msg is.
func openAs(t *testing.T, msg Message, raw []byte) (Message, PeerID) {
	t.Helper()
	read, from, err := open(msg, raw)
	if err != nil {
		t.Fatal(err)
	}
	return read, from
}

// open is Open for a kind known only at run time.
func open(msg Message, raw []byte) (Message, PeerID, error) {
	switch msg.(type) {
	case *Capacity:
		return opened[*Capacity](raw)
	case *CapacityQuery:
		return opened[*CapacityQuery](raw)
	case *Offer:
		return opened[*Offer](raw)
	case *Bid:
		return opened[*Bid](raw)
	case *Decline:
		return opened[*Decline](raw)
	case *Answer:
		return opened[*Answer](raw)
	case *Lease:
		return opened[*Lease](raw)
	case *Decision:
		return opened[*Decision](raw)
	case *Heartbeat:
		return opened[*Heartbeat](raw)
	case *Verdict:
		return opened[*Verdict](raw)
	case *LogChunk:
		return opened[*LogChunk](raw)
	case *Result:
		return opened[*Result](raw)
	case *Receipt:
		return opened[*Receipt](raw)
	case *Cancel:
		return opened[*Cancel](raw)
	case *LeaseQuery:
		return opened[*LeaseQuery](raw)
	case *LeaseStatus:
		return opened[*LeaseStatus](raw)
	case *ExecRequest:
		return opened[*ExecRequest](raw)
	case *PortRequest:
		return opened[*PortRequest](raw)
	case *Ping:
		return opened[*Ping](raw)
	case *Ack:
		return opened[*Ack](raw)
	}
	return nil, "", errors.New("a kind without a case here")
}

func opened[M Message](raw []byte) (Message, PeerID, error) {
	s, err := Open[M](testNet, raw, testNow)
	if err != nil {
		return nil, "", err
	}
	return s.Msg, s.From, nil
}
