package node

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/node/client"
)

// Both sides of a transfer say of it what is so.
func TestStatusShowsTransfers(t *testing.T) {
	const size, rate = 8 << 20, 512 << 10
	from := start(t, func(c *Config) { c.UploadRate = rate })
	to := start(t, func(c *Config) { c.Bootstrap = from.Addrs()[:1] })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	must(t, to.host.WaitBootstrapped(ctx))
	data := make([]byte, size)
	_, _ = rand.Read(data) // never fails
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, data, 0o600))
	added, err := from.c.Add(ctx, client.PathRequest{Path: path}, nil)
	must(t, err)
	pinned := make(chan error, 1)
	go func() {
		_, err := to.c.Pin(ctx, client.PinRequest{CID: added.CID}, nil)
		pinned <- err
	}()
	// until asks a node until it shows a transfer as it should be.
	until := func(r *running, what string, right func(client.Transfer) bool) client.Transfer {
		t.Helper()
		var last []client.Transfer
		for {
			s, err := r.c.Status(ctx)
			if err != nil {
				t.Fatalf("no %s; last there were %+v: %v", what, last, err)
			}
			for _, tr := range s.Transfers {
				if right(tr) {
					return tr
				}
			}
			last = s.Transfers
			select {
			case err := <-pinned:
				t.Fatalf("it is over, and %s was never shown; last there were %+v, %v", what, last, err)
			default:
			}
		}
	}
	in := until(to, "fetch with a rate", func(tr client.Transfer) bool {
		return tr.Direction == "in" && tr.Bytes > 0 && tr.Rate > 0 && tr.Peers == 1
	})
	if in.Root != added.CID || in.Total < in.Bytes || in.Total > size+size/8 || in.Bytes > size+size/8 || in.Peer != "" {
		t.Errorf("in: %+v", in)
	}
	out := until(from, "upload with a rate", func(tr client.Transfer) bool {
		return tr.Direction == "out" && tr.Bytes > 0 && tr.Rate > 0 && tr.Rate < 3*rate // once the first burst is over
	})
	if out.Peer != to.PeerID() || out.Peers != 1 || out.Bytes > size+size/8 || out.Root != added.CID {
		t.Errorf("out: %+v", out)
	}
	more := until(to, "fetch that went on, and will for a time", func(tr client.Transfer) bool {
		return tr.Direction == "in" && tr.Bytes > in.Bytes && tr.Rate > 0 && tr.Rate < 3*rate && tr.ETA > 0
	})
	if more.Root != in.Root {
		t.Errorf("later: %+v", more)
	}
	must(t, <-pinned)
	// A fetch that is over is shown no more.
	if s, err := to.c.Status(ctx); err != nil || len(s.Transfers) != 0 {
		t.Errorf("after the end: %+v, %v", s.Transfers, err)
	}
}
