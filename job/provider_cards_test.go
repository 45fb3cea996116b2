package job

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/protocol"
)

// onCards is a task that needs cards.
func onCards(n int, command ...string) Spec {
	s := oneTask(command...)
	s.GPUs = GPUWish{Count: n}
	s.Retry = RetrySpec{Max: 0, Given: true}
	return s
}

// ailing are cards of which some have trouble.
func ailing(cards []gpu.GPU, trouble map[int]gpu.Trouble) []gpu.GPU {
	out := slices.Clone(cards)
	for i, t := range trouble {
		out[i].Trouble = t
	}
	return out
}

func leasedCard(t *testing.T, s *shop) int {
	t.Helper()
	leases := providerOf(s).Leases()
	if len(leases) != 1 || len(leases[0].Cards) != 1 {
		t.Fatalf("leases %+v, want one with a card", leases)
	}
	return slices.IndexFunc(s.total.GPUs, func(g gpu.GPU) bool { return g.UUID == leases[0].Cards[0] })
}

var (
	offTheBus = gpu.Trouble{Kind: gpu.KindXid, Text: "the driver reported Xid 79, the card has fallen off the bus", Ends: true}
	tooHot    = gpu.Trouble{Kind: gpu.KindHeat, Text: "it is 91 °C hot and slows down at 90 °C"}
)

// TestCardGoesWithItsJob loses the card of one of two jobs.
func TestCardGoesWithItsJob(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}, cards: fakeCards(t, "rtx4090:2")}, func(t *testing.T, w *town) {
		s := w.shops[0]
		w.submit("j1", onCards(1, "gate"))
		w.await("a job", func() bool { return w.state("j1", 0) == Running })
		lost := leasedCard(t, s)
		w.submit("j2", onCards(1, "gate"))
		w.await("another", func() bool { return w.state("j2", 0) == Running })
		providerOf(s).SetCards(ailing(s.total.GPUs, map[int]gpu.Trouble{lost: offTheBus}))
		if j := w.over("j1"); j.State != JobFailed {
			t.Errorf("the job on the lost card is %s", j.State)
		}
		c := w.contract("j1", 0)
		if !c.ProviderFault || !strings.Contains(c.Reason, s.total.GPUs[lost].Title()) || !strings.Contains(c.Reason, "Xid 79, the card has fallen off the bus") {
			t.Errorf("fault of the provider %v, reason %q", c.ProviderFault, c.Reason)
		}
		if w.state("j2", 0) != Running {
			t.Error("the job on the other card does not run on")
		}
		if total, free := s.pool.Total(), s.pool.Free(time.Now(), true); len(total.GPUs) != 1 || len(free.GPUs) != 0 {
			t.Errorf("%d cards are let, %d free", len(total.GPUs), len(free.GPUs))
		}
		// Nothing is placed on it, and it comes back when it is well.
		w.submit("j3", onCards(2, "exit=0"))
		if j := w.over("j3"); j.State != JobFailed || j.Unplaced["REASON_GPU_COUNT"] != 1 {
			t.Errorf("job %s, unplaced %v", j.State, j.Unplaced)
		}
		providerOf(s).SetCards(s.total.GPUs)
		w.submit("j4", onCards(1, "exit=0"))
		if j := w.over("j4"); j.State != JobDone {
			t.Errorf("job %s, unplaced %v", j.State, j.Unplaced)
		}
		s.machine.open()
		w.over("j2")
	})
}

// TestCardAils lets a job go on whose card is no longer let, and tells of it when
// the job fails.
func TestCardAils(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}, cards: fakeCards(t, "rtx4090")}, func(t *testing.T, w *town) {
		s := w.shops[0]
		w.submit("j1", onCards(1, "gate", "exit=3"))
		w.await("the job", func() bool { return w.state("j1", 0) == Running })
		providerOf(s).SetCards(ailing(s.total.GPUs, map[int]gpu.Trouble{0: tooHot}))
		w.submit("j2", onCards(1, "exit=0"))
		if j := w.over("j2"); j.State != JobFailed || j.Unplaced["REASON_GPU_MODEL"] != 1 {
			t.Errorf("job %s, unplaced %v", j.State, j.Unplaced)
		}
		if w.state("j1", 0) != Running {
			t.Error("the job has not gone on")
		}
		w.await("the job to be told", func() bool {
			return slices.ContainsFunc(w.renter.store.eventTexts(EventNotice), func(text string) bool {
				return strings.HasPrefix(text, "trouble where task 0 runs: GPU rtx4090") && strings.Contains(text, "91 °C")
			})
		})
		s.machine.open()
		w.over("j1")
		if c := w.contract("j1", 0); c.ProviderFault || c.ExitCode != 3 || !strings.Contains(c.Reason, "meanwhile GPU rtx4090") || !strings.Contains(c.Reason, "91 °C") {
			t.Errorf("fault %v, exit code %d, reason %q", c.ProviderFault, c.ExitCode, c.Reason)
		}
		providerOf(s).SetCards(s.total.GPUs)
	})
}

// TestCardGoneAtStart starts a provider again without the card of a lease that
// runs on.
func TestCardGoneAtStart(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}, cards: fakeCards(t, "rtx4090:2")}, func(t *testing.T, w *town) {
		s := w.shops[0]
		all := s.total.GPUs
		w.submit("j1", onCards(1, "gate"))
		w.await("the job", func() bool { return w.state("j1", 0) == Running })
		i := leasedCard(t, s)
		s.kill()
		s.total.GPUs = slices.Delete(slices.Clone(all), i, i+1)
		s.reopen()
		if j := w.over("j1"); j.State != JobFailed {
			t.Errorf("the job is %s", j.State)
		}
		if c := w.contract("j1", 0); !c.ProviderFault || !strings.Contains(c.Reason, all[i].UUID) {
			t.Errorf("fault of the provider %v, reason %q", c.ProviderFault, c.Reason)
		}
	})
}

// TestCardReservedAtStart finds the very card of a lease reserved again.
func TestCardReservedAtStart(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}, cards: fakeCards(t, "rtx4090:3")}, func(t *testing.T, w *town) {
		s := w.shops[0]
		w.submit("j1", onCards(1, "gate"))
		w.await("the job", func() bool { return w.state("j1", 0) == Running })
		i := leasedCard(t, s)
		s.kill()
		s.reopen()
		free := s.pool.Free(time.Now(), true).GPUs
		if len(free) != 2 || slices.Contains(free, s.total.GPUs[i]) || !s.pool.Leased(s.total.GPUs[i].UUID) {
			t.Errorf("free: %+v, leased was %s", free, s.total.GPUs[i].UUID)
		}
		s.machine.open()
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("the job is %s", j.State)
		}
		if s.pool.Leased(s.total.GPUs[i].UUID) {
			t.Error("the card is reserved after its lease")
		}
	})
}

func TestPoolCards(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	cards := fakeCards(t, "rtx4090:2")
	p := NewPool(Capacity{CPUMillis: 8000, Memory: 1000, Disk: 1000, GPUs: ailing(cards, map[int]gpu.Trouble{1: tooHot})})
	wish := &protocol.Resources{CpuMillis: 1, MemoryBytes: 1, GpuCount: 1}
	if n, _ := p.Offer("bid", "A", wish, 2, now, now.Add(time.Minute)); n != 1 {
		t.Errorf("%d slots on the one well card of two", n)
	}
	// The card of a bid goes: the other one takes its place.
	p.SetCards(ailing(cards, map[int]gpu.Trouble{0: tooHot}))
	r, ok := p.Take("lease", "bid", "A", wish, now)
	if !ok || !slices.Equal(r.GPUs, []string{cards[1].UUID}) {
		t.Errorf("took %v, %v", r.GPUs, ok)
	}
	// The card of a lease goes and comes again: it is still the lease's.
	p.SetCards(ailing(cards, map[int]gpu.Trouble{0: tooHot, 1: tooHot}))
	if _, ok := p.Take("other", "", "A", wish, now); ok {
		t.Error("took a card that is not let")
	}
	p.SetCards(cards)
	if r, ok := p.Take("other", "", "A", wish, now); !ok || !slices.Equal(r.GPUs, []string{cards[0].UUID}) {
		t.Errorf("took %v, %v", r.GPUs, ok)
	}
	if _, ok := p.Take("third", "", "A", wish, now); ok {
		t.Error("took a card twice")
	}
}

// contract is the newest contract of a task on the renter's side.
func (w *town) contract(id string, task int) Contract {
	w.t.Helper()
	for _, c := range slices.Backward(w.renter.store.allContracts()) {
		if c.Job == id && c.Task == task {
			return c
		}
	}
	w.t.Fatalf("no contract of %s/%d", id, task)
	return Contract{}
}
