package job

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"pgregory.net/rapid"

	"github.com/lumbung-net/lumbung/protocol"
)

const testNet = "test-market"

// chacha is randomness that is the same in every run.
func chacha(seed byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{seed}) }

// signerOf is a node's signer; the same number is the same node.
func signerOf(t testing.TB, n int) *protocol.Signer {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(chacha(byte(n)))
	if err != nil {
		t.Fatal(err)
	}
	s, err := protocol.NewSigner(key, testNet)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// candidate is a bid by a provider that is a name alone.
func candidate(peer string, price uint64, slots int, start time.Duration, cached uint64) Candidate {
	return Candidate{
		Peer: protocol.PeerID(peer), Slots: slots,
		Bid: protocol.Signed[*protocol.Bid]{Msg: &protocol.Bid{
			PricePerHour: price, Slots: uint32(slots), StartInMs: start.Milliseconds(), ImageBytesCached: cached,
		}},
	}
}

func declined(why protocol.Reason, price uint64) *protocol.Decline {
	return &protocol.Decline{Reason: why, PricePerHour: price}
}

func newTestAuction(maxPrice uint64, want int) *Auction {
	return NewAuction(protocol.Signed[*protocol.Offer]{}, maxPrice, want)
}

func TestAuctionTakesTheFirstAnswer(t *testing.T) {
	a := newTestAuction(0, 1)
	if !a.Bid(candidate("A", 10, 1, 0, 0)) || a.Bid(candidate("A", 5, 1, 0, 0)) {
		t.Error("the first bid counts and the second does not")
	}
	a.Decline("A", declined(protocol.Reason_REASON_BUSY, 0))
	a.Decline("B", declined(protocol.Reason_REASON_BUSY, 0))
	if a.Bid(candidate("B", 5, 1, 0, 0)) {
		t.Error("a bid after a decline")
	}
	if bids := a.Bids(time.Hour); len(bids) != 1 || bids[0].Bid.Msg.GetPricePerHour() != 10 {
		t.Errorf("bids: %v", bids)
	}
	if a.Heard() != 2 || a.Reasons()["REASON_BUSY"] != 1 {
		t.Errorf("%d heard, reasons %v", a.Heard(), a.Reasons())
	}
}

func TestAuctionIsBounded(t *testing.T) {
	a := newTestAuction(0, 1)
	for i := range 2 * maxAnswers {
		if i%2 == 0 {
			a.Bid(candidate(fmt.Sprint(i), 10, 1, 0, 0))
		} else {
			a.Decline(protocol.PeerID(fmt.Sprint(i)), declined(protocol.Reason_REASON_CPU, 0))
		}
	}
	if a.Heard() != maxAnswers || len(a.Bids(time.Hour)) != maxAnswers/2 || a.Reasons()["REASON_CPU"] != maxAnswers/2 {
		t.Errorf("%d heard, %d bids, %v", a.Heard(), len(a.Bids(time.Hour)), a.Reasons())
	}
}

func TestAuctionCountsReasonsAndFindsTheCheapestOverTheLimit(t *testing.T) {
	a := newTestAuction(100, 1)
	if a.Cheapest() != 0 {
		t.Error("a cheapest before any answer")
	}
	a.Decline("A", declined(protocol.Reason_REASON_PRICE, 150))
	a.Decline("B", declined(protocol.Reason_REASON_PRICE, 130))
	a.Decline("C", declined(protocol.Reason_REASON_GPU_VRAM, 1)) // no price for what it cannot do
	a.Decline("D", declined(protocol.Reason_REASON_PRICE, 0))    // does not say
	if a.Bid(candidate("E", 101, 1, 0, 0)) {
		t.Error("a bid over the limit stands")
	}
	if a.Cheapest() != 101 || a.Reasons()["REASON_PRICE"] != 4 || a.Reasons()["REASON_GPU_VRAM"] != 1 || a.Heard() != 5 {
		t.Errorf("cheapest %d, reasons %v, heard %d", a.Cheapest(), a.Reasons(), a.Heard())
	}
	if !a.Bid(candidate("F", 100, 1, 0, 0)) {
		t.Error("a bid at the limit does not stand")
	}
}

func TestWhenAnAuctionHasEnough(t *testing.T) {
	a := newTestAuction(0, 4)
	if a.AllAnswered() || a.Enough() {
		t.Error("nobody was asked, and all have answered")
	}
	a.Asked("A")
	a.Asked("B")
	a.Bid(candidate("A", 10, 3, 0, 0))
	if a.Enough() || a.AllAnswered() {
		t.Error("B has not answered")
	}
	a.Decline("B", declined(protocol.Reason_REASON_BUSY, 0))
	if a.Enough() || !a.AllAnswered() {
		t.Error("all have answered, with room for 3 of 4")
	}
	a.Bid(candidate("C", 10, 1, 0, 0))
	if !a.Enough() || a.Plenty() {
		t.Error("room for 4, all asked have answered, two bids: enough and not plenty")
	}
	a.Asked("D")
	if a.Enough() {
		t.Error("D has not answered")
	}
	a.Unanswered("D")
	if !a.Enough() {
		t.Error("D could not be asked")
	}
	a.Asked("E")
	a.Bid(candidate("F", 10, 1, 0, 0))
	if !a.Enough() || !a.Plenty() {
		t.Error("three bids with room for all need no more waiting")
	}
}

func placesOf(ps []Placement) (out []string) {
	for _, p := range ps {
		out = append(out, fmt.Sprintf("%d@%s", p.Task, string(p.On.Peer)))
	}
	return out
}

func needsOf(n int) []Need {
	needs := make([]Need, n)
	for i := range needs {
		needs[i].Task = i
	}
	return needs
}

func TestPlace(t *testing.T) {
	far := candidate("far", 100, 4, 0, 0)
	far.RTT = 5 * time.Minute
	for _, c := range []struct {
		name  string
		needs []Need
		bids  []Candidate
		want  []string
	}{
		{
			"cheapest first, then the next", needsOf(3),
			[]Candidate{candidate("dear", 200, 2, 0, 0), candidate("cheap", 100, 2, 0, 0)},
			[]string{"0@cheap", "1@cheap", "2@dear"},
		},
		{
			"never more than the slots", needsOf(4),
			[]Candidate{candidate("A", 100, 1, 0, 0), candidate("B", 100, 2, 0, 0)},
			[]string{"0@B", "1@A", "2@B"},
		},
		{
			"equal bids share in turn", needsOf(6),
			[]Candidate{candidate("A", 100, 9, 0, 0), candidate("B", 100, 9, 0, 0), candidate("C", 101, 9, 0, 0)},
			[]string{"0@A", "1@B", "2@C", "3@A", "4@B", "5@C"},
		},
		{
			"the time to start is money", needsOf(1),
			[]Candidate{candidate("slow", 100, 1, 30*time.Minute, 0), candidate("warm", 120, 1, 0, 0)},
			[]string{"0@warm"},
		},
		{
			"a small wait is not worth a higher price", needsOf(1),
			[]Candidate{candidate("slow", 100, 1, time.Minute, 0), candidate("warm", 120, 1, 0, 0)},
			[]string{"0@slow"},
		},
		{
			"bytes already there decide between equals", needsOf(1),
			[]Candidate{candidate("A", 100, 1, 0, 0), candidate("B", 100, 1, 0, 500)},
			[]string{"0@B"},
		},
		{
			"a long way counts", needsOf(1),
			[]Candidate{far, candidate("near", 110, 4, 0, 0)},
			[]string{"0@near"},
		},
		{
			"those to avoid are passed over, and a task without a place is left out",
			[]Need{{Task: 0, Avoid: []string{protocol.PeerID("A").String()}}, {Task: 1}, {Task: 2, Avoid: []string{protocol.PeerID("A").String(), protocol.PeerID("B").String()}}},
			[]Candidate{candidate("A", 100, 1, 0, 0), candidate("B", 200, 5, 0, 0)},
			[]string{"0@B", "1@A"},
		},
		{"no bids", needsOf(2), nil, nil},
		{"no needs", nil, []Candidate{candidate("A", 1, 1, 0, 0)}, nil},
		{"free work is worth its wait too", needsOf(1), []Candidate{candidate("A", 0, 1, time.Hour, 0), candidate("B", 0, 1, 0, 0)}, []string{"0@B"}},
	} {
		if got := placesOf(Place(c.needs, c.bids, time.Hour)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestBidsAreInTheOrderOfTotalCost(t *testing.T) {
	a := newTestAuction(0, 1)
	a.Bid(candidate("slow", 100, 1, 30*time.Minute, 0))
	a.Bid(candidate("dear", 160, 1, 0, 0))
	a.Bid(candidate("best", 101, 1, 0, 0))
	var order []string
	for _, c := range a.Bids(time.Hour) {
		order = append(order, string(c.Peer))
	}
	if want := []string{"best", "slow", "dear"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

// TestPlacementsAreLegal draws needs and bids at random: no task is placed
// twice, on a provider it avoids, or over a bid's slots; and one that is left
// out has no legal slot left.
func TestPlacementsAreLegal(t *testing.T) {
	names := []string{"A", "B", "C", "D", "E"}
	rapid.Check(t, func(t *rapid.T) {
		var bids []Candidate
		for _, name := range names {
			if rapid.Bool().Draw(t, "bids") {
				c := candidate(name, rapid.Uint64Range(0, 1000).Draw(t, "price"), rapid.IntRange(0, 4).Draw(t, "slots"),
					time.Duration(rapid.IntRange(0, 3600).Draw(t, "start"))*time.Second, rapid.Uint64Range(0, 100).Draw(t, "cached"))
				bids = append(bids, c)
			}
		}
		needs := needsOf(rapid.IntRange(0, 12).Draw(t, "needs"))
		for i := range needs {
			for _, name := range names {
				if rapid.IntRange(0, 3).Draw(t, "avoid") == 0 {
					needs[i].Avoid = append(needs[i].Avoid, protocol.PeerID(name).String())
				}
			}
		}
		horizon := time.Duration(rapid.IntRange(1, 7200).Draw(t, "horizon")) * time.Second
		left := map[protocol.PeerID]int{}
		for _, b := range bids {
			left[b.Peer] = b.Slots
		}
		placed := map[int]bool{}
		for _, p := range Place(needs, bids, horizon) {
			if placed[p.Task] {
				t.Fatalf("task %d is placed twice", p.Task)
			}
			placed[p.Task] = true
			if left[p.On.Peer]--; left[p.On.Peer] < 0 {
				t.Fatalf("%s got more than its slots", string(p.On.Peer))
			}
			if slices.Contains(needs[p.Task].Avoid, p.On.Peer.String()) {
				t.Fatalf("task %d went to %s, which it avoids", p.Task, string(p.On.Peer))
			}
		}
		for _, n := range needs {
			for peer, slots := range left {
				if !placed[n.Task] && slots > 0 && !slices.Contains(n.Avoid, peer.String()) {
					t.Fatalf("task %d has no place, and %s has %d slots left", n.Task, string(peer), slots)
				}
			}
		}
	})
}
