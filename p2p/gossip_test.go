package p2p

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/lumbung-net/lumbung/protocol"
)

// offer makes a valid offer at the time now.
func offer(t testing.TB, h *Host, now time.Time, classes ...string) protocol.Signed[*protocol.Offer] {
	t.Helper()
	sum, err := multihash.Sum([]byte("image"), multihash.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	nonce := testNonce(t)
	return seal(t, h, &protocol.Offer{
		Nonce: nonce, IssuedMs: now.UnixMilli(), BidsUntilMs: now.Add(time.Second).UnixMilli(), ExpiresMs: now.Add(time.Minute).UnixMilli(),
		Classes: classes, Resources: &protocol.Resources{CpuMillis: 1000, MemoryBytes: 1 << 20},
		Image: &protocol.Image{Root: cid.NewCidV1(cid.Raw, sum).Bytes(), ConfigSha256: make([]byte, 32)},
		Tasks: 1, Asset: "test", Net: "none",
	})
}

// following waits until a host knows n peers on a class's topic.
func following(t testing.TB, h *Host, class string, n int) {
	t.Helper()
	eventually(t, "peers on the topic", func() bool { return h.Offers().Peers(class) >= n })
}

func TestOffersReachAllSubscribersOnce(t *testing.T) {
	boot := bootstrapNode(t)
	hosts := nodes(t, boot, 12)
	renter, rtx := hosts[0], protocol.ModelClass("rtx4090")
	var got []*collect
	for _, h := range hosts[1:] {
		got = append(got, subscribe(t, h, protocol.ClassCPU, rtx))
	}
	other := subscribe(t, hosts[0], protocol.ClassCPU)
	// The renter is connected to the bootstrap node at least, which relays.
	following(t, renter, protocol.ClassCPU, 1)
	following(t, renter, rtx, 1)
	for _, h := range hosts[1:] {
		following(t, h, protocol.ClassCPU, 1)
	}
	following(t, boot, protocol.ClassCPU, 12)
	following(t, boot, rtx, 11)
	both := offer(t, renter, time.Now(), protocol.ClassCPU, rtx)
	cpu := offer(t, renter, time.Now(), protocol.ClassCPU)
	for _, o := range []protocol.Signed[*protocol.Offer]{both, cpu} {
		if err := renter.Offers().Publish(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range got {
		c.wait(t, 2)
		ids := c.got()
		if len(ids) != 2 || !slices.Contains(ids, both.ID()) || !slices.Contains(ids, cpu.ID()) {
			t.Errorf("node %d got %d offers, want each of the two once", i+1, len(ids))
		}
	}
	if len(other.got()) != 0 {
		t.Error("the renter was handed its own offers")
	}
}

func TestPublishingAloneIsNoError(t *testing.T) {
	h := newHost(t)
	if err := h.Offers().Publish(t.Context(), offer(t, h, time.Now(), protocol.ClassCPU)); err != nil {
		t.Error(err)
	}
}

func TestPublishRefuses(t *testing.T) {
	now := time.Now()
	h := newHost(t, func(c *Config) {
		c.OfferQuota = Rate{PerSecond: 1, Burst: 4}
		c.Now = func() time.Time { return now }
	})
	other := newHost(t)
	if err := h.Offers().Publish(t.Context(), offer(t, other, now, protocol.ClassCPU)); err == nil {
		t.Error("published an offer of another node")
	}
	if err := h.Offers().Publish(t.Context(), offer(t, h, now.Add(-time.Hour), protocol.ClassCPU)); !errors.Is(err, protocol.ErrStale) {
		t.Errorf("an expired offer: %v", err)
	}
	for range 3 {
		if err := h.Offers().Publish(t.Context(), offer(t, h, now, protocol.ClassCPU)); err != nil {
			t.Fatal(err)
		}
	}
	err := h.Offers().Publish(t.Context(), offer(t, h, now, protocol.ClassCPU))
	if !errors.Is(err, ErrQuota) || !errors.Is(err, protocol.ErrRetry) {
		t.Errorf("over the quota: %v", err)
	}
}

func TestOffersAreJudgedBeforeTheyAreRelayed(t *testing.T) {
	now := time.Now()
	h := newHost(t, func(c *Config) {
		c.OfferQuota = Rate{PerSecond: 1, Burst: 3}
		c.Now = func() time.Time { return now }
	})
	author, other := newHost(t), newHost(t)
	foreign, err := protocol.Seal(author.Key(), "test-other", offer(t, author, now, protocol.ClassCPU).Msg)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(offer(t, author, now, protocol.ClassCPU).Raw)
	flipped[len(flipped)-1] ^= 1
	noTasks := offer(t, author, now, protocol.ClassCPU)
	noTasks.Msg.Tasks = 0
	rtx := protocol.ModelClass("rtx4090")
	judge := func(class string, raw []byte) fate {
		_, f := h.Offers().judge(class, other.ID(), raw)
		return f
	}
	for name, c := range map[string]struct {
		class string
		raw   []byte
		want  fate
	}{
		"too large":          {protocol.ClassCPU, make([]byte, protocol.MaxOffer+1), fateTooLarge},
		"garbage":            {protocol.ClassCPU, []byte("garbage"), fateInvalid},
		"bad signature":      {protocol.ClassCPU, flipped, fateInvalid},
		"another network":    {protocol.ClassCPU, foreign.Raw, fateInvalid},
		"bad form":           {protocol.ClassCPU, seal(t, author, noTasks.Msg).Raw, fateInvalid},
		"expired":            {protocol.ClassCPU, offer(t, author, now.Add(-time.Hour), protocol.ClassCPU).Raw, fateStale},
		"from the future":    {protocol.ClassCPU, offer(t, author, now.Add(time.Hour), protocol.ClassCPU).Raw, fateStale},
		"not of the topic":   {rtx, offer(t, author, now, protocol.ClassCPU).Raw, fateWrongClass},
		"good":               {protocol.ClassCPU, offer(t, author, now, protocol.ClassCPU).Raw, fateAccepted},
		"good, second class": {rtx, offer(t, author, now, protocol.ClassCPU, rtx).Raw, fateAccepted},
	} {
		if got := judge(c.class, c.raw); got != c.want {
			t.Errorf("%s: %s, want %s", name, got.name, c.want.name)
		}
	}
	// Two were counted above, so one is left; the same offer again is free.
	last := offer(t, author, now, protocol.ClassCPU)
	if got := judge(protocol.ClassCPU, last.Raw); got != fateAccepted {
		t.Errorf("the last of the quota: %s", got.name)
	}
	if got := judge(protocol.ClassCPU, offer(t, author, now, protocol.ClassCPU).Raw); got != fateAuthor {
		t.Errorf("over the quota: %s", got.name)
	}
	if got := judge(protocol.ClassCPU, last.Raw); got != fateAccepted {
		t.Errorf("seen before: %s", got.name)
	}
	if got := judge(protocol.ClassCPU, offer(t, other, now, protocol.ClassCPU).Raw); got != fateAccepted {
		t.Errorf("of another author: %s", got.name)
	}
	now = now.Add(time.Hour)
	if got := judge(protocol.ClassCPU, last.Raw); got != fateStale {
		t.Errorf("seen before, and expired: %s", got.name)
	}
}

func TestForwardersAreLimited(t *testing.T) {
	now := time.Now()
	h := newHost(t, func(c *Config) {
		c.ForwardQuota = Rate{PerSecond: 1, Burst: 2}
		c.Now = func() time.Time { return now }
	})
	forwarder := newHost(t)
	connect(t, forwarder, h)
	var fates []string
	for range 3 {
		_, f := h.Offers().judge(protocol.ClassCPU, forwarder.ID(), offer(t, newHost(t), now, protocol.ClassCPU).Raw)
		fates = append(fates, f.name)
	}
	if want := []string{"accepted", "accepted", "forwarder_over_rate"}; !slices.Equal(fates, want) {
		t.Errorf("got %v, want %v", fates, want)
	}
}

// TestSpamIsNotRelayed publishes garbage with a bare gossipsub: its one
// neighbour rejects all of it, and a peer behind that never sees any.
func TestSpamIsNotRelayed(t *testing.T) {
	boot := bootstrapNode(t)
	client := func(c *Config) { c.DHT = DHTClient } // who is no server is not dialled through the DHT
	spammer, behind := newHost(t, client), newHost(t, client)
	connect(t, spammer, boot)
	connect(t, behind, boot)
	victim := subscribe(t, behind, protocol.ClassCPU)
	following(t, boot, protocol.ClassCPU, 1)
	following(t, spammer, protocol.ClassCPU, 1)
	// The spammer's own validator is out of its way.
	topic, err := spammer.gossip.topic(protocol.ClassCPU)
	if err != nil {
		t.Fatal(err)
	}
	if err := spammer.gossip.ps.UnregisterTopicValidator(topic.String()); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := topic.Publish(t.Context(), []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "rejected", func() bool { return offerCount(t, boot, "invalid") >= 2 })
	// What comes after has passed the same way, so nothing is still under way.
	good := offer(t, boot, time.Now(), protocol.ClassCPU)
	if err := boot.Offers().Publish(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	victim.wait(t, 1)
	if n := offerCount(t, behind, "invalid"); n != 0 {
		t.Errorf("%v invalid offers were relayed", n)
	}
	if ids := victim.got(); len(ids) != 1 || ids[0] != good.ID() {
		t.Errorf("delivered %v, want the one good offer", ids)
	}
}

func TestSlowSubscribersLoseOffersAndNobodyElse(t *testing.T) {
	now := time.Now()
	quota := func(c *Config) { c.OfferQuota = Rate{PerSecond: 1e6, Burst: 1 << 20}; c.ForwardQuota = c.OfferQuota }
	a, b := newHost(t, quota), newHost(t, quota)
	entered, release := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- b.Offers().Subscribe(ctx, []string{protocol.ClassCPU}, func(context.Context, protocol.Signed[*protocol.Offer]) {
			select {
			case entered <- struct{}{}:
			default:
			}
			<-release
		})
	}()
	connect(t, a, b)
	following(t, a, protocol.ClassCPU, 1)
	publish := func() {
		if err := a.Offers().Publish(t.Context(), offer(t, a, now, protocol.ClassCPU)); err != nil {
			t.Fatal(err)
		}
	}
	publish()
	<-entered
	eventually(t, "dropped", func() bool {
		for range 50 {
			publish()
		}
		return offerCount(t, b, "dropped") > 0
	})
	close(release)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzJudgeOffer(f *testing.F) {
	h := newHost(f)
	stranger, err := peer.IDFromPrivateKey(testKey(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(offer(f, h, time.Now(), protocol.ClassCPU).Raw)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		o, fate := h.Offers().judge(protocol.ClassCPU, stranger, raw)
		if (fate.result == pubsub.ValidationAccept) == o.IsZero() {
			t.Errorf("%s with offer %v", fate.name, o.Msg)
		}
	})
}
