package content

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
)

// errReadOnly says that a peer's protocol tried to change the store.
var errReadOnly = errors.New("blocks are put by a fetch, an import or an add, and go by collection alone")

// Blockstore lends a store to boxo's bitswap server, to read from. It finds
// blocks by CIDv0 and CIDv1 alike; a CID no store of ours can hold is simply
// not there.
func Blockstore(s *Store) blockstore.Blockstore { return readStore{s} }

type readStore struct{ s *Store }

func (b readStore) Has(_ context.Context, c cid.Cid) (bool, error) { return b.s.Has(c), nil }

// GetSize is what the server reckons with. It takes a block of no bytes for one
// that is not there, and so would never send an empty file: that one weighs 1.
func (b readStore) GetSize(_ context.Context, c cid.Cid) (int, error) {
	if n, ok := b.s.Size(c); ok {
		return max(n, 1), nil
	}
	return -1, format.ErrNotFound{Cid: c}
}

func (b readStore) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	data, err := b.s.Get(ctx, c)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnsupportedCID) {
		return nil, format.ErrNotFound{Cid: c}
	}
	if err != nil {
		return nil, err
	}
	return blocks.NewBlockWithCid(data, c)
}

func (b readStore) Put(context.Context, blocks.Block) error       { return errReadOnly }
func (b readStore) PutMany(context.Context, []blocks.Block) error { return errReadOnly }
func (b readStore) DeleteBlock(context.Context, cid.Cid) error    { return errReadOnly }

func (b readStore) AllKeysChan(context.Context) (<-chan cid.Cid, error) {
	return nil, fmt.Errorf("list all blocks for a peer: %w", errReadOnly)
}

// Bounds of a fetch from IPFS nodes. What is asked for at one time bounds what
// may lie in memory.
const (
	pullers   = 4  // lists of blocks asked for at one time
	pullBatch = 16 // blocks of each
)

// PullOptions configures Pull. Zero fields take the defaults.
type PullOptions struct {
	// MaxBytes bounds the bytes of all blocks under the root; 0 is 1 TiB.
	MaxBytes uint64
	// Idle is how long no block may come; 0 is 30 s.
	Idle time.Duration
	// Progress, if set, is called as blocks come.
	Progress func(FetchProgress)
}

// Pull brings everything under root into the store from where blocks can be
// asked for one by one: an IPFS node. Each block is verified as it is put, what
// is here already is not asked for, and all is durable at the end. Hold root
// before calling it. When nothing comes any more it is ErrUnavailable; what
// came until then stays.
func Pull(ctx context.Context, s *Store, root cid.Cid, src exchange.Fetcher, o PullOptions) error {
	r, err := refOf(root)
	if err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 1 << 40
	}
	if o.Idle <= 0 {
		o.Idle = 30 * time.Second
	}
	defer s.Hold(root)()
	defer s.HoldPuts()()
	ctx, cancel := context.WithCancelCause(ctx)
	p := &pull{s: s, src: src, o: o, seen: map[key]struct{}{}, wake: make(chan struct{}), cancel: cancel}
	err = p.run(ctx, r)
	if serr := s.Sync(); err == nil || !errors.Is(serr, ErrClosed) {
		err = errors.Join(err, serr)
	}
	if err != nil {
		return fmt.Errorf("fetch %s: %w", r, err)
	}
	return nil
}

// pull is one run of Pull. mu guards what stands below it.
type pull struct {
	s      *Store
	src    exchange.Fetcher
	o      PullOptions
	cancel context.CancelCauseFunc
	idle   *time.Timer

	mu    sync.Mutex
	wake  chan struct{} // closed and made anew when something changed
	seen  map[key]struct{}
	queue []link // wanted, last one first
	out   int    // asked for
	prog  FetchProgress
}

func (p *pull) run(ctx context.Context, root ref) error {
	p.idle = time.AfterFunc(p.o.Idle, func() {
		p.cancel(fmt.Errorf("%w: no block came for %v; what came is kept, so it can be tried again", ErrUnavailable, p.o.Idle))
	})
	defer p.idle.Stop()
	if err := p.meet(ctx, []link{{ref: root}}); err != nil {
		p.cancel(err)
		return err
	}
	var wg sync.WaitGroup
	for range pullers {
		wg.Go(func() {
			if err := p.work(ctx); err != nil {
				p.cancel(err)
			}
		})
	}
	wg.Wait()
	err := context.Cause(ctx)
	p.cancel(nil)
	return err
}

// work asks for what is wanted until nothing is.
func (p *pull) work(ctx context.Context) error {
	for {
		batch, wait := p.take()
		if batch == nil && wait == nil {
			return nil
		}
		if batch == nil {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-wait:
			}
			continue
		}
		if err := p.ask(ctx, batch); err != nil {
			return err
		}
	}
}

// take hands out what to ask for next, or what to wait for; neither says that
// all is here.
func (p *pull) take() ([]cid.Cid, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := min(len(p.queue), pullBatch)
	if n == 0 {
		if p.out == 0 {
			return nil, nil
		}
		return nil, p.wake
	}
	var batch []cid.Cid
	for _, l := range p.queue[len(p.queue)-n:] {
		batch = append(batch, l.ref.cid())
	}
	p.queue = p.queue[:len(p.queue)-n]
	p.out += n
	return batch, nil
}

// ask gets a list of blocks and what they lead to.
func (p *pull) ask(ctx context.Context, batch []cid.Cid) error {
	open := make(map[key]struct{}, len(batch))
	for _, c := range batch {
		r, err := refOf(c)
		if err != nil {
			return err
		}
		open[r.key] = struct{}{}
	}
	ask, cancel := context.WithCancel(ctx)
	defer cancel()
	got, err := p.src.GetBlocks(ask, batch)
	if err != nil {
		return fmt.Errorf("ask for blocks: %w", err)
	}
	for blk := range got {
		r, err := refOf(blk.Cid())
		if err != nil {
			return err
		}
		if _, ok := open[r.key]; !ok {
			continue
		}
		if err := p.arrived(ctx, r, blk.RawData()); err != nil {
			return err
		}
		delete(open, r.key)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if len(open) > 0 {
		return fmt.Errorf("%w: the search for %d blocks ended without them", ErrUnavailable, len(open))
	}
	return nil
}

// arrived puts a block that came and looks where it leads.
func (p *pull) arrived(ctx context.Context, r ref, data []byte) error {
	if err := p.s.Put(ctx, r.cid(), data); err != nil {
		return err
	}
	p.idle.Reset(p.o.Idle)
	links, err := linksOf(r, data)
	if err != nil {
		return fmt.Errorf("block %s: %w", r, err)
	}
	if err := p.count(len(data), links, true); err != nil {
		return err
	}
	if err := p.meet(ctx, links); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out--
	close(p.wake)
	p.wake = make(chan struct{})
	return nil
}

// meet walks to blocks not met before: those here are looked into, the others
// are wanted.
func (p *pull) meet(ctx context.Context, stack []link) error {
	for len(stack) > 0 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		l := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		fresh, err := p.first(l)
		if err != nil {
			return err
		}
		if !fresh {
			continue
		}
		n, here, links, err := p.s.look(l.ref)
		if err != nil {
			return err
		}
		if !here {
			p.mu.Lock()
			p.queue = append(p.queue, l)
			p.mu.Unlock()
			continue
		}
		p.idle.Reset(p.o.Idle)
		if err := p.count(n, links, false); err != nil {
			return err
		}
		stack = append(stack, links...)
	}
	return nil
}

func (p *pull) first(l link) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, met := p.seen[l.ref.key]; met {
		return false, nil
	}
	if len(p.seen) >= maxDAGBlocks {
		return false, fmt.Errorf("%w: more than %d blocks", ErrTooLarge, maxDAGBlocks)
	}
	p.seen[l.ref.key] = struct{}{}
	return true, nil
}

// count adds a block to what is here and tells of it.
func (p *pull) count(n int, links []link, came bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.prog.HaveBytes == 0 { // the root says what the whole may weigh
		p.prog.TotalBytes = uint64(n)
		for _, l := range links {
			p.prog.TotalBytes = addCapped(p.prog.TotalBytes, l.hint)
		}
	}
	p.prog.HaveBytes += uint64(n)
	if p.prog.HaveBytes > p.o.MaxBytes {
		return fmt.Errorf("%w: more than the %d bytes agreed on", ErrTooLarge, p.o.MaxBytes)
	}
	if came {
		p.prog.Received += uint64(n)
	}
	p.prog.TotalBytes = max(p.prog.TotalBytes, p.prog.HaveBytes)
	p.prog.Peers = 1
	if p.o.Progress != nil {
		p.o.Progress(p.prog)
	}
	return nil
}
