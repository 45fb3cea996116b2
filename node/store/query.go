package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// EntryFilter chooses entries; a zero field does not choose.
type EntryFilter struct {
	Cause, Kind string
	Account     string    // that one of the legs is of
	From, To    time.Time // from From on, before To
	Limit       int       // the newest so many
}

// Entries lists entries of the journal in the order they were booked.
func (db *DB) Entries(ctx context.Context, f EntryFilter) (list []ledger.Entry, err error) {
	err = db.view(ctx, func(t *txn) error {
		list, err = t.entries(f)
		return err
	})
	return list, wrap(err, "read the journal")
}

func (t *txn) entries(f EntryFilter) ([]ledger.Entry, error) {
	where, args := `1`, []any{}
	for _, c := range []struct {
		set   bool
		where string
		arg   any
	}{
		{f.Cause != "", `cause = ?`, f.Cause},
		{f.Kind != "", `kind = ?`, f.Kind},
		{f.Account != "", `n IN (SELECT entry FROM legs WHERE account = ?)`, f.Account},
		{!f.From.IsZero(), `at >= ?`, nanos(f.From)},
		{!f.To.IsZero(), `at < ?`, nanos(f.To)},
	} {
		if c.set {
			where, args = where+` AND `+c.where, append(args, c.arg)
		}
	}
	args = append(args, noLimit(f.Limit))
	var out []ledger.Entry
	var last int64
	err := t.each(`SELECT n, cause, kind, at, text, account, debit, asset, hi, lo
		FROM (SELECT * FROM entries WHERE `+where+` ORDER BY n DESC LIMIT ?) JOIN legs ON entry = n ORDER BY n, pos`, args,
		func(scan func(...any) error) error {
			var n, at int64
			var e ledger.Entry
			var l ledger.Leg
			if err := scan(&n, &e.Cause, &e.Kind, &at, &e.Text, &l.Account, &l.Debit, &l.Amount.Asset, bits{&l.Amount.Hi}, bits{&l.Amount.Lo}); err != nil {
				return err
			}
			if n != last {
				e.Time, last = fromNanos(at), n
				out = append(out, e)
			}
			legs := &out[len(out)-1].Legs
			*legs = append(*legs, l)
			return nil
		})
	return out, err
}

// Balances are the sums of all accounts, in the order of their names.
func (db *DB) Balances(ctx context.Context) (list []ledger.Balance, err error) {
	err = db.view(ctx, func(t *txn) error {
		return t.each(`SELECT account, asset, debit_hi, debit_lo, credit_hi, credit_lo FROM balances ORDER BY account, asset`, nil,
			func(scan func(...any) error) error {
				var b ledger.Balance
				var asset string
				err := scan(&b.Account, &asset, bits{&b.Debits.Hi}, bits{&b.Debits.Lo}, bits{&b.Credits.Hi}, bits{&b.Credits.Lo})
				b.Debits.Asset, b.Credits.Asset = asset, asset
				list = append(list, b)
				return err
			})
	})
	return list, wrap(err, "read the balances")
}

// Statement is what the chosen entries say lease by lease, with what is known
// of each lease.
func (db *DB) Statement(ctx context.Context, f EntryFilter) (s ledger.Statement, err error) {
	err = db.view(ctx, func(t *txn) error {
		entries, err := t.entries(f)
		if err != nil {
			return err
		}
		details := map[string]ledger.Detail{}
		for _, e := range entries {
			if _, ok := details[e.Cause]; ok {
				continue
			}
			d, err := t.detail(e.Cause)
			if err != nil {
				return err
			}
			details[e.Cause] = d
		}
		s, err = ledger.MakeStatement(entries, details)
		return err
	})
	return s, wrap(err, "statement")
}

// detail is what is known of a cause; nothing when it is no lease.
func (t *txn) detail(cause string) (ledger.Detail, error) {
	var id protocol.MsgID
	if err := id.UnmarshalText([]byte(cause)); err != nil {
		return ledger.Detail{}, nil //nolint:nilerr // another kind of cause
	}
	c, err := t.Contract(id)
	if errors.Is(err, job.ErrNotFound) {
		return ledger.Detail{}, nil
	}
	if err != nil {
		return ledger.Detail{}, err
	}
	return ledger.Detail{
		Job: c.Job, Task: c.Task, Attempt: c.Attempt, State: string(c.State), UsageMs: c.UsageMs, Price: ledger.Units(c.Asset, c.Price),
	}, nil
}

// Roots lists the content that must be kept: what is held and not past its
// time, images and pins. Each once.
func (db *DB) Roots(ctx context.Context) (roots []cid.Cid, err error) {
	err = db.view(ctx, func(t *txn) (err error) {
		roots, err = t.cids(`SELECT root FROM holds WHERE until = 0 OR until > ? UNION SELECT root FROM images UNION SELECT root FROM pins`, nanos(db.o.Now()))
		return err
	})
	return roots, wrap(err, "list the content to keep")
}

// cids reads a column of them.
func (t *txn) cids(query string, args ...any) (out []cid.Cid, err error) {
	err = t.each(query, args, func(scan func(...any) error) error {
		var raw sql.RawBytes
		if err := scan(&raw); err != nil {
			return err
		}
		c, err := cid.Cast(append([]byte{}, raw...))
		out = append(out, c)
		return err
	})
	return out, err
}

// Dropped are roots of content that was held for a time and that nobody holds
// now: what they alone reach may go. ForgetDropped takes them out when it is gone.
func (db *DB) Dropped(ctx context.Context) (roots []cid.Cid, err error) {
	err = db.view(ctx, func(t *txn) (err error) {
		roots, err = t.cids(`SELECT root FROM dropped WHERE root NOT IN (SELECT root FROM holds)`)
		return err
	})
	return roots, wrap(err, "list what was let go")
}

// ForgetDropped takes roots out of what Dropped gives.
func (db *DB) ForgetDropped(ctx context.Context, roots []cid.Cid) error {
	err := db.update(ctx, func(t *txn) error {
		for _, c := range roots {
			if _, err := t.exec(`DELETE FROM dropped WHERE root = ?`, c.Bytes()); err != nil {
				return err
			}
		}
		return nil
	})
	return wrap(err, "forget what was let go")
}

// ExpireHolds drops the holds whose time is over at now and returns how many.
func (db *DB) ExpireHolds(ctx context.Context, now time.Time) (n int, err error) {
	err = db.update(ctx, func(t *txn) error {
		res, err := t.exec(`DELETE FROM holds WHERE until <> 0 AND until <= ?`, nanos(now))
		if err != nil {
			return err
		}
		count, err := res.RowsAffected()
		n = int(count)
		return err
	})
	return n, wrap(err, "drop lapsed holds")
}
