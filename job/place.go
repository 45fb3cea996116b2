package job

import (
	"cmp"
	"slices"
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

// Candidate is a provider's bid with what this node knows of the link to it.
type Candidate struct {
	Peer  protocol.PeerID
	Bid   protocol.Signed[*protocol.Bid]
	RTT   time.Duration
	Slots int
	// Caches is how many of the job's caches were there last.
	Caches int
}

// Auction gathers the answers to one offer. It is pure: time is passed in.
type Auction struct {
	Offer    protocol.Signed[*protocol.Offer]
	MaxPrice uint64   // 0 is no bound
	Want     int      // tasks to place
	Avoid    []string // providers that none of the tasks may go to
	asked    map[protocol.PeerID]bool
	answered map[protocol.PeerID]bool
	bids     []Candidate
	reasons  map[string]int
	cheapest uint64 // best price over the limit
}

// NewAuction opens the auction of an offer.
func NewAuction(offer protocol.Signed[*protocol.Offer], maxPrice uint64, want int) *Auction {
	return &Auction{
		Offer: offer, MaxPrice: maxPrice, Want: want,
		asked: map[protocol.PeerID]bool{}, answered: map[protocol.PeerID]bool{}, reasons: map[string]int{},
	}
}

// maxAnswers bounds what one offer may bring upon its renter.
const maxAnswers = 256

// Asked notes that a provider was asked directly, so that its answer is waited
// for within the window.
func (a *Auction) Asked(p protocol.PeerID) { a.asked[p] = true }

// Unanswered notes that a direct question failed.
func (a *Auction) Unanswered(p protocol.PeerID) { delete(a.asked, p) }

// Bid takes a provider's first bid; one over the price limit counts as a
// reason. It reports whether the bid stands.
func (a *Auction) Bid(c Candidate) bool {
	if a.answered[c.Peer] || len(a.answered) >= maxAnswers {
		return false
	}
	a.answered[c.Peer] = true
	if slices.Contains(a.Avoid, c.Peer.String()) {
		a.reasons[ReasonAvoided]++
		return false
	}
	price := c.Bid.Msg.GetPricePerHour()
	if a.MaxPrice > 0 && price > a.MaxPrice {
		a.decline(protocol.Reason_REASON_PRICE, price)
		return false
	}
	c.Slots = int(c.Bid.Msg.GetSlots())
	a.bids = append(a.bids, c)
	return true
}

// Decline takes a provider's reason.
func (a *Auction) Decline(p protocol.PeerID, d *protocol.Decline) {
	if a.answered[p] || len(a.answered) >= maxAnswers {
		return
	}
	a.answered[p] = true
	a.decline(d.GetReason(), d.GetPricePerHour())
}

func (a *Auction) decline(why protocol.Reason, price uint64) {
	a.reasons[why.String()]++
	if why == protocol.Reason_REASON_PRICE && price > 0 && (a.cheapest == 0 || price < a.cheapest) {
		a.cheapest = price
	}
}

// ReasonAvoided counts providers that the tasks have come to grief on before.
const ReasonAvoided = "REASON_AVOIDED"

// ReasonNoLease counts providers for which no lease could be made, such as one
// whose kind of identity no key can be sealed to.
const ReasonNoLease = "REASON_NO_LEASE"

// enoughBids is how many bids with room for all end an auction early.
const enoughBids = 3

// Enough reports whether waiting longer is not worth it: there is room for all
// and either several providers compete or all that were asked have answered.
func (a *Auction) Enough() bool {
	return a.slots() >= a.Want && (len(a.bids) >= enoughBids || a.AllAnswered())
}

// Plenty reports whether several providers compete for room for all, so that
// the search for more can end.
func (a *Auction) Plenty() bool { return a.slots() >= a.Want && len(a.bids) >= enoughBids }

func (a *Auction) slots() int {
	n := 0
	for _, b := range a.bids {
		n += b.Slots
	}
	return n
}

// AllAnswered reports whether every provider that was asked has spoken.
func (a *Auction) AllAnswered() bool {
	if len(a.asked) == 0 {
		return false
	}
	for p := range a.asked {
		if !a.answered[p] {
			return false
		}
	}
	return true
}

// Heard is how many providers answered.
func (a *Auction) Heard() int { return len(a.answered) }

// Reasons counts why providers declined, by the reason's name.
func (a *Auction) Reasons() map[string]int { return a.reasons }

// Cheapest is the best price of those that were too dear, or 0.
func (a *Auction) Cheapest() uint64 { return a.cheapest }

// Bids are the bids that stand, best first.
func (a *Auction) Bids(horizon time.Duration) []Candidate {
	out := slices.Clone(a.bids)
	slices.SortStableFunc(out, func(x, y Candidate) int { return compare(x, y, horizon) })
	return out
}

// TotalCost is what an hour of work costs at a bid once the wait for its start
// is counted as if it were paid: price · (horizon + start) / horizon.
func TotalCost(c Candidate, horizon time.Duration) float64 {
	horizon = max(horizon, time.Minute)
	start := time.Duration(c.Bid.Msg.GetStartInMs())*time.Millisecond + 4*c.RTT
	return float64(max(c.Bid.Msg.GetPricePerHour(), 1)) * float64(horizon+start) / float64(horizon)
}

func compare(x, y Candidate, horizon time.Duration) int {
	if c := cmp.Compare(TotalCost(x, horizon), TotalCost(y, horizon)); c != 0 {
		return c
	}
	if c := cmp.Compare(y.Bid.Msg.GetImageBytesCached(), x.Bid.Msg.GetImageBytesCached()); c != 0 {
		return c
	}
	if c := cmp.Compare(y.Slots, x.Slots); c != 0 {
		return c
	}
	return cmp.Compare(x.Peer, y.Peer)
}

// Need is a task that wants a place, and the providers it must not go to.
type Need struct {
	Task  int
	Avoid []string
}

// avoidedByAll are the providers that no task may go to, so that an auction
// need not hear them.
func avoidedByAll(needs []Need) []string {
	var out []string
	for i, n := range needs {
		if i == 0 {
			out = slices.Clone(n.Avoid)
			continue
		}
		out = slices.DeleteFunc(out, func(p string) bool { return !slices.Contains(n.Avoid, p) })
	}
	return out
}

// Placement is a task and the bid that it goes to.
type Placement struct {
	Task int
	On   Candidate
}

// Place gives tasks to bids, best total cost first, never more to a bid than
// its slots. Equal bids share the tasks in turn. Tasks that find no place are
// left out.
func Place(needs []Need, bids []Candidate, horizon time.Duration) []Placement {
	left := slices.Clone(bids)
	load := make([]int, len(left))
	var out []Placement
	for _, n := range needs {
		best := -1
		for i, b := range left {
			if b.Slots == 0 || slices.Contains(n.Avoid, b.Peer.String()) {
				continue
			}
			if best < 0 || better(b, left[best], load[i], load[best], horizon) {
				best = i
			}
		}
		if best < 0 {
			continue
		}
		left[best].Slots--
		load[best]++
		out = append(out, Placement{Task: n.Task, On: left[best]})
	}
	return out
}

// nearlyEqual is how far apart, as a share, two total costs count as the same.
const nearlyEqual = 0.02

func better(x, y Candidate, loadX, loadY int, horizon time.Duration) bool {
	cx, cy := TotalCost(x, horizon), TotalCost(y, horizon)
	if cx > cy*(1+nearlyEqual) || cy > cx*(1+nearlyEqual) {
		return cx < cy
	}
	if x.Caches != y.Caches {
		return x.Caches > y.Caches
	}
	if loadX != loadY {
		return loadX < loadY
	}
	return compare(x, y, horizon) < 0
}
