package store

import (
	"fmt"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
)

// What the store keeps as spent and earned is the sum of the journal's charges,
// whenever it is asked and over restarts of the node.
func TestTurnoverIsTheSumOfTheJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lumbung.db")
	db, err := Open(path, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	leases := 0
	rapid.Check(t, func(t *rapid.T) {
		same := func(when string) {
			spent, earned, err := db.Turnover(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			wantSpent, wantEarned := summed(t, db)
			if spent != wantSpent || earned != wantEarned {
				t.Fatalf("%s: spent %s and earned %s, the statement says %s and %s", when, spent, earned, wantSpent, wantEarned)
			}
		}
		same("before")
		for range rapid.IntRange(1, 3).Draw(t, "leases") {
			leases++
			c := ledger.ContractCharge{
				Lease: fmt.Sprint("lease", leases), Job: fmt.Sprint("j", leases%3), Renter: fmt.Sprint("r", leases%2), Provider: fmt.Sprint("p", leases%2), Time: noon,
				RenterSide: rapid.Bool().Draw(t, "side"), Before: ledger.Units("usd", 0), After: anyCharge(t),
			}
			post(t, db, c)
			if rapid.Bool().Draw(t, "ask") {
				same("in between")
			}
			if !c.After.IsZero() && rapid.Bool().Draw(t, "correct") {
				c.Before, c.After = c.After, anyCharge(t)
				post(t, db, c)
			}
		}
		same("in the end")
		if rapid.IntRange(0, 19).Draw(t, "restart") > 0 {
			return
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if db, err = Open(path, quiet()); err != nil {
			t.Fatal(err)
		}
		same("after a restart")
	})
}

func anyCharge(t *rapid.T) ledger.Amount {
	a := ledger.Units("usd", rapid.Uint64().Draw(t, "charge"))
	a.Hi = rapid.Uint64Range(0, 3).Draw(t, "many")
	return a
}

func post(t *rapid.T, db *DB, c ledger.ContractCharge) {
	err := db.Update(t.Context(), func(tx job.Tx) error {
		for _, e := range ledger.ContractEntries(c) {
			if err := tx.Post(e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// summed reads the whole journal.
func summed(t *rapid.T, db *DB) (spent, earned ledger.Amount) {
	spent, earned = ledger.Units("usd", 0), ledger.Units("usd", 0)
	s, err := db.Statement(t.Context(), EntryFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range s.Rows {
		to := &earned
		if r.RenterSide {
			to = &spent
		}
		if *to, err = to.Add(r.Charge); err != nil {
			t.Fatal(err)
		}
	}
	return spent, earned
}
