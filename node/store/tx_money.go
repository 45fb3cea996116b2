package store

import (
	"errors"
	"fmt"
	"slices"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
)

// ErrConflict says that a cause was booked before, and differently.
var ErrConflict = errors.New("booked before with other amounts")

// Post implements job.Tx. An entry of a cause and kind that is booked already
// must have the same legs, or it is ErrConflict: money is never dropped
// silently.
func (t *txn) Post(e ledger.Entry) error {
	if err := e.Check(); err != nil {
		return fmt.Errorf("book: %w", err)
	}
	if err := t.post(e); err != nil {
		return fmt.Errorf("book %s of %s: %w", e.Kind, e.Cause, err)
	}
	return nil
}

func (t *txn) post(e ledger.Entry) error {
	res, err := t.exec(`INSERT INTO entries (cause, kind, at, text) VALUES (?, ?, ?, ?) ON CONFLICT (cause, kind) DO NOTHING`,
		e.Cause, e.Kind, nanos(e.Time), e.Text)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, t.sameEntry(e))
	}
	id, err := res.LastInsertId()
	if err != nil {
		return err
	}
	for i, l := range e.Legs {
		if _, err := t.exec(`INSERT INTO legs (entry, pos, account, debit, asset, hi, lo) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			id, i, l.Account, l.Debit, l.Amount.Asset, int64(l.Amount.Hi), int64(l.Amount.Lo)); err != nil {
			return err
		}
		if err := t.balance(l); err != nil {
			return err
		}
	}
	return nil
}

func (t *txn) sameEntry(e ledger.Entry) error {
	list, err := t.entries(EntryFilter{Cause: e.Cause, Kind: e.Kind})
	if err != nil {
		return err
	}
	if len(list) != 1 || !slices.Equal(list[0].Legs, e.Legs) {
		return ErrConflict
	}
	return nil
}

// balance keeps the sum of an account beside its legs.
func (t *txn) balance(l ledger.Leg) error {
	zero := ledger.Units(l.Amount.Asset, 0)
	b := ledger.Balance{Account: l.Account, Debits: zero, Credits: zero}
	err := t.get(`SELECT debit_hi, debit_lo, credit_hi, credit_lo FROM balances WHERE account = ? AND asset = ?`,
		[]any{l.Account, l.Amount.Asset}, bits{&b.Debits.Hi}, bits{&b.Debits.Lo}, bits{&b.Credits.Hi}, bits{&b.Credits.Lo})
	if err != nil && !errors.Is(err, job.ErrNotFound) {
		return err
	}
	if b, err = b.Post(l); err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO balances (account, asset, debit_hi, debit_lo, credit_hi, credit_lo) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
		ON CONFLICT (account, asset) DO UPDATE SET debit_hi = ?3, debit_lo = ?4, credit_hi = ?5, credit_lo = ?6`,
		l.Account, l.Amount.Asset, int64(b.Debits.Hi), int64(b.Debits.Lo), int64(b.Credits.Hi), int64(b.Credits.Lo))
	return err
}

// bits scans a signed column into the unsigned number of the same bits.
type bits struct{ to *uint64 }

// Scan implements sql.Scanner.
func (b bits) Scan(v any) error {
	n, ok := v.(int64)
	if !ok {
		return fmt.Errorf("a column of type %T where a number belongs", v)
	}
	*b.to = uint64(n)
	return nil
}
