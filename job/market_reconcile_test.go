package job

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/job/sandbox"
)

// TestReconciledAtStart has a provider find, when it starts, a container and a
// folder of no lease, a lease whose container is gone, and one whose container
// runs: the first two go, the third ends with a reason and gives its room back,
// and the last goes on with its own.
func TestReconciledAtStart(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		p := w.shops[0]
		w.submit("gone", oneTask("gate"))
		w.submit("there", oneTask("gate"))
		w.await("both to run", func() bool { return p.machine.running() == 2 })
		p.kill()
		orphan := "l" + strings.Repeat("0", 40)
		stranger := hands{p.machine, &life{}}
		if err := stranger.Prepare(t.Context(), sandbox.Spec{ID: orphan, Args: []string{"gate"}, RunLimit: patience}); err != nil {
			t.Fatal(err)
		}
		if err := stranger.Start(t.Context(), orphan, nil); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(p.dir, orphan, "out"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, c := range p.store.allContracts() {
			if c.Job == "gone" {
				if err := stranger.Remove(t.Context(), containerName(c.ID)); err != nil {
					t.Fatal(err)
				}
			}
		}
		p.reopen()
		w.await("the orphan to go", func() bool { return !slices.Contains(p.machine.left(), orphan) })
		if _, err := os.Stat(filepath.Join(p.dir, orphan)); !os.IsNotExist(err) {
			t.Errorf("the orphan's folder: %v", err)
		}
		if j := w.over("gone"); j.State != JobFailed || !strings.Contains(j.Reason, "container is gone") {
			t.Errorf("%s %q", j.State, j.Reason)
		}
		if n := p.pool.Leases(); n != 1 || p.machine.running() != 1 {
			t.Errorf("room is taken for %d leases", n)
		}
		p.machine.open()
		if j := w.over("there"); j.State != JobDone {
			t.Errorf("%s %q", j.State, j.Reason)
		}
		ended := 0
		for _, c := range p.store.allContracts() {
			if c.State == Failed && strings.Contains(c.Reason, "container is gone") && c.ProviderFault {
				ended++
			}
		}
		if ran := len(p.machine.ran()); ended != 1 || ran != 3 { // the orphan too
			t.Errorf("%d leases ended for want of their container, %d programs ran", ended, ran)
		}
	})
}
