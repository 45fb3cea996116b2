package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/pbnjay/memory"
	"golang.org/x/sync/errgroup"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// providerRole is the provider's side of a node: the market's provider, its
// capacity record and its ears in the gossip.
type providerRole struct {
	*job.Provider
	n       *Node
	sandbox string // what runs containers, or why nothing can
	changed chan struct{}

	// watch is gpu.Watch.
	watch    func(ctx context.Context, o gpu.WatchOptions, changed, seen func([]gpu.GPU)) error
	measured cardMetrics
	sealer   sealer

	mu  sync.Mutex
	seq uint64 // of the last capacity record
}

// Settings that outlive a restart.
const (
	settingPrices = "provider.prices"
	settingState  = "provider.state"
)

func (n *Node) newProvider(ctx context.Context) (*providerRole, error) {
	role := &providerRole{n: n, changed: make(chan struct{}, 1), watch: gpu.Watch}
	capacity, err := n.capacity()
	if err != nil {
		return nil, err
	}
	prices, err := n.prices(ctx)
	if err != nil {
		return nil, err
	}
	cfg := job.ProviderConfig{
		Signer: n.signer, Keys: n.keys, Store: n.db, Net: market{n.host}, Content: providerContent{n}, Dir: filepath.Join(n.cfg.Home, "jobs"),
		Pass: func(_ context.Context, cards, capabilities []string) (gpu.Passage, error) {
			return gpu.Pass(cards, capabilities)
		},
		Prices: prices, State: n.providerState(ctx),
		Platform: "linux/" + runtime.GOARCH, Changed: role.nudge, FetchRate: n.link.rate, Now: n.now, Log: n.log,
	}
	if cfg.Caches, err = n.openCaches(); err != nil {
		return nil, err
	}
	cfg.Sandbox, role.sandbox, cfg.Limits = n.openSandbox(ctx)
	if rt, ok := cfg.Sandbox.(containers); ok {
		if p, err := rt.Portability(ctx); err != nil {
			n.log.Warn("this provider can save no container's state", "why", err)
		} else {
			cfg.Portability = &p
		}
	}
	if cfg.Sandbox == nil {
		n.log.Warn("this provider can run nothing", "why", role.sandbox)
	}
	if c, ok := cfg.Sandbox.(containers); ok {
		role.sealer.drivers = c.Drivers
	}
	capacity.GPUs = role.sealer.seal(ctx, capacity.GPUs, n.log)
	cfg.Pool = job.NewPool(capacity)
	cfg.AllowNet = n.allowNet
	role.Provider = job.NewProvider(cfg)
	role.measured.set(capacity.GPUs)
	return role, nil
}

// openSandbox is the sandbox with what it is, or nil with why there is none, and
// how far it holds limits.
func (n *Node) openSandbox(ctx context.Context) (job.Sandbox, string, job.HeldLimits) {
	var none job.HeldLimits
	rt, err := sandbox.New(sandbox.Options{
		Dir: filepath.Join(n.cfg.Home, "sandbox"), RunscPath: n.cfg.Runsc, OCI: n.cfg.OCI(), Log: n.log, Now: n.now,
	})
	if err != nil {
		return nil, err.Error(), none
	}
	version, err := rt.Describe(ctx)
	if err != nil {
		return nil, err.Error(), none
	}
	if n.allowNet = n.cfg.AllowNet; n.allowNet {
		if err := rt.CanOutbound(ctx); err != nil {
			n.log.Warn("containers get no network, though --allow-net was said", "why", err)
			n.allowNet = false
		}
	}
	if n.cfg.OCI() != "" {
		n.log.Warn("jobs are not run by gVisor", "runtime", version)
	}
	n.arrivals.why = rt.CanArrive(ctx)
	if n.cfg.WholeImages {
		n.arrivals.why = errors.New("this provider is configured to fetch images whole")
	}
	used, err := rt.Arriving()
	if err != nil {
		return nil, err.Error(), none
	}
	n.arrivals.keep(used)
	return containers{rt, n.arrivals}, version, n.heldLimits(rt)
}

// heldLimits is what the market must know of a machine's limits.
func (n *Node) heldLimits(rt *sandbox.Runtime) job.HeldLimits {
	h := job.HeldLimits{OpenFiles: uint32(rt.OpenFiles()), Pids: uint32(rt.Pids())} //nolint:gosec // bounded
	for _, f := range rt.Unheld() {
		n.log.Warn("a limit cannot be held on this machine", "limit", f.Name, "how", f.How, "remedy", f.Remedy, "allowed", n.cfg.AllowUnheld)
		if !n.cfg.AllowUnheld {
			h.Unheld = append(h.Unheld, f.Name)
		}
	}
	return h
}

// capacity is what the configuration and the machine let this node sell.
func (n *Node) capacity() (job.Capacity, error) {
	c := job.Capacity{CPUMillis: n.cfg.CPUMillis, Memory: n.cfg.Memory, Disk: n.cfg.Disk}
	if c.CPUMillis == 0 {
		c.CPUMillis = uint32(runtime.NumCPU()) * 1000
	}
	if c.Memory == 0 {
		c.Memory = memory.TotalMemory() / 4 * 3
	}
	if c.Disk == 0 {
		free, err := freeDisk(n.cfg.Home)
		if err != nil {
			return c, fmt.Errorf("look for room in %s: %w", n.cfg.Home, err)
		}
		c.Disk = free / 2
	}
	if n.cfg.FakeGPU != "" {
		cards, err := gpu.Fake(n.cfg.FakeGPU)
		c.GPUs = cards
		return c, err
	}
	cards, err := gpu.Inventory()
	if err != nil {
		n.log.Info("no GPU is sold", "why", err)
	}
	for i := range cards { // what uses them may be a container of ours; the watch knows
		if cards[i].Trouble.Kind == gpu.KindForeign {
			cards[i].Trouble = gpu.Trouble{}
		}
	}
	c.GPUs = cards
	return c, nil
}

// Prices where nobody has said any, in base units an hour.
const (
	defaultPriceCPU = 10_000  // 0.01
	defaultPriceGPU = 400_000 // 0.40
)

// maxPrice keeps sums over the largest task from overflowing.
const maxPrice = 1_000_000_000_000

// parsePrice reads a price for an hour.
func parsePrice(text string) (uint64, error) {
	a, err := ledger.ParseAmount(job.Asset, text)
	if err != nil {
		return 0, err
	}
	if a.Cmp(ledger.Units(job.Asset, maxPrice)) > 0 {
		return 0, fmt.Errorf("%s an hour is over %s", a, ledger.Units(job.Asset, maxPrice))
	}
	return a.Lo, nil
}

// prices are those that this start was told, else those told last, else the
// defaults. What is told is kept, like that of `provider price`.
func (n *Node) prices(ctx context.Context) (job.Prices, error) {
	p := job.Prices{Asset: job.Asset, CPU: defaultPriceCPU, GPU: defaultPriceGPU}
	if err := n.db.Setting(ctx, settingPrices, &p); err != nil && !errors.Is(err, job.ErrNotFound) {
		return p, err
	}
	told := false
	for _, v := range []struct {
		text string
		to   *uint64
	}{{n.cfg.PriceCPU, &p.CPU}, {n.cfg.PriceGPU, &p.GPU}} {
		if v.text == "" {
			continue
		}
		price, err := parsePrice(v.text)
		if err != nil {
			return p, fmt.Errorf("price: %w", err)
		}
		*v.to, told = price, true
	}
	if !told {
		return p, nil
	}
	return p, n.db.SetSetting(ctx, settingPrices, p)
}

// providerState is what an earlier life was told to be: a pause outlives a
// restart, a drain ended with it.
func (n *Node) providerState(ctx context.Context) string {
	var state string
	if err := n.db.Setting(ctx, settingState, &state); err != nil || state != job.ProviderPaused {
		return job.ProviderOpen
	}
	return state
}

// nudge asks for a new capacity record, soon.
func (r *providerRole) nudge() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// run listens for offers, keeps the adverts fresh and runs the market's side.
func (r *providerRole) run(ctx context.Context) error {
	r.n.host.Advertise(r.record)
	group, ctx := errgroup.WithContext(ctx)
	r.n.arrivals.start(ctx)
	group.Go(func() error { return r.n.arrivals.run(ctx) })
	group.Go(func() error { return r.Run(ctx) })
	group.Go(func() error { return r.watchCards(ctx) })
	group.Go(func() error { return r.listen(ctx) })
	group.Go(func() error { return r.readvertise(ctx) })
	return group.Wait()
}

// answering bounds the offers that are answered at a time.
const answering = 32

// listen answers offers heard by gossip.
func (r *providerRole) listen(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(answering)
	err := r.n.host.Offers().Subscribe(ctx, r.classes(), func(ctx context.Context, offer protocol.Signed[*protocol.Offer]) {
		group.TryGo(func() error {
			ctx, cancel := context.WithTimeout(ctx, routeAnswer.Timeout)
			defer cancel()
			if err := r.HandleOffer(ctx, offer); err != nil {
				r.n.log.Debug("offer not answered", "peer", offer.From, "err", err)
			}
			return nil
		})
	})
	return errors.Join(err, group.Wait())
}

// readvertiseAfter gathers changes, so that a busy provider does not write the
// DHT full.
const readvertiseAfter = 5 * time.Second

func (r *providerRole) readvertise(ctx context.Context) error {
	if err := r.n.host.WaitBootstrapped(ctx); err != nil && ctx.Err() == nil {
		r.n.log.Info("advertising without a bootstrap node", "err", err)
	}
	for {
		if err := r.n.host.AdvertiseNow(ctx); err != nil && ctx.Err() == nil {
			r.n.log.Info("capacity not advertised yet", "err", err)
		}
		if !sleep(ctx, readvertiseAfter) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// leave withdraws from the market before a shutdown. Nothing is taken on from
// its first moment; work is ended beside the withdrawal, which may be slow.
func (r *providerRole) leave(ctx context.Context, stopJobs bool) error {
	r.Leave()
	var stopped error
	var stopping sync.WaitGroup
	if stopJobs {
		stopping.Go(func() { stopped = r.StopAll(ctx, time.Second) })
	}
	err := r.n.host.Withdraw(ctx)
	stopping.Wait()
	return errors.Join(stopped, err)
}

// capLife is how long a capacity record is good.
const capLife = 25 * time.Minute

// record signs what there is, what is free now and what it costs.
func (r *providerRole) record(now time.Time) (protocol.Signed[*protocol.Capacity], error) {
	total, free, prices := r.Pool.Total(), r.Pool.Free(now, false), r.Pricing()
	c := &protocol.Capacity{
		Seq: r.nextSeq(now), IssuedMs: now.UnixMilli(), ExpiresMs: now.Add(capLife).UnixMilli(),
		CpuMillis: total.CPUMillis, CpuMillisFree: free.CPUMillis, MemoryBytes: total.Memory, MemoryBytesFree: free.Memory,
		DiskBytes: total.Disk, DiskBytesFree: free.Disk, Asset: prices.Asset, CpuPricePerHour: prices.CPU,
		Region: r.n.cfg.Region, Reachability: r.n.reachability(), Agent: "lumbung/" + r.n.cfg.Version,
		Paused: r.State() != job.ProviderOpen, Gpus: gpuRecords(total.GPUs, free.GPUs, prices),
		Addrs: market{r.n.host}.Addrs(),
	}
	if p := r.Portability; p != nil {
		c.Portability = &protocol.Portability{Engine: p.Engine, Cpu: p.CPU}
	}
	if state := r.State(); state != job.ProviderDraining && state != job.ProviderDrained {
		c.Classes = protocol.ClassesOf(c) // none is the mark of a withdrawn record
	}
	return protocol.Sign(r.n.signer, c)
}

// nextSeq grows over restarts, for it follows the clock.
func (r *providerRole) nextSeq(now time.Time) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq = max(r.seq+1, uint64(now.UnixMilli()))
	return r.seq
}

// classes are what is listened for: also those of cards that cannot be let just
// now.
func (r *providerRole) classes() []string {
	total := r.Pool.Total()
	return protocol.ClassesOf(&protocol.Capacity{CpuMillis: total.CPUMillis, Gpus: gpuRecords(r.Pool.Cards(), nil, r.Pricing())})
}

// gpuRecords counts cards of one model together.
func gpuRecords(total, free []gpu.GPU, prices job.Prices) []*protocol.GPU {
	var out []*protocol.GPU
	byModel := map[string]*protocol.GPU{}
	for _, g := range total {
		rec := byModel[g.Model]
		if rec == nil {
			rec = &protocol.GPU{Model: g.Model, VramBytes: g.VRAMBytes, Driver: g.Driver, Cuda: g.CUDA, Compute: g.Compute, Fake: g.Fake, PricePerHour: prices.GPU}
			if price, ok := prices.Models[g.Model]; ok {
				rec.PricePerHour = price
			}
			byModel[g.Model] = rec
			out = append(out, rec)
		}
		rec.Count++
	}
	for _, g := range free {
		if rec := byModel[g.Model]; rec != nil {
			rec.Free++
		}
	}
	return out
}

// handleCapacity serves the live record to whoever asks.
func (n *Node) handleCapacity(_ context.Context, _ protocol.PeerID, _ protocol.Signed[*protocol.CapacityQuery]) (protocol.Signed[*protocol.Capacity], error) {
	return n.provider.record(n.now())
}
