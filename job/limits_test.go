package job

import (
	"errors"
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

// TestUnheldLimitsAreDeclined has providers whose machines cannot hold a limit
// decline what needs it, and take what does not.
func TestUnheldLimitsAreDeclined(t *testing.T) {
	for _, c := range []struct {
		name   string
		limits HeldLimits
		change func(*Spec)
		placed bool
	}{
		{"all held", HeldLimits{}, func(*Spec) {}, true},
		{"a share of the CPUs is not", HeldLimits{Unheld: []string{sandbox.LimitCPU}}, func(*Spec) {}, false},
		{"every CPU is asked for", HeldLimits{Unheld: []string{sandbox.LimitCPU}}, func(s *Spec) { s.CPUMillis = 4000 }, true},
		{"memory is not", HeldLimits{Unheld: []string{sandbox.LimitMemory}}, func(s *Spec) { s.CPUMillis = 4000 }, false},
		{"so many open files are not", HeldLimits{OpenFiles: 100}, func(s *Spec) { s.Limits.OpenFiles = 101 }, false},
		{"fewer are", HeldLimits{OpenFiles: 100}, func(s *Spec) { s.Limits.OpenFiles = 100 }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			change := func(_ int, cfg *ProviderConfig) { cfg.Limits = c.limits }
			inTown(t, plan{prices: []uint64{testPrice}, cores: 4, change: change}, func(t *testing.T, w *town) {
				s := oneTask("exit=0")
				c.change(&s)
				w.submit("j1", s)
				j := w.over("j1")
				if c.placed && j.State != JobDone {
					t.Errorf("job %s %q, unplaced %v", j.State, j.Reason, j.Unplaced)
				}
				if !c.placed && (j.State != JobFailed || j.Unplaced[protocol.Reason_REASON_LIMITS.String()] != 1) {
					t.Errorf("job %s %q, unplaced %v", j.State, j.Reason, j.Unplaced)
				}
			})
		})
	}
}

// TestPidsOfAMachine has a provider refuse a lease of more processes than its
// machine has room for, and say how many that are.
func TestPidsOfAMachine(t *testing.T) {
	change := func(_ int, cfg *ProviderConfig) { cfg.Limits = HeldLimits{Pids: 2000} }
	inTown(t, plan{prices: []uint64{testPrice}, change: change}, func(t *testing.T, w *town) {
		s := oneTask("exit=0")
		s.Limits.Pids = 2000
		w.submit("j1", s)
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("%s %q", j.State, j.Reason)
		}
		s.Limits.Pids = 2001
		w.submit("j2", s)
		w.await("a refusal", func() bool {
			for _, c := range w.renter.store.allContracts() {
				if c.Job == "j2" && c.State == Refused && strings.Contains(c.Reason, "room for 2000: lower limits.pids") {
					return true
				}
			}
			return false
		})
		if err := renterOf(w.renter).Stop(t.Context(), "j2", "enough", 0); err != nil {
			t.Error(err)
		}
		w.over("j2")
	})
}

// TestOpenFilesOfAContainer: what is asked for is given; otherwise the default,
// or less where the machine has less.
func TestOpenFilesOfAContainer(t *testing.T) {
	for _, c := range []struct {
		have, asked uint32
		want        int
	}{
		{0, 0, 0}, {0, 512, 512}, {4096, 0, 4096}, {4096, 512, 512}, {1 << 20, 0, sandbox.DefaultOpenFiles},
	} {
		if got := (HeldLimits{OpenFiles: c.have}).openFiles(c.asked); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
	s := oneTask("x").WithDefaults()
	s.Limits.OpenFiles = 1
	if err := s.Validate(); !errors.Is(err, ErrSpec) {
		t.Errorf("one open file: %v", err)
	}
}
