//go:build unix

package content_test

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"
)

// link is a line with a delay and a rate, the same for all connections over it
// and each way by itself. It is a relay in this process: what it reads it writes
// half a round trip later, no faster than the rate. A connection may have a tenth
// of a second's bytes waiting beyond what the line itself holds, as in a router:
// less, and a busy machine makes the line slower than it says; without end, and
// what waits is a rate of its own.
type link struct {
	rtt  time.Duration
	rate float64 // bytes a second
	up   lineWay // from who dials
	down lineWay // to who dials
}

// lineWay is one way of a line: when it is free again, and what went over it.
type lineWay struct {
	mu      sync.Mutex
	free    time.Time
	carried atomic.Int64
}

func (w *lineWay) pass(n int, rate float64) time.Time {
	w.carried.Add(int64(n))
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); w.free.Before(now) {
		w.free = now
	}
	w.free = w.free.Add(time.Duration(float64(n) / rate * float64(time.Second)))
	return w.free
}

// bytes is all that went over the line, both ways.
func (l *link) bytes() int64 { return l.up.carried.Load() + l.down.carried.Load() }

// listen makes an address that leads to another over the link.
func (l *link) listen(t testing.TB, to string) net.Addr {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	ok(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := new(net.Dialer).DialContext(ctx, "tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			stop := context.AfterFunc(ctx, func() { _, _ = in.Close(), out.Close() })
			wg.Go(func() {
				defer stop()
				var both sync.WaitGroup
				both.Go(func() { l.carry(ctx, in, out, &l.up) })
				both.Go(func() { l.carry(ctx, out, in, &l.down) })
				both.Wait()
				_, _ = in.Close(), out.Close()
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		wg.Wait()
	})
	return ln.Addr()
}

// parcel is bytes on their way.
type parcel struct {
	data []byte
	due  time.Time
}

func (l *link) carry(ctx context.Context, from, to net.Conn, w *lineWay) {
	const piece = 64 << 10
	if c, ok := from.(*net.TCPConn); ok {
		_ = c.SetReadBuffer(4 * piece) // the kernel's would be a queue of many MiB
	}
	room := semaphore.NewWeighted(max(8*piece, int64(l.rate*(l.rtt.Seconds()+0.1))))
	way := make(chan parcel, 4096)
	var wg sync.WaitGroup
	wg.Go(func() {
		for p := range way {
			if d := time.Until(p.due); d > 0 {
				t := time.NewTimer(d)
				select {
				case <-t.C:
				case <-ctx.Done():
					t.Stop()
				}
			}
			_, err := to.Write(p.data)
			room.Release(int64(len(p.data)))
			if err != nil {
				_ = from.Close()
				for p := range way { // the reader ends by itself
					room.Release(int64(len(p.data)))
				}
				return
			}
		}
		if c, ok := to.(*net.TCPConn); ok {
			_ = c.CloseWrite()
		}
	})
	buf := make([]byte, piece)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if room.Acquire(ctx, int64(n)) != nil {
				break
			}
			way <- parcel{append([]byte(nil), buf[:n]...), w.pass(n, l.rate).Add(l.rtt / 2)}
		}
		if err != nil {
			break
		}
	}
	close(way)
	wg.Wait()
}
