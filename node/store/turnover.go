package store

import (
	"context"
	"strings"
	"sync"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
)

// turnover is what was spent and earned up to an entry. The journal only grows,
// so that whoever asks again waits only for what has been booked since.
type turnover struct {
	mu            sync.Mutex
	upTo          int64
	spent, earned ledger.Balance
}

// Turnover is what has been spent on jobs and earned with others' in all.
func (db *DB) Turnover(ctx context.Context) (spent, earned ledger.Amount, err error) {
	o := &db.turnover
	o.mu.Lock()
	defer o.mu.Unlock()
	zero := ledger.Units(job.Asset, 0)
	was := [2]ledger.Balance{o.spent, o.earned}
	if o.upTo == 0 {
		was = [2]ledger.Balance{{Debits: zero, Credits: zero}, {Debits: zero, Credits: zero}}
	}
	now, upTo := was, o.upTo
	err = db.view(ctx, func(t *txn) error {
		if err := t.get(`SELECT coalesce(max(n), 0) FROM entries`, nil, &upTo); err != nil {
			return err
		}
		if o.upTo == 0 {
			return t.turnoverOf(&now, `SELECT account, 1, debit_hi, debit_lo FROM balances WHERE asset = ?1 AND `+turnoverAccounts+`
				UNION ALL SELECT account, 0, credit_hi, credit_lo FROM balances WHERE asset = ?1 AND `+turnoverAccounts, job.Asset)
		}
		return t.turnoverOf(&now, `SELECT account, debit, hi, lo FROM legs WHERE asset = ?1 AND entry > ?2 AND `+turnoverAccounts, job.Asset, o.upTo)
	})
	if err != nil {
		return zero, zero, wrap(err, "read what was spent and earned")
	}
	o.upTo, o.spent, o.earned = upTo, now[0], now[1]
	spent, _ = o.spent.Net()
	earned, _ = o.earned.Net()
	return spent, earned, nil
}

// turnoverAccounts chooses the accounts of jobs and of work for others: those
// that begin with a colon's prefix lie before the same with the next character.
var turnoverAccounts = `(account >= '` + ledger.SpentOn("") + `' AND account < '` + after(ledger.SpentOn("")) + `'
	OR account >= '` + ledger.EarnedFrom("") + `' AND account < '` + after(ledger.EarnedFrom("")) + `')`

func after(prefix string) string { return strings.TrimSuffix(prefix, ":") + ";" }

// turnoverOf adds the legs of a query to what was spent and earned.
func (t *txn) turnoverOf(sums *[2]ledger.Balance, query string, args ...any) error {
	return t.each(query, args, func(scan func(...any) error) error {
		l := ledger.Leg{Amount: ledger.Units(job.Asset, 0)}
		err := scan(&l.Account, &l.Debit, bits{&l.Amount.Hi}, bits{&l.Amount.Lo})
		if err != nil {
			return err
		}
		i := 0
		if strings.HasPrefix(l.Account, ledger.EarnedFrom("")) {
			i = 1
		}
		sums[i], err = sums[i].Post(l)
		return err
	})
}
