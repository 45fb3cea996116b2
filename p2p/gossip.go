package p2p

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/lumbung-net/lumbung/protocol"
)

// Bounds of the gossip.
const (
	offerQueue   = 256  // offers waiting for a subscriber's function
	offersKnown  = 4096 // offers remembered by id
	seenLife     = protocol.MaxOfferLife + 2*protocol.MaxSkew
	bootScore    = 100.0
	acceptPeers  = 50.0 // only bootstrap nodes reach this score
	scoreDecayed = 0.01
)

// ErrQuota says that this node has published as many offers as others relay.
var ErrQuota = errors.New("over the quota of offers")

// Gossip spreads offers, each on the topics of its classes.
type Gossip struct {
	h      *Host
	ps     *pubsub.PubSub
	end    context.CancelFunc
	own    *rate.Limiter
	author *buckets[peer.ID]
	relays *buckets[netip.Prefix]

	mu     sync.Mutex
	topics map[string]*pubsub.Topic
	relay  []pubsub.RelayCancelFunc
	known  *lru.Cache[protocol.MsgID, protocol.Signed[*protocol.Offer]] // validated, or published here
}

func newGossip(h *Host) (*Gossip, error) {
	author, err := newBuckets[peer.ID](h.cfg.OfferQuota, limitedKeys)
	if err != nil {
		return nil, err
	}
	relays, err := newBuckets[netip.Prefix](h.cfg.ForwardQuota, limitedKeys)
	if err != nil {
		return nil, err
	}
	known, err := lru.New[protocol.MsgID, protocol.Signed[*protocol.Offer]](offersKnown)
	if err != nil {
		return nil, err
	}
	q := h.cfg.OfferQuota
	ctx, end := context.WithCancel(h.life)
	g := &Gossip{
		h: h, end: end, author: author, relays: relays, known: known,
		// One short of what others allow, who see our offers at uneven delays.
		own:    rate.NewLimiter(rate.Limit(q.PerSecond), max(1, q.Burst-1)),
		topics: make(map[string]*pubsub.Topic),
	}
	if g.ps, err = pubsub.NewGossipSub(ctx, h.host, g.options()...); err != nil {
		end()
		return nil, fmt.Errorf("start the gossip: %w", err)
	}
	return g, nil
}

func (g *Gossip) close() { g.end() }

func (g *Gossip) options() []pubsub.Option {
	p := pubsub.DefaultGossipSubParams()
	p.D, p.Dlo, p.Dhi, p.Dout, p.Dlazy = 8, 6, 12, 3, 6
	p.HeartbeatInterval = 700 * time.Millisecond
	p.HistoryLength, p.HistoryGossip = 6, 3
	p.IDontWantMessageThreshold = protocol.MaxOffer
	var topics []string
	for _, class := range protocol.AllClasses() {
		topics = append(topics, protocol.Topic(g.h.cfg.Network, class))
	}
	opts := []pubsub.Option{
		pubsub.WithGossipSubParams(p),
		pubsub.WithMessageIdFn(messageID),
		// An offer carries its author's signature itself.
		pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign),
		pubsub.WithNoAuthor(),
		pubsub.WithMaxMessageSize(4 * protocol.MaxOffer),
		pubsub.WithSubscriptionFilter(pubsub.WrapLimitSubscriptionFilter(
			pubsub.NewAllowlistSubscriptionFilter(topics...), 2*len(topics))),
		pubsub.WithFloodPublish(true),
		pubsub.WithValidateQueueSize(256),
		pubsub.WithPeerOutboundQueueSize(256),
		pubsub.WithSeenMessagesTTL(seenLife),
		pubsub.WithPeerScore(g.scores(topics)),
	}
	if g.h.cfg.RelayService {
		opts = append(opts, pubsub.WithPeerExchange(true))
	}
	return opts
}

// messageID tells messages apart by topic and content: one offer goes to the
// topics of several classes and must pass on each.
func messageID(m *pb.Message) string {
	s := sha256.New()
	s.Write([]byte(m.GetTopic()))
	s.Write([]byte{0})
	s.Write(m.GetData())
	return string(s.Sum(nil)[:20])
}

// scores follows gossipsub 1.1's scoring: a few points for useful peers, a
// thousand off for each invalid message. Missing deliveries cost nothing,
// because offers come irregularly.
func (g *Gossip) scores(topics []string) (*pubsub.PeerScoreParams, *pubsub.PeerScoreThresholds) {
	boot := make(map[peer.ID]bool, len(g.h.boot))
	for _, p := range g.h.boot {
		boot[p.ID] = true
	}
	params := &pubsub.PeerScoreParams{
		Topics:        make(map[string]*pubsub.TopicScoreParams, len(topics)),
		TopicScoreCap: bootScore / 4,
		AppSpecificScore: func(p peer.ID) float64 {
			if boot[p] {
				return bootScore
			}
			return 0
		},
		AppSpecificWeight:           1,
		IPColocationFactorWeight:    -10,
		IPColocationFactorThreshold: 8,
		IPColocationFactorWhitelist: g.farms(),
		BehaviourPenaltyWeight:      -10,
		BehaviourPenaltyThreshold:   6,
		BehaviourPenaltyDecay:       pubsub.ScoreParameterDecay(10 * time.Minute),
		DecayInterval:               pubsub.DefaultDecayInterval,
		DecayToZero:                 scoreDecayed,
		RetainScore:                 time.Hour,
		SeenMsgTTL:                  seenLife,
	}
	for _, topic := range topics {
		params.Topics[topic] = &pubsub.TopicScoreParams{
			SkipAtomicValidation:           true,
			TopicWeight:                    1,
			TimeInMeshWeight:               0.01,
			TimeInMeshQuantum:              time.Second,
			TimeInMeshCap:                  300,
			FirstMessageDeliveriesWeight:   0.5,
			FirstMessageDeliveriesDecay:    pubsub.ScoreParameterDecay(10 * time.Minute),
			FirstMessageDeliveriesCap:      20,
			InvalidMessageDeliveriesWeight: -1000,
			InvalidMessageDeliveriesDecay:  pubsub.ScoreParameterDecay(time.Hour),
		}
	}
	return params, &pubsub.PeerScoreThresholds{
		GossipThreshold: -500, PublishThreshold: -1000, GraylistThreshold: -2500,
		AcceptPXThreshold: acceptPeers, OpportunisticGraftThreshold: 1,
	}
}

// farms are the networks where many peers behind one address are honest:
// loopback, the ranges of LANs and those configured.
func (g *Gossip) farms() []*net.IPNet {
	prefixes := append([]netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fc00::/7"),
	}, g.h.cfg.Farms...)
	var out []*net.IPNet
	for _, p := range prefixes {
		p = p.Masked()
		out = append(out, &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())})
	}
	return out
}

// topic joins a class's topic once, with its validator before it.
func (g *Gossip) topic(class string) (*pubsub.Topic, error) {
	if err := protocol.CheckClass(class); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if t, ok := g.topics[class]; ok {
		return t, nil
	}
	name := protocol.Topic(g.h.cfg.Network, class)
	if err := g.ps.RegisterTopicValidator(name, g.validator(class)); err != nil {
		return nil, fmt.Errorf("validator of topic %s: %w", name, err)
	}
	t, err := g.ps.Join(name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("join topic %s: %w", name, err), g.ps.UnregisterTopicValidator(name))
	}
	g.topics[class] = t
	return t, nil
}

// Peers is how many connected peers follow a class's topic.
func (g *Gossip) Peers(class string) int {
	return len(g.ps.ListPeers(protocol.Topic(g.h.cfg.Network, class)))
}

// RelayAll passes the offers of every class on without reading them: what a
// bootstrap node does so that offers spread before peers know each other.
func (g *Gossip) RelayAll() error {
	for _, class := range protocol.AllClasses() {
		t, err := g.topic(class)
		if err != nil {
			return err
		}
		cancel, err := t.Relay()
		if err != nil {
			return fmt.Errorf("relay the offers of class %s: %w", class, err)
		}
		g.mu.Lock()
		g.relay = append(g.relay, cancel)
		g.mu.Unlock()
	}
	return nil
}

// Publish signs nothing and checks everything: an offer of this node goes to
// the topics of all its classes. It does not wait for other peers; that none
// follows a topic is no error. Over the quota that other nodes grant, the
// error wraps ErrQuota and protocol.ErrRetry.
func (g *Gossip) Publish(ctx context.Context, offer protocol.Signed[*protocol.Offer]) error {
	now := g.h.cfg.Now()
	if offer.From != g.h.id {
		return fmt.Errorf("offer %s is signed by %s, not by this node", offer.ID().Short(), offer.From)
	}
	if _, err := protocol.Open[*protocol.Offer](g.h.cfg.Network, offer.Raw, now); err != nil {
		return fmt.Errorf("publish offer %s: %w", offer.ID().Short(), err)
	}
	if !g.known.Contains(offer.ID()) && !g.own.AllowN(now, 1) {
		q := g.h.cfg.OfferQuota
		return fmt.Errorf("publish offer %s: %w (%.0f a minute, %d at once): put more tasks into one offer or wait: %w",
			offer.ID().Short(), ErrQuota, 60*q.PerSecond, q.Burst-1, protocol.ErrRetry)
	}
	g.known.Add(offer.ID(), offer)
	for _, class := range offer.Msg.GetClasses() {
		t, err := g.topic(class)
		if err != nil {
			return err
		}
		if err := t.Publish(ctx, offer.Raw); err != nil {
			return fmt.Errorf("publish offer %s for class %s: %w", offer.ID().Short(), class, err)
		}
	}
	g.count("published")
	return nil
}

// Subscribe hands each valid offer of the classes to fn, once, until ctx or
// the host ends; it returns nil then. fn runs on one goroutine; while it is
// busy a bounded number of offers waits and further ones are dropped and
// counted. This node's own offers are not handed over.
func (g *Gossip) Subscribe(ctx context.Context, classes []string, fn func(context.Context, protocol.Signed[*protocol.Offer])) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(g.h.life, cancel)
	defer stop()
	var subs []*pubsub.Subscription
	defer func() {
		for _, s := range subs {
			s.Cancel()
		}
	}()
	for _, class := range classes {
		t, err := g.topic(class)
		if err != nil {
			return err
		}
		sub, err := t.Subscribe(pubsub.WithBufferSize(offerQueue))
		if err != nil {
			return fmt.Errorf("subscribe to class %s: %w", class, err)
		}
		subs = append(subs, sub)
	}
	queue := make(chan protocol.Signed[*protocol.Offer], offerQueue)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	for _, sub := range subs {
		readers.Go(func() { g.read(ctx, sub, queue) })
	}
	return g.deliver(ctx, queue, fn)
}

func (g *Gossip) read(ctx context.Context, sub *pubsub.Subscription, queue chan<- protocol.Signed[*protocol.Offer]) {
	for {
		m, err := sub.Next(ctx)
		if err != nil {
			return // ctx or the gossip has ended
		}
		offer, ok := m.ValidatorData.(protocol.Signed[*protocol.Offer])
		if !ok || offer.From == g.h.id {
			continue
		}
		select {
		case queue <- offer:
		default:
			g.count("dropped")
		}
	}
}

func (g *Gossip) deliver(ctx context.Context, queue <-chan protocol.Signed[*protocol.Offer], fn func(context.Context, protocol.Signed[*protocol.Offer])) error {
	handed, err := lru.New[protocol.MsgID, struct{}](offersKnown)
	if err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case offer := <-queue:
			if dup, _ := handed.ContainsOrAdd(offer.ID(), struct{}{}); dup {
				continue
			}
			g.count("delivered")
			fn(ctx, offer)
		}
	}
}

func (g *Gossip) count(fate string) { g.h.metrics.offers.WithLabelValues(fate).Inc() }
