package job

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/lumbung-net/lumbung/protocol"
)

// vault is the town's private files: what is in them, and what was opened.
type vault struct {
	mu     sync.Mutex
	sealed map[string][]byte // by root
	opened []string          // texts, and by whom
	damage func(data []byte) []byte
}

func (v *vault) put(data []byte) []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	root := rootOf(string(data))
	if v.sealed == nil {
		v.sealed = map[string][]byte{}
	}
	v.sealed[string(root)] = data
	return root
}

func (v *vault) get(root []byte) []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	data := v.sealed[string(root)]
	if v.damage != nil {
		return v.damage(slices.Clone(data))
	}
	return data
}

func (v *vault) note(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.opened = append(v.opened, text)
}

func (v *vault) files() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.sealed)
}

func (l library) AddPrivate(_ context.Context, from, _ string, to age.Recipient, _ func(Progress)) (Root, error) {
	data := encrypted(l.w.t, "the text of "+from, to)
	return Root{CID: l.w.vault.put(data), Size: uint64(len(data))}, nil
}

func (l library) SizePrivate(context.Context, string, string) (uint64, error) { return 500, nil }

func (s *shelf) OpenPrivate(_ context.Context, root []byte, dest string, with age.Identity, maxBytes uint64) error {
	if s.life.dead.Load() {
		return errDead
	}
	text, err := decrypted(s.w.vault.get(root), with)
	if err != nil {
		return err
	}
	if uint64(len(text)) > maxBytes {
		return errors.New("too large")
	}
	s.w.vault.note(text)
	if err := os.MkdirAll(dest, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dest, "plain"), []byte(text), 0o600)
}

func (s *shelf) SavePrivate(ctx context.Context, dir string, to age.Recipient) ([]byte, uint64, error) {
	if _, _, err := s.Save(ctx, dir); err != nil {
		return nil, 0, err
	}
	data := encrypted(s.w.t, "what was put out", to)
	root := s.w.vault.put(data)
	s.w.mu.Lock()
	s.w.made[string(root)] = true
	s.w.mu.Unlock()
	return root, uint64(len(data)), nil
}

func (s *shelf) FetchWholeImage(ctx context.Context, im *protocol.Image, from []protocol.PeerID, progress func(Progress)) error {
	return s.FetchImage(ctx, im, from, progress)
}

func (s *shelf) SaveCheckpoint(_ context.Context, dir string, to age.Recipient) ([]byte, uint64, error) {
	if s.life.dead.Load() {
		return nil, 0, errDead
	}
	state, err := os.ReadFile(filepath.Join(dir, checkpointTree, "state"))
	if err != nil {
		return nil, 0, err
	}
	time.Sleep(s.w.storing) // of the bubble's time
	data := encrypted(s.w.t, string(state), to)
	root := s.w.vault.put(data)
	s.w.mu.Lock()
	s.w.made[string(root)] = true
	s.w.mu.Unlock()
	return root, uint64(len(data)), nil
}

func private(s Spec) Spec {
	s.Private = true
	return s
}

// outputText is what a private task of job j1 has put out.
func outputText(t *testing.T, w *town) (string, error) {
	t.Helper()
	j, task := w.renter.store.job("j1"), w.renter.store.tasksOf("j1")[0]
	key, err := w.renter.keys.Outputs(&j, 0)
	if err != nil {
		t.Fatal(err)
	}
	return decrypted(w.vault.get(task.Outputs), key)
}

func TestPrivateJob(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice, testPrice}}, func(t *testing.T, w *town) {
		s := private(withFiles("sleep=1s"))
		s.Inputs = append(s.Inputs, InputSpec{From: "more", To: "/more"})
		w.submit("j1", s)
		j := w.over("j1")
		if j.State != JobDone || !slices.Equal(w.vault.opened, []string{"the text of data", "the text of more"}) {
			t.Errorf("%s %q, opened %q", j.State, j.Reason, w.vault.opened)
		}
		if text, err := outputText(t, w); err != nil || text != "what was put out" {
			t.Errorf("%q %v", text, err)
		}
		// Whoever else has all blocks opens none: not the provider without the lease,
		// nor with the key that it has of a lease of its own.
		c := w.renter.store.allContracts()[0]
		lease := leaseOf(t, w.renter.store, c.ID)
		for i, shop := range w.shops {
			_, err := shop.keys.open(testNet, lease)
			if (err == nil) != (shop.id().String() == c.Provider) {
				t.Errorf("provider %d: %v", i, err)
			}
			if _, err := decrypted(w.vault.get(j.Inputs[0].CID), shop.keys.own); err == nil {
				t.Errorf("provider %d opens an input with its own key", i)
			}
		}
		w.noSecrets(&j)
	})
}

// The owner is told of what stays open.
func TestPrivateNotice(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		s := private(oneTask("sleep=1s"))
		s.Caches = []CacheSpec{{Key: "weights", To: "/w"}}
		s.Retry = RetrySpec{Given: true}
		w.submit("j1", s)
		notices := w.renter.store.eventTexts(EventNotice)
		if !slices.ContainsFunc(notices, func(n string) bool { return strings.Contains(n, "weights") }) {
			t.Errorf("nothing said of what stays open: %q", notices)
		}
		w.over("j1") // this town's providers keep no caches
	})
}

func leaseOf(t *testing.T, s *memStore, id protocol.MsgID) protocol.Signed[*protocol.Lease] {
	t.Helper()
	var m Message
	var err error
	s.view(func(tx *memTx) { m, err = tx.LastMessage(id, protocol.KindLease) })
	if err != nil {
		t.Fatal(err)
	}
	lease, err := protocol.Reopen[*protocol.Lease](testNet, m.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

// noSecrets looks for a job's secrets in everything that a node has stored.
func (w *town) noSecrets(j *Job) {
	w.t.Helper()
	secrets := secretsOf(w.t, w.renter.keys, j)
	for _, s := range append([]*shop{w.renter}, w.shops...) {
		s.store.view(func(tx *memTx) {
			var all []string
			for _, of := range []table{tx.s.jobs, tx.s.tasks, tx.s.contracts} {
				for _, raw := range of {
					all = append(all, string(raw))
				}
			}
			for _, of := range tx.s.messages {
				for _, m := range of {
					all = append(all, string(m.Raw))
				}
			}
			for _, e := range tx.s.events {
				all = append(all, e.Text+string(e.Data))
			}
			for _, secret := range secrets {
				if slices.ContainsFunc(all, func(text string) bool { return strings.Contains(text, secret) }) {
					w.t.Errorf("%s has stored the secret %q", s.name, secret)
				}
			}
		})
	}
}

func TestPrivateQuoteEncryptsNothing(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		s := private(withFiles("sleep=1s"))
		s.Image = "tool"
		q, err := renterOf(w.renter).Quote(t.Context(), s, "", func(Progress) {})
		if err != nil || len(q.Bids) == 0 || q.Job.Inputs[0].Size != 500 || w.vault.files() > 0 {
			t.Errorf("%+v %v, %d private files", q, err, w.vault.files())
		}
	})
}

// Each provider that is tried gets the key, sealed to itself.
func TestPrivateRetry(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice / 2, testPrice}}, func(t *testing.T, w *town) {
		w.shops[0].machine.breakStep("start", errors.New("broken"))
		w.submit("j1", private(withFiles("sleep=1s")))
		j := w.over("j1")
		task := w.renter.store.tasksOf("j1")[0]
		if j.State != JobDone || task.Attempts != 2 || task.Provider != w.shops[1].id().String() {
			t.Errorf("%s %q %+v", j.State, j.Reason, task)
		}
		for i, c := range w.renter.store.allContracts() {
			lease := leaseOf(t, w.renter.store, c.ID)
			if _, err := w.shops[i].keys.open(testNet, lease); err != nil {
				t.Errorf("lease %d: %v", i, err)
			}
			if _, err := w.shops[1-i].keys.open(testNet, lease); !errors.Is(err, ErrNoKey) {
				t.Errorf("lease %d opens elsewhere: %v", i, err)
			}
		}
		if text, err := outputText(t, w); err != nil || text != "what was put out" {
			t.Errorf("%q %v", text, err)
		}
	})
}

// What does not open ends the job with the reason; its provider is not blamed,
// and nothing of it stays there.
func TestPrivateTampered(t *testing.T) {
	for name, c := range map[string]struct {
		rig  func(w *town)
		says string
	}{
		"input cut":     {func(w *town) { w.vault.damage = func(b []byte) []byte { return b[:len(b)-1] } }, "lay out the input"},
		"input changed": {func(w *town) { w.vault.damage = func(b []byte) []byte { b[len(b)-1] ^= 1; return b } }, "lay out the input"},
		"input of another job": {func(w *town) {
			other := encrypted(w.t, "other", must(recipientOf(mustKey(w.t))))
			w.vault.damage = func([]byte) []byte { return other }
		}, "lay out the input"},
	} {
		t.Run(name, func(t *testing.T) {
			inTown(t, plan{prices: []uint64{testPrice, testPrice}}, func(t *testing.T, w *town) {
				c.rig(w)
				w.submit("j1", private(withFiles("sleep=1s")))
				j := w.over("j1")
				task := w.renter.store.tasksOf("j1")[0]
				if j.State != JobFailed || !strings.Contains(j.Reason, c.says) || task.Attempts != 1 || !j.Spent.IsZero() {
					t.Errorf("%s %q, %d attempts, spent %s", j.State, j.Reason, task.Attempts, j.Spent)
				}
				if c := w.renter.store.allContracts()[0]; c.ProviderFault {
					t.Error("the provider is blamed")
				}
			})
		})
	}
}

func mustKey(t testing.TB) []byte {
	t.Helper()
	_, public, err := identityOf(newNonce())
	if err != nil {
		t.Fatal(err)
	}
	return public
}

func must[V any](v V, err error) V {
	if err != nil {
		panic(err)
	}
	return v
}

// A key that is not this provider's ends the lease before anything is fetched.
func TestPrivateKeyOfAnotherNode(t *testing.T) {
	stranger := keysOf(t, 50)
	rig := func(_ int, cfg *ProviderConfig) { cfg.Keys = stranger }
	inTown(t, plan{prices: []uint64{testPrice}, change: rig}, func(t *testing.T, w *town) {
		w.submit("j1", private(withFiles("sleep=1s")))
		j := w.over("j1")
		if j.State != JobFailed || !strings.Contains(j.Reason, ErrNoKey.Error()) {
			t.Errorf("%s %q", j.State, j.Reason)
		}
		if c := w.renter.store.allContracts()[0]; c.ProviderFault || c.Fetched > 0 {
			t.Errorf("%+v", c)
		}
	})
}

func TestPrivateNeedsKeys(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		renterOf(w.renter).Keys = nil
		if err := w.trySubmit("j1", private(oneTask("sleep=1s"))); !errors.Is(err, ErrSpec) {
			t.Errorf("%v", err)
		}
	})
}

// Both sides are killed in every phase, and go on with what they have stored.
func TestPrivateKilledInEveryPhase(t *testing.T) {
	for _, p := range everyPhase() {
		for _, who := range []string{"renter", "provider"} {
			t.Run(fmt.Sprintf("%s, %s", p.name, who), func(t *testing.T) {
				inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
					p.hold(w)
					w.submit("j1", private(crashJob()))
					w.await(p.name, func() bool { return p.there(w) })
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
					if text, err := outputText(t, w); err != nil || text != "what was put out" {
						t.Errorf("%q %v", text, err)
					}
					j := w.renter.store.job("j1")
					w.noSecrets(&j)
				})
			})
		}
	}
}

// A bidder that no key can be sealed to does not hold the job up.
func TestPrivateForNoKey(t *testing.T) {
	key, _, err := crypto.GenerateKeyPair(crypto.RSA, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsa, err := protocol.NewSigner(key, testNet)
	if err != nil {
		t.Fatal(err)
	}
	inTown(t, plan{prices: []uint64{testPrice / 2, testPrice}, signers: []*protocol.Signer{rsa}}, func(t *testing.T, w *town) {
		w.submit("j1", private(withFiles("sleep=1s")))
		j := w.over("j1")
		if task := w.renter.store.tasksOf("j1")[0]; j.State != JobDone || task.Provider != w.shops[1].id().String() {
			t.Errorf("%s %q %+v", j.State, j.Reason, task)
		}
	})
}
