package node

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running is a node of this process with a client to it.
type running struct {
	*Node
	c    *client.Client
	done chan error
}

// start runs a node on loopback until the test ends or stop is called; before it
// runs, prepare may change what it is made of.
func start(t *testing.T, change func(*Config), prepare ...func(*Node)) *running {
	t.Helper()
	cfg := Config{
		Home: t.TempDir(), Network: "test-node", Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Heartbeat: time.Second,
	}
	if change != nil {
		change(&cfg)
	}
	n, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, do := range prepare {
		do(n)
	}
	r := &running{Node: n, done: make(chan error, 1)}
	go func() { r.done <- n.Run(context.WithoutCancel(t.Context())) }()
	if r.c, err = client.New(cfg.Home); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.stop(t))
	return r
}

// stop ends the node by its own API, once.
func (r *running) stop(t *testing.T) func() {
	return func() {
		if r.Node == nil {
			return
		}
		ctx := context.WithoutCancel(t.Context())
		if err := r.c.Shutdown(ctx, true); err != nil {
			t.Errorf("shutdown: %v", err)
			r.shutdown(true)
		}
		if err := errors.Join(<-r.done, r.Close(), r.c.Close()); err != nil {
			t.Errorf("node ended with %v", err)
		}
		r.Node = nil
	}
}

func TestNodesMeetAndEnd(t *testing.T) {
	boot := start(t, func(c *Config) { c.Roles = []string{RoleBootstrap} })
	provider := start(t, func(c *Config) {
		c.Roles, c.Bootstrap, c.FakeGPU = []string{RoleProvider}, boot.Addrs()[:1], "rtx4090:2"
		c.Runsc = "/nonexistent/runsc" // nothing is run here
	})
	renter := start(t, func(c *Config) { c.Bootstrap = boot.Addrs()[:1] })

	if err := renter.host.WaitBootstrapped(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The advert reaches the DHT when the provider has joined: ask until then.
	var offers []client.ProviderOffer
	for ctx := t.Context(); len(offers) == 0 && ctx.Err() == nil; {
		var err error
		if offers, err = renter.c.Offers(ctx, "rtx4090"); err != nil {
			t.Fatal(err)
		}
	}
	if got := offers[0]; got.Peer != provider.PeerID() || len(got.GPUs) != 1 || got.GPUs[0].Count != 2 || !got.GPUs[0].Fake {
		t.Errorf("offers %+v", offers)
	}
	s, err := provider.c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Provider == nil || s.Provider.State != job.ProviderOpen || len(s.Warnings) == 0 {
		t.Errorf("status %+v: want an open provider that warns of its missing sandbox", s)
	}
	// A drained provider is no longer offered.
	if _, err := provider.c.ProviderDrain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if offers, err = renter.c.Offers(t.Context(), "rtx4090"); err != nil || len(offers) > 0 && !offers[0].Paused {
		t.Errorf("after the drain: %+v, %v", offers, err)
	}
}

// A provider that stopped is no longer offered, although its last record is good
// for long and others keep it.
func TestShutdownWithdrawsTheAdvert(t *testing.T) {
	boot := start(t, func(c *Config) { c.Roles = []string{RoleBootstrap} })
	provider := start(t, func(c *Config) {
		c.Roles, c.Bootstrap, c.Runsc = []string{RoleProvider}, boot.Addrs()[:1], "/nonexistent/runsc"
	})
	renter := start(t, func(c *Config) { c.Bootstrap = boot.Addrs()[:1] })
	id := provider.host.ID()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := renter.host.WaitBootstrapped(ctx); err != nil {
		t.Fatal(err)
	}
	// The DHT itself must have the record, for the provider answers to both while
	// it is up: ask until it does.
	for {
		rec, err := renter.host.StoredCapacity(ctx, id)
		if err == nil && len(rec.Msg.GetClasses()) > 0 {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("the advert never reached the DHT: %v", err)
		}
	}
	listed := func() bool {
		t.Helper()
		offers, err := renter.c.Offers(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(offers, func(o client.ProviderOffer) bool { return o.Peer == id.String() })
	}
	if !listed() {
		t.Fatal("a provider that is up is not offered")
	}
	provider.stop(t)()
	if listed() {
		t.Error("a provider that stopped is still offered")
	}
	rec, err := renter.host.StoredCapacity(ctx, id)
	if err != nil || len(rec.Msg.GetClasses()) > 0 {
		t.Errorf("the DHT says %v of the provider that stopped, %v", rec.Msg, err)
	}
}

func TestProviderSettingsOutliveARestart(t *testing.T) {
	home := t.TempDir()
	asProvider := func(c *Config) { c.Home, c.Roles, c.Runsc = home, []string{RoleProvider}, "/nonexistent/runsc" }
	r := start(t, asProvider)
	id := r.PeerID()
	if _, err := r.c.ProviderPrice(t.Context(), client.PriceRequest{CPU: "0.02", By: map[string]string{"h200": "2.5"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.ProviderPause(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.stop(t)()

	again := start(t, asProvider)
	s, err := again.c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again.PeerID() != id || s.Provider.State != job.ProviderPaused || s.Provider.Prices.CPU.Lo != 20_000 || s.Provider.Prices.By["h200"].Lo != 2_500_000 {
		t.Errorf("after the restart: %+v", s.Provider)
	}
	if _, err := again.c.ProviderPrice(t.Context(), client.PriceRequest{CPU: "a lot"}); err == nil {
		t.Error("a price that is no number was taken")
	}
}

func TestOneNodeAHome(t *testing.T) {
	r := start(t, nil)
	_, err := New(t.Context(), Config{Home: r.cfg.Home, Network: "test-node", Listen: r.cfg.Listen}, slog.New(slog.DiscardHandler))
	if err == nil {
		t.Fatal("two nodes in one home")
	}
	if _, err := r.c.ProviderPause(t.Context()); err == nil || !strings.Contains(err.Error(), "no provider") {
		t.Errorf("pause of a renter: %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Home: "/home/someone/lumbung"}.WithDefaults()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"home":      func(c *Config) { c.Home = "relative" },
		"network":   func(c *Config) { c.Network = "No Good" },
		"role":      func(c *Config) { c.Roles = []string{"king"} },
		"listen":    func(c *Config) { c.Listen = []string{"127.0.0.1:4001"} },
		"bootstrap": func(c *Config) { c.Bootstrap = []string{"/ip4/127.0.0.1/tcp/1"} },
		"price":     func(c *Config) { c.PriceCPU = "0.00000001" },
		"heartbeat": func(c *Config) { c.Heartbeat = time.Millisecond },
		"window":    func(c *Config) { c.BidWindow = time.Hour },
		"fake gpu":  func(c *Config) { c.FakeGPU = "rtx4090" },
		"fake name": func(c *Config) { c.Network, c.FakeGPU = "devnet", "voodoo2" },
	} {
		c := good
		spoil(&c)
		if err := c.Validate(); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
