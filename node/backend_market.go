package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/node/api"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/protocol"
)

const (
	maxOffers   = 128 // providers shown
	offersTime  = 10 * time.Second
	capacityAsk = 2 * time.Second
)

// Offers implements api.Backend: providers are found in the DHT alone, then
// asked for their live record.
func (b backend) Offers(ctx context.Context, gpu string) ([]client.ProviderOffer, error) {
	classes := protocol.AllClasses()
	if gpu != "" {
		if _, ok := protocol.FindModel(gpu); !ok {
			return nil, &api.Error{
				Status: http.StatusUnprocessableEntity, Code: "bad_model", Detail: fmt.Sprintf("GPU model %q is not known", gpu),
				Remedy: "give a name such as rtx4090, a100-80 or h100-80; `lumbung offers` shows those on offer",
			}
		}
		classes = []string{protocol.ModelClass(gpu)}
	}
	ctx, cancel := context.WithTimeout(ctx, offersTime)
	defer cancel()
	peers, err := market{b.n.host}.Providers(ctx, classes, maxOffers)
	if err != nil {
		return nil, err
	}
	if b.n.provider != nil {
		peers = slices.DeleteFunc(peers, func(p protocol.PeerID) bool { return p == b.n.host.ID() })
		peers = append(peers, b.n.host.ID())
	}
	var (
		mu    sync.Mutex
		out   = []client.ProviderOffer{}
		group sync.WaitGroup
	)
	for _, p := range peers {
		group.Go(func() {
			o, ok := b.n.offerOf(ctx, p)
			if !ok || gpu != "" && !slices.ContainsFunc(o.GPUs, func(g client.GPUStats) bool { return g.Model == gpu }) {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, o)
		})
	}
	group.Wait()
	slices.SortFunc(out, func(x, y client.ProviderOffer) int {
		if c := x.CPUPrice.Cmp(y.CPUPrice); c != 0 {
			return c
		}
		return compareText(x.Peer, y.Peer)
	})
	return out, nil
}

func compareText(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// offerOf reads a provider's record: live where it answers, else the one in the
// DHT. Withdrawn, lapsed and misplaced fake ones are left out.
func (n *Node) offerOf(ctx context.Context, p protocol.PeerID) (client.ProviderOffer, bool) {
	ctx, cancel := context.WithTimeout(ctx, capacityAsk)
	defer cancel()
	var rec protocol.Signed[*protocol.Capacity]
	var err error
	if n.provider != nil && p == n.host.ID() {
		rec, err = n.provider.record(n.now())
	} else {
		rec, err = n.host.Capacity(ctx, p)
	}
	live := p == n.host.ID() || n.host.Host().Network().Connectedness(p) == network.Connected
	if err != nil || len(rec.Msg.GetClasses()) == 0 || rec.Msg.GetExpiresMs() < n.now().UnixMilli() {
		return client.ProviderOffer{}, false
	}
	if rec.Msg.HasFake() && !protocol.AllowsFake(n.cfg.Network) {
		return client.ProviderOffer{}, false
	}
	c := rec.Msg
	o := client.ProviderOffer{
		Peer: p.String(), CPUMillis: c.GetCpuMillis(), CPUFree: c.GetCpuMillisFree(), Memory: c.GetMemoryBytes(), MemFree: c.GetMemoryBytesFree(),
		CPUPrice: ledger.Units(c.GetAsset(), c.GetCpuPricePerHour()), Region: c.GetRegion(), Reachability: c.GetReachability(),
		Agent: c.GetAgent(), Paused: c.GetPaused(), Expires: time.UnixMilli(c.GetExpiresMs()).UTC(), Live: live,
	}
	for _, g := range c.GetGpus() {
		o.GPUs = append(o.GPUs, client.GPUStats{
			Model: g.GetModel(), Count: int(g.GetCount()), Free: int(g.GetFree()), VRAM: g.GetVramBytes(), Fake: g.GetFake(),
			Price: ledger.Units(c.GetAsset(), g.GetPricePerHour()),
		})
	}
	return o, true
}

// providerStats is the provider at a glance.
func (n *Node) providerStats(earned ledger.Amount) client.ProviderStats {
	r := n.provider
	total, free, prices := r.Pool.Total(), r.Pool.Free(n.now(), false), r.Pricing()
	s := client.ProviderStats{
		State: r.State(), CPUMillis: total.CPUMillis, CPUFree: free.CPUMillis, Memory: total.Memory, MemFree: free.Memory,
		Disk: total.Disk, DiskFree: free.Disk, Prices: pricesOf(prices), Leases: len(r.Leases()), Earned: earned, Sandbox: r.sandbox,
	}
	for _, g := range gpuRecords(total.GPUs, free.GPUs, prices) {
		s.GPUs = append(s.GPUs, client.GPUStats{
			Model: g.GetModel(), Count: int(g.GetCount()), Free: int(g.GetFree()), VRAM: g.GetVramBytes(), Fake: g.GetFake(),
			Price: ledger.Units(prices.Asset, g.GetPricePerHour()),
		})
	}
	return s
}

func pricesOf(p job.Prices) client.Prices {
	out := client.Prices{CPU: ledger.Units(p.Asset, p.CPU), GPU: ledger.Units(p.Asset, p.GPU)}
	for model, price := range p.Models {
		if out.By == nil {
			out.By = map[string]client.Amount{}
		}
		out.By[model] = ledger.Units(p.Asset, price)
	}
	return out
}

// changeProvider carries a provider's command out, remembers it and tells of it.
func (b backend) changeProvider(ctx context.Context, state string, do func()) (client.ProviderStats, error) {
	if b.n.provider == nil {
		return client.ProviderStats{}, notProvider()
	}
	if err := b.n.db.SetSetting(ctx, settingState, state); err != nil {
		return client.ProviderStats{}, err
	}
	do()
	err := b.n.db.Update(ctx, func(tx job.Tx) error {
		return tx.Emit(job.Event{Time: b.n.now(), Type: job.EventProvider, Peer: b.n.host.ID().String(), State: state})
	})
	_, earned, terr := b.n.db.Turnover(ctx)
	return b.n.providerStats(earned), errors.Join(err, terr)
}

// ProviderPause implements api.Backend.
func (b backend) ProviderPause(ctx context.Context) (client.ProviderStats, error) {
	return b.changeProvider(ctx, job.ProviderPaused, func() { b.n.provider.Pause() })
}

// ProviderResume implements api.Backend.
func (b backend) ProviderResume(ctx context.Context) (client.ProviderStats, error) {
	return b.changeProvider(ctx, job.ProviderOpen, func() {
		b.n.provider.Resume()
		b.n.host.Advertise(b.n.provider.record) // a drain has withdrawn the adverts
	})
}

// ProviderDrain implements api.Backend: no more bids, the advert is withdrawn,
// and the answer comes when the last lease is over.
func (b backend) ProviderDrain(ctx context.Context) (client.ProviderStats, error) {
	var drained <-chan struct{}
	stats, err := b.changeProvider(ctx, job.ProviderDraining, func() { drained = b.n.provider.Drain() })
	if err != nil {
		return stats, err
	}
	if err := b.n.host.Withdraw(ctx); err != nil {
		b.n.log.Warn("withdraw the adverts", "err", err)
	}
	select {
	case <-drained:
	case <-ctx.Done():
		return stats, ctx.Err()
	}
	return b.n.providerStats(stats.Earned), nil
}

// ProviderPrice implements api.Backend.
func (b backend) ProviderPrice(ctx context.Context, r client.PriceRequest) (client.Prices, error) {
	if b.n.provider == nil {
		return client.Prices{}, notProvider()
	}
	p := b.n.provider.Pricing()
	p.Models = maps.Clone(p.Models)
	set := func(text string, to func(uint64)) error {
		if text == "" {
			return nil
		}
		price, err := parsePrice(text)
		if err != nil {
			return &api.Error{
				Status: http.StatusUnprocessableEntity, Code: "bad_price", Detail: fmt.Sprintf("price %q: %v", text, err),
				Remedy: "give a price per hour such as 0.40",
			}
		}
		to(price)
		return nil
	}
	err := errors.Join(set(r.CPU, func(n uint64) { p.CPU = n }), set(r.GPU, func(n uint64) { p.GPU = n }))
	for model, text := range r.By {
		if _, ok := protocol.FindModel(model); !ok {
			return client.Prices{}, &api.Error{
				Status: http.StatusUnprocessableEntity, Code: "bad_model", Detail: fmt.Sprintf("GPU model %q is not known", model),
				Remedy: "give a name such as rtx4090, a100-80 or h100-80",
			}
		}
		err = errors.Join(err, set(text, func(n uint64) {
			if p.Models == nil {
				p.Models = map[string]uint64{}
			}
			p.Models[model] = n
		}))
	}
	if err != nil {
		return client.Prices{}, err
	}
	if err := b.n.db.SetSetting(ctx, settingPrices, p); err != nil {
		return client.Prices{}, err
	}
	b.n.provider.SetPrices(p)
	return pricesOf(p), nil
}

// Contracts implements api.Backend.
func (b backend) Contracts(ctx context.Context) ([]client.Contract, error) {
	out := []client.Contract{}
	err := b.n.db.View(ctx, func(tx job.Tx) error {
		list, err := tx.Contracts(job.ContractFilter{Side: job.SideProvider, Limit: 1000})
		for _, c := range list {
			out = append(out, *c)
		}
		return err
	})
	return out, err
}

// creditTrust says what stands behind a balance of the credit rail.
const creditTrust = "owed on the word of the peer alone; nothing enforces it"

// Wallet implements api.Backend.
func (b backend) Wallet(ctx context.Context) (client.Wallet, error) {
	s, err := b.n.statement(ctx, time.Time{})
	return client.Wallet{PeerID: b.n.host.ID().String(), Balances: s.ByPeer}, err
}

// Statement implements api.Backend.
func (b backend) Statement(ctx context.Context, since time.Time) (client.Statement, error) {
	return b.n.statement(ctx, since)
}
