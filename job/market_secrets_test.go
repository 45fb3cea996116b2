package job

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

// withSecrets is a job that has them.
func withSecrets(s Spec) Spec {
	for _, name := range someSecrets().Names() {
		s.Secrets = append(s.Secrets, SecretSpec{Name: name})
	}
	return s
}

func (w *town) submitWith(id string, s Spec, secrets protocol.Secrets) error {
	s.Image = "tool"
	_, err := renterOf(w.renter).Submit(w.t.Context(), id, s, "", secrets, func(Progress) {})
	return err
}

// given are the secrets that containers have got, in the order of the machines.
func (w *town) given() (out []protocol.Secrets) {
	for _, s := range w.shops {
		s.machine.mu.Lock()
		out = append(out, s.machine.given...)
		s.machine.mu.Unlock()
	}
	return out
}

// stored is all that a node has stored, as one text each.
func (s *memStore) stored() (all []string) {
	s.view(func(tx *memTx) {
		for _, of := range []table{tx.s.jobs, tx.s.tasks, tx.s.contracts, tx.s.secrets} {
			for _, raw := range of {
				all = append(all, string(raw))
			}
		}
		for _, of := range tx.s.messages {
			for _, m := range of {
				all = append(all, string(m.Raw))
			}
		}
		for _, of := range tx.s.logs {
			for _, r := range of {
				all = append(all, string(r.Data))
			}
		}
		for _, e := range tx.s.events {
			all = append(all, e.Text+string(e.Data))
		}
	})
	return all
}

// nowhere looks for the secrets in all that the nodes have stored; what is
// forgotten with the job must be gone.
func (w *town) nowhere() {
	w.t.Helper()
	for _, s := range append([]*shop{w.renter}, w.shops...) {
		for _, text := range s.store.stored() {
			for _, form := range valueForms(someSecrets()) {
				if strings.Contains(text, form) {
					w.t.Errorf("%s has stored %q", s.name, form)
				}
			}
		}
	}
	for _, j := range w.renter.store.allJobs() {
		if j.Over() == (w.renter.store.keptSecrets(j.ID) != nil) {
			w.t.Errorf("job %s is %s; sealed secrets are kept: %t", j.ID, j.State, !j.Over())
		}
	}
}

func (s *memStore) allJobs() (out []*Job) {
	s.view(func(tx *memTx) { out, _ = tx.Jobs(true, 0) })
	return out
}

func (s *memStore) keptSecrets(id string) (sealed []byte) {
	s.view(func(tx *memTx) { sealed, _ = tx.Secrets(id) })
	return sealed
}

func TestSecretJob(t *testing.T) {
	var log lockedText
	inTown(t, plan{prices: []uint64{testPrice, testPrice, testPrice}, log: &log}, func(t *testing.T, w *town) {
		if err := w.submitWith("j1", withSecrets(oneTask("print", "gate")), someSecrets()); err != nil {
			t.Fatal(err)
		}
		w.await("it runs", func() bool { return w.state("j1", 0) == Running })
		w.nowhere()
		for _, s := range w.shops {
			s.machine.open()
		}
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("%s %q", j.State, j.Reason)
		}
		if got := w.given(); len(got) != 1 || !sameSecrets(got[0], someSecrets()) {
			t.Errorf("%v", got)
		}
		w.nowhere()
		// Only the provider that got the lease could open what is in it.
		c := w.renter.store.allContracts()[0]
		lease := leaseOf(t, w.renter.store, c.ID)
		for i, s := range append([]*shop{w.renter}, w.shops...) {
			_, err := s.keys.openSecrets(testNet, lease)
			if awarded := s.id().String() == c.Provider; awarded != (err == nil) || !awarded && !errors.Is(err, ErrNoSecrets) {
				t.Errorf("node %d: %v", i, err)
			}
		}
	})
	if !strings.Contains(log.String(), "lease accepted") {
		t.Error("the log is not what was looked through")
	}
	for _, form := range valueForms(someSecrets()) {
		if strings.Contains(log.String(), form) {
			t.Errorf("%q is in the log", form)
		}
	}
}

// lockedText is a log that may be read while it is written.
type lockedText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Each task and each provider that is tried gets them, sealed to itself.
func TestSecretsRetry(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice / 2, testPrice}}, func(t *testing.T, w *town) {
		w.shops[0].machine.breakStep("start", errors.New("broken"))
		if err := w.submitWith("j1", withSecrets(array(3, 1, "sleep=1s")), someSecrets()); err != nil {
			t.Fatal(err)
		}
		if j := w.over("j1"); j.State != JobDone {
			t.Errorf("%s %q", j.State, j.Reason)
		}
		got := w.given()
		if len(got) != 3 || slices.ContainsFunc(got, func(s protocol.Secrets) bool { return !sameSecrets(s, someSecrets()) }) {
			t.Errorf("%v", got)
		}
		seen := map[string]bool{}
		for _, c := range w.renter.store.allContracts() {
			sealed := string(leaseOf(t, w.renter.store, c.ID).Msg.GetSpec().GetSealedSecrets())
			if sealed == "" || seen[sealed] {
				t.Error("two leases have the same sealed bytes, or none")
			}
			seen[sealed] = true
		}
		if len(seen) < 4 {
			t.Errorf("%d leases", len(seen))
		}
		w.nowhere()
	})
}

// Both sides are killed in every phase, and go on with what they have stored.
func TestSecretsKilledInEveryPhase(t *testing.T) {
	for _, p := range everyPhase() {
		for _, who := range []string{"renter", "provider"} {
			t.Run(fmt.Sprintf("%s, %s", p.name, who), func(t *testing.T) {
				inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
					p.hold(w)
					if err := w.submitWith("j1", withSecrets(crashJob()), someSecrets()); err != nil {
						t.Fatal(err)
					}
					w.await(p.name, func() bool { return p.there(w) })
					w.nowhere()
					node := w.renter
					if who == "provider" {
						node = w.shops[0]
					}
					node.kill()
					w.pass(time.Second)
					node.reopen()
					if who == "provider" && p.name == "queued" {
						providerOf(node).Pause()
					}
					p.goOn(w)
					endsWell(t, w, 1)
					if got := w.given(); len(got) != 1 || !sameSecrets(got[0], someSecrets()) {
						t.Errorf("%v", got)
					}
					w.nowhere()
				})
			})
		}
	}
}

// However a job ends, the renter forgets.
func TestSecretsForgotten(t *testing.T) {
	for name, c := range map[string]struct {
		words []string
		prep  func(w *town)
		end   func(w *town)
		state string
	}{
		"failed":               {[]string{"exit=3"}, func(*town) {}, func(*town) {}, JobFailed},
		"stopped while queued": {[]string{"print"}, func(w *town) { providerOf(w.shops[0]).Pause() }, func(w *town) { w.pass(time.Second); w.stop("j1", 0) }, JobCancelled},
		"stopped while running": {[]string{"gate"}, func(*town) {}, func(w *town) {
			w.await("it runs", func() bool { return w.state("j1", 0) == Running })
			w.stop("j1", 0)
		}, JobCancelled},
	} {
		t.Run(name, func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
				c.prep(w)
				if err := w.submitWith("j1", withSecrets(oneTask(c.words...)), someSecrets()); err != nil {
					t.Fatal(err)
				}
				if w.renter.store.keptSecrets("j1") == nil {
					t.Error("nothing is kept")
				}
				c.end(w)
				if j := w.over("j1"); j.State != c.state {
					t.Errorf("%s %q", j.State, j.Reason)
				}
				w.nowhere()
			})
		})
	}
}

// Secrets that a provider cannot open end the lease before any work, and it is
// not blamed.
func TestSecretsForAnotherNode(t *testing.T) {
	stranger := keysOf(t, 50)
	rig := func(_ int, cfg *ProviderConfig) { cfg.Keys = stranger }
	inTown(t, plan{prices: []uint64{testPrice}, change: rig}, func(t *testing.T, w *town) {
		if err := w.submitWith("j1", withSecrets(withFiles("sleep=1s")), someSecrets()); err != nil {
			t.Fatal(err)
		}
		if j := w.over("j1"); j.State != JobFailed || !strings.Contains(j.Reason, ErrNoSecrets.Error()) {
			t.Errorf("%s %q", j.State, j.Reason)
		}
		if c := w.renter.store.allContracts()[0]; c.ProviderFault || c.Fetched > 0 {
			t.Errorf("%+v", c)
		}
	})
}

func TestSecretsRefusedAtSubmit(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		for name, c := range map[string]struct {
			spec  Spec
			given protocol.Secrets
		}{
			"no values":   {withSecrets(oneTask("print")), nil},
			"other names": {withSecrets(oneTask("print")), protocol.Secrets{"X": {1}}},
			"not wanted":  {oneTask("print"), someSecrets()},
		} {
			if err := w.submitWith("j1", c.spec, c.given); !errors.Is(err, ErrSpec) {
				t.Errorf("%s: %v", name, err)
			}
		}
		renterOf(w.renter).Keys = nil
		if err := w.submitWith("j1", withSecrets(oneTask("print")), someSecrets()); !errors.Is(err, ErrSpec) {
			t.Errorf("%v", err)
		}
		if n := len(w.renter.store.allJobs()); n > 0 {
			t.Errorf("%d jobs are stored", n)
		}
	})
}
