package content

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
)

// maxUrgent bounds the blocks asked for ahead of the others at one time.
const maxUrgent = 1 << 16

// errFetchOver is why the work of a fetch that ended well was stopped.
var errFetchOver = errors.New("the fetch is over")

// Fetcher is a fetch under way. Stop must be called, after Wait too.
type Fetcher struct {
	f      *fetch
	cancel context.CancelFunc
	done   chan struct{} // closed when err is set
	err    error
}

// Start begins what Fetch does and returns at once. The fetch ends when all is
// here, when it cannot go on, when ctx ends or by Stop.
func (e *Exchange) Start(ctx context.Context, root cid.Cid, o FetchOptions) *Fetcher {
	ctx, cancel := context.WithCancel(ctx)
	r := &Fetcher{cancel: cancel, done: make(chan struct{})}
	f, err := e.newFetch(root, o)
	if err != nil {
		r.err = fmt.Errorf("fetch: %w", err)
		close(r.done)
		return r
	}
	r.f = f
	go func() {
		defer close(r.done)
		r.err = f.whole(ctx)
	}()
	return r
}

// Done is closed when the fetch is over; Wait then tells how it ended.
func (r *Fetcher) Done() <-chan struct{} { return r.done }

// Wait waits for the end of the fetch and returns its error, that of Fetch. The
// error of ctx is returned when that ends first; the fetch goes on.
func (r *Fetcher) Wait(ctx context.Context) error {
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stop ends the fetch and returns when nothing of it runs any more. What came
// stays.
func (r *Fetcher) Stop() {
	r.cancel()
	<-r.done
}

// Progress says how far the fetch is.
func (r *Fetcher) Progress() FetchProgress {
	if r.f == nil {
		return FetchProgress{}
	}
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	return r.f.progress()
}

// Prioritize has blocks fetched before all others, in the order given, those
// given last before those given earlier. They need not have been met yet under
// the root, but must be under it. Blocks that are here, or are arriving, are
// passed over, and so is everything beyond 65,536 blocks waiting.
func (r *Fetcher) Prioritize(cids []cid.Cid) error {
	if r.f == nil {
		return r.err
	}
	refs := make([]ref, len(cids))
	for i, c := range cids {
		var err error
		if refs[i], err = refOf(c); err != nil {
			return fmt.Errorf("fetch ahead: %w", err)
		}
	}
	r.f.hurry(refs)
	return nil
}

// Need is Prioritize, and waits until the blocks are in the store, where they
// can be read at once; they are durable when the fetch is over. It fails when
// the fetch does, and when ctx ends.
func (r *Fetcher) Need(ctx context.Context, cids []cid.Cid) error {
	if err := r.Prioritize(cids); err != nil {
		return err
	}
	for _, c := range cids {
		b, err := refOf(c)
		if err != nil {
			return fmt.Errorf("fetch ahead: %w", err)
		}
		if err := r.await(ctx, b); err != nil {
			return fmt.Errorf("wait for block %s: %w", b, err)
		}
	}
	return nil
}

// await waits for one block.
func (r *Fetcher) await(ctx context.Context, b ref) error {
	f := r.f
	for {
		f.mu.Lock()
		wake := f.wake
		f.mu.Unlock()
		if _, here := f.s.size(b.key); here {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		case <-r.done:
			if _, here := f.s.size(b.key); here {
				return nil
			}
			if r.err == nil {
				return fmt.Errorf("%w: %w without it", ErrNotFound, errFetchOver)
			}
			return r.err
		}
	}
}

// hurry queues blocks ahead of all others.
func (f *fetch) hurry(refs []ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.finished {
		return
	}
	before := f.urgent
	f.urgent = nil
	for _, r := range refs {
		if len(before)+len(f.urgent) >= maxUrgent {
			break
		}
		if _, here := f.s.size(r.key); here {
			continue
		}
		i, _, err := f.meet(link{ref: r})
		if err != nil {
			break
		}
		switch f.items[i].state {
		case stOut, stBusy:
			continue
		case stHere: // dropped since, as damaged
			f.have -= min(f.have, uint64(f.items[i].hint))
			f.missing++
		case stNone:
			f.missing++
		}
		f.queue(i, true)
	}
	fresh := len(f.urgent) > 0
	f.urgent = append(f.urgent, before...)
	if fresh {
		f.hurried = true
		f.changed()
	}
}
