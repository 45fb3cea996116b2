package protocol

import (
	"errors"
	"testing"

	"github.com/libp2p/go-libp2p/core/record"
	"google.golang.org/protobuf/proto"
)

// fuzzKind fuzzes one kind twice over: the bytes are taken as an envelope, and
// as the body of an envelope with a good signature, which is how they get past
// it. Whatever is accepted must be sealed and read again as the same.
func fuzzKind[M Message](f *testing.F, sample M) {
	key := testKey(f, 3)
	s, err := Seal(key, testNet, sample)
	if err != nil {
		f.Fatal(err)
	}
	body, err := proto.Marshal(sample)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.Raw)
	f.Add(body)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		check := func(raw []byte) {
			got, err := Open[M](testNet, raw, testNow)
			if err != nil {
				if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrStale) {
					t.Errorf("an error that blames nobody: %v", err)
				}
				return
			}
			again, err := Seal(key, testNet, got.Msg)
			if err != nil {
				if errors.Is(err, ErrTooLarge) {
					return
				}
				t.Fatal(err)
			}
			back, err := Open[M](testNet, again.Raw, testNow)
			if err != nil || !proto.Equal(back.Msg, got.Msg) {
				t.Errorf("%v was accepted, and after sealing it again: %v", got.Msg, err)
			}
		}
		check(data)
		env, err := record.Seal(&payload{network: testNet, kind: sample.Kind(), body: data}, key)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := env.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		check(raw)
	})
}

// sampleOf finds the sample of a kind.
func sampleOf[M Message]() M {
	for _, m := range samples() {
		if m, ok := m.(M); ok {
			return m
		}
	}
	return newMessage[M]()
}

func FuzzCapacity(f *testing.F)      { fuzzKind(f, sampleOf[*Capacity]()) }
func FuzzCapacityQuery(f *testing.F) { fuzzKind(f, sampleOf[*CapacityQuery]()) }
func FuzzOffer(f *testing.F)         { fuzzKind(f, sampleOf[*Offer]()) }
func FuzzBid(f *testing.F)           { fuzzKind(f, sampleOf[*Bid]()) }
func FuzzDecline(f *testing.F)       { fuzzKind(f, sampleOf[*Decline]()) }
func FuzzAnswer(f *testing.F)        { fuzzKind(f, sampleOf[*Answer]()) }
func FuzzLease(f *testing.F)         { fuzzKind(f, sampleOf[*Lease]()) }
func FuzzDecision(f *testing.F)      { fuzzKind(f, sampleOf[*Decision]()) }
func FuzzHeartbeat(f *testing.F)     { fuzzKind(f, sampleOf[*Heartbeat]()) }
func FuzzVerdict(f *testing.F)       { fuzzKind(f, sampleOf[*Verdict]()) }
func FuzzLogChunk(f *testing.F)      { fuzzKind(f, sampleOf[*LogChunk]()) }
func FuzzResult(f *testing.F)        { fuzzKind(f, sampleOf[*Result]()) }
func FuzzReceipt(f *testing.F)       { fuzzKind(f, sampleOf[*Receipt]()) }
func FuzzCancel(f *testing.F)        { fuzzKind(f, sampleOf[*Cancel]()) }
func FuzzLeaseQuery(f *testing.F)    { fuzzKind(f, sampleOf[*LeaseQuery]()) }
func FuzzLeaseStatus(f *testing.F)   { fuzzKind(f, sampleOf[*LeaseStatus]()) }
func FuzzExecRequest(f *testing.F)   { fuzzKind(f, sampleOf[*ExecRequest]()) }
func FuzzPortRequest(f *testing.F)   { fuzzKind(f, sampleOf[*PortRequest]()) }
func FuzzPing(f *testing.F)          { fuzzKind(f, sampleOf[*Ping]()) }
func FuzzAck(f *testing.F)           { fuzzKind(f, sampleOf[*Ack]()) }
