package content

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/ipfs/go-cid"
)

// Kind says what a fetched root must be.
type Kind int

// Kinds of roots.
const (
	// KindDAG is any DAG: a file, a folder, anything of dag-cbor.
	KindDAG Kind = iota
	// KindImage is a container image as LoadImage makes it.
	KindImage
)

// Bounds of one fetch.
const (
	maxFetchPeers  = 64 // different peers, ever
	activePeers    = 12 // peers asked at one time
	streamsPerPeer = 2  // one cannot fill a long fat pipe
	streamsOfFew   = 4  // where there are so few peers that each must give much
	fewPeers       = 2
	rangeBytes     = 8 << 20   // of one range handed to a fast peer, at most
	rangeLeast     = 256 << 10 // to a slow one
	rangeBegin     = 1 << 20   // and to one of unknown speed
	rangeBlocks    = maxAsk    // and its blocks
	swarmParts     = 128       // of all, when others fetch it too, so that few ask for the same
	rangesAhead    = 2         // asked for on one stream
	urgentBytes    = 1 << 20   // of one range that somebody waits for
	guessBlock     = 256 << 10 // bytes of a block of unknown size
	quickBytes     = 16 << 20  // of leaves asked for in the first round trip
	quickFew       = 256 << 10 // by a store that may have some of them already, and from one peer of several
	warmBlocks     = 64        // which is one with as many blocks
	awayAfter      = 8         // failures in a row, of all its streams, after which a peer is away
	maxRounds      = 3         // times peers without the blocks are asked anew
	scanWants      = 8192      // of a list looked through for one range

	syncPause = 5 * time.Second        // between making durable what came, at most
	syncLeast = 4 << 20                // bytes, or a 256th of all,
	syncMost  = 64 << 20               // and at most this
	slowRate  = 256 << 10              // bytes a second: below, an origin helps
	retryMost = 10 * time.Second       // between trying a peer that is away
	linger    = 500 * time.Millisecond // a stream waits for something to ask
)

// FetchOptions configures Fetch.
type FetchOptions struct {
	Kind Kind
	// Peers to ask.
	Peers []string
	// Origins are asked last: only for what no other live peer has, or when
	// the others give less than 256 KiB a second. The renter of a job is one,
	// so that many providers of one image do not each take it from there.
	Origins []string
	// MorePeers, if set, is asked for further peers about every second; it
	// may return ones it returned before, and must not block.
	MorePeers func() []string
	// MaxBytes bounds the bytes of all blocks under the root, those already
	// here among them; 0 is 1 TiB. DAGSize tells what to agree on.
	MaxBytes uint64
	// Progress, if set, is called now and then, and at the end.
	Progress func(FetchProgress)
}

// FetchProgress says how far a fetch is.
type FetchProgress struct {
	HaveBytes  uint64  // blocks here, verified
	TotalBytes uint64  // as far as known; what peers tell may be wrong
	Received   uint64  // bytes of blocks that came over the network
	Wasted     uint64  // of those, bytes of blocks that were here already
	Rate       float64 // bytes a second, over the last seconds
	Peers      int     // peers that gave something
}

// Fetch brings everything under root into the store, verified and durable.
// Only what is missing is asked for, so a fetch that was interrupted goes on
// where it was. Blocks are held from collection while Fetch runs; hold root,
// or keep it by a root set, before calling it.
//
// ErrUnavailable comes with what each peer said.
func (e *Exchange) Fetch(ctx context.Context, root cid.Cid, o FetchOptions) error {
	f, err := e.newFetch(root, o)
	if err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	return f.whole(ctx)
}

func (e *Exchange) newFetch(root cid.Cid, o FetchOptions) (*fetch, error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = 1 << 40
	}
	r, err := refOf(root)
	if err != nil {
		return nil, err
	}
	f := &fetch{
		e: e, s: e.s, o: o, root: r, wake: make(chan struct{}), out: map[*batch]struct{}{},
		board: board{index: map[key]int32{}, kids: map[int32][]int32{}},
		peers: map[string]*source{}, began: e.o.Now(), rnd: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
	}
	f.lastByte, f.rateAt = f.began, f.began
	_, _, err = f.meet(link{ref: r}) // item 0
	return f, err
}

// whole runs the fetch to its end and makes durable what came.
func (f *fetch) whole(ctx context.Context) error {
	defer f.s.Hold(f.root.cid())()
	defer f.s.HoldPuts()()
	f.e.track(f, true)
	defer f.e.track(f, false)
	ctx, f.cancel = context.WithCancel(ctx)
	defer f.cancel()
	err := f.run(ctx)
	if serr := f.s.Sync(); err == nil || !errors.Is(serr, ErrClosed) {
		err = errors.Join(err, serr)
	}
	if err != nil {
		return fmt.Errorf("fetch %s: %w", f.root, err)
	}
	f.report(true)
	return nil
}
