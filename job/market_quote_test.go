package job

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

// slowMeasure is a content store whose images take long to measure.
type slowMeasure struct {
	ProviderContent
	gate  chan struct{}
	calls *int
}

func (s slowMeasure) CachedImage(ctx context.Context, root []byte) uint64 {
	*s.calls++
	select {
	case <-s.gate:
	case <-ctx.Done():
	}
	return s.ProviderContent.CachedImage(ctx, root)
}

// TestQuotesHoldNothingElseUp has offers wait for an image to be measured: the
// provider does all else meanwhile, and measures once.
func TestQuotesHoldNothingElseUp(t *testing.T) {
	var gate chan struct{}
	calls := 0
	slow := func(_ int, cfg *ProviderConfig) {
		gate = make(chan struct{})
		cfg.Content = slowMeasure{cfg.Content, gate, &calls}
	}
	inTown(t, plan{prices: []uint64{testPrice}, change: slow}, func(t *testing.T, w *town) {
		r, p := renterOf(w.renter), providerOf(w.shops[0])
		offer := func() protocol.Signed[*protocol.Offer] {
			return must(r.makeOffer(&Job{Spec: oneTask("exit=0").WithDefaults(), Image: toolImage().ImageRef}, 1, nil))
		}
		given := make(chan protocol.Signed[*protocol.Answer], 8)
		same := offer()
		for _, o := range []protocol.Signed[*protocol.Offer]{same, offer(), offer(), same} {
			w.group.Go(func() { given <- must(p.HandleQuote(t.Context(), w.renter.id(), o)) })
		}
		synctest.Wait()
		if !p.mu.TryLock() {
			t.Fatal("the provider is held up by a quote")
		}
		p.mu.Unlock()
		close(gate)
		answers := map[protocol.MsgID]bool{}
		for range 4 {
			a := <-given
			answers[a.ID()] = true
			if len(a.Msg.GetBid()) == 0 {
				t.Error("no bid")
			}
		}
		if calls != 1 || len(answers) != 3 {
			t.Errorf("measured %d times, %d answers to three offers", calls, len(answers))
		}
	})
}

// TestHoldsAreShort has a stranger bid rooms empty: it can for seconds alone,
// however long its auctions are.
func TestHoldsAreShort(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		p, s := providerOf(w.shops[0]), w.shops[0]
		stranger := NewRenter(RenterConfig{Signer: signerOf(t, 50), Net: &wire{w: w, s: w.renter}, Window: 50 * time.Second, Now: time.Now})
		j := &Job{Spec: array(4, 0, "exit=0").WithDefaults(), Image: toolImage().ImageRef}
		var held time.Duration
		for range 60 {
			answer := must(p.HandleQuote(t.Context(), stranger.Signer.ID(), must(stranger.makeOffer(j, 4, nil))))
			if len(answer.Msg.GetBid()) == 0 {
				t.Fatal("no bid")
			}
			for range 5 {
				if s.pool.Free(time.Now(), true).CPUMillis == 0 {
					held += time.Second
				}
				w.pass(time.Second)
			}
		}
		if held == 0 || held > 30*time.Second {
			t.Errorf("nothing was free for others for %s of five minutes", held)
		}
	})
}
