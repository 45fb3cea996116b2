package job

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/protocol"
)

// fakeCards are cards that are none, with UUIDs of their own.
func fakeCards(t testing.TB, spec string) []gpu.GPU {
	t.Helper()
	cards, err := gpu.Fake(spec)
	if err != nil {
		t.Fatal(err)
	}
	return cards
}

// reservations are what the pool holds at a time: hard ones alone, or all.
func (p *Pool) reservations(now time.Time, hardOnly bool) []Reservation {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lapse(now)
	var out []Reservation
	for _, r := range p.held {
		if !hardOnly || r.Until.IsZero() {
			out = append(out, r)
		}
	}
	return out
}

// oversold says what a pool has promised more of than there is. With everything
// it counts the soft reservations too, one renter's most demanding one for all
// of its own, which do not add up.
func (p *Pool) oversold(now time.Time) error {
	var cpu, memory, disk uint64
	cards := map[string]string{}
	for _, r := range p.reservations(now, true) {
		cpu, memory, disk = cpu+uint64(r.CPUMillis), memory+r.Memory, disk+r.Disk
		for _, id := range r.GPUs {
			if other, taken := cards[id]; taken {
				return fmt.Errorf("card %s is in leases %s and %s", id, other, r.ID)
			}
			cards[id] = r.ID
			if !slices.ContainsFunc(p.total.GPUs, func(g gpu.GPU) bool { return g.UUID == id }) {
				return fmt.Errorf("card %s is not in the pool", id)
			}
		}
	}
	if cpu > uint64(p.total.CPUMillis) || memory > p.total.Memory || disk > p.total.Disk {
		return fmt.Errorf("leases hold %d of %d millis, %d of %d memory, %d of %d disk",
			cpu, p.total.CPUMillis, memory, p.total.Memory, disk, p.total.Disk)
	}
	return nil
}

func drawResources(t *rapid.T) *protocol.Resources {
	r := &protocol.Resources{
		CpuMillis:   uint32(rapid.IntRange(1, 3000).Draw(t, "cpu")),
		MemoryBytes: uint64(rapid.IntRange(1, 3000).Draw(t, "memory")),
		DiskBytes:   uint64(rapid.IntRange(0, 3000).Draw(t, "disk")),
	}
	switch rapid.IntRange(0, 4).Draw(t, "cards") {
	case 0:
		r.GpuAll = true
	case 1, 2:
		r.GpuCount = uint32(rapid.IntRange(1, 3).Draw(t, "count"))
	}
	if rapid.Bool().Draw(t, "model") {
		r.GpuModels = []string{rapid.SampledFrom([]string{"rtx4090", "rtx3060", "h200"}).Draw(t, "name")}
	}
	return r
}

// TestPoolNeverOversells makes offers, takes, lets lapse, releases and restores
// at random, and holds the sums after every step against what there is.
func TestPoolNeverOversells(t *testing.T) {
	cards := fakeCards(t, "rtx4090:3,rtx3060:2")
	rapid.Check(t, func(t *rapid.T) {
		total := Capacity{CPUMillis: 8000, Memory: 8000, Disk: 8000, GPUs: cards}
		p, now := NewPool(total), noon
		renters := []string{"A", "B", "C"}
		bids := map[string]*protocol.Resources{}
		owners := map[string]string{}
		leases := map[string]Reservation{}
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0, 1:
				id, renter, r := fmt.Sprintf("bid%d", i), rapid.SampledFrom(renters).Draw(t, "renter"), drawResources(t)
				most := rapid.IntRange(1, 5).Draw(t, "tasks")
				n, why := p.Offer(id, renter, r, most, now, now.Add(3*time.Second))
				if (n > 0) != (why == protocol.Reason_REASON_UNSPECIFIED) || n > most {
					t.Fatalf("%d slots of %d and reason %s", n, most, why)
				}
				if n > 0 {
					bids[id], owners[id] = r, renter
				}
			case 2, 3:
				if len(bids) == 0 {
					continue
				}
				bid := rapid.SampledFrom(sortedKeys(bids)).Draw(t, "bid")
				lease := fmt.Sprintf("lease%d", i)
				held, ok := p.Take(lease, bid, owners[bid], bids[bid], now)
				again, okAgain := p.Take(lease, bid, owners[bid], bids[bid], now)
				if ok && (!okAgain || !slices.Equal(held.GPUs, again.GPUs)) {
					t.Fatal("the same lease got another room the second time")
				}
				if okAgain {
					leases[lease] = again
				}
			case 4:
				now = now.Add(time.Duration(rapid.IntRange(0, 4000).Draw(t, "wait")) * time.Millisecond)
			case 5:
				if len(leases) == 0 {
					continue
				}
				id := rapid.SampledFrom(sortedKeys(leases)).Draw(t, "lease")
				before := p.Free(now, false)
				p.Release(id)
				after := p.Free(now, false)
				if after.CPUMillis != before.CPUMillis+leases[id].CPUMillis || after.Memory != before.Memory+leases[id].Memory ||
					after.Disk != before.Disk+leases[id].Disk || len(after.GPUs) != len(before.GPUs)+len(leases[id].GPUs) {
					t.Fatalf("release of %+v turned %+v into %+v", leases[id], before, after)
				}
				if rapid.Bool().Draw(t, "restore") {
					p.Restore(leases[id])
					continue
				}
				delete(leases, id)
			}
			if err := p.oversold(now); err != nil {
				t.Fatal(err)
			}
			if p.Leases() != len(leases) {
				t.Fatalf("%d hard reservations, want %d", p.Leases(), len(leases))
			}
		}
		now = now.Add(time.Minute)
		for id := range leases {
			p.Release(id)
		}
		if free := p.Free(now, true); free.CPUMillis != total.CPUMillis || free.Memory != total.Memory || free.Disk != total.Disk || len(free.GPUs) != len(cards) {
			t.Fatalf("all was given back and %+v is free of %+v", free, total)
		}
	})
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// TestPoolUnderConcurrentAwards lets many renters bid and take at once; run it
// with -race.
func TestPoolUnderConcurrentAwards(t *testing.T) {
	p := NewPool(Capacity{CPUMillis: 10_000, Memory: 1 << 40, Disk: 1 << 40, GPUs: fakeCards(t, "rtx4090:4")})
	r := &protocol.Resources{CpuMillis: 1000, MemoryBytes: 1, GpuCount: 1}
	taken := make(chan Reservation, 1024)
	var all sync.WaitGroup
	for renter := range 16 {
		all.Go(func() {
			for i := range 32 {
				bid, who := fmt.Sprintf("b%d-%d", renter, i), fmt.Sprint(renter)
				p.Offer(bid, who, r, 3, noon, noon.Add(time.Second))
				if err := p.oversold(noon); err != nil {
					t.Error(err)
				}
				if held, ok := p.Take(fmt.Sprintf("l%d-%d", renter, i), bid, who, r, noon); ok {
					taken <- held
				}
				p.Release(bid)
			}
		})
	}
	all.Wait()
	close(taken)
	if len(taken) != 4 || p.Leases() != 4 {
		t.Fatalf("%d leases were given for 4 cards", len(taken))
	}
	for held := range taken {
		p.Release(held.ID)
	}
	if free := p.Free(noon, true); len(free.GPUs) != 4 || free.CPUMillis != 10_000 {
		t.Fatalf("after all is given back %+v is free", free)
	}
}

func TestSoftReservations(t *testing.T) {
	r := &protocol.Resources{CpuMillis: 1000, MemoryBytes: 1}
	until := noon.Add(time.Second)
	full := func(t *testing.T) *Pool {
		p := NewPool(Capacity{CPUMillis: 4000, Memory: 100})
		if n, why := p.Offer("a1", "A", r, 10, noon, until); n != 4 {
			t.Fatalf("%d slots (%s), want 4", n, why)
		}
		return p
	}
	t.Run("another renter finds the pool busy until they lapse", func(t *testing.T) {
		p := full(t)
		if n, why := p.Offer("b1", "B", r, 1, until.Add(-time.Millisecond), until); n != 0 || why != protocol.Reason_REASON_BUSY {
			t.Fatalf("%d slots, %s", n, why)
		}
		if _, ok := p.Take("l", "b1", "B", r, noon); ok {
			t.Fatal("room that is softly held for another was given away")
		}
		if n, why := p.Offer("b1", "B", r, 1, until, until.Add(time.Second)); n != 1 {
			t.Fatalf("%d slots, %s after they lapsed", n, why)
		}
	})
	t.Run("a renter's own do not stand in its way", func(t *testing.T) {
		p := full(t)
		if n, why := p.Offer("a2", "A", r, 2, noon, until); n != 2 {
			t.Fatalf("%d slots, %s", n, why)
		}
		if _, ok := p.Take("l", "a2", "A", r, noon); !ok {
			t.Fatal("no room")
		}
	})
	t.Run("a lease uses its own bid's room", func(t *testing.T) {
		p := full(t)
		for i := range 4 {
			if _, ok := p.Take(fmt.Sprint("l", i), "a1", "A", r, noon); !ok {
				t.Fatalf("no room for lease %d of 4 that were bid for", i)
			}
			if free := p.Free(noon, true); free.CPUMillis != 0 {
				t.Fatalf("%d millis are free for others after lease %d, and all was held for A", free.CPUMillis, i)
			}
		}
		if _, ok := p.Take("l4", "a1", "A", r, noon); ok {
			t.Fatal("a fifth lease on four slots")
		}
		if free := p.Free(until, true); free.CPUMillis != 0 {
			t.Fatal("leases lapsed with their bid")
		}
	})
	t.Run("a bid that is used up holds nothing", func(t *testing.T) {
		p := full(t)
		for i := range 4 {
			p.Take(fmt.Sprint("l", i), "a1", "A", r, noon)
		}
		for i := range 4 {
			p.Release(fmt.Sprint("l", i))
		}
		if free := p.Free(noon, true); free.CPUMillis != 4000 {
			t.Fatal("a bid that was used up still holds room")
		}
	})
	t.Run("a take that fails leaves the bid as it was", func(t *testing.T) {
		p := full(t)
		big := &protocol.Resources{CpuMillis: 5000, MemoryBytes: 1}
		if _, ok := p.Take("l", "a1", "A", big, noon); ok {
			t.Fatal("5000 of 4000 millis given")
		}
		if held := p.reservations(noon, false); len(held) != 1 || held[0].CPUMillis != 4000 {
			t.Fatalf("held: %+v", held)
		}
	})
}

func TestWhatAPoolLacks(t *testing.T) {
	p := NewPool(Capacity{CPUMillis: 4000, Memory: 1000, Disk: 1000, GPUs: fakeCards(t, "rtx3060:2,rtx4090")})
	for _, c := range []struct {
		name string
		r    *protocol.Resources
		want protocol.Reason
	}{
		{"cpu", &protocol.Resources{CpuMillis: 4001, MemoryBytes: 1}, protocol.Reason_REASON_CPU},
		{"memory", &protocol.Resources{CpuMillis: 1, MemoryBytes: 1001}, protocol.Reason_REASON_MEMORY},
		{"disk", &protocol.Resources{CpuMillis: 1, MemoryBytes: 1, DiskBytes: 1001}, protocol.Reason_REASON_DISK},
		{"model", &protocol.Resources{CpuMillis: 1, MemoryBytes: 1, GpuCount: 1, GpuModels: []string{"h200"}}, protocol.Reason_REASON_GPU_MODEL},
		{"vram", &protocol.Resources{CpuMillis: 1, MemoryBytes: 1, GpuCount: 1, GpuVramBytes: 48 * protocol.GB}, protocol.Reason_REASON_GPU_VRAM},
		{"count", &protocol.Resources{CpuMillis: 1, MemoryBytes: 1, GpuCount: 2, GpuVramBytes: 20 * protocol.GB}, protocol.Reason_REASON_GPU_COUNT},
		{"fits", &protocol.Resources{CpuMillis: 1, MemoryBytes: 1, GpuCount: 2, GpuModels: []string{"rtx3060"}}, protocol.Reason_REASON_UNSPECIFIED},
		{"all of a model", &protocol.Resources{CpuMillis: 1, MemoryBytes: 1, GpuAll: true, GpuModels: []string{"rtx3060"}}, protocol.Reason_REASON_UNSPECIFIED},
	} {
		n, why := p.Offer(c.name, "A", c.r, 1, noon, noon.Add(time.Second))
		if why != c.want || (n == 1) != (c.want == protocol.Reason_REASON_UNSPECIFIED) {
			t.Errorf("%s: %d slots, %s; want %s", c.name, n, why, c.want)
		}
	}
	held, ok := p.Take("all", "all of a model", "A", &protocol.Resources{CpuMillis: 1, MemoryBytes: 1, GpuAll: true, GpuModels: []string{"rtx3060"}}, noon)
	if !ok || len(held.GPUs) != 2 {
		t.Errorf("all cards of a model: %v, %v", held.GPUs, ok)
	}
}

func TestRestorePutsALeaseBackWhateverIsFree(t *testing.T) {
	cards := fakeCards(t, "rtx4090:2")
	p := NewPool(Capacity{CPUMillis: 2000, Memory: 2000, GPUs: cards})
	r := &protocol.Resources{CpuMillis: 2000, MemoryBytes: 1000, GpuCount: 1}
	c := &Contract{ID: protocol.IDOf([]byte("lease")), Renter: "A", Cards: []string{cards[1].UUID}}
	p.Restore(restored(c, r))
	if free := p.Free(noon.Add(time.Hour), true); free.CPUMillis != 0 || len(free.GPUs) != 1 || free.GPUs[0].UUID != cards[0].UUID {
		t.Fatalf("free: %+v", free)
	}
	if n, why := p.Offer("b", "B", r, 1, noon, noon.Add(time.Second)); n != 0 || why != protocol.Reason_REASON_BUSY {
		t.Fatalf("%d slots, %s", n, why)
	}
	p.Release(c.ID.String())
	if n, why := p.Offer("b", "B", r, 1, noon, noon.Add(time.Second)); n != 1 {
		t.Fatalf("%d slots, %s after the release", n, why)
	}
}
