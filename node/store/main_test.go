package store

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"go.uber.org/goleak"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(crashEnv); path != "" {
		os.Exit(crashChild(path))
	}
	goleak.VerifyTestMain(m)
}

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func quiet() Options {
	return Options{Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return noon }}
}

func openTest(t testing.TB, o Options) *DB {
	t.Helper()
	db, err := Open(filepath.Join(t.TempDir(), "home", "lumbung.db"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// update and view run fn, which may end the test from within.
func update(t testing.TB, db *DB, fn func(job.Tx) error) {
	t.Helper()
	if err := db.Update(context.Background(), fn); err != nil {
		t.Fatal(err)
	}
}

func view(t testing.TB, db *DB, fn func(job.Tx) error) {
	t.Helper()
	if err := db.View(context.Background(), fn); err != nil {
		t.Fatal(err)
	}
}

func lease(n byte) protocol.MsgID { return protocol.IDOf([]byte{n}) }

func root(t testing.TB, text string) cid.Cid {
	t.Helper()
	sum, err := multihash.Sum([]byte(text), multihash.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	return cid.NewCidV1(cid.Raw, sum)
}

func charge(id string, renterSide bool, before, after uint64) ledger.Entry {
	return ledger.ContractEntries(ledger.ContractCharge{
		Lease: id, Job: "j1", RenterSide: renterSide, Renter: "renter", Provider: "provider",
		Before: ledger.Units("usd", before), After: ledger.Units("usd", after), Time: noon,
	})[0]
}
