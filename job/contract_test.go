package job

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

var rewrite = flag.Bool("rewrite", false, "write what was found into testdata")

// golden compares with a file of testdata, or writes it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s differs; run with -rewrite and look at the change\n%s", path, firstDifference(string(want), got))
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		a, b := "", ""
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			return fmt.Sprintf("line %d\nwant %s\n got %s", i+1, a, b)
		}
	}
	return ""
}

// contractIn is a contract of a side in a state, ten seconds old, with 4 s of
// usage once it has run.
func contractIn(side Side, s State) Contract {
	c := newWorld(3_600_000_000, 1_000_000_000).lease
	c.Side, c.State = side, s
	if s == Proposed {
		c.ProposedAt, c.AcceptBy = noon.Add(9*time.Second), noon.Add(12*time.Second)
		return c
	}
	if s == Refused {
		c.Booked, c.EndedAt = true, noon
		return c
	}
	c.LeasedAt, c.LastBeat, c.BeatSeq = noon, noon.Add(9*time.Second), 5
	if s == Leased {
		c.BeatSeq = 0
		return c
	}
	c.FetchingAt = noon.Add(time.Second)
	if s == Fetching {
		return c
	}
	if s == Starting {
		c.ReadyMax, c.StartingAt = 10*time.Second, noon.Add(1500*time.Millisecond)
		return c
	}
	c.RunningAt, c.UsageMs = noon.Add(2*time.Second), 4000
	if s == Saving {
		c.SavingAt = noon.Add(6 * time.Second)
	}
	if s.Terminal() {
		c.SavingAt, c.EndedAt, c.Charge = noon.Add(6*time.Second), noon.Add(7*time.Second), c.due(4000)
		c.Booked = s == Lost
	}
	return c
}

// tableInputs are all kinds of input, legal and not, at ten seconds past noon.
var tableInputs = []struct {
	name string
	in   Input
	at   time.Duration
}{
	{"accepted", Accepted{}, 10 * time.Second},
	{"rejected", Rejected{Reason: "REASON_BUSY"}, 10 * time.Second},
	{"beat-fetching", Beat{Seq: 6, Phase: Fetching}, 10 * time.Second},
	{"beat-starting", Beat{Seq: 6, Phase: Starting}, 10 * time.Second},
	{"beat-start-paid", Beat{Seq: 6, Phase: Starting, UsageMs: 1}, 10 * time.Second},
	{"beat-running", Beat{Seq: 6, Phase: Running, UsageMs: 5000}, 10 * time.Second},
	{"beat-saving", Beat{Seq: 6, Phase: Saving, UsageMs: 5000}, 10 * time.Second},
	{"beat-lower", Beat{Seq: 6, Phase: Running, UsageMs: 3000}, 10 * time.Second},
	{"beat-old", Beat{Seq: 5, Phase: Saving, UsageMs: 9000}, 10 * time.Second},
	{"beat-unnumbered", Beat{Seq: 0, Phase: Saving, UsageMs: 9000}, 10 * time.Second},
	{"beat-overclaim", Beat{Seq: 6, Phase: Running, UsageMs: 12_001}, 10 * time.Second},
	{"beat-no-phase", Beat{Seq: 6, Phase: ""}, 10 * time.Second},
	{"beat-done", Beat{Seq: 6, Phase: Done}, 10 * time.Second},
	{"cancel", CancelAsked{Reason: "enough"}, 10 * time.Second},
	{"result-done", Ended{State: Done, UsageMs: 6000}, 10 * time.Second},
	{"result-failed", Ended{State: Failed, UsageMs: 6000, ExitCode: 1}, 10 * time.Second},
	{"result-cancelled", Ended{State: Cancelled, UsageMs: 4000}, 10 * time.Second},
	{"result-lost", Ended{State: Lost, UsageMs: 6000}, 10 * time.Second},
	{"result-lower", Ended{State: Done, UsageMs: 3999}, 10 * time.Second},
	{"result-overclaim", Ended{State: Done, UsageMs: 12_001}, 10 * time.Second},
	{"result-over-limit", Ended{State: Done, UsageMs: 22_401}, 60 * time.Second},
	{"result-unready", Ended{State: Failed, ExitCode: 124, Exceeded: &Exceeded{Limit: LimitReady}}, 10 * time.Second},
	{"unready-paid", Ended{State: Failed, UsageMs: 6000, Exceeded: &Exceeded{Limit: LimitReady}}, 10 * time.Second},
	{"receipt-done", Settled{End: Done, UsageMs: 4000}, 10 * time.Second},
	{"receipt-less", Settled{End: Done, UsageMs: 1000}, 10 * time.Second},
	{"receipt-more", Settled{End: Done, UsageMs: 9000}, 10 * time.Second},
	{"receipt-lost", Settled{End: Lost, UsageMs: 2000}, 10 * time.Second},
	{"receipt-cancelled", Settled{End: Cancelled}, 10 * time.Second},
	{"time-up", TimeUp{Of: LimitReady, Grace: time.Second}, 10 * time.Second},
	{"resumed", Resumed{}, 10 * time.Second},
	{"tick", Tick{}, 10 * time.Second},
	{"tick-silent", Tick{}, 13 * time.Second},
	{"nothing", nil, 10 * time.Second},
}

var allStates = []State{Proposed, Leased, Fetching, Starting, Running, Saving, Done, Failed, Cancelled, Lost, Refused}

// TestTable has a line for every side, state and input: what follows, or why
// nothing can.
func TestTable(t *testing.T) {
	var b strings.Builder
	for _, side := range []Side{SideRenter, SideProvider} {
		for _, s := range allStates {
			for _, in := range tableInputs {
				before := contractIn(side, s)
				after, effects, err := Apply(before, in.in, noon.Add(in.at))
				fmt.Fprintf(&b, "%-8s %-9s %-17s -> ", side, s, in.name)
				switch {
				case err != nil:
					if !errors.Is(err, ErrTransition) && !errors.Is(err, ErrOverclaim) {
						t.Errorf("%s %s %s: %v is no known error", side, s, in.name, err)
					}
					if !sameContract(before, after) {
						t.Errorf("%s %s %s: refused, yet something changed", side, s, in.name)
					}
					fmt.Fprintf(&b, "error: %v\n", err)
				case sameContract(before, after) && len(effects) == 0:
					b.WriteString("nothing\n")
				default:
					fmt.Fprintf(&b, "%s%s%v\n", after.State, changes(&before, &after), effects)
				}
			}
		}
	}
	golden(t, filepath.Join("testdata", "contract_table.txt"), b.String())
}

// changes names what else moved.
func changes(before, after *Contract) string {
	s := " "
	if before.UsageMs != after.UsageMs {
		s += fmt.Sprintf("usage=%d ", after.UsageMs)
	}
	if before.Charge != after.Charge {
		s += fmt.Sprintf("charge=%s ", after.Charge)
	}
	if before.Booked != after.Booked {
		s += "closed "
	}
	if before.CancelAt != after.CancelAt {
		s += "cancelling "
	}
	if before.TimeUp != after.TimeUp {
		s += "time-up=" + after.TimeUp + " "
	}
	return s
}

// TestBothSidesAgree plays random histories with losses, repeats and restarts,
// then lets what is pending arrive, and compares the two sides.
func TestBothSidesAgree(t *testing.T) {
	ends := map[State]int{}
	every := func() bool {
		return !slices.ContainsFunc([]State{Done, Failed, Cancelled, Lost, Refused}, func(s State) bool { return ends[s] == 0 })
	}
	history := func(t *rapid.T) {
		price := rapid.SampledFrom([]uint64{0, 1, 600_000, 3_600_000_000}).Draw(t, "price")
		w := newWorld(price, rapid.SampledFrom([]uint64{0, 1, 5_000_000, 1 << 40}).Draw(t, "budget"))
		for n := rapid.IntRange(1, 40).Draw(t, "steps"); n > 0; n-- {
			if err := w.randomStep(t); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.finish(); err != nil {
			t.Fatal(err)
		}
		w.checkAgreement(t)
		ends[w.renter.c.State]++
	}
	// A hundred histories sometimes miss the rarest end; fifty times as many do not.
	for range 50 {
		rapid.Check(t, history)
		if t.Failed() || every() {
			break
		}
	}
	if !t.Failed() && !every() {
		t.Errorf("not every end was met: %v", ends)
	}
}

func (w *world) randomStep(t *rapid.T) error {
	usage := int64(0)
	if c := w.provider.c; c != nil && !c.RunningAt.IsZero() {
		usage = min(w.now.Sub(c.RunningAt), c.RunMax).Milliseconds()
	}
	heard := rapid.Bool().Draw(t, "heard")
	deliver := func(h *half, m protocol.Message) error {
		if !heard {
			return nil
		}
		return w.hear(h, m)
	}
	switch rapid.SampledFrom([]string{
		"accept", "accept", "refuse", "beat", "beat", "beat", "beat", "tick", "tick", "tick", "cancel", "result", "again", "again", "crash", "resume", "settle",
	}).Draw(t, "step") {
	case "accept":
		w.accept()
		return errors.Join(w.hear(&w.provider, w.decision), deliver(&w.renter, w.decision))
	case "refuse":
		if w.provider.c == nil {
			return deliver(&w.renter, &protocol.Decision{Reason: protocol.Reason_REASON_BUSY})
		}
	case "beat":
		phase := rapid.SampledFrom([]State{Fetching, Starting, Running, Running, Running, Saving}).Draw(t, "phase")
		return errors.Join(w.makeBeat(phase, usage), deliver(&w.renter, w.beat))
	case "tick":
		w.now = w.now.Add(time.Duration(rapid.IntRange(0, 2000).Draw(t, "ms")) * time.Millisecond)
		return errors.Join(w.tick(&w.renter), w.tick(&w.provider))
	case "cancel":
		return errors.Join(w.askCancel(time.Second), deliver(&w.provider, w.cancel))
	case "result":
		end := rapid.SampledFrom([]State{Done, Failed, Cancelled}).Draw(t, "end")
		return errors.Join(w.makeResult(end, 0, usage), deliver(&w.renter, w.result))
	case "again":
		m := rapid.SampledFrom([]protocol.Message{w.decision, w.beat, w.result}).Draw(t, "message")
		return errors.Join(w.hear(&w.renter, m), deliver(&w.provider, w.cancel), deliver(&w.provider, w.receipt))
	case "crash":
		rapid.SampledFrom([]*half{&w.renter, &w.provider}).Draw(t, "who").away = true
	case "resume":
		return errors.Join(w.resume(&w.renter), w.resume(&w.provider))
	case "settle":
		return deliver(&w.provider, w.receipt)
	}
	return nil
}

// finish brings both sides back and lets all that is pending arrive.
func (w *world) finish() error {
	errs := []error{w.resume(&w.renter), w.resume(&w.provider), w.hear(&w.renter, w.decision), w.hear(&w.renter, w.beat), w.hear(&w.provider, w.cancel), w.hear(&w.renter, w.result)}
	for range 200 { // a renter ends everything by itself sooner or later
		if w.renter.c.Booked {
			break
		}
		w.now = w.now.Add(time.Second)
		errs = append(errs, w.tick(&w.renter))
	}
	return errors.Join(append(errs, w.hear(&w.provider, w.answer()))...)
}

func (w *world) checkAgreement(t *rapid.T) {
	r, p := w.renter.c, w.provider.c
	if !r.State.Terminal() || !r.Booked {
		t.Fatalf("the renter's side stays %s, closed %v", r.State, r.Booked)
	}
	if p == nil {
		if !r.Charge.IsZero() {
			t.Fatalf("%s charged for a lease that the provider never took", r.Charge)
		}
		return
	}
	if !p.State.Terminal() || !p.Booked {
		t.Fatalf("the provider's side stays %s, closed %v", p.State, p.Booked)
	}
	// An award that the renter gave up is cancelled for a provider that took it.
	same := r.State == p.State || r.State == Refused
	if !same || r.UsageMs != p.UsageMs || r.Charge.Cmp(p.Charge) != 0 {
		t.Fatalf("renter %s, %d ms, %s; provider %s, %d ms, %s", r.State, r.UsageMs, r.Charge, p.State, p.UsageMs, p.Charge)
	}
	owed, due := netOf(t, w.renter.entries, ledger.OwedTo("P")), netOf(t, w.provider.entries, ledger.OwedBy("R"))
	if owed.Cmp(due) != 0 || owed.Cmp(r.Charge) != 0 {
		t.Fatalf("the renter owes %s, the provider is owed %s, the charge is %s", owed, due, r.Charge)
	}
	before := *r
	for _, in := range []Input{Accepted{}, Rejected{}, Beat{Seq: 1 << 60, Phase: Running}, CancelAsked{}, Ended{State: Done, UsageMs: 1 << 40}, Settled{End: Lost}, Resumed{}, Tick{}} {
		if after, effects, err := Apply(before, in, w.now.Add(time.Hour)); err != nil || len(effects) > 0 || !sameContract(before, after) {
			t.Fatalf("%T after the end: %s, %v, %v", in, after.State, effects, err)
		}
	}
}

func netOf(t *rapid.T, entries []ledger.Entry, account string) ledger.Amount {
	list, err := ledger.Balances(entries)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range list {
		if b.Account == account {
			net, _ := b.Net()
			return net
		}
	}
	return ledger.Units(Asset, 0)
}

// TestLiarsGainNothing feeds the renter's side whatever a provider may say.
func TestLiarsGainNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(3_600_000_000, rapid.Uint64Range(0, 50_000_000).Draw(t, "budget"))
		for n := rapid.IntRange(1, 30).Draw(t, "steps"); n > 0; n-- {
			w.now = w.now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond)
			usage := rapid.Int64Range(-5, 60_000).Draw(t, "usage")
			in := rapid.SampledFrom([]Input{
				Accepted{},
				Rejected{Reason: "no"},
				Tick{},
				Resumed{},
				Beat{Seq: rapid.Uint64Range(0, 40).Draw(t, "seq"), Phase: rapid.SampledFrom(append(allStates, "", "x")).Draw(t, "phase"), UsageMs: usage},
				Ended{State: rapid.SampledFrom(append(allStates, "")).Draw(t, "end"), UsageMs: usage},
			}).Draw(t, "input")
			if _, err := w.take(&w.renter, in); errors.Is(err, errCheck) {
				t.Fatal(err)
			}
			c := w.renter.c
			if most := min(w.now.Sub(noon), c.RunMax+c.RunMax/50) + clockSlack; c.UsageMs > most.Milliseconds() || c.UsageMs < 0 {
				t.Fatalf("%d ms of usage in %s", c.UsageMs, w.now.Sub(noon))
			}
		}
	})
}
