package ledger

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"strings"

	"github.com/lumbung-net/lumbung/protocol"
)

// ErrOverflow says that a sum left the range of 128 bits or fell below zero.
var ErrOverflow = errors.New("amount out of range")

// ErrAsset says that amounts of two assets met.
var ErrAsset = errors.New("amounts of different assets")

// Amount is an unsigned 128-bit count of base units of an asset. The zero
// value is no money of no asset and can be added to any.
type Amount struct {
	Asset string `json:"asset"`
	Hi    uint64 `json:"hi,omitempty"`
	Lo    uint64 `json:"units"`
}

// Units is an amount of so many base units.
func Units(asset string, n uint64) Amount { return Amount{Asset: asset, Lo: n} }

// IsZero reports whether the amount is nothing.
func (a Amount) IsZero() bool { return a.Hi == 0 && a.Lo == 0 }

func join(a, b Amount) (string, error) {
	switch {
	case a.Asset == b.Asset:
		return a.Asset, nil
	case a.Asset == "" && a.IsZero():
		return b.Asset, nil
	case b.Asset == "" && b.IsZero():
		return a.Asset, nil
	}
	return "", fmt.Errorf("%s and %s: %w", a.Asset, b.Asset, ErrAsset)
}

// Add is a + b; ErrOverflow or ErrAsset.
func (a Amount) Add(b Amount) (Amount, error) {
	asset, err := join(a, b)
	if err != nil {
		return Amount{}, err
	}
	lo, carry := bits.Add64(a.Lo, b.Lo, 0)
	hi, carry := bits.Add64(a.Hi, b.Hi, carry)
	if carry != 0 {
		return Amount{}, fmt.Errorf("%s + %s: %w", a, b, ErrOverflow)
	}
	return Amount{Asset: asset, Hi: hi, Lo: lo}, nil
}

// Sub is a − b; ErrOverflow when b is more than a.
func (a Amount) Sub(b Amount) (Amount, error) {
	asset, err := join(a, b)
	if err != nil {
		return Amount{}, err
	}
	lo, borrow := bits.Sub64(a.Lo, b.Lo, 0)
	hi, borrow := bits.Sub64(a.Hi, b.Hi, borrow)
	if borrow != 0 {
		return Amount{}, fmt.Errorf("%s - %s: %w", a, b, ErrOverflow)
	}
	return Amount{Asset: asset, Hi: hi, Lo: lo}, nil
}

// Cmp compares the counts of two amounts of one asset: −1, 0 or 1.
func (a Amount) Cmp(b Amount) int {
	if c := cmp.Compare(a.Hi, b.Hi); c != 0 {
		return c
	}
	return cmp.Compare(a.Lo, b.Lo)
}

// Min is the smaller of two amounts of one asset.
func (a Amount) Min(b Amount) Amount {
	if b.Cmp(a) < 0 {
		return b
	}
	return a
}

// Div is a / n, rounded down; n above 0.
func (a Amount) Div(n uint64) Amount {
	hi, rest := a.Hi/n, a.Hi%n
	lo, _ := bits.Div64(rest, a.Lo, n)
	return Amount{Asset: a.Asset, Hi: hi, Lo: lo}
}

// MillisPerHour turns a price per hour into one per millisecond.
const MillisPerHour = 3_600_000

// Charge is what usage of ms milliseconds costs at a price of base units per
// hour: floor(price · ms / 3,600,000) on the cumulative, so that nothing is
// lost or gained by rounding between ticks.
func Charge(asset string, pricePerHour uint64, ms int64) Amount {
	if ms < 0 {
		ms = 0
	}
	hi, lo := bits.Mul64(pricePerHour, uint64(ms))
	return Amount{Asset: asset, Hi: hi, Lo: lo}.Div(MillisPerHour)
}

// AffordableMillis is the longest usage whose charge is at most budget, and no
// more than Forever: a price of zero, or one that is small beside the budget,
// lasts that long.
func AffordableMillis(budget Amount, pricePerHour uint64) int64 {
	if Charge(budget.Asset, pricePerHour, Forever).Cmp(budget) <= 0 {
		return Forever
	}
	// charge(ms) ≤ budget  ⇔  price·ms < (budget+1)·3,600,000, and the right side
	// is below price·Forever + 3,600,000 here, far within 128 bits.
	lo, carry := bits.Add64(budget.Lo, 1, 0)
	top, rest := bits.Mul64(lo, MillisPerHour)
	top += (budget.Hi + carry) * MillisPerHour
	rest, borrow := bits.Sub64(rest, 1, 0)
	return int64(Amount{Hi: top - borrow, Lo: rest}.Div(pricePerHour).Lo)
}

// Forever is the longest usage that is told apart, in milliseconds: 142,000
// years.
const Forever = int64(1) << 52

// decimals of an asset's main unit, where it is not 6.
func decimals(string) int { return 6 }

// String is the amount in the asset's main unit, such as "0.004210 usd".
func (a Amount) String() string {
	digits := a.digits()
	d := decimals(a.Asset)
	if len(digits) <= d {
		digits = strings.Repeat("0", d+1-len(digits)) + digits
	}
	s := digits[:len(digits)-d] + "." + digits[len(digits)-d:]
	return strings.TrimSpace(s + " " + a.Asset)
}

func (a Amount) digits() string {
	if a.Hi == 0 {
		return fmt.Sprint(a.Lo)
	}
	const chunk = 1_000_000_000_000_000_000
	high := a.Div(chunk)
	_, low := bits.Mul64(high.Lo, chunk)
	return high.digits() + fmt.Sprintf("%018d", a.Lo-low)
}

// ParseAmount reads a decimal count of an asset's main unit, such as "0.60".
// A count finer than the base unit is an error, not a rounding.
func ParseAmount(asset, s string) (Amount, error) {
	whole, frac, _ := strings.Cut(strings.TrimSpace(s), ".")
	d := decimals(asset)
	frac = strings.TrimRight(frac, "0")
	digits := whole + frac
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return Amount{}, fmt.Errorf("%q is no amount: want a number such as 0.60", s)
	}
	if len(frac) > d {
		return Amount{}, fmt.Errorf("%q is finer than %s's smallest unit (%d decimals)", s, asset, d)
	}
	digits += strings.Repeat("0", d-len(frac))
	out := Amount{Asset: asset}
	for _, r := range digits {
		next, err := out.times10()
		if err != nil {
			return Amount{}, fmt.Errorf("%q: %w", s, err)
		}
		if out, err = next.Add(Amount{Asset: asset, Lo: uint64(r - '0')}); err != nil {
			return Amount{}, fmt.Errorf("%q: %w", s, err)
		}
	}
	return out, nil
}

func (a Amount) times10() (Amount, error) {
	carry, lo := bits.Mul64(a.Lo, 10)
	over, hi := bits.Mul64(a.Hi, 10)
	hi, more := bits.Add64(hi, carry, 0)
	if over != 0 || more != 0 {
		return Amount{}, ErrOverflow
	}
	return Amount{Asset: a.Asset, Hi: hi, Lo: lo}, nil
}

// Wire is the amount as messages carry it.
func (a Amount) Wire() *protocol.Amount {
	return &protocol.Amount{Asset: a.Asset, Hi: a.Hi, Lo: a.Lo}
}

// FromWire reads an amount out of a message; nil is nothing.
func FromWire(w *protocol.Amount) Amount {
	return Amount{Asset: w.GetAsset(), Hi: w.GetHi(), Lo: w.GetLo()}
}
