package job

import (
	"math"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

func TestMissingOfAnOffer(t *testing.T) {
	const whole = math.MaxUint64 // what a provider says of an image that is all there
	for _, c := range []struct {
		image, inputs, cached, want uint64
	}{
		{1000, 0, 0, 1000},
		{1000, 0, 400, 600},
		{1000, 0, 1000, 0},
		{1000, 0, 5000, 0},
		{1000, 0, whole, 0},
		{1000, 70, 400, 670},
		{1000, 70, whole, 70},
		{0, 70, 0, 70},
		{math.MaxUint64, math.MaxUint64, 0, math.MaxUint64},
		{math.MaxUint64, 5, 2, math.MaxUint64},
	} {
		o := &protocol.Offer{Image: &protocol.Image{Size: c.image}, InputBytes: c.inputs}
		if got := missingOf(o, c.cached); got != c.want {
			t.Errorf("image %d, inputs %d, cached %d: %d missing, want %d", c.image, c.inputs, c.cached, got, c.want)
		}
	}
}

// TestCachedBytesDecide has two providers bid on a 10 GB image over links of 100
// MB a second: what is there saves seconds, and seconds are worth money.
func TestCachedBytesDecide(t *testing.T) {
	const gb = 1_000_000_000
	const rate = gb / 10
	bid := func(name string, price, cached uint64) Candidate {
		o := &protocol.Offer{Image: &protocol.Image{Size: 10 * gb}, InputBytes: gb}
		return candidate(name, price, 1, startIn(missingOf(o, cached), rate), cached)
	}
	for _, c := range []struct {
		name         string
		a, b         Candidate
		want         string
		horizon      time.Duration
		aWait, bWait time.Duration
	}{
		{"all beats none at one price", bid("a", 100, 0), bid("b", 100, math.MaxUint64), "b", time.Hour, 110 * time.Second, 10 * time.Second},
		{"most beats half", bid("a", 100, 5*gb), bid("b", 100, 9*gb), "b", time.Hour, 60 * time.Second, 20 * time.Second},
		{"a hundred seconds of an hour outweigh a price 2% higher", bid("a", 100, 0), bid("b", 102, 10*gb), "b", time.Hour, 110 * time.Second, 10 * time.Second},
		{"and not one 4% higher", bid("a", 100, 0), bid("b", 104, 10*gb), "a", time.Hour, 110 * time.Second, 10 * time.Second},
		{"but of ten minutes they do", bid("a", 100, 0), bid("b", 104, 10*gb), "b", 10 * time.Minute, 110 * time.Second, 10 * time.Second},
		{"and of ten hours a price 1% higher is too much", bid("a", 100, 0), bid("b", 101, 10*gb), "a", 10 * time.Hour, 110 * time.Second, 10 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			for bid, want := range map[*Candidate]time.Duration{&c.a: c.aWait, &c.b: c.bWait} {
				if got := time.Duration(bid.Bid.Msg.GetStartInMs()) * time.Millisecond; got != want {
					t.Errorf("a bid starts in %s, want %s", got, want)
				}
			}
			a := newTestAuction(0, 1)
			a.Bid(c.a)
			a.Bid(c.b)
			winner := map[string]Candidate{"a": c.a, "b": c.b}[c.want]
			if got := a.Bids(c.horizon)[0]; got.Peer != winner.Peer {
				t.Errorf("placed at the other one")
			}
		})
	}
}
