package api

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/lumbung-net/lumbung/node/client"
)

type jsonRaw = json.RawMessage

var update = flag.Bool("update", false, "rewrite the committed OpenAPI document")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func noMetrics() prometheus.Gatherer { return prometheus.NewRegistry() }

// running is a served fake with a client of it.
type running struct {
	*client.Client
	fake   *fake
	server *Server
	home   string
	stop   func() // ends Run and waits for it
}

func start(t *testing.T, change ...func(*Options)) *running {
	t.Helper()
	r := &running{fake: newFake(), home: t.TempDir()}
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "lumbung_test_peers"}, func() float64 { return 7 }))
	o := Options{Home: r.home, Backend: r.fake, Gatherer: reg, Log: quiet()}
	for _, c := range change {
		c(&o)
	}
	var err error
	if r.server, err = New(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.server.Run(ctx) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	if r.Client, err = client.New(r.home); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.stop()
		if err := errors.Join(r.server.Close(), r.server.Close(), r.Close()); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return r
}

// plain is an HTTP client of the server's socket that knows nothing.
func (r *running) plain(t *testing.T) *http.Client {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", r.server.SocketPath())
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// do makes a request and hands back its status, headers and body.
func do(t *testing.T, c *http.Client, method, url, body string, header http.Header) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if h := header.Get("Host"); h != "" {
		req.Host = h
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(raw)
}

// problem is the problem that an error holds.
func problemIn(t *testing.T, err error) *client.Problem {
	t.Helper()
	var p *client.Problem
	if !errors.As(err, &p) {
		t.Fatalf("%v is no problem", err)
	}
	return p
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
