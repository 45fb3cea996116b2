package p2p

import (
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"
)

func addr(t testing.TB, s string) multiaddr.Multiaddr {
	t.Helper()
	a, err := multiaddr.NewMultiaddr(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestGaterDialsOwnNetworksOnly(t *testing.T) {
	home := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("192.168.7.4/24"), netip.MustParsePrefix("fd00:7::4/64")}
	server := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("203.0.114.9/24")}
	relay := "/ip4/203.0.114.9/tcp/1/p2p/12D3KooWAuXCGxBuwBKorfveZtB8AZ7oMjb6AjDhxVcAQFYEBkPc/p2p-circuit"
	for _, c := range []struct {
		name     string
		lans     []netip.Prefix
		loopback bool
		addr     string
		want     bool
	}{
		{"public", home, false, "/ip4/8.8.8.8/tcp/1", true},
		{"public v6", home, false, "/ip6/2a00:1450::1/udp/1/quic-v1", true},
		{"own LAN", home, false, "/ip4/192.168.7.99/tcp/1", true},
		{"own LAN, v6", home, false, "/ip6/fd00:7::99/tcp/1", true},
		{"another LAN", home, false, "/ip4/192.168.8.99/tcp/1", false},
		{"another private range", home, false, "/ip4/10.1.2.3/udp/1/quic-v1", false},
		{"another LAN, v6", home, false, "/ip6/fd00:8::99/tcp/1", false},
		{"carrier NAT", home, false, "/ip4/100.64.1.1/tcp/1", false},
		{"link-local", home, false, "/ip4/169.254.1.1/tcp/1", false},
		{"unspecified", home, false, "/ip4/0.0.0.0/tcp/1", false},
		{"loopback at home", home, false, "/ip4/127.0.0.1/tcp/1", true},
		{"loopback on a public server", server, false, "/ip4/127.0.0.1/tcp/1", false},
		{"loopback on a server that listens there", server, true, "/ip4/127.0.0.1/tcp/1", true},
		{"private from a server", server, true, "/ip4/192.168.7.99/tcp/1", false},
		{"mapped private", server, false, "/ip6/::ffff:10.1.2.3/tcp/1", false},
		{"over a public relay", home, false, relay, true},
		{"over a relay of another LAN", home, false, strings.Replace(relay, "203.0.114.9", "10.9.9.9", 1), false},
		{"a name", home, false, "/dns4/example.org/tcp/1", true},
	} {
		g := &gater{now: time.Now, loopback: c.loopback, ifaces: func() ([]netip.Prefix, error) { return c.lans, nil }}
		if got := g.dialable(addr(t, c.addr)); got != c.want {
			t.Errorf("%s: %s dialable is %v, want %v", c.name, c.addr, got, c.want)
		}
	}
	g := &gater{now: time.Now, trusted: []netip.Addr{netip.MustParseAddr("10.1.2.3")}, ifaces: func() ([]netip.Prefix, error) { return home, nil }}
	if !g.dialable(addr(t, "/ip4/10.1.2.3/tcp/1")) {
		t.Error("a configured bootstrap node is not dialled")
	}
}

func TestDialsTCPFirst(t *testing.T) {
	relay := addr(t, "/ip4/8.8.8.8/tcp/1/p2p/12D3KooWAuXCGxBuwBKorfveZtB8AZ7oMjb6AjDhxVcAQFYEBkPc/p2p-circuit")
	quic, tcp4, tcp6 := addr(t, "/ip4/8.8.8.8/udp/1/quic-v1"), addr(t, "/ip4/8.8.8.8/tcp/1"), addr(t, "/ip6/2a00::1/tcp/1")
	got := rankDials([]multiaddr.Multiaddr{relay, quic, tcp4, tcp6})
	var order []string
	for _, d := range got {
		order = append(order, d.Addr.String())
	}
	if want := []string{tcp6.String(), tcp4.String(), quic.String(), relay.String()}; !slices.Equal(order, want) {
		t.Errorf("dialled in the order %v, want %v", order, want)
	}
	if got[0].Delay != 0 || got[2].Delay != stagger || got[3].Delay != 2*stagger {
		t.Errorf("delays: %v", got)
	}
	if only := rankDials([]multiaddr.Multiaddr{relay}); only[0].Delay != 0 {
		t.Errorf("the only way waits %s", only[0].Delay)
	}
}

func TestKeyIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "home", "key")
	first, err := LoadOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := LoadOrCreateKey(path)
	if err != nil || !first.Equals(second) {
		t.Errorf("another key the second time: %v", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %04o, want 0600", info.Mode().Perm())
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".key*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateKey(path); runtime.GOOS != "windows" && (err == nil || !strings.Contains(err.Error(), "chmod 600")) {
		t.Errorf("a key that others can read: %v", err)
	}
	broken := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(broken, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateKey(broken); err == nil {
		t.Error("a damaged key was taken, or written over")
	}
}

func TestKeyMadeByManyIsOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	keys := make([]crypto.PrivKey, 16)
	var g sync.WaitGroup
	for i := range keys {
		g.Go(func() {
			var err error
			if keys[i], err = LoadOrCreateKey(path); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	for _, k := range keys[1:] {
		if k == nil || !k.Equals(keys[0]) {
			t.Fatal("two processes got different keys")
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"network":        func(c *Config) { c.Network = "No Good" },
		"no key":         func(c *Config) { c.Key = nil },
		"listen":         func(c *Config) { c.Listen = []string{"localhost:1"} },
		"announce":       func(c *Config) { c.Announce = []string{"1.2.3.4"} },
		"bootstrap":      func(c *Config) { c.Bootstrap = []string{"/ip4/1.2.3.4/tcp/1"} },
		"connections":    func(c *Config) { c.MaxConns = 3 },
		"port in use":    func(c *Config) { c.Listen = []string{newHost(t).Addrs()[0].String()} },
		"same registry":  func(c *Config) { c.Registerer = taken(t) },
		"address of any": func(c *Config) { c.Listen = []string{"/ip4/192.0.2.77/tcp/0"} },
	} {
		cfg := Config{Network: testNetwork, Key: testKey(t), Listen: []string{"/ip4/127.0.0.1/tcp/0"}}
		change(&cfg)
		if h, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
			_ = h.Close()
		}
	}
}

// taken is a registry that serves a host already.
func taken(t *testing.T) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	newHost(t, func(c *Config) { c.Registerer = reg })
	return reg
}

func TestMetricsAreGathered(t *testing.T) {
	reg := prometheus.NewRegistry()
	h := newHost(t, func(c *Config) { c.Registerer = reg })
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	for _, want := range []string{"lumbung_p2p_peers", "libp2p_rcmgr_fds"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s among %v", want, names)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	// The registry is free again.
	newHost(t, func(c *Config) { c.Registerer = reg })
}

func TestManyPeersOfOneAddress(t *testing.T) {
	// Only TCP is there to dial: on a busy machine QUIC may win the race.
	overTCP := func(c *Config) { c.Listen = []string{"/ip4/127.0.0.1/tcp/0"} }
	h := newHost(t, overTCP)
	for range 24 { // libp2p's own limit is eight
		connect(t, newHost(t, overTCP), h)
	}
	if got := len(h.Peers()); got != 24 {
		t.Errorf("%d peers connected, want 24", got)
	}
	for _, p := range h.Peers() {
		if p.Direction != "inbound" || p.Transport != "tcp" || p.Relayed || len(p.Addrs) == 0 {
			t.Errorf("peer: %+v", p)
		}
	}
}

// TestBucketsAreBounded also checks the promise of a bucket: never more than
// its burst and its rate over time.
func TestBucketsAreBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Rate{PerSecond: rapid.Float64Range(0.1, 50).Draw(t, "rate"), Burst: rapid.IntRange(1, 20).Draw(t, "burst")}
		b, err := newBuckets[int](r, 4)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Unix(1_700_000_000, 0)
		now, allowed := start, 0
		for range rapid.IntRange(1, 200).Draw(t, "events") {
			now = now.Add(time.Duration(rapid.IntRange(0, 1000).Draw(t, "ms")) * time.Millisecond)
			if b.allow(1, now) {
				allowed++
			}
			b.allow(rapid.IntRange(2, 4).Draw(t, "other"), now)
		}
		if limit := float64(r.Burst) + r.PerSecond*now.Sub(start).Seconds() + 0.001; float64(allowed) > limit {
			t.Fatalf("%d events, over %g", allowed, limit)
		}
		for k := range 100 {
			b.allow(k, now)
		}
		if b.m.Len() > 4 {
			t.Fatalf("%d keys remembered, over 4", b.m.Len())
		}
	})
}

// TestPinnedVersions guards the set of versions that is known to build and to
// work together; change it on purpose, not by an upgrade of something else.
func TestPinnedVersions(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"github.com/libp2p/go-libp2p v0.51.0", "github.com/libp2p/go-libp2p-kad-dht v0.42.2",
		"github.com/libp2p/go-libp2p-pubsub v0.19.0", "github.com/ipfs/boxo v0.43.0", "github.com/ipfs/go-cid v0.6.2",
		"github.com/multiformats/go-multiaddr v0.16.1", "github.com/quic-go/quic-go v0.64.1",
	} {
		found := false
		for line := range strings.Lines(string(raw)) {
			line, _, _ = strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "require "), " //")
			found = found || strings.TrimSpace(line) == want
		}
		if !found {
			t.Errorf("go.mod does not require %s", want)
		}
	}
}
