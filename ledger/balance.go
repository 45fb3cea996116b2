package ledger

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Balance is all that went into and out of an account in one asset.
type Balance struct {
	Account string `json:"account"`
	Debits  Amount `json:"debits"`
	Credits Amount `json:"credits"`
}

// Net is the difference of the two, and whether more went in than out.
func (b Balance) Net() (net Amount, debit bool) {
	if b.Debits.Cmp(b.Credits) >= 0 {
		return minus(b.Debits, b.Credits), true
	}
	return minus(b.Credits, b.Debits), false
}

// minus is a − b for b at most a, both of one asset.
func minus(a, b Amount) Amount {
	d, err := a.Sub(b)
	if err != nil {
		panic(fmt.Sprintf("ledger: %v", err)) // the callers have compared them
	}
	return d
}

// Post adds a leg to the balance.
func (b Balance) Post(l Leg) (Balance, error) {
	side := &b.Credits
	if l.Debit {
		side = &b.Debits
	}
	sum, err := side.Add(l.Amount)
	if err != nil {
		return b, fmt.Errorf("account %s: %w", b.Account, err)
	}
	*side = sum
	return b, nil
}

// Balances sums entries by account and asset, in the order of their names.
// ErrOverflow when a sum leaves 128 bits; entries are checked by Entry.Check.
func Balances(entries []Entry) ([]Balance, error) {
	type key struct{ account, asset string }
	sums := map[key]Balance{}
	for _, e := range entries {
		if err := e.Check(); err != nil {
			return nil, err
		}
		for _, l := range e.Legs {
			k := key{l.Account, l.Amount.Asset}
			b, ok := sums[k]
			if !ok {
				zero := Units(l.Amount.Asset, 0)
				b = Balance{Account: l.Account, Debits: zero, Credits: zero}
			}
			b, err := b.Post(l)
			if err != nil {
				return nil, err
			}
			sums[k] = b
		}
	}
	out := make([]Balance, 0, len(sums))
	for _, b := range sums {
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b Balance) int {
		return cmp.Or(strings.Compare(a.Account, b.Account), strings.Compare(a.Debits.Asset, b.Debits.Asset))
	})
	return out, nil
}
