package ledger

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Kinds of entries.
const (
	// KindCharge books what a lease costs when it ends.
	KindCharge = "charge"
	// KindCorrection books by how much the receipt differs from the charge.
	KindCorrection = "correction"
)

// The accounts of a node's books. Each node keeps its own journal and sees
// itself in the middle; what one node owes another is what the other is owed:
//
//	owed:to:<peer>    liability  what this node owes a provider
//	owed:by:<peer>    asset      what a renter owes this node
//	spent:job:<id>    expense    what a job of this node has cost
//	earned:from:<peer> income    what work for a renter has brought
//
// A renter's charge debits spent and credits owed:to; a provider's debits
// owed:by and credits earned. A correction downwards is the same the other way
// round.
const (
	accountOwedTo = "owed:to:"
	accountOwedBy = "owed:by:"
	accountSpent  = "spent:job:"
	accountEarned = "earned:from:"
)

// OwedTo is the account of what this node owes a peer.
func OwedTo(peer string) string { return accountOwedTo + peer }

// OwedBy is the account of what a peer owes this node.
func OwedBy(peer string) string { return accountOwedBy + peer }

// SpentOn is the account of what a job has cost.
func SpentOn(job string) string { return accountSpent + job }

// EarnedFrom is the account of what work for a peer has brought.
func EarnedFrom(peer string) string { return accountEarned + peer }

// Entry is one booking: what it was for and the legs that sum to nothing.
type Entry struct {
	// Cause names what moved the money, such as a lease's id; Kind tells apart
	// several entries of one cause (KindCharge, KindCorrection).
	Cause string    `json:"cause"`
	Kind  string    `json:"kind"`
	Time  time.Time `json:"time"`
	Text  string    `json:"text,omitempty"`
	Legs  []Leg     `json:"legs"`
}

// Leg moves an amount into (Debit) or out of an account.
type Leg struct {
	Account string `json:"account"`
	Debit   bool   `json:"debit"`
	Amount  Amount `json:"amount"`
}

// ErrUnbalanced says that an entry's debits are not its credits.
var ErrUnbalanced = errors.New("debits and credits differ")

// ErrEntry says that an entry is not well formed.
var ErrEntry = errors.New("entry is not well formed")

// Bounds of an entry, far above what this package makes.
const (
	maxLegs    = 64
	maxName    = 256
	maxRemarks = 1024
)

// Check reports why an entry may not be booked: ErrEntry, ErrUnbalanced, or
// ErrOverflow when its legs cannot be summed.
func (e Entry) Check() error {
	if err := e.checkForm(); err != nil {
		return fmt.Errorf("entry %q of %q: %w", e.Kind, e.Cause, err)
	}
	debits, credits := map[string]Amount{}, map[string]Amount{}
	for i, l := range e.Legs {
		side := credits
		if l.Debit {
			side = debits
		}
		sum, err := side[l.Amount.Asset].Add(l.Amount)
		if err != nil {
			return fmt.Errorf("entry %q of %q, leg %d: %w", e.Kind, e.Cause, i, err)
		}
		side[l.Amount.Asset] = sum
	}
	for _, l := range e.Legs {
		asset := l.Amount.Asset
		if debits[asset].Cmp(credits[asset]) != 0 {
			return fmt.Errorf("entry %q of %q: %s in, %s out: %w", e.Kind, e.Cause, debits[asset], credits[asset], ErrUnbalanced)
		}
	}
	return nil
}

func (e Entry) checkForm() error {
	switch {
	case e.Cause == "" || len(e.Cause) > maxName:
		return fmt.Errorf("a cause of %d bytes, want 1 to %d: %w", len(e.Cause), maxName, ErrEntry)
	case e.Kind == "" || len(e.Kind) > maxName:
		return fmt.Errorf("a kind of %d bytes, want 1 to %d: %w", len(e.Kind), maxName, ErrEntry)
	case len(e.Text) > maxRemarks:
		return fmt.Errorf("a text of %d bytes, over %d: %w", len(e.Text), maxRemarks, ErrEntry)
	case e.Time.IsZero():
		return fmt.Errorf("no time: %w", ErrEntry)
	case len(e.Legs) < 2 || len(e.Legs) > maxLegs:
		return fmt.Errorf("%d legs, want 2 to %d: %w", len(e.Legs), maxLegs, ErrEntry)
	}
	for i, l := range e.Legs {
		if l.Amount.IsZero() || l.Amount.Asset == "" {
			return fmt.Errorf("leg %d moves nothing: %w", i, ErrEntry)
		}
		if err := CheckAccount(l.Account); err != nil {
			return fmt.Errorf("leg %d: %w", i, err)
		}
	}
	return nil
}

// CheckAccount reports whether a name is one of an account: a known prefix and
// a holder of printable ASCII without spaces.
func CheckAccount(name string) error {
	for _, prefix := range []string{accountOwedTo, accountOwedBy, accountSpent, accountEarned} {
		holder, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		if holder == "" || len(holder) > maxName || strings.ContainsFunc(holder, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("account %.80q: the holder is no plain word of 1 to %d bytes: %w", name, maxName, ErrEntry)
		}
		return nil
	}
	return fmt.Errorf("account %.80q is of no known kind: %w", name, ErrEntry)
}

// ContractCharge is how the charge of a lease changed for one of its sides.
type ContractCharge struct {
	Lease, Job       string
	RenterSide       bool
	Renter, Provider string
	Before, After    Amount
	Time             time.Time
}

// ContractEntries are the entries that a change of a lease's charge calls for:
// none when nothing changed, a charge when nothing was booked before, else a
// correction by the difference.
func ContractEntries(c ContractCharge) []Entry {
	if c.Before.Cmp(c.After) == 0 && (c.Before.Asset == c.After.Asset || c.After.IsZero()) {
		return nil
	}
	e := Entry{Cause: c.Lease, Kind: KindCharge, Time: c.Time}
	if !c.Before.IsZero() {
		e.Kind = KindCorrection
	}
	into, from := OwedBy(c.Renter), EarnedFrom(c.Renter)
	if c.RenterSide {
		into, from = SpentOn(c.Job), OwedTo(c.Provider)
	}
	move := func(into, from string, a Amount) {
		if a.IsZero() {
			return
		}
		e.Legs = append(e.Legs, Leg{Account: into, Debit: true, Amount: a}, Leg{Account: from, Amount: a})
	}
	up, upErr := c.After.Sub(c.Before)
	down, downErr := c.Before.Sub(c.After)
	switch {
	case upErr == nil:
		move(into, from, up)
	case downErr == nil:
		move(from, into, down)
	default: // of two assets: the old charge goes, the new one comes
		move(from, into, c.Before)
		move(into, from, c.After)
	}
	return []Entry{e}
}
