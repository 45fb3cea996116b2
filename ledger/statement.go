package ledger

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Detail is what a lease was, for the row of a statement.
type Detail struct {
	Job     string `json:"job"`
	Task    int    `json:"task"`
	Attempt int    `json:"attempt"`
	State   string `json:"state"`
	UsageMs int64  `json:"usage_ms"`
	Price   Amount `json:"price_per_hour"`
}

// Row is one lease of a statement: Charge is the sum of its entries.
type Row struct {
	Detail
	Time       time.Time `json:"time"` // of the first entry
	Lease      string    `json:"lease"`
	RenterSide bool      `json:"renter_side"`
	Peer       string    `json:"peer"` // the other side
	Charge     Amount    `json:"charge"`
}

// PeerTotal is the account with one peer in one asset: Owed is what this node
// owes it, Due what it owes this node.
type PeerTotal struct {
	Peer string `json:"peer"`
	Owed Amount `json:"owed"`
	Due  Amount `json:"due"`
}

// JobTotal is what a job has cost in one asset.
type JobTotal struct {
	Job   string `json:"job"`
	Spent Amount `json:"spent"`
}

// Statement is what a node owes and is owed, lease by lease, with its totals.
// Totals has one element an asset, with an empty peer.
type Statement struct {
	Rows   []Row       `json:"rows"`
	Peers  []PeerTotal `json:"peers"`
	Jobs   []JobTotal  `json:"jobs"`
	Totals []PeerTotal `json:"totals"`
}

// MakeStatement sums entries by lease, peer and job. Rows are in the order of
// their first entry's time, then by lease. Leases of which no details are given
// keep empty ones. An entry that Entry.Check refuses, and a sum that leaves 128
// bits or falls below zero, is an error.
func MakeStatement(entries []Entry, details map[string]Detail) (Statement, error) {
	rows := map[rowKey]*openRow{}
	for _, e := range entries {
		if err := addToRows(rows, e, details[e.Cause]); err != nil {
			return Statement{}, err
		}
	}
	var s Statement
	for _, r := range rows {
		charge, ok := r.charge()
		if !ok {
			return Statement{}, fmt.Errorf("lease %s: more was taken back than booked: %w", r.row.Lease, ErrOverflow)
		}
		r.row.Charge = charge
		s.Rows = append(s.Rows, r.row)
	}
	slices.SortFunc(s.Rows, func(a, b Row) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.Lease, b.Lease), strings.Compare(a.Charge.Asset, b.Charge.Asset))
	})
	return s, s.sum()
}

// rowKey tells rows apart; a lease has one row unless its asset changed.
type rowKey struct {
	lease, asset, account string
}

// openRow is a row with what its peer's account says of it.
type openRow struct {
	row Row
	net Balance
}

// charge is what the lease came to: a renter owes by credits, a provider is
// owed by debits.
func (r *openRow) charge() (Amount, bool) {
	net, debit := r.net.Net()
	return net, net.IsZero() || debit != r.row.RenterSide
}

// addToRows puts an entry's legs on its lease's row. The accounts owed:to and
// owed:by hold the charge; the other leg is its mirror.
func addToRows(rows map[rowKey]*openRow, e Entry, d Detail) error {
	if err := e.Check(); err != nil {
		return err
	}
	for _, l := range e.Legs {
		peer, renter := strings.CutPrefix(l.Account, accountOwedTo)
		if !renter {
			var provider bool
			if peer, provider = strings.CutPrefix(l.Account, accountOwedBy); !provider {
				continue
			}
		}
		k := rowKey{lease: e.Cause, asset: l.Amount.Asset, account: l.Account}
		r := rows[k]
		if r == nil {
			zero := Units(k.asset, 0)
			r = &openRow{
				row: Row{Detail: d, Time: e.Time, Lease: e.Cause, RenterSide: renter, Peer: peer},
				net: Balance{Account: l.Account, Debits: zero, Credits: zero},
			}
			rows[k] = r
		}
		if e.Time.Before(r.row.Time) {
			r.row.Time = e.Time
		}
		var err error
		if r.net, err = r.net.Post(l); err != nil {
			return err
		}
	}
	return nil
}

// sum fills in the totals from the rows.
func (s *Statement) sum() error {
	peers, jobs, totals := sums{}, sums{}, sums{}
	for _, r := range s.Rows {
		if err := errors.Join(peers.add(r.Peer, r), totals.add("", r)); err != nil {
			return err
		}
		if !r.RenterSide {
			continue
		}
		if err := jobs.add(r.Job, r); err != nil {
			return err
		}
	}
	s.Peers, s.Totals = peers.list(), totals.list()
	for _, t := range jobs.list() {
		s.Jobs = append(s.Jobs, JobTotal{Job: t.Peer, Spent: t.Owed})
	}
	return nil
}

type sumKey struct{ name, asset string }

type sums map[sumKey]PeerTotal

func (s sums) add(name string, r Row) error {
	k := sumKey{name, r.Charge.Asset}
	t, ok := s[k]
	if !ok {
		t = PeerTotal{Peer: name, Owed: Units(k.asset, 0), Due: Units(k.asset, 0)}
	}
	side := &t.Due
	if r.RenterSide {
		side = &t.Owed
	}
	sum, err := side.Add(r.Charge)
	if err != nil {
		return fmt.Errorf("total of %q: %w", name, err)
	}
	*side = sum
	s[k] = t
	return nil
}

func (s sums) list() []PeerTotal {
	return slices.SortedFunc(maps.Values(s), func(a, b PeerTotal) int {
		return cmp.Or(strings.Compare(a.Peer, b.Peer), strings.Compare(a.Owed.Asset, b.Owed.Asset))
	})
}
