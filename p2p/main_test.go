package p2p

import (
	"bytes"
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"github.com/lumbung-net/lumbung/protocol"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const testNetwork = "test"

func testKey(t testing.TB) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// logTo writes a host's log into the test's, and only while the test runs.
func logTo(t testing.TB) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(func() { w.mu.Lock(); w.t = nil; w.mu.Unlock() })
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type testWriter struct {
	mu sync.Mutex
	t  testing.TB
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Log(string(bytes.TrimSpace(p)))
	}
	return len(p), nil
}

// newHost makes a host on loopback that is closed when the test ends.
func newHost(t testing.TB, change ...func(*Config)) *Host {
	t.Helper()
	cfg := Config{
		Network: testNetwork, Key: testKey(t), Log: logTo(t),
		Listen:      []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"},
		dialBackoff: 20 * time.Millisecond,
	}
	for _, f := range change {
		f(&cfg)
	}
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return h
}

// run runs a host until the test ends, or until stop.
func run(t testing.TB, h *Host) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func via(h *Host) func(*Config) {
	return func(c *Config) { c.Bootstrap = h.FullAddrs() }
}

func limited(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func connect(t testing.TB, a, b *Host) {
	t.Helper()
	if err := a.Connect(limited(t), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

func seal[M protocol.Message](t testing.TB, h *Host, m M) protocol.Signed[M] {
	t.Helper()
	s, err := protocol.Seal(h.Key(), h.Network(), m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pingMsg() *protocol.Ping {
	return &protocol.Ping{Nonce: make([]byte, 16), AtMs: time.Now().UnixMilli()}
}

func testNonce(t testing.TB) []byte {
	t.Helper()
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func offerCount(t testing.TB, h *Host, fate string) float64 {
	t.Helper()
	var m dto.Metric
	if err := h.metrics.offers.WithLabelValues(fate).Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}
