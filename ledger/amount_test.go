package ledger

import (
	"encoding/json"
	"errors"
	"math"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

func (a Amount) big() *big.Int {
	n := new(big.Int).SetUint64(a.Hi)
	return n.Lsh(n, 64).Or(n, new(big.Int).SetUint64(a.Lo))
}

// anyUint draws numbers of every size, the edges often.
func anyUint(label string) *rapid.Generator[uint64] {
	return rapid.Custom(func(t *rapid.T) uint64 {
		n := rapid.Uint64().Draw(t, label) >> rapid.UintRange(0, 63).Draw(t, label+" size")
		return rapid.SampledFrom([]uint64{n, n, n, 0, 1, math.MaxUint64, 1_000_000_000_000_000_000}).Draw(t, label+" edge")
	})
}

func anyAmount() *rapid.Generator[Amount] {
	return rapid.Custom(func(t *rapid.T) Amount {
		return Amount{Asset: "usd", Hi: anyUint("hi").Draw(t, "hi"), Lo: anyUint("lo").Draw(t, "lo")}
	})
}

func TestAmountArithmeticIsThatOfIntegers(t *testing.T) {
	limit := new(big.Int).Lsh(big.NewInt(1), 128)
	rapid.Check(t, func(t *rapid.T) {
		a, b := anyAmount().Draw(t, "a"), anyAmount().Draw(t, "b")
		n := anyUint("n").Draw(t, "n")
		sum, err := a.Add(b)
		want := new(big.Int).Add(a.big(), b.big())
		if fits := want.Cmp(limit) < 0; fits != (err == nil) || fits && sum.big().Cmp(want) != 0 {
			t.Fatalf("%s + %s = %s, %v; want %s", a, b, sum, err, want)
		}
		diff, err := a.Sub(b)
		want.Sub(a.big(), b.big())
		if fits := want.Sign() >= 0; fits != (err == nil) || fits && diff.big().Cmp(want) != 0 {
			t.Fatalf("%s - %s = %s, %v; want %s", a, b, diff, err, want)
		}
		if err != nil && !errors.Is(err, ErrOverflow) {
			t.Fatalf("error %v is no ErrOverflow", err)
		}
		if a.Cmp(b) != a.big().Cmp(b.big()) {
			t.Fatalf("cmp(%s, %s) = %d", a, b, a.Cmp(b))
		}
		if n > 0 {
			want.Div(a.big(), new(big.Int).SetUint64(n))
			if got := a.Div(n); got.big().Cmp(want) != 0 {
				t.Fatalf("%s / %d = %s, want %s", a, n, got, want)
			}
		}
	})
}

func TestAmountTextRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := anyAmount().Draw(t, "a")
		text := a.String()
		got, err := ParseAmount("usd", text[:len(text)-len(" usd")])
		if err != nil || got != a {
			t.Fatalf("%s parsed as %s, %v", text, got, err)
		}
		b, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		var back Amount
		if err := json.Unmarshal(b, &back); err != nil || back != a {
			t.Fatalf("%s came back as %s, %v", b, back, err)
		}
		if FromWire(a.Wire()) != a {
			t.Fatalf("%s does not survive the wire", a)
		}
	})
}

func TestAmountsOfTwoAssetsDoNotMix(t *testing.T) {
	usd, eth := Units("usd", 1), Units("eth", 1)
	if _, err := usd.Add(eth); !errors.Is(err, ErrAsset) {
		t.Errorf("add: %v", err)
	}
	if _, err := usd.Sub(eth); !errors.Is(err, ErrAsset) {
		t.Errorf("sub: %v", err)
	}
	if sum, err := usd.Add(Amount{}); err != nil || sum != usd {
		t.Errorf("usd + nothing = %s, %v", sum, err)
	}
	if sum, err := (Amount{}).Add(usd); err != nil || sum != usd {
		t.Errorf("nothing + usd = %s, %v", sum, err)
	}
}

func TestParseAmount(t *testing.T) {
	for in, want := range map[string]uint64{
		"0.60": 600_000, "0.6": 600_000, ".6": 600_000, "1": 1_000_000, "1.": 1_000_000, " 12 ": 12_000_000,
		"0.000001": 1, "0.0000010": 1, "0": 0, "0.0": 0, "0.71": 710_000, "0.29": 290_000, "4.35": 4_350_000,
	} {
		got, err := ParseAmount("usd", in)
		if err != nil || got != Units("usd", want) {
			t.Errorf("%q = %+v, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", ".", " ", "-1", "+1", "1e3", "0.0000001", "1,5", "1.2.3", "0x1", "NaN", "1 usd", "999999999999999999999999999999999999999999"} {
		if got, err := ParseAmount("usd", in); err == nil {
			t.Errorf("%q = %s, want an error", in, got)
		}
	}
}

func FuzzParseAmount(f *testing.F) {
	for _, s := range []string{"0.60", "12", ".5", "340282366920938463463374607431768.211455", "1e9", "", "0.0000001"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAmount("usd", s)
		if err != nil {
			return
		}
		text := a.String()
		again, err := ParseAmount("usd", text[:len(text)-len(" usd")])
		if err != nil || again != a {
			t.Fatalf("%q = %s, which parses as %s, %v", s, a, again, err)
		}
	})
}

func TestChargeIsCumulativeAndMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		price := anyUint("price").Draw(t, "price")
		ticks := rapid.SliceOfN(rapid.Int64Range(0, 1<<40), 1, 30).Draw(t, "ticks")
		var ms int64
		var before Amount
		booked := Units("usd", 0)
		for _, tick := range ticks {
			ms += tick
			now := Charge("usd", price, ms)
			step, err := now.Sub(before)
			if err != nil {
				t.Fatalf("charge fell from %s to %s at %d ms", before, now, ms)
			}
			if booked, err = booked.Add(step); err != nil {
				t.Fatal(err)
			}
			before = now
		}
		want := new(big.Int).Mul(new(big.Int).SetUint64(price), big.NewInt(ms))
		want.Div(want, big.NewInt(MillisPerHour))
		if booked.big().Cmp(want) != 0 {
			t.Fatalf("increments sum to %s, floor(price*ms/h) is %s", booked, want)
		}
	})
}

func TestChargeOfNegativeUsageIsNothing(t *testing.T) {
	if got := Charge("usd", 1_000_000, -5); !got.IsZero() {
		t.Errorf("charge %s", got)
	}
}

func TestAffordableMillisIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		budget := anyAmount().Draw(t, "budget")
		if rapid.Bool().Draw(t, "small") {
			budget.Hi = 0
		}
		price := anyUint("price").Draw(t, "price")
		ms := AffordableMillis(budget, price)
		if ms < 0 || ms > Forever {
			t.Fatalf("%d ms", ms)
		}
		if c := Charge("usd", price, ms); c.Cmp(budget) > 0 {
			t.Fatalf("%d ms cost %s, over %s", ms, c, budget)
		}
		if ms == Forever {
			return
		}
		if c := Charge("usd", price, ms+1); c.Cmp(budget) <= 0 {
			t.Fatalf("%d ms cost %s and %s would buy it", ms+1, c, budget)
		}
	})
}
