package p2p

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/lumbung-net/lumbung/protocol"
)

// validator checks a class's offers before they are relayed, cheapest first:
// size, the forwarder's rate, then signature and form, the class, the author's
// quota. What no honest node would have passed on is rejected and costs the
// forwarder; what honest nodes may judge differently, such as age and quota, is
// only ignored.
func (g *Gossip) validator(class string) pubsub.ValidatorEx {
	return func(_ context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
		offer, fate := g.judge(class, from, m.GetData())
		m.ValidatorData = offer
		g.count(fate.name)
		return fate.result
	}
}

type fate struct {
	name   string
	result pubsub.ValidationResult
}

var (
	fateAccepted   = fate{"accepted", pubsub.ValidationAccept}
	fateTooLarge   = fate{"too_large", pubsub.ValidationReject}
	fateInvalid    = fate{"invalid", pubsub.ValidationReject}
	fateWrongClass = fate{"wrong_class", pubsub.ValidationReject}
	fateStale      = fate{"stale", pubsub.ValidationIgnore}
	fateForwarder  = fate{"forwarder_over_rate", pubsub.ValidationIgnore}
	fateAuthor     = fate{"author_over_quota", pubsub.ValidationIgnore}
)

func (g *Gossip) judge(class string, from peer.ID, raw []byte) (protocol.Signed[*protocol.Offer], fate) {
	var none protocol.Signed[*protocol.Offer]
	if len(raw) > protocol.MaxOffer {
		return none, fateTooLarge
	}
	now := g.h.cfg.Now()
	// An offer that has passed before, on the topic of another of its classes or
	// because it is our own, has been counted; its bytes are known to be good.
	offer, known := g.known.Get(protocol.IDOf(raw))
	if !known {
		if from != g.h.id && !g.forwarderMay(from) {
			return none, fateForwarder
		}
		var err error
		offer, err = protocol.Open[*protocol.Offer](g.h.cfg.Network, raw, now)
		if errors.Is(err, protocol.ErrStale) {
			return none, fateStale
		}
		if err != nil {
			return none, fateInvalid
		}
	} else if err := offer.Msg.Validate(now); err != nil {
		return none, fateStale
	}
	if !slices.Contains(offer.Msg.GetClasses(), class) {
		return none, fateWrongClass
	}
	if !known && !g.author.allow(offer.From, now) {
		return none, fateAuthor
	}
	g.known.Add(offer.ID(), offer)
	return offer, fateAccepted
}

// forwarderMay counts a new offer against the network its forwarder is in: an
// IPv4 /24 or an IPv6 /48. A peer behind a relay is not counted at the relay's
// address; gossip does not run over relays.
func (g *Gossip) forwarderMay(from peer.ID) bool {
	for _, c := range g.h.host.Network().ConnsToPeer(from) {
		ip, ok := addrIP(c.RemoteMultiaddr())
		if !ok || c.Stat().Limited {
			continue
		}
		bits := 24
		if ip.Is6() {
			bits = 48
		}
		group, err := ip.WithZone("").Prefix(bits)
		if err != nil {
			group = netip.Prefix{}
		}
		return g.relays.allow(group, g.h.cfg.Now())
	}
	return true
}
