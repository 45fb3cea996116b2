package job

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/protocol"
)

const (
	bidGrace = 3 * time.Second           // how long a bid is good after its auction's end
	maxHold  = 10*time.Second + bidGrace // how long room is kept for a bid; a longer auction takes what is free then
	maxSlots = 1024                      // of one bid
	maxSaid  = 4096                      // answers and bids remembered, so that an offer heard twice is answered once
)

// HandleOffer answers an offer that came by gossip, by a stream of its own to
// the renter. An offer heard before is passed over.
func (p *Provider) HandleOffer(ctx context.Context, offer protocol.Signed[*protocol.Offer]) error {
	p.mu.Lock()
	_, heard := p.said[offer.ID()]
	p.mu.Unlock()
	if heard || offer.From == p.Signer.ID() {
		return nil
	}
	answer, err := p.HandleQuote(ctx, offer.From, offer)
	if err != nil {
		return err
	}
	return p.Net.Answer(ctx, offer.From, offer.Msg.GetAddrs(), answer)
}

// HandleQuote answers an offer that came by a stream: with a signed bid whose
// room is reserved softly, or with the reason for none. The same offer gets the
// same answer while its bid is good. Whoever asks is a stranger: what is slow,
// such as measuring the image, holds nothing else up.
func (p *Provider) HandleQuote(ctx context.Context, from protocol.PeerID, offer protocol.Signed[*protocol.Offer]) (protocol.Signed[*protocol.Answer], error) {
	var none protocol.Signed[*protocol.Answer]
	if from != offer.From {
		return none, fmt.Errorf("an offer of %s brought by %s: %w", offer.From, from, protocol.ErrBlame)
	}
	now := p.Now()
	q, said, err := p.consider(offer, now)
	if err != nil || said.Msg != nil {
		return said, err
	}
	if q.why == protocol.Reason_REASON_UNSPECIFIED {
		q.slots, q.why = p.Pool.Offer(offer.ID().String(), offer.From.String(), roomOfOffer(offer.Msg), int(min(offer.Msg.GetTasks(), maxSlots)), now, earlier(q.until, now.Add(maxHold)))
	}
	signed, bid, err := p.word(ctx, offer, q, now)
	if err == nil {
		signed, err = p.say(offer, signed, bid)
	}
	if err != nil {
		p.Pool.Release(offer.ID().String())
		return none, err
	}
	p.Net.Learn(offer.From, offer.Msg.GetAddrs())
	return signed, nil
}

// quote is what an offer will be answered.
type quote struct {
	why   protocol.Reason // for no bid; unspecified is a bid
	asset string
	price uint64
	slots int
	until time.Time // the bid is good
}

// consider holds an offer against everything but room, or finds what was said to
// it before.
func (p *Provider) consider(offer protocol.Signed[*protocol.Offer], now time.Time) (quote, protocol.Signed[*protocol.Answer], error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx == nil {
		return quote{}, protocol.Signed[*protocol.Answer]{}, ErrNotRunning
	}
	if said, ok := p.said[offer.ID()]; ok {
		return quote{}, said, nil
	}
	p.forget(now)
	q := quote{asset: p.prices.Asset, until: time.UnixMilli(offer.Msg.GetBidsUntilMs()).Add(bidGrace)}
	q.price, q.why = p.judge(offer.Msg)
	return q, protocol.Signed[*protocol.Answer]{}, nil
}

// say notes an answer as the one to its offer, unless the offer came twice at a
// time and the other was quicker.
func (p *Provider) say(offer protocol.Signed[*protocol.Offer], answer protocol.Signed[*protocol.Answer], bid protocol.Signed[*protocol.Bid]) (protocol.Signed[*protocol.Answer], error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx == nil || bid.Msg != nil && p.stands() != ProviderOpen { // since it was considered
		return answer, ErrNotRunning
	}
	if said, ok := p.said[offer.ID()]; ok {
		return said, nil
	}
	p.said[offer.ID()] = answer
	if bid.Msg != nil {
		p.bids[bid.ID()] = madeBid{offer: offer, bid: bid, renter: offer.From}
	}
	return answer, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// forget drops bids that nobody can take up any more, and any when there are too
// many. The lock is held.
func (p *Provider) forget(now time.Time) {
	for id, b := range p.bids {
		if now.UnixMilli() > b.bid.Msg.GetValidUntilMs() || len(p.bids) >= maxSaid {
			delete(p.bids, id)
			delete(p.said, b.offer.ID())
		}
	}
	if len(p.said) >= maxSaid {
		p.said = map[protocol.MsgID]protocol.Signed[*protocol.Answer]{}
	}
}

// word signs the answer; the bid in it is none for a decline.
func (p *Provider) word(ctx context.Context, offer protocol.Signed[*protocol.Offer], q quote, now time.Time) (answer protocol.Signed[*protocol.Answer], bid protocol.Signed[*protocol.Bid], err error) {
	if q.why != protocol.Reason_REASON_UNSPECIFIED {
		answer, err = p.decline(offer, q.why, q.price, now)
		return answer, bid, err
	}
	cached := p.cached.bytes(ctx, p.Content, offer.Msg.GetImage().GetRoot(), now)
	bid, err = protocol.Sign(p.Signer, &protocol.Bid{
		OfferId: idBytes(offer.ID()), IssuedMs: now.UnixMilli(), ValidUntilMs: q.until.UnixMilli(),
		Asset: q.asset, PricePerHour: q.price, Slots: uint32(q.slots),
		StartInMs:        startIn(missingOf(offer.Msg, cached), p.FetchRate()).Milliseconds(),
		ImageBytesCached: cached, CpuMillisFree: p.Pool.Free(now, false).CPUMillis,
	})
	if err == nil {
		answer, err = protocol.Sign(p.Signer, &protocol.Answer{Bid: bid.Raw})
	}
	return answer, bid, err
}

// missingOf is how many bytes a provider has yet to fetch before a task of the
// offer starts, when so many of the image's are there. All of the inputs count:
// an offer is heard by everybody and says how much they are, not which. Their
// roots would tell every listener what a renter works on, and that two jobs
// work on the same; only the provider that is awarded the job learns them.
func missingOf(o *protocol.Offer, cached uint64) uint64 {
	image := o.GetImage().GetSize()
	image -= min(cached, image)
	return image + min(o.GetInputBytes(), math.MaxUint64-image)
}

// maxStartIn is the longest wait that a bid says; nobody takes one that long.
const maxStartIn = 30 * 24 * time.Hour

// startIn is how long so many bytes take at so many a second.
func startIn(missing, rate uint64) time.Duration {
	if rate == 0 {
		rate = DefaultFetchRate
	}
	seconds := float64(missing) / float64(rate)
	if seconds > maxStartIn.Seconds() {
		return maxStartIn
	}
	return time.Duration(seconds * float64(time.Second))
}

func (p *Provider) decline(offer protocol.Signed[*protocol.Offer], why protocol.Reason, price uint64, now time.Time) (protocol.Signed[*protocol.Answer], error) {
	d, err := protocol.Sign(p.Signer, &protocol.Decline{
		OfferId: idBytes(offer.ID()), IssuedMs: now.UnixMilli(), Reason: why, PricePerHour: price,
	})
	if err != nil {
		return protocol.Signed[*protocol.Answer]{}, err
	}
	return protocol.Sign(p.Signer, &protocol.Answer{Decline: d.Raw})
}

func idBytes(id protocol.MsgID) []byte { return id[:] }

// judge holds an offer against everything but room: the price it would have,
// and why it cannot be served. The lock is held.
func (p *Provider) judge(o *protocol.Offer) (uint64, protocol.Reason) {
	r := roomOfOffer(o)
	switch {
	case p.Sandbox == nil:
		return 0, protocol.Reason_REASON_NO_SANDBOX
	case p.stands() != ProviderOpen:
		return 0, protocol.Reason_REASON_PAUSED
	case o.GetAsset() != p.prices.Asset:
		return 0, protocol.Reason_REASON_ASSET
	case o.GetNet() != "none" && !p.AllowNet:
		return 0, protocol.Reason_REASON_NETWORK_POLICY
	case o.GetImage().GetPlatform() != "" && o.GetImage().GetPlatform() != p.Platform:
		return 0, protocol.Reason_REASON_PLATFORM
	case !p.carries(o.GetPortability()):
		return 0, protocol.Reason_REASON_CPU_FEATURES
	}
	if p.Limits.lack(o, p.Pool.Total()) != "" {
		return 0, protocol.Reason_REASON_LIMITS
	}
	total := p.Pool.Total()
	cards := total.cardsWanted(r)
	why := total.lacks(r, cards)
	if cards > 0 {
		why = p.passes(r, cards, why)
	}
	if why != protocol.Reason_REASON_UNSPECIFIED {
		return 0, why
	}
	fit := matching(total.GPUs, r)
	price := p.priceOf(r, fit, cards)
	if limit := o.GetMaxPricePerHour(); limit > 0 && price > limit {
		return price, protocol.Reason_REASON_PRICE
	}
	return price, protocol.Reason_REASON_UNSPECIFIED
}

// priceOf is the price per hour of one task: its cores, rounded up to a base
// unit, and its cards, the dearest that it may get.
func (p *Provider) priceOf(r *protocol.Resources, fit []gpu.GPU, cards int) uint64 {
	price := (p.prices.CPU*uint64(r.GetCpuMillis()) + 999) / 1000
	if cards == 0 {
		return price
	}
	var card uint64
	for _, g := range fit {
		each, ok := p.prices.Models[g.Model]
		if !ok {
			each = p.prices.GPU
		}
		card = max(card, each)
	}
	return price + card*uint64(cards)
}
