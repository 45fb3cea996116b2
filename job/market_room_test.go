package job

import (
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// TestRoomForOutputsAndLogs: a provider sells its disk once, whatever the files
// on it are for.
func TestRoomForOutputsAndLogs(t *testing.T) {
	const gb = 1 << 30
	inTown(t, plan{prices: []uint64{testPrice}, cores: 8}, func(t *testing.T, w *town) {
		s := w.shops[0]
		s.total.Disk = 40 * gb
		s.shut()
		s.reopen()
		small := array(8, 0, "gate")
		small.Disk, small.Outputs = gb, []OutputSpec{{From: "/out"}}
		small.Limits.Output, small.Limits.Logs = 10*gb, gb
		w.submit("j1", small)
		w.await("all that there is room for", func() bool { return w.state("j1", 2) == Running })
		w.pass(time.Minute)
		if n := s.machine.running(); n != 3 {
			t.Errorf("%d tasks of 12 GiB run on 40 GiB", n)
		}
		if free := s.pool.Free(time.Now().Add(time.Hour), true); free.Disk != 4*gb {
			t.Errorf("%d bytes are free", free.Disk)
		}
		s.kill() // and the same after a restart
		s.reopen()
		if free := s.pool.Free(time.Now().Add(time.Hour), true); free.Disk != 4*gb {
			t.Errorf("%d bytes are free after a restart", free.Disk)
		}
		big := oneTask("exit=0")
		big.Disk, big.Outputs, big.Limits.Output = 20*gb, []OutputSpec{{From: "/out"}}, 30*gb
		w.submit("j2", big)
		if j := w.over("j2"); j.State != JobFailed || j.Unplaced["REASON_DISK"] != 1 {
			t.Errorf("job %s, unplaced %v", j.State, j.Unplaced)
		}
		big.Outputs = nil // then its limit takes no room
		w.submit("j3", big)
		s.machine.open()
		if j := w.over("j3"); j.State != JobDone {
			t.Errorf("job %s, unplaced %v", j.State, j.Unplaced)
		}
		w.over("j1")
	})
}

// TestLeaseBeyondItsOffer has a renter ask for more in the lease than it did in
// the offer that was bid for.
func TestLeaseBeyondItsOffer(t *testing.T) {
	more := map[string]func(*Spec){
		"time to fetch":         func(s *Spec) { s.Limits.Fetch += time.Millisecond },
		"time to run":           func(s *Spec) { s.Limits.Run += time.Millisecond },
		"room for outputs":      func(s *Spec) { s.Limits.Output++ },
		"room for its log":      func(s *Spec) { s.Limits.Logs++ },
		"open files":            func(s *Spec) { s.Limits.OpenFiles = 100 },
		"bytes of the internet": func(s *Spec) { s.Limits.Net++ },
		"":                      func(*Spec) {},
	}
	for what, change := range more {
		t.Run("more "+what, func(t *testing.T) {
			allow := func(_ int, cfg *ProviderConfig) { cfg.AllowNet = true }
			inTown(t, plan{prices: []uint64{testPrice}, change: allow}, func(t *testing.T, w *town) {
				r, p := renterOf(w.renter), providerOf(w.shops[0])
				spec := withFiles("exit=0")
				spec.Network = NetworkOutbound
				spec = spec.WithDefaults()
				j := &Job{ID: "j1", Spec: spec, Image: toolImage().ImageRef}
				offer := must(r.makeOffer(j, 1, nil))
				answer := must(p.HandleQuote(t.Context(), w.renter.id(), offer))
				bid := must(protocol.Open[*protocol.Bid](testNet, answer.Msg.GetBid(), time.Now()))
				change(&j.Spec)
				on := Placement{On: Candidate{Peer: w.shops[0].id(), Bid: bid}}
				lease := must(newActiveJob(r, j, nil, nil).makeLease(j, &TaskRecord{Job: "j1"}, on, offer, ledger.Units(Asset, 100), time.Now()))
				why, detail := p.judgeLease(lease, time.Now())
				if what == "" && why != protocol.Reason_REASON_UNSPECIFIED {
					t.Errorf("what was bid for is refused: %s %s", why, detail)
				}
				if what != "" && (why != protocol.Reason_REASON_LIMITS || !strings.Contains(detail, what)) {
					t.Errorf("%s %q", why, detail)
				}
			})
		})
	}
}
