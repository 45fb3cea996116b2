package node

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

func TestLinkIsAnAverageThatOutlivesARestart(t *testing.T) {
	home := t.TempDir()
	at := func(c *Config) { c.Home = home }
	r := start(t, at)
	for i, m := range []struct {
		bytes uint64
		took  time.Duration
		want  uint64
	}{
		{measuredBytes - 1, time.Hour, 0}, // says nothing
		{10_000_000, 2 * time.Second, 5_000_000},
		{measuredBytes - 1, time.Hour, 5_000_000},
		{10_000_000, time.Second, 6_500_000},
		{2_000_000, 0, 604_550_000}, // no less than a millisecond
	} {
		r.link.measured(t.Context(), m.bytes, m.took)
		if got := r.link.rate(); got != m.want {
			t.Errorf("after %d: %d bytes a second, want %d", i, got, m.want)
		}
	}
	r.stop(t)()
	if got := start(t, at).link.rate(); got != 604_550_000 {
		t.Errorf("after the restart: %d bytes a second", got)
	}
}

func TestFetchesMeasureTheLink(t *testing.T) {
	from := start(t, nil)
	to := start(t, func(c *Config) { c.Bootstrap = from.Addrs()[:1] })
	if err := to.host.WaitBootstrapped(t.Context()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "file")
	data := make([]byte, 8<<20)
	_, _ = rand.Read(data) // crypto/rand never fails
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	added, err := from.c.Add(t.Context(), client.PathRequest{Path: path}, nil)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := to.c.Pin(t.Context(), client.PinRequest{CID: added.CID}, nil); err != nil {
		t.Fatal(err)
	}
	if got, least := float64(to.link.rate()), float64(len(data))/time.Since(began).Seconds(); got < least-1 {
		t.Errorf("%.0f bytes a second were measured, and no less than %.0f came", got, least)
	}
	if got := from.link.rate(); got != 0 {
		t.Errorf("%d bytes a second were measured where nothing was fetched", got)
	}
}

// A provider's bids say how long its own link takes.
func TestBidsCountOnTheMeasuredLink(t *testing.T) {
	provider := start(t, func(c *Config) { c.Roles, c.Runsc = []string{RoleProvider}, "/nonexistent/runsc" },
		func(n *Node) { n.provider.Sandbox = copier{} })
	renter := start(t, func(c *Config) {
		c.Bootstrap, c.BidWindow = provider.Addrs()[:1], time.Minute // which ends with the one answer
	})
	dir, inputs, _ := someInputs(t, "a", "b")
	smallImage(t, renter.Node, "small")
	quote := func() client.QuotedBid {
		t.Helper()
		q, err := backend{renter.Node}.Quote(t.Context(), client.SubmitRequest{Dir: dir, Spec: job.Spec{
			Image: "small", Command: []string{"copy"}, Memory: 64 << 20, Disk: 64 << 20, On: provider.PeerID(), Inputs: inputs,
		}}, func(client.Progress) {})
		if err != nil || len(q.Bids) != 1 {
			t.Fatalf("quote %+v, %v", q, err)
		}
		return q.Bids[0]
	}
	took := func(b client.QuotedBid, rate uint64) time.Duration {
		return time.Duration(b.ToFetch * 1000 / rate * uint64(time.Millisecond))
	}
	if b := quote(); b.StartIn != took(b, job.DefaultFetchRate) {
		t.Errorf("before any fetch: %d bytes in %s", b.ToFetch, b.StartIn)
	}
	provider.link.measured(t.Context(), 2<<20, 20*time.Second)
	if b := quote(); b.StartIn != took(b, 2<<20/20) {
		t.Errorf("with a link of 2 MiB in 20s: %d bytes in %s", b.ToFetch, b.StartIn)
	}
}
