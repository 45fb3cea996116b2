package job

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

const (
	offerLife    = time.Minute
	acceptWithin = 10 * time.Second
	quoteTimeout = 3 * time.Second
	maxDirect    = 32 // providers asked directly for one offer
	maxKnown     = 256
	fastPathWait = 400 * time.Millisecond
)

// knownProviders remembers who answered before, and which images they have, so
// that the next offer can go straight to them.
type knownProviders struct {
	mu     sync.Mutex
	order  []protocol.PeerID
	images map[protocol.PeerID]map[string]bool
}

func newKnownProviders() knownProviders {
	return knownProviders{images: map[protocol.PeerID]map[string]bool{}}
}

// met notes a provider that answered; image is one that it is known to have.
func (k *knownProviders) met(p protocol.PeerID, image []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.order = append(slices.DeleteFunc(k.order, func(o protocol.PeerID) bool { return o == p }), p)
	if k.images[p] == nil {
		k.images[p] = map[string]bool{}
	}
	if len(image) > 0 {
		k.images[p][string(image)] = true
	}
	if len(k.order) > maxKnown {
		delete(k.images, k.order[0])
		k.order = k.order[1:]
	}
}

// forget drops a provider that could not be reached.
func (k *knownProviders) forget(p protocol.PeerID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.order = slices.DeleteFunc(k.order, func(o protocol.PeerID) bool { return o == p })
	delete(k.images, p)
}

// list names providers, latest first; only those with the image when it is
// given.
func (k *knownProviders) list(image []byte, most int) []protocol.PeerID {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []protocol.PeerID
	for i := len(k.order) - 1; i >= 0 && len(out) < most; i-- {
		if p := k.order[i]; image == nil || k.images[p][string(image)] {
			out = append(out, p)
		}
	}
	return out
}

// auctionRun is an auction that is open for answers by gossip and by quote.
type auctionRun struct {
	mu      sync.Mutex
	auction *Auction
	over    bool // the auction is its owner's alone
	changed chan struct{}
}

// take hands an answer to the auction after checking whose it is.
func (r *Renter) take(run *auctionRun, offer protocol.Signed[*protocol.Offer], from protocol.PeerID, answer *protocol.Answer) error {
	run.mu.Lock()
	defer run.mu.Unlock()
	if run.over {
		return nil // too late; no fault of anybody's
	}
	if raw := answer.GetDecline(); len(raw) > 0 {
		d, err := protocol.Open[*protocol.Decline](r.Signer.Network(), raw, r.Now())
		if err != nil {
			return err
		}
		if d.From != from || string(d.Msg.GetOfferId()) != string(idBytes(offer.ID())) {
			return fmt.Errorf("a decline of another offer or signer: %w", protocol.ErrInvalid)
		}
		run.auction.Decline(from, d.Msg)
	} else {
		b, err := protocol.Open[*protocol.Bid](r.Signer.Network(), answer.GetBid(), r.Now())
		if err != nil {
			return err
		}
		if b.From != from || string(b.Msg.GetOfferId()) != string(idBytes(offer.ID())) || b.Msg.GetAsset() != offer.Msg.GetAsset() {
			return fmt.Errorf("a bid for another offer, signer or asset: %w", protocol.ErrInvalid)
		}
		run.auction.Bid(Candidate{Peer: from, Bid: b, RTT: r.Net.RTT(from)})
		var image []byte
		if b.Msg.GetImageBytesCached() >= offer.Msg.GetImage().GetSize() {
			image = offer.Msg.GetImage().GetRoot()
		}
		r.known.met(from, image)
	}
	select {
	case run.changed <- struct{}{}:
	default:
	}
	return nil
}

// HandleAnswer takes a bid or a decline that a provider brings by itself,
// having heard the offer by gossip.
func (r *Renter) HandleAnswer(_ context.Context, from protocol.PeerID, answer protocol.Signed[*protocol.Answer]) (protocol.Signed[*protocol.Ack], error) {
	ack := &protocol.Ack{Of: idBytes(answer.ID())}
	id, err := answerOffer(r.Signer.Network(), answer.Msg)
	if err != nil {
		return protocol.Signed[*protocol.Ack]{}, err
	}
	r.mu.Lock()
	run := r.auctions[id]
	r.mu.Unlock()
	if run == nil {
		return protocol.Sign(r.Signer, ack) // too late; no fault of anybody's
	}
	if err := r.take(run, run.offer(), from, answer.Msg); err != nil {
		return protocol.Signed[*protocol.Ack]{}, err
	}
	return protocol.Sign(r.Signer, ack)
}

// answerOffer is the offer that an answer is for.
func answerOffer(network string, a *protocol.Answer) (protocol.MsgID, error) {
	if raw := a.GetBid(); len(raw) > 0 {
		b, err := protocol.Reopen[*protocol.Bid](network, raw)
		if err != nil {
			return protocol.MsgID{}, err
		}
		return protocol.ParseMsgID(b.Msg.GetOfferId())
	}
	d, err := protocol.Reopen[*protocol.Decline](network, a.GetDecline())
	if err != nil {
		return protocol.MsgID{}, err
	}
	return protocol.ParseMsgID(d.Msg.GetOfferId())
}

// makeOffer signs the offer of so many tasks of a job, that go on from states of
// one kind, if from any.
func (r *Renter) makeOffer(j *Job, tasks int, goOn *protocol.Portability) (protocol.Signed[*protocol.Offer], error) {
	var nonce [16]byte
	_, _ = rand.Read(nonce[:]) // crypto/rand never fails
	now := r.Now()
	res := j.Spec.Resources()
	var inputs uint64
	for _, in := range j.Inputs {
		inputs += in.Size
	}
	return protocol.Sign(r.Signer, &protocol.Offer{
		Nonce: nonce[:], IssuedMs: now.UnixMilli(), BidsUntilMs: now.Add(r.Window).UnixMilli(),
		ExpiresMs: now.Add(offerLife).UnixMilli(), Classes: protocol.ClassesWanted(res), Resources: res,
		Image: j.wireImage(), InputBytes: inputs, Tasks: uint32(tasks), Asset: Asset,
		MaxPricePerHour: j.Spec.Pay.MaxHourly.Lo, FetchLimitMs: j.Spec.Limits.Fetch.Milliseconds(),
		RunLimitMs: j.Spec.Limits.Run.Milliseconds(), Net: j.Spec.Network, NetBytes: j.Spec.Limits.Net, Addrs: r.Net.Addrs(),
		OutputBytes: j.Spec.outputLimit(), LogBytes: j.Spec.Limits.Logs, OpenFiles: j.Spec.openFiles(),
		Portability: j.offeredPortability(goOn),
	})
}

// hold opens an auction for the answers to an offer until end is called.
func (r *Renter) hold(offer protocol.Signed[*protocol.Offer], j *Job, tasks int, avoid []string) (run *auctionRun, end func()) {
	run = &auctionRun{
		auction: NewAuction(offer, j.Spec.Pay.MaxHourly.Lo, tasks), changed: make(chan struct{}, 1),
	}
	run.auction.Avoid = avoid
	r.mu.Lock()
	r.auctions[offer.ID()] = run
	r.mu.Unlock()
	return run, func() {
		r.mu.Lock()
		delete(r.auctions, offer.ID())
		r.mu.Unlock()
		run.mu.Lock()
		run.over = true
		run.mu.Unlock()
	}
}

func (run *auctionRun) offer() protocol.Signed[*protocol.Offer] { return run.auction.Offer }

// ask puts the offer to a provider by a stream of its own.
func (r *Renter) ask(ctx context.Context, run *auctionRun, p protocol.PeerID) {
	quote, cancel := context.WithTimeout(ctx, quoteTimeout)
	defer cancel()
	answer, err := r.Net.Quote(quote, p, run.offer())
	if err == nil {
		err = r.take(run, run.offer(), p, answer.Msg)
	}
	if err == nil {
		return
	}
	r.Log.Debug("no quote", "peer", p, "err", err)
	run.mu.Lock()
	run.auction.Unanswered(p)
	run.mu.Unlock()
	if ctx.Err() == nil { // the auction's own end is not the provider's fault
		r.known.forget(p)
	}
	select {
	case run.changed <- struct{}{}:
	default:
	}
}

// round is what one auction is for.
type round struct {
	tasks      int
	someWillDo bool                  // room for any of them is enough to end it early
	avoid      []string              // providers that are not asked, and whose bids do not count
	goOn       *protocol.Portability // the states that the tasks go on from; nil begins anew
}

// Auction puts an offer for some tasks to the network and gathers the answers.
// Providers known to have the image are asked first; when they have room
// nobody else need be waited for. The job's On names one provider to ask alone.
func (r *Renter) Auction(ctx context.Context, j *Job, of round) (*Auction, error) {
	offer, err := r.makeOffer(j, of.tasks, of.goOn)
	if err != nil {
		return nil, err
	}
	run, end := r.hold(offer, j, of.tasks, of.avoid)
	defer end()
	ctx, cancel := context.WithTimeout(ctx, r.Window)
	defer cancel()
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	asked := map[protocol.PeerID]bool{}
	ask := func(peers []protocol.PeerID) {
		for _, p := range peers {
			if asked[p] || len(asked) >= maxDirect || p == r.Signer.ID() || slices.Contains(of.avoid, p.String()) {
				continue
			}
			asked[p] = true
			run.mu.Lock()
			run.auction.Asked(p)
			run.mu.Unlock()
			asking.Go(func() { r.ask(ctx, run, p) })
		}
	}
	if j.Spec.On != "" {
		p, err := peerOf(j.Spec.On)
		if err != nil {
			return nil, specErr("on: %q is no peer id", j.Spec.On)
		}
		ask([]protocol.PeerID{p})
		run.wait(ctx, (*Auction).AllAnswered)
		return run.auction, nil
	}
	if ask(r.known.list(j.Image.Root, maxDirect)); len(asked) > 0 {
		fast, stop := context.WithTimeout(ctx, fastPathWait)
		run.wait(fast, func(a *Auction) bool { return a.Enough() || a.AllAnswered() })
		stop()
		if run.enough() || of.someWillDo {
			return run.auction, nil
		}
	}
	if err := r.Net.PublishOffer(ctx, offer); err != nil {
		r.Log.Warn("offer not gossiped", "job", j.ID, "err", err)
	}
	ask(r.known.list(nil, maxDirect/2))
	found := make(chan []protocol.PeerID, 1)
	asking.Go(func() {
		peers, err := r.Net.Providers(ctx, offer.Msg.GetClasses(), maxDirect)
		if err != nil && ctx.Err() == nil {
			r.Log.Debug("providers not looked up", "err", err)
		}
		found <- peers
	})
	searching := found
	for !run.enough() || searching != nil {
		select {
		case <-ctx.Done():
			return run.auction, nil
		case peers := <-searching:
			searching = nil
			ask(peers)
		case <-run.changed:
			if run.plenty() {
				return run.auction, nil
			}
		}
	}
	return run.auction, nil
}

// wait returns when done says so or ctx is over.
func (run *auctionRun) wait(ctx context.Context, done func(*Auction) bool) {
	for {
		run.mu.Lock()
		ok := done(run.auction)
		run.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-run.changed:
		}
	}
}

func (run *auctionRun) enough() bool {
	run.mu.Lock()
	defer run.mu.Unlock()
	return run.auction.Enough()
}

// plenty reports whether the auction may end although a search still runs.
func (run *auctionRun) plenty() bool {
	run.mu.Lock()
	defer run.mu.Unlock()
	return run.auction.Plenty()
}

// horizon is the length of work that a task's wait is weighed against.
func (j *Job) horizon() time.Duration { return min(j.Spec.Limits.Run, time.Hour) }

func (j *Job) wireImage() *protocol.Image {
	im := &protocol.Image{Root: j.Image.Root, Size: j.Image.Size, Platform: j.Image.Platform}
	im.ConfigSha256 = configDigest(j.Image.ID)
	return im
}

// place runs one round: an auction, then the awards. It returns how many tasks
// got a lease.
func (a *activeJob) place(ctx context.Context, needs []Need) int {
	a.mu.Lock()
	j := *a.job
	free := a.uncommitted()
	needs, goOn := a.sameOrigin(needs[:a.payable(free, len(needs))])
	a.mu.Unlock()
	if !j.Spec.Pay.Budget.IsZero() && free.IsZero() {
		a.outOfBudget(ctx)
		return 0
	}
	if len(needs) == 0 {
		return 0
	}
	auction, err := a.r.Auction(ctx, &j, round{
		tasks: len(needs), someWillDo: a.searched(a.r.Now()), avoid: avoidedByAll(needs), goOn: goOn,
	})
	if err != nil {
		a.r.Log.Error("auction", "job", j.ID, "err", err)
		return 0
	}
	if ctx.Err() != nil {
		return 0
	}
	placements := Place(needs, a.r.cached.mark(j.Spec, a.willing(auction, j.horizon())), j.horizon())
	if len(placements) == 0 {
		a.unplaced(ctx, auction, needs, goOn)
		return 0
	}
	var placed int
	var mu sync.Mutex
	var awards sync.WaitGroup
	slots := make(chan struct{}, maxDirect)
	share := free.Div(uint64(len(placements)))
	for _, p := range placements {
		slots <- struct{}{}
		awards.Go(func() {
			defer func() { <-slots }()
			if a.award(ctx, auction, p, share) {
				mu.Lock()
				placed++
				mu.Unlock()
			}
		})
	}
	awards.Wait()
	return placed
}

// refusal is what a provider has said to this job's last awards.
type refusal struct {
	why   string // the name of a protocol.Reason
	times int    // in a row
	until time.Time
}

// A provider that refuses an award it has bid for is passed over for a while,
// twice as long each time, so that it cannot hold a job up.
const (
	refusedFirst = time.Second
	refusedMost  = 5 * time.Minute
)

// refused notes a provider's no. The lock is held.
func (a *activeJob) refused(p protocol.PeerID, why string, now time.Time) {
	r := a.refusals[p]
	r.why, r.until = why, now.Add(min(refusedFirst<<min(r.times, 20), refusedMost))
	r.times++
	a.refusals[p] = r
}

// willing are the bids of those that have not just refused; the others count
// with the reason that they gave.
func (a *activeJob) willing(auction *Auction, horizon time.Duration) []Candidate {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.r.Now()
	return slices.DeleteFunc(auction.Bids(horizon), func(c Candidate) bool {
		r := a.refusals[c.Peer]
		if !now.Before(r.until) {
			return false
		}
		auction.reasons[r.why]++
		return true
	})
}

// searchEvery is how often a job that is under way looks for providers that it
// does not know yet.
const searchEvery = 10 * time.Second

// searched reports whether the last wide search is recent enough for a round
// among known providers.
func (a *activeJob) searched(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.live) > 0 && now.Sub(a.lastSearch) < searchEvery {
		return true
	}
	a.lastSearch = now
	return false
}

// uncommitted is what is left of the budget after what was spent and what live
// leases may still cost. The lock is held.
func (a *activeJob) uncommitted() ledger.Amount {
	left := a.job.Spec.Pay.Budget
	for _, l := range a.live {
		left = less(left, l.c.Budget)
	}
	return less(left, a.job.Spent)
}

// payable is how many of the tasks that wait may begin now: each gets no less of
// the budget than there is left for every task that is not over, and no less
// than the dearest that is done has cost and an eighth more, so that none begins
// on a rest that will not do while others give some back. Where nothing else
// runs one begins all the same, on all that is left. The lock is held.
func (a *activeJob) payable(free ledger.Amount, waiting int) int {
	if a.job.Spec.Pay.Budget.IsZero() || waiting == 0 {
		return waiting
	}
	open, least, alone := 0, ledger.Units(a.job.Spec.Pay.Budget.Asset, 0), len(a.live) == 0
	for _, t := range a.tasks {
		switch {
		case !t.Over():
			open++
		case State(t.State) == Done && t.Charge.Cmp(least) > 0:
			least = t.Charge
		}
	}
	if more, err := least.Add(least.Div(8)); err == nil {
		least = more
	}
	fair := less(a.job.Spec.Pay.Budget, a.job.Spent).Div(uint64(max(1, open)))
	if !alone && fair.Cmp(least) > 0 {
		least = fair
	}
	for waiting > 0 && free.Div(uint64(waiting)).Cmp(least) < 0 {
		waiting--
	}
	if alone {
		return max(1, waiting)
	}
	return waiting
}

// less is a − b, or nothing.
func less(a, b ledger.Amount) ledger.Amount {
	d, err := a.Sub(b)
	if err != nil {
		return ledger.Units(a.Asset, 0)
	}
	return d
}

// outOfBudget ends what waits when the budget is spent and nothing runs that
// could give some of it back.
func (a *activeJob) outOfBudget(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.live) > 0 {
		return
	}
	reason := fmt.Sprintf("the budget of %s is spent", a.job.Spec.Pay.Budget)
	a.endTasks(ctx, Failed, reason, func(t *TaskRecord) bool { return t.State == TaskQueued })
}
