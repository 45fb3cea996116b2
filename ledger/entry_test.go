package ledger

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestEntryCheck(t *testing.T) {
	leg := func(account string, debit bool, a Amount) Leg { return Leg{Account: account, Debit: debit, Amount: a} }
	good := Entry{Cause: "l1", Kind: KindCharge, Time: noon, Legs: []Leg{
		leg(SpentOn("j1"), true, Units("usd", 5)), leg(OwedTo("p1"), false, Units("usd", 5)),
	}}
	top := Amount{Asset: "usd", Hi: ^uint64(0), Lo: ^uint64(0)}
	for name, c := range map[string]struct {
		change func(e *Entry)
		want   error
	}{
		"balanced":      {func(*Entry) {}, nil},
		"no cause":      {func(e *Entry) { e.Cause = "" }, ErrEntry},
		"no kind":       {func(e *Entry) { e.Kind = "" }, ErrEntry},
		"no time":       {func(e *Entry) { e.Time = time.Time{} }, ErrEntry},
		"one leg":       {func(e *Entry) { e.Legs = e.Legs[:1] }, ErrEntry},
		"too many legs": {func(e *Entry) { e.Legs = make([]Leg, maxLegs+1) }, ErrEntry},
		"moves nothing": {func(e *Entry) { e.Legs[0].Amount, e.Legs[1].Amount = Units("usd", 0), Units("usd", 0) }, ErrEntry},
		"no asset":      {func(e *Entry) { e.Legs[0].Amount.Asset, e.Legs[1].Amount.Asset = "", "" }, ErrEntry},
		"bad account":   {func(e *Entry) { e.Legs[0].Account = "pocket" }, ErrEntry},
		"no holder":     {func(e *Entry) { e.Legs[0].Account = OwedTo("") }, ErrEntry},
		"space inside":  {func(e *Entry) { e.Legs[0].Account = OwedTo("a b") }, ErrEntry},
		"unequal":       {func(e *Entry) { e.Legs[1].Amount = Units("usd", 4) }, ErrUnbalanced},
		"two assets":    {func(e *Entry) { e.Legs[1].Amount = Units("eth", 5) }, ErrUnbalanced},
		"both in":       {func(e *Entry) { e.Legs[1].Debit = true }, ErrUnbalanced},
		"overflow": {func(e *Entry) {
			e.Legs = append(e.Legs, leg(SpentOn("j1"), true, top), leg(OwedTo("p1"), false, top))
		}, ErrOverflow},
	} {
		e := good
		e.Legs = append([]Leg{}, good.Legs...)
		c.change(&e)
		if err := e.Check(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// lease is one lease of the property test, as both sides see it.
type lease struct {
	id               string
	renter, provider string
	claimed, settled Amount
}

// books are one node's journal: an entry of the same cause and kind is kept
// once, as the store does.
type books struct {
	entries []Entry
	have    map[string]bool
}

func (b *books) post(entries ...Entry) {
	if b.have == nil {
		b.have = map[string]bool{}
	}
	for _, e := range entries {
		key := e.Cause + " " + e.Kind
		if !b.have[key] {
			b.have[key] = true
			b.entries = append(b.entries, e)
		}
	}
}

func TestJournalsOfBothSidesAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		leases := rapid.SliceOfN(rapid.Custom(drawLease), 1, 12).Draw(t, "leases")
		details := map[string]Detail{}
		journals := map[string]*books{"a": {}, "b": {}, "c": {}}
		var steps []func()
		for i, l := range leases {
			l.id = fmt.Sprintf("lease%d", i)
			details[l.id] = Detail{Job: "j" + l.renter, UsageMs: int64(i)}
			steps = append(steps, bookings(journals, l)...)
		}
		// Sides book in any order, and some of it again.
		order := rapid.Permutation(steps).Draw(t, "order")
		again := rapid.SliceOf(rapid.IntRange(0, len(steps)-1)).Draw(t, "again")
		for _, step := range order {
			step()
		}
		for _, i := range again {
			steps[i]()
		}
		checkConservation(t, journals)
		checkStatements(t, journals, details, leases)
	})
}

func drawLease(t *rapid.T) lease {
	pair := rapid.SampledFrom([][2]string{{"a", "b"}, {"b", "a"}, {"a", "c"}, {"c", "b"}}).Draw(t, "pair")
	claimed := rapid.Uint64Range(0, 1<<50).Draw(t, "claimed")
	settled := claimed
	if rapid.Bool().Draw(t, "corrected") {
		settled = rapid.Uint64Range(0, 1<<50).Draw(t, "settled")
	}
	return lease{
		renter: pair[0], provider: pair[1],
		claimed: Units("usd", claimed), settled: Units("usd", settled),
	}
}

// bookings are the steps of each side: what the receipt says, the renter books
// at once; the provider books its claim, then the receipt.
func bookings(journals map[string]*books, l lease) []func() {
	change := func(renterSide bool, before, after Amount) []Entry {
		return ContractEntries(ContractCharge{
			Lease: l.id, Job: "j" + l.renter, RenterSide: renterSide, Renter: l.renter, Provider: l.provider,
			Before: before, After: after, Time: noon,
		})
	}
	zero := Units("usd", 0)
	return []func(){
		func() { journals[l.renter].post(change(true, zero, l.settled)...) },
		func() {
			journals[l.provider].post(change(false, zero, l.claimed)...)
			journals[l.provider].post(change(false, l.claimed, l.settled)...)
		},
	}
}

func checkConservation(t *rapid.T, journals map[string]*books) {
	owedTo, owedBy := map[string]Amount{}, map[string]Amount{}
	for node, j := range journals {
		list, err := Balances(j.entries)
		if err != nil {
			t.Fatal(err)
		}
		debits, credits := Units("usd", 0), Units("usd", 0)
		for _, b := range list {
			debits, credits = plus(t, debits, b.Debits), plus(t, credits, b.Credits)
			net, _ := b.Net()
			for _, peer := range []string{"a", "b", "c"} {
				if b.Account == OwedTo(peer) {
					owedTo[node+">"+peer] = net
				}
				if b.Account == OwedBy(peer) {
					owedBy[peer+">"+node] = net
				}
			}
		}
		if debits.Cmp(credits) != 0 {
			t.Fatalf("%s: %s in, %s out", node, debits, credits)
		}
	}
	for pair, a := range owedTo {
		if a.Cmp(owedBy[pair]) != 0 {
			t.Fatalf("%s: the one owes %s, the other is owed %s", pair, a, owedBy[pair])
		}
	}
	for pair, a := range owedBy {
		if a.Cmp(owedTo[pair]) != 0 {
			t.Fatalf("%s: the one is owed %s, the other owes %s", pair, a, owedTo[pair])
		}
	}
}

func checkStatements(t *rapid.T, journals map[string]*books, details map[string]Detail, leases []lease) {
	type sides struct{ renter, provider Amount }
	byLease := map[string]sides{}
	total := sides{Units("usd", 0), Units("usd", 0)}
	for node, j := range journals {
		s, err := MakeStatement(j.entries, details)
		if err != nil {
			t.Fatalf("%s: %v", node, err)
		}
		for _, r := range s.Rows {
			if r.Detail != details[r.Lease] {
				t.Fatalf("lease %s has the details %+v", r.Lease, r.Detail)
			}
			both := byLease[r.Lease]
			if r.RenterSide {
				both.renter = r.Charge
			} else {
				both.provider = r.Charge
			}
			byLease[r.Lease] = both
		}
		jobs := Units("usd", 0)
		for _, jt := range s.Jobs {
			jobs = plus(t, jobs, jt.Spent)
		}
		for _, sum := range s.Totals {
			if sum.Owed.Cmp(jobs) != 0 {
				t.Fatalf("%s owes %s and spent %s", node, sum.Owed, jobs)
			}
			total.renter, total.provider = plus(t, total.renter, sum.Owed), plus(t, total.provider, sum.Due)
		}
	}
	if total.renter.Cmp(total.provider) != 0 {
		t.Fatalf("renters owe %s, providers are owed %s", total.renter, total.provider)
	}
	for i, l := range leases {
		both := byLease[fmt.Sprintf("lease%d", i)]
		if both.renter.Cmp(l.settled) != 0 || both.provider.Cmp(l.settled) != 0 {
			t.Fatalf("lease %d: renter %s, provider %s, receipt %s", i, both.renter, both.provider, l.settled)
		}
	}
}

func plus(t *rapid.T, a, b Amount) Amount {
	sum, err := a.Add(b)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestNoChangeBooksNothing(t *testing.T) {
	for _, a := range []Amount{{}, Units("usd", 0), Units("usd", 7)} {
		if got := ContractEntries(ContractCharge{Lease: "l", Before: a, After: a, Time: noon}); got != nil {
			t.Errorf("%s to itself books %v", a, got)
		}
	}
	if got := ContractEntries(ContractCharge{Lease: "l", After: Units("usd", 0), Time: noon}); got != nil {
		t.Errorf("nothing to zero books %v", got)
	}
}

func TestChangeOfAssetTakesBackTheOldCharge(t *testing.T) {
	c := ContractCharge{Lease: "l", Renter: "r", Provider: "p", Job: "j", RenterSide: true, Before: Units("usd", 7), After: Units("eth", 7), Time: noon}
	entries := append(ContractEntries(ContractCharge{Lease: "l", Renter: "r", Provider: "p", Job: "j", RenterSide: true, After: c.Before, Time: noon}), ContractEntries(c)...)
	s, err := MakeStatement(entries, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, total := range s.Totals {
		got[total.Owed.Asset] = total.Owed.Lo
	}
	if len(got) != 2 || got["usd"] != 0 || got["eth"] != 7 {
		t.Errorf("owed %v", got)
	}
}

func TestStatementOrder(t *testing.T) {
	var entries []Entry
	for i, id := range []string{"z", "a", "m"} {
		entries = append(entries, ContractEntries(ContractCharge{
			Lease: id, Renter: "r", Provider: "p", Job: "j", RenterSide: true, After: Units("usd", uint64(i+1)), Time: noon.Add(-time.Duration(i) * time.Minute),
		})...)
	}
	s, err := MakeStatement(entries, map[string]Detail{"a": {Job: "j", Task: 4, State: "done", UsageMs: 900, Price: Units("usd", 600_000)}})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Rows) != 3 || s.Rows[0].Lease != "m" || s.Rows[1].Lease != "a" || s.Rows[2].Lease != "z" {
		t.Fatalf("rows %+v", s.Rows)
	}
	if r := s.Rows[1]; r.Task != 4 || r.UsageMs != 900 || r.Price.Lo != 600_000 || r.Peer != "p" || !r.RenterSide {
		t.Errorf("row %+v", r)
	}
	if s.Totals[0].Owed != Units("usd", 6) || s.Peers[0].Owed != Units("usd", 6) || len(s.Jobs) != 2 {
		t.Errorf("totals %+v, peers %+v, jobs %+v", s.Totals, s.Peers, s.Jobs)
	}
}
