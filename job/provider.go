package job

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

// Prices are what a provider asks, in base units of an asset per hour: for a
// core, for a card, and for cards of certain models.
type Prices struct {
	Asset  string            `json:"asset"`
	CPU    uint64            `json:"cpu"`
	GPU    uint64            `json:"gpu"`
	Models map[string]uint64 `json:"models,omitempty"`
}

// Provider states.
const (
	ProviderOpen     = "open"
	ProviderPaused   = "paused"   // bids for nothing, runs on
	ProviderDraining = "draining" // bids for nothing, ends when its last lease does
	ProviderDrained  = "drained"
)

// DefaultFetchRate is the bytes a second that a provider expects of its link
// before it has fetched anything over it.
const DefaultFetchRate = 50 << 20

// ProviderConfig is what a provider is made of.
type ProviderConfig struct {
	Signer  *protocol.Signer
	Keys    *Keys // of private jobs; nil takes none
	Store   Store
	Net     ProviderNetwork
	Content ProviderContent
	Sandbox Sandbox // nil when nothing can run here
	Limits  HeldLimits
	// Portability says where containers' states can be moved from and to; nil
	// where none can be saved.
	Portability *sandbox.Portability
	Dir         string  // jobs' folders
	Caches      *Caches // nil keeps none
	Pool        *Pool
	// Pass makes what lets a container use cards that are not fake, given their
	// UUIDs and the parts of the driver that are wanted; nil passes none.
	Pass     func(ctx context.Context, cards, capabilities []string) (gpu.Passage, error)
	Prices   Prices
	State    string
	Platform string // such as linux/amd64
	AllowNet bool   // containers may have outbound connections
	// FetchRate is how many bytes a second a fetch is expected to bring, as those
	// before have; nil, or 0 while none was measured, is DefaultFetchRate.
	FetchRate func() uint64
	// Changed is called when what is free or asked has changed, to readvertise.
	Changed func()
	Now     func() time.Time
	Log     *slog.Logger
}

// Provider answers offers and runs leases. Its handlers may be called from any
// goroutine between Run's start and its end.
type Provider struct {
	ProviderConfig

	awards sync.Mutex // one award is decided at a time, so that a lease that comes twice begins once
	cached cachedImages
	up     chan struct{} // closed when Run has found the leases of an earlier life, or could not

	mu      sync.Mutex
	prices  Prices
	state   string
	leaving bool                       // for good: nothing is bid for and no award taken any more
	bids    map[protocol.MsgID]madeBid // by bid id
	said    map[protocol.MsgID]protocol.Signed[*protocol.Answer]
	runs    map[protocol.MsgID]*execution
	ctx     context.Context // of Run; nil before and after
	group   sync.WaitGroup
	idle    chan struct{} // closed when the last run ends while draining
}

// madeBid is a bid that may be taken up.
type madeBid struct {
	offer  protocol.Signed[*protocol.Offer]
	bid    protocol.Signed[*protocol.Bid]
	renter protocol.PeerID
}

// NewProvider makes a provider; it starts nothing.
func NewProvider(cfg ProviderConfig) *Provider {
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.FetchRate == nil {
		cfg.FetchRate = func() uint64 { return 0 }
	}
	if cfg.State == "" {
		cfg.State = ProviderOpen
	}
	return &Provider{
		ProviderConfig: cfg, prices: cfg.Prices, state: cfg.State,
		bids: map[protocol.MsgID]madeBid{}, said: map[protocol.MsgID]protocol.Signed[*protocol.Answer]{},
		runs: map[protocol.MsgID]*execution{}, up: make(chan struct{}),
	}
}

// ErrNotRunning says that a handler was called while the provider does not run.
var ErrNotRunning = fmt.Errorf("this provider is not running: %w", protocol.ErrElsewhere)

// Run finds the leases of an earlier life, carries them on, and serves until
// ctx ends. Containers outlive it: a later Run finds them again.
func (p *Provider) Run(ctx context.Context) error {
	err := p.recover(ctx)
	close(p.up)
	if err != nil {
		if ctx.Err() != nil {
			return nil // stopped before it had begun
		}
		return fmt.Errorf("find the leases of the last run: %w", err)
	}
	<-ctx.Done()
	p.mu.Lock()
	p.ctx = nil
	p.mu.Unlock()
	p.group.Wait()
	return nil
}

// recover puts every open lease back to work, and removes containers that
// belong to none.
func (p *Provider) recover(ctx context.Context) error {
	var open []*Contract
	leases := map[protocol.MsgID]protocol.Signed[*protocol.Lease]{}
	err := p.Store.View(ctx, func(tx Tx) error {
		var err error
		if open, err = tx.Contracts(ContractFilter{Side: SideProvider, Open: true}); err != nil {
			return err
		}
		for _, c := range open {
			m, err := tx.LastMessage(c.ID, protocol.KindLease)
			if err != nil {
				return fmt.Errorf("lease %s: %w", c.ID.Short(), err)
			}
			if leases[c.ID], err = protocol.Reopen[*protocol.Lease](p.Signer.Network(), m.Raw); err != nil {
				return fmt.Errorf("lease %s: %w", c.ID.Short(), err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	found := map[string]sandbox.Recovered{}
	if p.Sandbox != nil {
		list, err := p.Sandbox.Recover(ctx)
		if err != nil {
			return fmt.Errorf("sandbox: %w", err)
		}
		for _, f := range list {
			found[f.ID] = f
		}
	}
	for _, c := range open { // before the first bid
		if !c.State.Terminal() {
			p.Pool.Restore(restored(c, roomOfLease(leases[c.ID].Msg)))
		}
	}
	p.keepImages(ctx, open, leases, found)
	for _, c := range open {
		if f := found[containerName(c.ID)]; f.Running || f.Prepared {
			p.keepCaches(leases[c.ID], containerName(c.ID))
		}
	}
	if err := p.keepInputs(ctx, open, leases); err != nil {
		return err
	}
	p.mu.Lock()
	p.ctx = ctx
	p.mu.Unlock()
	for _, c := range open {
		e := p.newExecution(leases[c.ID], *c)
		f, ok := found[e.containerID()]
		delete(found, e.containerID())
		if ok {
			e.found = &f
		}
		p.Log.Info("lease found again", "lease", c.ID.Short(), "job", c.Job, "state", c.State, "container", ok)
		p.start(e)
	}
	for id := range found {
		p.Log.Warn("container of no lease removed", "container", id)
		if err := p.Sandbox.Remove(ctx, id); err != nil {
			p.Log.Error("remove container", "container", id, "err", err)
		}
	}
	p.sweep(leases)
	return nil
}

// keepImages takes the images of containers found into use, all of them before
// the end of any lease can make room for others.
func (p *Provider) keepImages(ctx context.Context, open []*Contract, leases map[protocol.MsgID]protocol.Signed[*protocol.Lease], found map[string]sandbox.Recovered) {
	for _, c := range open {
		id := containerName(c.ID)
		if f := found[id]; !f.Running && !f.Prepared {
			continue
		}
		if _, _, err := p.Content.Rootfs(ctx, leases[c.ID].Msg.GetImage().GetRoot(), id); err != nil {
			p.Log.Error("hold the image of a container", "lease", c.ID.Short(), "err", err)
		}
	}
}

// keepInputs holds the inputs of leases that have yet to fetch them, for as long
// as that may now take.
func (p *Provider) keepInputs(ctx context.Context, open []*Contract, leases map[protocol.MsgID]protocol.Signed[*protocol.Lease]) error {
	open = slices.DeleteFunc(slices.Clone(open), func(c *Contract) bool { return c.State.order() >= Starting.order() })
	if len(open) == 0 {
		return nil
	}
	return p.Store.Update(ctx, func(tx Tx) error {
		for _, c := range open {
			if err := holdInputs(tx, leases[c.ID], c, p.Now()); err != nil {
				return fmt.Errorf("lease %s: %w", c.ID.Short(), err)
			}
		}
		return nil
	})
}

// sweep removes the folders of leases that ended just before the node did.
func (p *Provider) sweep(open map[protocol.MsgID]protocol.Signed[*protocol.Lease]) {
	wanted := map[string]bool{}
	for id := range open {
		wanted[containerName(id)] = true
	}
	folders, err := os.ReadDir(p.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.Log.Error("look for folders of past leases", "err", err)
	}
	for _, f := range folders {
		if !containerForm.MatchString(f.Name()) || wanted[f.Name()] {
			continue
		}
		if err := sandbox.RemoveTree(filepath.Join(p.Dir, f.Name())); err != nil {
			p.Log.Error("remove the folder of a past lease", "err", err)
		}
	}
}

// start runs an execution under the provider's own context.
func (p *Provider) start(e *execution) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx == nil {
		return false
	}
	p.runs[e.lease.ID()] = e
	e.ctx = p.ctx
	defer e.checkCards() // one may have gone since it was reserved
	p.group.Go(func() {
		e.run(e.ctx)
		if e.ctx.Err() == nil {
			p.releaseInputs(e.ctx, e.lease)
		}
		p.mu.Lock()
		delete(p.runs, e.lease.ID())
		p.noteIdle()
		p.mu.Unlock()
		p.Changed()
	})
	return true
}

// noteIdle ends a drain when the last lease is over. The lock is held.
func (p *Provider) noteIdle() {
	if p.state != ProviderDraining || len(p.runs) > 0 {
		return
	}
	p.state = ProviderDrained
	if p.idle != nil {
		close(p.idle)
		p.idle = nil
	}
}

// State is the provider's state.
func (p *Provider) State() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stands()
}

// stands is the state that the provider acts by. The lock is held.
func (p *Provider) stands() string {
	if p.leaving {
		return ProviderDraining
	}
	return p.state
}

// Pricing is what the provider asks now.
func (p *Provider) Pricing() Prices {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.prices
}

// SetPrices changes what is asked of offers to come.
func (p *Provider) SetPrices(prices Prices) {
	p.mu.Lock()
	p.prices = prices
	p.said = map[protocol.MsgID]protocol.Signed[*protocol.Answer]{}
	p.mu.Unlock()
	p.Changed()
}

// Pause stops bidding; Resume begins again. Leases go on.
func (p *Provider) Pause() { p.setState(ProviderPaused) }

// Resume ends a pause or a drain.
func (p *Provider) Resume() { p.setState(ProviderOpen) }

// Drain stops bidding, and has tasks with checkpoints go on elsewhere; the
// returned channel closes when the last lease is over.
func (p *Provider) Drain() <-chan struct{} {
	p.setState(ProviderDraining)
	p.mu.Lock()
	defer p.mu.Unlock()
	done := p.idle
	if done == nil {
		done = make(chan struct{})
		p.idle = done
	}
	p.noteIdle()
	p.moveAll()
	return done
}

func (p *Provider) setState(s string) {
	p.mu.Lock()
	p.state = s
	p.said = map[protocol.MsgID]protocol.Signed[*protocol.Answer]{}
	p.mu.Unlock()
	p.Changed()
}

// Leave ends bidding and the taking of awards for the rest of this life, whatever
// the state is set to: what is under way when it returns is all there will be.
func (p *Provider) Leave() {
	p.mu.Lock()
	p.leaving = true
	p.said = map[protocol.MsgID]protocol.Signed[*protocol.Answer]{}
	p.mu.Unlock()
	p.awards.Lock() // one that was judged before is among the runs now
	defer p.awards.Unlock()
	p.Changed()
}

// tellTime is how long a shutdown waits for renters to hear of it.
const tellTime = 3 * time.Second

// StopAll leaves the market and ends every lease's work, for a shutdown that is
// to leave nothing running. The renters are told that it was the provider's
// doing.
func (p *Provider) StopAll(ctx context.Context, grace time.Duration) error {
	p.Leave()
	select {
	case <-p.up:
	case <-ctx.Done():
		return fmt.Errorf("the leases of the last run are still being looked for: %w", ctx.Err())
	}
	p.mu.Lock()
	var runs []*execution
	for _, e := range p.runs {
		runs = append(runs, e)
	}
	p.mu.Unlock()
	var errs []error
	for _, e := range runs {
		e.giveUp("the provider shut down", grace)
	}
	for _, e := range runs {
		select {
		case <-e.worked:
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("lease %s is still being stopped: %w", e.lease.ID().Short(), ctx.Err()))
		}
	}
	told, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	for _, e := range runs {
		select {
		case <-e.booked:
		case <-told.Done(): // the next start tells them
		}
	}
	return errors.Join(errs...)
}

// Leases are the contracts under way.
func (p *Provider) Leases() []Contract {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Contract, 0, len(p.runs))
	for _, e := range p.runs {
		out = append(out, e.contract())
	}
	return out
}

func (p *Provider) running(id protocol.MsgID) *execution {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.runs[id]
}
