//go:build linux && cgo

package gpu

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
)

// watched is a machine under watch. Time stands still but for pass.
type watched struct {
	*machine
	t     *testing.T
	ticks chan time.Time
	told  chan []GPU
	seen  chan []GPU
	now   chan time.Time // holds the time
}

var ourPid uint32 = 4711

func startWatch(t *testing.T, m *machine) *watched {
	t.Helper()
	// seen is not buffered, so that every look is taken note of before the next.
	w := &watched{machine: m, t: t, ticks: make(chan time.Time), told: make(chan []GPU, 16), seen: make(chan []GPU), now: make(chan time.Time, 1)}
	w.now <- time.Date(2026, 3, 1, 14, 2, 11, 0, time.UTC)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	o := WatchOptions{
		Ours: func(pid uint32, _ string) bool { return pid == ourPid }, Log: slog.New(slog.DiscardHandler), Ticks: w.ticks,
		Now: func() time.Time { n := <-w.now; w.now <- n; return n },
	}
	seen := func(cards []GPU) {
		select {
		case w.seen <- cards:
		case <-ctx.Done():
		}
	}
	go func() { ended <- watch(ctx, m, o, func(cards []GPU) { w.told <- cards }, seen) }()
	t.Cleanup(func() {
		cancel()
		// The mocked wait for events ends with an event, as the real one does
		// with its timeout.
		for {
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
				return
			case m.events <- nvml.EventData{}:
			}
		}
	})
	<-w.seen
	if first := <-w.told; len(Let(first)) != len(m.Devices) {
		t.Fatalf("at first: %+v", first)
	}
	return w
}

func (w *watched) pass(d time.Duration) { w.now <- (<-w.now).Add(d) }

// tick has the cards looked at and gives what was seen, and what was told, if
// anything.
func (w *watched) tick() (seen []GPU, told bool) {
	w.t.Helper()
	w.ticks <- time.Time{}
	seen = <-w.seen
	// What is told of a look comes before the next one, which only a tick brings:
	// the watch is idle, or about to tell.
	return seen, w.settle()
}

// settle reports whether the look that was just seen was told: a look without
// change follows, which tells nothing.
func (w *watched) settle() bool {
	w.ticks <- time.Time{}
	<-w.seen
	select {
	case <-w.told:
		return true
	default:
		return false
	}
}

// report lets the driver report an error of a card, and gives what is seen
// then and whether it was told.
func (w *watched) report(i int, kind, code uint64) (seen []GPU, told bool) {
	w.events <- nvml.EventData{Device: w.Devices[i], EventType: kind, EventData: code}
	seen = <-w.seen
	return seen, w.settle()
}

// of is a card by its place at first: the driver counts anew when one is gone.
func (w *watched) of(i int, cards []GPU) GPU {
	w.t.Helper()
	for _, g := range cards {
		if g.UUID == w.uuid(i) {
			return g
		}
	}
	w.t.Fatalf("card %d is not among %+v", i, cards)
	return GPU{}
}

func TestWatchLeavesAndReturns(t *testing.T) {
	for name, c := range map[string]struct {
		ill, well func(*cardState)
		kind      string
		words     string
		ends      bool // at once
		lasting   bool // when it lasts
	}{
		"vanished": {func(s *cardState) { s.gone = true }, func(s *cardState) { s.gone = false }, KindVanished, "the driver does not list it", false, true},
		"lost":     {func(s *cardState) { s.lost = true }, func(s *cardState) { s.lost = false }, KindVanished, "does not answer", true, true},
		"hot":      {func(s *cardState) { s.health.Celsius = 90 }, func(s *cardState) { s.health.Celsius = 85 }, KindHeat, "90 °C hot and slows down at 90", false, true},
		"used by somebody": {
			func(s *cardState) { s.compute = []nvml.ProcessInfo{{Pid: ourPid}, {Pid: 99}} },
			func(s *cardState) { s.compute = []nvml.ProcessInfo{{Pid: ourPid}} }, KindForeign, "process 99", false, true,
		},
		"played on": {
			func(s *cardState) { s.graphics = []nvml.ProcessInfo{{Pid: 7, UsedGpuMemory: 60 << 30}} },
			func(s *cardState) { s.graphics = []nvml.ProcessInfo{{Pid: 7, UsedGpuMemory: 1 << 20}} }, KindForeign, "process 7", false, true,
		},
		"memory broke":    {func(s *cardState) { s.health.Uncorrected = 2 }, func(s *cardState) { s.health.Uncorrected = 0 }, KindMemory, "2 ECC errors", true, true},
		"memory replaced": {func(s *cardState) { s.health.RowsPending = true }, func(s *cardState) { s.health.RowsPending = false }, KindMemory, "next reset", false, false},
		"memory failed":   {func(s *cardState) { s.health.RowsFailed = true }, func(s *cardState) { s.health.RowsFailed = false }, KindMemory, "needs service", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := startWatch(t, newMachine(t, dgxh100.New()))
			w.set(2, c.ill)
			cards, told := w.tick()
			g := w.of(2, cards)
			if !told || len(Let(cards)) != 7 || g.UUID != w.uuid(2) || g.Trouble.Kind != c.kind || !strings.Contains(g.Trouble.Text, c.words) || g.Trouble.Ends != c.ends {
				t.Errorf("told %v, %d to let, card 2: %+v", told, len(Let(cards)), g.Trouble)
			}
			if cards, _ = w.tick(); w.of(2, cards).Trouble.Ends != c.lasting {
				t.Errorf("after %d looks: %+v", lasting, w.of(2, cards).Trouble)
			}
			w.set(2, c.well)
			if cards, told = w.tick(); !told || len(Let(cards)) != 8 {
				t.Errorf("well again: told %v, card 2: %+v", told, w.of(2, cards).Trouble)
			}
			if _, told = w.tick(); told {
				t.Error("told although nothing changed")
			}
		})
	}
}

// TestWatchHeatHasToFall lets no card go to and fro around its limit.
func TestWatchHeatHasToFall(t *testing.T) {
	w := startWatch(t, newMachine(t, nil, rtx4090))
	for _, c := range []struct {
		celsius uint32
		let     int
	}{{89, 1}, {90, 0}, {89, 0}, {86, 0}, {85, 1}, {89, 1}, {93, 0}, {60, 1}} {
		w.set(0, func(s *cardState) { s.health.Celsius = c.celsius })
		if cards, _ := w.tick(); len(Let(cards)) != c.let {
			t.Errorf("at %d °C %d cards are let, want %d", c.celsius, len(Let(cards)), c.let)
		}
	}
}

func TestWatchXid(t *testing.T) {
	w := startWatch(t, newMachine(t, dgxh100.New()))
	cards, told := w.report(4, nvml.EventTypeXidCriticalError, 79)
	if x := cards[4]; !told || !x.Trouble.Ends || x.Trouble.Kind != KindXid || x.Health.LastXid != 79 || len(Let(cards)) != 7 ||
		x.Trouble.Text != "the driver reported Xid 79, the card has fallen off the bus, at 14:02:11" {
		t.Errorf("after Xid 79: %+v", x)
	}
	// A program's own error is no reason to forget that.
	if _, told = w.report(4, nvml.EventTypeXidCriticalError, 31); told {
		t.Error("told of a lesser error of a card that is gone")
	}
	w.pass(24 * time.Hour)
	if cards, _ = w.tick(); cards[4].Health.LastXid != 79 || len(Let(cards)) != 7 {
		t.Errorf("a day later: %+v", cards[4])
	}
	// One that a program causes keeps the card away for a while only.
	cards, _ = w.report(1, nvml.EventTypeXidCriticalError, 31)
	if x := cards[1]; x.Trouble.Ends || !strings.Contains(x.Trouble.Text, "Xid 31, a program touched memory") || len(Let(cards)) != 6 {
		t.Errorf("after Xid 31: %+v", x)
	}
	w.pass(quietAfterProgram)
	if cards, told := w.tick(); !told || len(Let(cards)) != 7 {
		t.Errorf("a minute later: told %v, %+v", told, cards[1])
	}
	cards, _ = w.report(0, nvml.EventTypeDoubleBitEccError, 0)
	if x := cards[0]; !x.Trouble.Ends || !strings.Contains(x.Trouble.Text, "Xid 48") {
		t.Errorf("after a double bit error: %+v", x)
	}
	if cards, _ = w.report(3, nvml.EventTypeXidCriticalError, 9999); !cards[3].Trouble.Ends || !strings.Contains(cards[3].Trouble.Text, "Xid 9999") {
		t.Errorf("after an unknown one: %+v", cards[3])
	}
}

// TestWatchXidOfSplitCard takes the instances away with their card.
func TestWatchXidOfSplitCard(t *testing.T) {
	m := newMachine(t, dgxh100.New())
	w := startWatch(t, m)
	m.split(0, instance("MIG-a", 1, 10240))
	cards, _ := w.tick()
	if len(Let(cards)) != 8 {
		t.Fatalf("%d to let, want seven and an instance", len(Let(cards)))
	}
	cards, _ = w.report(0, nvml.EventTypeXidCriticalError, 48)
	for _, g := range cards {
		if ill := g.UUID == "MIG-a" || g.UUID == m.uuid(0); g.Trouble.Ends != ill {
			t.Errorf("%s: %+v", g.UUID, g.Trouble)
		}
	}
}

// TestWatchWaitsAgain makes a new set of events when the wait for them broke.
func TestWatchWaitsAgain(t *testing.T) {
	m := newMachine(t, nil, rtx3090)
	broken := make(chan struct{}, 1)
	broken <- struct{}{}
	waiting := make(chan struct{}, 16)
	whole := m.EventSetCreateFunc
	m.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) {
		select {
		case <-broken:
			return &mock.EventSet{
				FreeFunc: func() nvml.Return { return nvml.SUCCESS },
				WaitFunc: func(uint32) (nvml.EventData, nvml.Return) { return nvml.EventData{}, nvml.ERROR_UNKNOWN },
			}, nvml.SUCCESS
		default:
			waiting <- struct{}{}
			return whole()
		}
	}
	w := startWatch(t, m)
	for done := false; !done; {
		select {
		case <-waiting:
			done = true
		case w.ticks <- time.Time{}:
			<-w.seen
		}
	}
	if cards, _ := w.report(0, nvml.EventTypeXidCriticalError, 62); !cards[0].Trouble.Ends {
		t.Errorf("not noticed: %+v", cards[0])
	}
}

func TestWatchWithoutDriver(t *testing.T) {
	lib := &mock.Interface{InitFunc: func() nvml.Return { return nvml.ERROR_LIBRARY_NOT_FOUND }}
	if err := watch(t.Context(), lib, WatchOptions{}, nil, nil); !errors.Is(err, ErrNoDriver) {
		t.Errorf("got %v", err)
	}
}
