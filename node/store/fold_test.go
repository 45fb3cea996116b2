package store

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"pgregory.net/rapid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

const network = "test"

func signer(t *testing.T) *protocol.Signer {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := protocol.NewSigner(key, network)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestContractIsTheFoldOfItsMessages stores contracts as a runner does, over
// restarts, and makes them again from the evidence alone.
func TestContractIsTheFoldOfItsMessages(t *testing.T) {
	renter, provider := signer(t), signer(t)
	path := filepath.Join(t.TempDir(), "l.db")
	db, err := Open(path, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	rapid.Check(t, func(t *rapid.T) {
		f := folding{db: db, renter: renter, provider: provider, now: noon, side: rapid.SampledFrom([]job.Side{job.SideRenter, job.SideProvider}).Draw(t, "side")}
		f.lease(t)
		for n := rapid.IntRange(0, keepBeats).Draw(t, "messages"); n > 0; n-- {
			f.now = f.now.Add(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
			f.message(t)
		}
		if rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if db, err = Open(path, quiet()); err != nil {
				t.Fatal(err)
			}
			f.db = db
		}
		f.check(t)
	})
}

type folding struct {
	db               *DB
	renter, provider *protocol.Signer
	side             job.Side
	now              time.Time
	c                job.Contract
	seq              uint64
}

func seal[M protocol.Message](t *rapid.T, s *protocol.Signer, m M) protocol.Signed[M] {
	signed, err := protocol.Sign(s, m)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func (f *folding) lease(t *rapid.T) {
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce)
	l := seal(t, f.renter, &protocol.Lease{
		Nonce: nonce, Provider: f.provider.ID().String(), Job: "j1", Asset: "usd", PricePerHour: 3_600_000,
		Budget: ledger.Units("usd", rapid.Uint64Range(0, 40_000).Draw(t, "budget")).Wire(), HeartbeatMs: 1000,
		Limits:     &protocol.Limits{FetchMs: 60_000, RunMs: 60_000, SaveMs: 60_000},
		AcceptByMs: f.now.Add(time.Minute).UnixMilli(),
	})
	f.c = job.NewContract(f.side, l, f.now)
	f.store(t, f.c, job.Message{Kind: protocol.KindLease, Raw: l.Raw, At: f.now})
}

func (f *folding) store(t *rapid.T, next job.Contract, m job.Message) {
	err := f.db.Update(t.Context(), func(tx job.Tx) error {
		return errors.Join(tx.PutContract(&next), tx.AppendMessage(next.ID, m))
	})
	if err != nil {
		t.Fatal(err)
	}
	f.c = next
}

// message makes one signed message, legal or not, and stores what follows.
func (f *folding) message(t *rapid.T) {
	id := f.c.ID[:]
	usage := rapid.Int64Range(0, 20_000).Draw(t, "usage")
	switch rapid.IntRange(0, 9).Draw(t, "kind") {
	case 0, 1:
		apply(t, f, f.provider, &protocol.Decision{LeaseId: id, AtMs: f.now.UnixMilli(), Accepted: rapid.Bool().Draw(t, "yes")})
	case 2:
		apply(t, f, f.renter, &protocol.Cancel{LeaseId: id, AtMs: f.now.UnixMilli(), Reason: "enough"})
	case 3:
		apply(t, f, f.provider, &protocol.Result{
			LeaseId: id, Outcome: protocol.Outcome(rapid.IntRange(1, 3).Draw(t, "outcome")), ExitSource: "job",
			UsageMs: usage, EndedMs: f.now.UnixMilli(), Charge: f.c.Charge.Wire(),
		})
	case 4:
		end := rapid.SampledFrom([]job.State{f.c.State, job.Lost}).Draw(t, "end")
		apply(t, f, f.renter, &protocol.Receipt{LeaseId: id, AtMs: f.now.UnixMilli(), UsageMs: usage, Charge: f.c.Charge.Wire(), End: string(end)})
	default:
		f.seq += uint64(rapid.IntRange(0, 2).Draw(t, "beat"))
		apply(t, f, f.provider, &protocol.Heartbeat{
			LeaseId: id, Seq: f.seq, AtMs: f.now.UnixMilli(), Phase: protocol.Phase(rapid.IntRange(1, 3).Draw(t, "phase")), UsageMs: usage,
		})
	}
}

func apply[M protocol.Message](t *rapid.T, f *folding, s *protocol.Signer, msg M) {
	m := seal(t, s, msg)
	in, err := job.InputOf(m.Msg)
	if err != nil {
		t.Fatal(err)
	}
	next, _, err := job.Apply(f.c, in, f.now)
	if err != nil {
		return // not taken, so not kept
	}
	f.store(t, next, job.Message{Kind: msg.Kind(), Raw: m.Raw, At: f.now})
}

func (f *folding) check(t *rapid.T) {
	var stored *job.Contract
	var messages []job.Message
	err := f.db.View(t.Context(), func(tx job.Tx) (err error) {
		if stored, err = tx.Contract(f.c.ID); err != nil {
			return err
		}
		messages, err = tx.Messages(f.c.ID)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	folded, err := fold(f.side, messages)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]*job.Contract{"stored": stored, "folded": &folded} {
		want, _ := json.Marshal(f.c)
		got, _ := json.Marshal(c)
		if !bytes.Equal(got, want) {
			t.Fatalf("%s:\n%s\nwant\n%s", what, got, want)
		}
	}
}

// fold makes a contract of its evidence.
func fold(side job.Side, messages []job.Message) (job.Contract, error) {
	l, err := protocol.Reopen[*protocol.Lease](network, messages[0].Raw)
	if err != nil {
		return job.Contract{}, err
	}
	c := job.NewContract(side, l, messages[0].At)
	for _, m := range messages[1:] {
		msg, err := reopen(m)
		if err != nil {
			return c, err
		}
		in, err := job.InputOf(msg)
		if err != nil {
			return c, err
		}
		if c, _, err = job.Apply(c, in, m.At); err != nil {
			return c, fmt.Errorf("%s: %w", m.Kind, err)
		}
	}
	return c, nil
}

func reopen(m job.Message) (protocol.Message, error) {
	switch m.Kind {
	case protocol.KindDecision:
		s, err := protocol.Reopen[*protocol.Decision](network, m.Raw)
		return s.Msg, err
	case protocol.KindHeartbeat:
		s, err := protocol.Reopen[*protocol.Heartbeat](network, m.Raw)
		return s.Msg, err
	case protocol.KindCancel:
		s, err := protocol.Reopen[*protocol.Cancel](network, m.Raw)
		return s.Msg, err
	case protocol.KindResult:
		s, err := protocol.Reopen[*protocol.Result](network, m.Raw)
		return s.Msg, err
	}
	s, err := protocol.Reopen[*protocol.Receipt](network, m.Raw)
	return s.Msg, err
}
