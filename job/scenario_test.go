package job

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

// TestScenarios plays testdata/scenarios/*.txt. A line is a command; the lines
// under it that begin with two spaces are what both sides then are, recorded
// with -rewrite. A # begins a remark.
//
//	lease [PRICE BUDGET]       the renter proposes; base units an hour, and in all
//	accept | refuse            the provider's answer to the award
//	beat PHASE USAGE           a heartbeat; USAGE in milliseconds
//	cancel GRACE               the renter wants it to end
//	result OUTCOME CODE USAGE  the provider's end
//	settle                     the renter's receipt reaches the provider
//	again KIND                 decision, beat, cancel, result or receipt once more
//	tick TIME [STEP]           time passes on both sides, in steps
//	crash SIDE | resume SIDE   a side is away, and comes back with what it stored
//
// With "lost" at its end a message does not reach the other side.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "scenarios", "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			w := newWorld(0, 0)
			for i, line := range strings.Split(strings.TrimRight(string(raw), "\n"), "\n") {
				if strings.HasPrefix(line, "  ") {
					continue
				}
				out.WriteString(line + "\n")
				command, _, _ := strings.Cut(line, "#")
				if len(strings.Fields(command)) == 0 {
					continue
				}
				if w, err = w.play(strings.Fields(command)); err != nil {
					t.Fatalf("%s:%d: %s: %v", path, i+1, line, err)
				}
				for _, h := range []*half{&w.renter, &w.provider} {
					for _, l := range h.log {
						fmt.Fprintf(&out, "  %-8s %s\n", h.name, l)
					}
					h.log = nil
				}
			}
			golden(t, path, out.String())
		})
	}
}

func (w *world) play(words []string) (*world, error) {
	lost := words[len(words)-1] == "lost"
	if lost {
		words = words[:len(words)-1]
	}
	arg := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	number := func(i int) int64 { n, _ := strconv.ParseInt(arg(i), 10, 64); return n }
	span := func(i int) time.Duration { d, _ := time.ParseDuration(arg(i)); return d }
	deliver := func(h *half, m protocol.Message) error {
		if lost {
			return nil
		}
		return w.hear(h, m)
	}
	switch words[0] {
	case "lease":
		price, budget := uint64(3_600_000_000), uint64(1_000_000_000)
		if len(words) == 3 {
			price, budget = uint64(number(1)), uint64(number(2))
		}
		w = newWorld(price, budget)
		w.renter.note(nil, nil)
		return w, nil
	case "accept":
		w.accept()
		if err := w.hear(&w.provider, w.decision); err != nil {
			return w, err
		}
		return w, deliver(&w.renter, w.decision)
	case "refuse":
		w.decision = &protocol.Decision{Reason: protocol.Reason_REASON_BUSY, Detail: "the room has gone to another lease"}
		return w, deliver(&w.renter, w.decision)
	case "beat":
		if err := w.makeBeat(State(arg(1)), number(2)); err != nil {
			return w, err
		}
		return w, deliver(&w.renter, w.beat)
	case "cancel":
		if err := w.askCancel(span(1)); err != nil {
			return w, err
		}
		return w, deliver(&w.provider, w.cancel)
	case "result":
		if err := w.makeResult(State(arg(1)), int32(number(2)), number(3)); err != nil {
			return w, err
		}
		return w, deliver(&w.renter, w.result)
	case "settle":
		return w, deliver(&w.provider, w.answer())
	case "again":
		return w, w.repeat(arg(1))
	case "tick":
		return w, w.pass(span(1), span(2))
	case "crash", "resume":
		h := &w.renter
		if arg(1) == "provider" {
			h = &w.provider
		}
		if words[0] == "resume" {
			return w, w.resume(h)
		}
		h.away = true
		return w, nil
	}
	return w, fmt.Errorf("command %q is not known", words[0])
}

func (w *world) repeat(kind string) error {
	switch kind {
	case "decision":
		return w.hear(&w.renter, w.decision)
	case "beat":
		return w.hear(&w.renter, w.beat)
	case "result":
		return w.hear(&w.renter, w.result)
	case "cancel":
		return w.hear(&w.provider, w.cancel)
	case "receipt":
		return w.hear(&w.provider, w.receipt)
	}
	return fmt.Errorf("message %q is not known", kind)
}

// pass lets time pass in steps; what changed on the way is told once.
func (w *world) pass(span, step time.Duration) error {
	if step <= 0 {
		step = span
	}
	for ; span > 0; span -= step {
		w.now = w.now.Add(step)
		for _, h := range []*half{&w.renter, &w.provider} {
			if h.c == nil || h.away {
				continue
			}
			before := *h.c
			effects, err := w.take(h, Tick{})
			if err != nil {
				return err
			}
			if len(effects) > 0 || !sameContract(before, *h.c) {
				h.note(effects, nil)
			}
		}
	}
	return nil
}
