package content

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

// view is what is known of the blocks a peer has.
type view uint8

const (
	viewUnknown view = iota // as good as all, until it says otherwise
	viewAll
	viewSome // of those in source.told those in source.has, of the others perhaps
)

// source is one peer of a fetch.
type source struct {
	ctx      context.Context // of all its streams
	stop     context.CancelFunc
	id       string
	bit      uint64
	origin   bool // asked last
	fails    int  // in a row
	started  bool
	urgent   bool // has a stream for what somebody waits for
	followed bool // is asked what it has
	dead     bool // for what it did; ctx has ended
	view     view
	told     bitset  // items that it said something of
	has      bitset  // and those of them it has
	rate     float64 // bytes a second that one stream gave lately
	gave     uint64  // bytes of good blocks
	lacking  uint64  // blocks it said it does not have
	slabs    int     // it has been lent; guarded by slabs.mu
	asked    int     // ranges it has been handed
	proven   bool    // a block of it was right
	last     error
}

// away says that a peer failed so often in a row that nothing is left to it:
// it is asked again all the same, for it may be back.
func (p *source) away() bool { return p.fails >= awayAfter }

// fetch is one run of Fetch. mu guards everything below it.
type fetch struct {
	e      *Exchange
	s      *Store
	o      FetchOptions
	root   ref
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	wake chan struct{} // closed and made anew when something changed
	board
	out      map[*batch]struct{}
	busy     int // arrivals being stored and looked into
	peers    map[string]*source
	order    []*source
	spread   bitset // what peers that fetch too have
	swarming bool   // there are such
	hurried  bool   // somebody waits, or did
	rounds   int
	finished bool
	err      error
	rnd      *rand.Rand

	quick     bool      // a quick start is under way
	claim     uint64    // bytes of leaves that it will still bring
	quickByte time.Time // when it last brought some

	have, total      uint64
	received, wasted uint64
	began, lastByte  time.Time
	rateAt           time.Time
	rateBytes        uint64
	rate             float64
	reported         time.Time
	others           uint64 // bytes that came from peers that are no origin
	slowAt           time.Time
	slowBytes        uint64
	slow             bool // they are too slow
}

func (e *Exchange) track(f *fetch, on bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if on {
		e.fetches[f] = struct{}{}
	} else {
		delete(e.fetches, f)
	}
}

func (f *fetch) run(ctx context.Context) error {
	f.addPeers(ctx, f.o.Peers, false)
	f.addPeers(ctx, f.o.Origins, true)
	f.wg.Go(func() { f.syncAlong(ctx) })
	err := f.begin(ctx)
	if err == nil {
		err = f.supervise(ctx)
	}
	f.finish(err)
	f.cancel()
	f.wg.Wait()
	if err == nil && f.o.Kind == KindImage {
		_, err = ReadImage(context.WithoutCancel(ctx), f.s, f.root.cid())
	}
	return err
}

// begin takes in what is here, or starts with the root.
func (f *fetch) begin(ctx context.Context) error {
	_, here := f.s.size(f.root.key)
	f.mu.Lock()
	if here {
		f.items[0].state = stBusy
		f.mu.Unlock()
		return f.explore(ctx, []met{{i: 0}})
	}
	if f.items[0].state == stNone { // somebody waits for it already otherwise
		f.missing++
	}
	f.items[0].state = stOut // by the quick start, which queues it where it fails
	f.quick, f.quickByte = true, time.Now()
	f.claim = quickBytes
	if len(f.order) > 1 || f.s.Stats().Blocks >= warmBlocks {
		f.claim = quickFew
	}
	f.claim = min(f.claim, f.o.MaxBytes)
	f.mu.Unlock()
	f.wg.Go(func() { f.quickStart(ctx) })
	return nil
}

// addPeers makes sources of peers not met before.
func (f *fetch) addPeers(ctx context.Context, ids []string, origin bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		if f.peers[id] != nil || len(f.order) >= maxFetchPeers {
			continue
		}
		p := &source{id: id, bit: 1 << len(f.order), origin: origin}
		p.ctx, p.stop = context.WithCancel(ctx)
		if f.e.Banned(id) {
			p.dead, p.last = true, fmt.Errorf("%w before, and is not asked", ErrLiar)
			p.stop()
		}
		f.peers[id] = p
		f.order = append(f.order, p)
	}
}

// forgive takes peers back whose ban is over. The caller holds mu.
func (f *fetch) forgive(ctx context.Context) {
	for _, p := range f.order {
		if !p.dead || f.e.Banned(p.id) {
			continue
		}
		p.dead, p.proven, p.fails = false, false, 0
		p.started, p.urgent, p.followed = false, false, false
		p.ctx, p.stop = context.WithCancel(ctx)
	}
}

// start sets workers on peers that have none, as many as are asked at one time
// or, with all, on every one. The caller holds mu.
func (f *fetch) start(ctx context.Context, all bool) {
	active := 0
	for _, p := range f.order {
		if p.started && !p.dead && !p.away() {
			active++
		}
	}
	for _, p := range f.order {
		if p.dead || f.finished || !p.started && active >= activePeers && !all {
			continue
		}
		own := p.ctx
		if !p.started {
			p.started = true
			active++
			streams := streamsPerPeer
			if len(f.order) <= fewPeers {
				streams = streamsOfFew
			}
			for range streams {
				f.wg.Go(func() { f.work(ctx, own, p, laneBulk) })
			}
		}
		if len(f.order) > 1 && !p.origin && !p.followed {
			p.followed = true
			f.wg.Go(func() { f.follow(own, p) })
		}
		if f.hurried && !p.urgent {
			p.urgent = true
			f.wg.Go(func() { f.work(ctx, own, p, laneUrgent) })
		}
	}
}

// count adds a block to what is here. The caller holds mu.
func (f *fetch) count(n int) error {
	if f.have += uint64(n); f.have > f.o.MaxBytes {
		return fmt.Errorf("%w: more than the %d bytes agreed on", ErrTooLarge, f.o.MaxBytes)
	}
	return nil
}

// checkRoot checks that the root is what it should be, as early as can be.
func (f *fetch) checkRoot() error {
	if f.o.Kind != KindImage {
		return nil
	}
	if f.root.codec != codecCBOR {
		return fmt.Errorf("%w: this is no image but a file or folder", ErrMalformed)
	}
	data, err := f.s.get(f.root, nil)
	if err == nil {
		_, err = decodeImageRoot(data)
	}
	return err
}

// changed wakes everybody who waits. The caller holds mu.
func (f *fetch) changed() {
	close(f.wake)
	f.wake = make(chan struct{})
}

func (f *fetch) finish(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.finished {
		f.finished, f.err = true, err
		f.changed()
	}
}

// supervise waits for the end: all here, or nobody left to ask.
func (f *fetch) supervise(ctx context.Context) error {
	tick := time.NewTicker(min(time.Second, f.e.o.RetryAfter))
	defer tick.Stop()
	var asked time.Time
	for {
		if now := f.e.o.Now(); f.o.MorePeers != nil && now.Sub(asked) >= time.Second {
			asked = now
			f.addPeers(ctx, f.o.MorePeers(), false)
		}
		f.mu.Lock()
		f.forgive(ctx)
		f.start(ctx, f.rounds > 0)
		f.judgeOthers()
		done, err := f.over()
		wake := f.wake
		f.mu.Unlock()
		if done || err != nil {
			return err
		}
		f.report(false)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		case <-tick.C:
		}
	}
}

// syncAlong makes durable what came while more comes, so that little is left to
// do at the end and a kill costs less than a hundredth of the whole.
func (f *fetch) syncAlong(ctx context.Context) {
	var done uint64
	last := time.Now()
	for {
		f.mu.Lock()
		received, total, wake := f.received, f.total, f.wake
		f.mu.Unlock()
		step := min(max(total/256, syncLeast), syncMost)
		if late := time.Since(last) >= syncPause; received-done >= step || late && received > done {
			done, last = received, time.Now()
			if err := f.s.Sync(); err != nil {
				f.finish(err)
				return
			}
			continue
		}
		if !pauseOr(ctx, wake, syncPause) {
			return
		}
	}
}

// judgeOthers measures what peers that are no origin give. The caller holds mu.
func (f *fetch) judgeOthers() {
	const window = 3 * time.Second
	now := f.e.o.Now()
	if f.slowAt.IsZero() {
		f.slowAt = now
	}
	if d := now.Sub(f.slowAt); d >= window {
		slow := float64(f.others-f.slowBytes)/d.Seconds() < slowRate
		if slow && !f.slow {
			f.changed()
		}
		f.slow, f.slowAt, f.slowBytes = slow, now, f.others
	}
}

// over says whether all is here, or why it cannot be. The caller holds mu.
func (f *fetch) over() (bool, error) {
	if f.err != nil {
		return true, f.err
	}
	if f.missing == 0 && f.busy == 0 {
		return true, nil
	}
	quiet := f.e.o.Now().Sub(f.lastByte)
	if quiet > f.e.o.Patience {
		return true, f.unavailable(fmt.Sprintf("no byte came for %v", quiet.Round(time.Second)))
	}
	live := 0
	for _, p := range f.order {
		// Who never gave anything is not waited for, unless it must have all.
		if !p.dead && (!p.away() || p.gave > 0 || p.origin) {
			live++
		}
	}
	if live == 0 && f.o.MorePeers == nil {
		return true, f.unavailable("no peer is left to ask")
	}
	if len(f.out) > 0 || f.busy > 0 || live == 0 || f.quick || f.somebodyMay(false) {
		return false, nil
	}
	// Nobody has any of what is left. Peers that fetch too may have it soon.
	if f.rounds >= maxRounds && f.o.MorePeers == nil && !f.somebodyMay(true) {
		return true, f.unavailable(fmt.Sprintf("no peer has the %d blocks that are left", f.missing))
	}
	if quiet < time.Duration(f.rounds+1)*f.e.o.RetryAfter {
		return false, nil
	}
	f.rounds++
	for i := range f.items {
		f.items[i].lacks = 0
	}
	f.changed()
	return false, nil
}

// somebodyMay says whether a peer may have a block that is queued: one that can
// be reached or, with away, one that gave something before it went away. The
// caller holds mu.
func (f *fetch) somebodyMay(away bool) bool {
	for i := range f.items {
		if f.items[i].state != stQueued {
			continue
		}
		for _, p := range f.order {
			if !p.dead && (!p.away() || away && (p.gave > 0 || p.origin)) && f.may(p, int32(i)) {
				return true
			}
		}
	}
	return false
}

// unavailable tells what is missing and what each peer said. The caller holds mu.
func (f *fetch) unavailable(why string) error {
	var said []string
	for _, p := range f.order {
		var s string
		switch {
		case p.last != nil:
			s = p.last.Error()
		case p.lacking > 0:
			s = fmt.Sprintf("does not have %d of the blocks asked for", p.lacking)
		case p.gave > 0:
			s = "no complaint"
		default:
			s = "no answer"
		}
		said = append(said, fmt.Sprintf("%s: %s (gave %d bytes)", p.id, s, p.gave))
	}
	if len(said) == 0 {
		said = append(said, "no peer is known that has it")
	}
	return fmt.Errorf("%w: %s; %d bytes are here and are kept, so it can be tried again: %s", ErrUnavailable, why, f.have, strings.Join(said, "; "))
}

// report calls Progress, at most a few times a second.
func (f *fetch) report(last bool) {
	now := f.e.o.Now()
	f.mu.Lock()
	if !last && now.Sub(f.reported) < 200*time.Millisecond {
		f.mu.Unlock()
		return
	}
	f.reported = now
	if d := now.Sub(f.rateAt); d >= 2*time.Second || f.rate == 0 && d > 0 {
		f.rate = float64(f.received-f.rateBytes) / d.Seconds()
		f.rateAt, f.rateBytes = now, f.received
	}
	p := f.progress()
	if last {
		p.TotalBytes = f.have
	}
	f.mu.Unlock()
	if f.o.Progress != nil {
		f.o.Progress(p)
	}
}

// progress is what is known now. The caller holds mu.
func (f *fetch) progress() FetchProgress {
	p := FetchProgress{HaveBytes: f.have, TotalBytes: max(f.total, f.have), Received: f.received, Wasted: f.wasted, Rate: f.rate}
	for _, s := range f.order {
		if s.gave > 0 {
			p.Peers++
		}
	}
	return p
}
