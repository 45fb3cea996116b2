package p2p

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"golang.org/x/sync/errgroup"

	"github.com/lumbung-net/lumbung/protocol"
)

// capacity makes a provider's record; seq tells its records apart.
func capacity(h *Host, seq uint64, classes ...string) CapacitySource {
	return func(now time.Time) (protocol.Signed[*protocol.Capacity], error) {
		return protocol.Seal(h.Key(), h.Network(), &protocol.Capacity{
			Seq: seq, IssuedMs: now.UnixMilli(), ExpiresMs: now.Add(20 * time.Minute).UnixMilli(),
			Classes: classes, CpuMillis: 4000, CpuMillisFree: 1000, Asset: "test", Agent: "lumbung/test",
		})
	}
}

func bootstrapNode(t testing.TB) *Host {
	t.Helper()
	h := newHost(t, func(c *Config) { c.RelayService = true })
	if err := h.Offers().RelayAll(); err != nil {
		t.Fatal(err)
	}
	run(t, h)
	return h
}

// nodes makes running hosts that know one bootstrap node.
func nodes(t testing.TB, boot *Host, n int) []*Host {
	t.Helper()
	hosts := make([]*Host, n)
	for i := range hosts {
		hosts[i] = newHost(t, via(boot))
		run(t, hosts[i])
	}
	for _, h := range hosts {
		if err := h.WaitBootstrapped(limited(t)); err != nil {
			t.Fatal(err)
		}
	}
	return hosts
}

func TestTwelveNodesFindEachOtherThroughTheDHT(t *testing.T) {
	hosts := nodes(t, bootstrapNode(t), 12)
	ctx := limited(t)
	var g errgroup.Group
	for i, h := range hosts[1:] {
		classes := []string{protocol.ClassCPU}
		if i%2 == 0 {
			classes = append(classes, protocol.ModelClass("rtx4090"))
		}
		h.Advertise(capacity(h, 1, classes...))
		g.Go(func() error { return h.AdvertiseNow(ctx) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	find := func(class string) (found []peer.ID) {
		for p := range hosts[0].FindProviders(ctx, class, 0) {
			found = append(found, p.ID)
		}
		return found
	}
	if got := find(protocol.ClassCPU); len(got) != 11 {
		t.Errorf("%d providers of class cpu, want 11", len(got))
	}
	cards := find(protocol.ModelClass("rtx4090"))
	if len(cards) != 6 {
		t.Errorf("%d providers with an rtx4090, want 6", len(cards))
	}
	for _, h := range hosts[1:] {
		// Nobody serves the capacity route here: the DHT alone answers.
		rec, err := hosts[0].Capacity(ctx, h.ID())
		if err != nil {
			t.Fatal(err)
		}
		if rec.From != h.ID() || rec.Msg.GetCpuMillis() != 4000 {
			t.Errorf("record of %s: from %s, %v", h.ID(), rec.From, rec.Msg)
		}
	}
	for range hosts[0].FindProviders(ctx, protocol.ClassCPU, 0) {
		break // must not hang
	}
	if got := slices.Collect(hosts[0].FindProviders(ctx, "gpu/nvidia/none", 0)); len(got) != 0 {
		t.Errorf("an unknown class has providers: %v", got)
	}
}

func TestWithdrawnProvidersAreSeenAsSuch(t *testing.T) {
	hosts := nodes(t, bootstrapNode(t), 4)
	ctx := limited(t)
	p := hosts[1]
	p.Advertise(capacity(p, 7, protocol.ClassCPU))
	if err := p.AdvertiseNow(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.Withdraw(ctx); err != nil {
		t.Fatal(err)
	}
	rec, err := hosts[2].StoredCapacity(ctx, p.ID())
	if err != nil {
		t.Fatal(err)
	}
	if !rec.Msg.GetPaused() || len(rec.Msg.GetClasses()) != 0 || rec.Msg.GetSeq() != 8 {
		t.Errorf("after the withdrawal the DHT has %v", rec.Msg)
	}
	// A withdrawn provider does not come back by itself, and does when told.
	if err := p.AdvertiseNow(ctx); err != nil {
		t.Fatal(err)
	}
	p.Advertise(capacity(p, 9, protocol.ClassCPU))
	if err := p.AdvertiseNow(ctx); err != nil {
		t.Fatal(err)
	}
	rec, err = hosts[2].StoredCapacity(ctx, p.ID())
	if err != nil || rec.Msg.GetSeq() != 9 {
		t.Errorf("after advertising again: %v, %v", rec.Msg, err)
	}
}

func TestLiveCapacityComesFirst(t *testing.T) {
	hosts := nodes(t, bootstrapNode(t), 2)
	ctx := limited(t)
	p := hosts[1]
	p.Advertise(capacity(p, 1, protocol.ClassCPU))
	if err := p.AdvertiseNow(ctx); err != nil {
		t.Fatal(err)
	}
	if err := Serve(p, CapacityRoute(), func(context.Context, peer.ID, protocol.Signed[*protocol.CapacityQuery]) (protocol.Signed[*protocol.Capacity], error) {
		return capacity(p, 2, protocol.ClassCPU)(time.Now())
	}); err != nil {
		t.Fatal(err)
	}
	rec, err := hosts[0].Capacity(ctx, p.ID())
	if err != nil || rec.Msg.GetSeq() != 2 {
		t.Errorf("got %v, %v; want the live record", rec.Msg, err)
	}
}

func TestCapacityValidator(t *testing.T) {
	key, other := testKey(t), testKey(t)
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	record := func(change func(*protocol.Capacity)) []byte {
		m := &protocol.Capacity{Seq: 1, IssuedMs: now.UnixMilli(), ExpiresMs: now.Add(time.Minute).UnixMilli(), Asset: "test"}
		if change != nil {
			change(m)
		}
		s, err := protocol.Seal(key, "main", m)
		if err != nil {
			t.Fatal(err)
		}
		return s.Raw
	}
	foreign, err := protocol.Seal(other, "main", &protocol.Capacity{IssuedMs: now.UnixMilli(), ExpiresMs: now.Add(time.Minute).UnixMilli(), Asset: "test"})
	if err != nil {
		t.Fatal(err)
	}
	fake := func(m *protocol.Capacity) {
		m.Gpus = []*protocol.GPU{{Model: "rtx4090", Count: 1, Fake: true}}
	}
	v := &capacityValidator{network: "main", now: func() time.Time { return now }}
	later := &capacityValidator{network: "main", now: func() time.Time { return now.Add(time.Hour) }}
	for name, c := range map[string]struct {
		v     *capacityValidator
		key   string
		value []byte
		ok    bool
	}{
		"good":              {v, capacityKey(id), record(nil), true},
		"of another peer":   {v, capacityKey(id), foreign.Raw, false},
		"expired":           {later, capacityKey(id), record(nil), false},
		"fake on main":      {v, capacityKey(id), record(fake), false},
		"another network":   {&capacityValidator{network: "other", now: v.now}, capacityKey(id), record(nil), false},
		"garbage":           {v, capacityKey(id), []byte("garbage"), false},
		"no peer in key":    {v, "/lumbung/cap/x", record(nil), false},
		"no prefix in key":  {v, "/lumbung/" + id.String(), record(nil), false},
		"key of other form": {v, "/lumbung/cap/" + peer.ToCid(id).String(), record(nil), false},
	} {
		if err := c.v.Validate(c.key, c.value); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	second := record(func(m *protocol.Capacity) { m.Seq = 2 })
	if i, err := v.Select(capacityKey(id), [][]byte{record(nil), []byte("x"), second, foreign.Raw}); err != nil || i != 2 {
		t.Errorf("selected %d, %v; want the highest sequence number", i, err)
	}
	if _, err := v.Select(capacityKey(id), [][]byte{[]byte("x")}); err == nil {
		t.Error("selected one of no valid records")
	}
}

func TestNetworksDoNotMix(t *testing.T) {
	a := newHost(t)
	b := newHost(t, func(c *Config) { c.Network = "test-two" })
	err := a.Connect(limited(t), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()})
	_, pingErr := call(t, a, b, pingRoute)
	if err == nil && pingErr == nil {
		t.Error("two networks talk to each other")
	}
	eventually(t, "both let go", func() bool { return len(a.Peers()) == 0 && len(b.Peers()) == 0 })
}

// eventually looks again whenever the scheduler gives a chance, for conditions
// that libp2p has no event for.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	ctx := limited(t)
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("did not come about: %s", what)
		case <-tick.C:
		}
	}
}

func TestRememberedPeersOutliveTheBootstrapNode(t *testing.T) {
	boot := newHost(t, func(c *Config) { c.RelayService = true })
	stopBoot := run(t, boot)
	file := filepath.Join(t.TempDir(), "peers.json")
	friend := newHost(t, via(boot))
	run(t, friend)
	key := testKey(t)
	a := newHost(t, via(boot), func(c *Config) { c.PeersFile, c.Key = file, key })
	stop := run(t, a)
	for _, h := range []*Host{friend, a} {
		if err := h.WaitBootstrapped(limited(t)); err != nil {
			t.Fatal(err)
		}
	}
	connect(t, a, friend)
	stop()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	stopBoot()
	if err := boot.Close(); err != nil {
		t.Fatal(err)
	}
	again := newHost(t, via(boot), func(c *Config) { c.PeersFile, c.Key = file, key })
	run(t, again)
	if err := again.WaitBootstrapped(limited(t)); err != nil {
		t.Fatal(err)
	}
	if peers := again.Peers(); len(peers) != 1 || peers[0].ID != friend.ID() {
		t.Errorf("connected to %v, want the friend", peers)
	}
}

func TestReconnectsToTheBootstrapNode(t *testing.T) {
	boot := bootstrapNode(t)
	h := nodes(t, boot, 1)[0]
	if err := h.Host().Network().ClosePeer(boot.ID()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "connected again", func() bool { return len(h.Peers()) == 1 })
}

func TestBook(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "peers.json")
	h := newHost(t)
	b := newBook(path)
	if err := b.load(); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	var infos []peer.AddrInfo
	for range bookSize + 10 {
		id, err := peer.IDFromPrivateKey(testKey(t))
		if err != nil {
			t.Fatal(err)
		}
		infos = append(infos, peer.AddrInfo{ID: id, Addrs: h.Addrs()})
	}
	b.note(infos[:10], now.Add(-time.Hour))
	b.note(infos[10:], now)
	if err := b.save(); err != nil {
		t.Fatal(err)
	}
	read := newBook(path)
	if err := read.load(); err != nil {
		t.Fatal(err)
	}
	got := read.recent(2 * bookSize)
	if len(got) != bookSize {
		t.Fatalf("%d peers remembered, want %d", len(got), bookSize)
	}
	for _, p := range got {
		if slices.ContainsFunc(infos[:10], func(i peer.AddrInfo) bool { return i.ID == p.ID }) {
			t.Error("an old peer was kept instead of a new one")
		}
	}
	read.note(nil, now.Add(2*bookAge))
	if len(read.recent(1)) != 0 {
		t.Error("peers unseen for two months are remembered")
	}
	if err := os.WriteFile(path, []byte("{broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := newBook(path)
	if err := broken.load(); err == nil {
		t.Error("a damaged file was read")
	}
	if err := broken.save(); err != nil {
		t.Error(err)
	}
	if err := newBook(path).load(); err != nil {
		t.Errorf("after saving over the damaged file: %v", err)
	}
}

func FuzzParseBook(f *testing.F) {
	f.Add([]byte(`{"version":1,"peers":[{"id":"12D3KooWAuXCGxBuwBKorfveZtB8AZ7oMjb6AjDhxVcAQFYEBkPc","addrs":["/ip4/127.0.0.1/tcp/1"],"seen":"2026-01-01T00:00:00Z"}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		peers, err := parseBook(raw)
		if err == nil && len(peers) > bookSize {
			t.Errorf("%d peers", len(peers))
		}
	})
}

func TestPingAndNetcheck(t *testing.T) {
	boot := bootstrapNode(t)
	h := nodes(t, boot, 1)[0]
	rtt, way, err := h.Ping(limited(t), boot.ID())
	if err != nil || rtt <= 0 || way != "direct tcp" {
		t.Errorf("ping: %s by %q, %v", rtt, way, err)
	}
	r := h.Netcheck(limited(t))
	if r.Reachability != "local" || r.DHTMode != "server" || r.DHTPeers != 1 || r.TCP != "works" || r.UDP != "works" || len(r.Problems) != 0 {
		t.Errorf("netcheck: %+v", r)
	}
	gone := newHost(t)
	addrs := gone.FullAddrs()
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	alone := newHost(t, func(c *Config) { c.Bootstrap = addrs })
	run(t, alone)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r = alone.Netcheck(ctx)
	if len(r.Problems) != 2 || !strings.Contains(r.Problems[0].What, "bootstrap") || r.Problems[0].Remedy == "" {
		t.Errorf("problems of a lonely node: %+v", r.Problems)
	}
	if r.TCP != "blocked" || r.Bootstrap[0].Error == "" {
		t.Errorf("a bootstrap node that is gone: %+v", r)
	}
	short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if err := alone.WaitBootstrapped(short); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "netcheck") {
		t.Errorf("waiting for a network that is gone: %v", err)
	}
}

func TestRelayedCalls(t *testing.T) {
	boot := bootstrapNode(t)
	relayOnly := func(c *Config) {
		c.vetoDial = func(p peer.ID, a multiaddr.Multiaddr) bool { return p != boot.ID() && !isRelayed(a) }
	}
	hidden, caller := newHost(t, relayOnly), newHost(t, relayOnly)
	connect(t, hidden, boot)
	reserve(t, hidden, boot)
	serve(t, hidden, Route{Name: "relayed", Timeout: 10 * time.Second, Relayed: true}, echo(hidden))
	serve(t, hidden, Route{Name: "direct", Timeout: 10 * time.Second}, echo(hidden))
	throughRelay(t, caller, boot, hidden)
	if _, err := call(t, caller, hidden, Route{Name: "relayed", Timeout: 10 * time.Second, Relayed: true}); err != nil {
		t.Errorf("over the relay: %v", err)
	}
	if got := caller.via(hidden.ID()); got != "relayed tcp" {
		t.Errorf("went by %q", got)
	}
	// The caller is willing, the server is not.
	if _, err := call(t, caller, hidden, Route{Name: "direct", Timeout: 10 * time.Second, Relayed: true}); !errors.Is(err, protocol.ErrElsewhere) {
		t.Errorf("a route that takes no relayed streams: %v", err)
	}
}

// collect gathers the ids of offers that a host receives.
type collect struct {
	mu  sync.Mutex
	ids []protocol.MsgID
	add chan struct{}
}

func subscribe(t testing.TB, h *Host, classes ...string) *collect {
	t.Helper()
	c := &collect{add: make(chan struct{}, 4096)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- h.Offers().Subscribe(ctx, classes, func(_ context.Context, o protocol.Signed[*protocol.Offer]) {
			c.mu.Lock()
			c.ids = append(c.ids, o.ID())
			c.mu.Unlock()
			c.add <- struct{}{}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("subscribe: %v", err)
		}
	})
	return c
}

func (c *collect) got() []protocol.MsgID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.ids)
}

func (c *collect) wait(t testing.TB, n int) {
	t.Helper()
	ctx := limited(t)
	for range n {
		select {
		case <-c.add:
		case <-ctx.Done():
			t.Fatalf("got %d offers, want %d", len(c.got()), n)
		}
	}
}
