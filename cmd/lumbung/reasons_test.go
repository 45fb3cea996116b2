package main

import (
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

func TestEveryReasonHasWords(t *testing.T) {
	seen := map[string]string{}
	for n, name := range protocol.Reason_name {
		words, ok := reasonWords[protocol.Reason(n)]
		if !ok || words == "" {
			t.Errorf("%s has no words", name)
		}
		if other := seen[words]; other != "" {
			t.Errorf("%s and %s have the same words", name, other)
		}
		seen[words] = name
	}
	if got := reasonText("REASON_FROM_TOMORROW"); got != "from tomorrow" {
		t.Errorf("a reason of a later version: %q", got)
	}
}

func TestUnplacedWords(t *testing.T) {
	for _, c := range []struct {
		why          unplaced
		text, remedy string
	}{
		{
			unplaced{14, map[string]int{"REASON_GPU_VRAM": 9, "REASON_PRICE": 3, "REASON_BUSY": 2}, ledger.Units("usd", 710_000)},
			"nothing could be placed: 14 providers heard it: 9 too little VRAM, 3 over your price, 2 busy; cheapest that fits: 0.71/h",
			"--max-hourly 0.71",
		},
		{unplaced{}, "nothing could be placed: no provider answered", "lumbung netcheck"},
		{
			unplaced{1, map[string]int{"REASON_NO_SANDBOX": 1}, ledger.Amount{}},
			"nothing could be placed: 1 provider heard it: 1 cannot run containers", "lumbung offers",
		},
		{
			unplaced{3, map[string]int{"REASON_BUSY": 2, "REASON_CPU": 1}, ledger.Amount{}},
			"nothing could be placed: 3 providers heard it: 2 busy, 1 too few CPUs", "in a while",
		},
	} {
		if got := c.why.String(); got != c.text {
			t.Errorf("got  %q\nwant %q", got, c.text)
		}
		if got := c.why.remedy(); !strings.Contains(got, c.remedy) {
			t.Errorf("%s: remedy %q, want %q", c.text, got, c.remedy)
		}
	}
}
