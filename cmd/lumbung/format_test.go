package main

import (
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/node/client"
)

func TestAges(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		0: "just now", time.Second: "1 second ago", 59 * time.Second: "59 seconds ago", time.Minute: "1 minute ago",
		90 * time.Minute: "1 hour ago", 47 * time.Hour: "47 hours ago", 48 * time.Hour: "2 days ago", 15 * 24 * time.Hour: "2 weeks ago", 90 * 24 * time.Hour: "3 months ago",
	} {
		if got := ageText(now.Add(-d), now); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
	if got := ageText(time.Time{}, now); got != "-" {
		t.Errorf("never: %q", got)
	}
}

func TestSpans(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-1: "0s", 12 * time.Millisecond: "12ms", 1234 * time.Millisecond: "1.2s", 59 * time.Second: "59s",
		61 * time.Second: "1m01s", time.Hour: "1h00m", 25*time.Hour + 3*time.Minute: "25h03m",
	} {
		if got := spanText(d); got != want {
			t.Errorf("%d: %q, want %q", d, got, want)
		}
	}
}

func TestMoney(t *testing.T) {
	for units, want := range map[uint64]string{0: "0.00 usd", 600_000: "0.60 usd", 4210: "0.00421 usd", 12_000_000: "12.00 usd", 1: "0.000001 usd"} {
		if got := moneyText(ledger.Units("usd", units)); got != want {
			t.Errorf("%d: %q, want %q", units, got, want)
		}
	}
	if got := priceText(ledger.Units("usd", 710_000)); got != "0.71/h" {
		t.Errorf("price %q", got)
	}
	if got := moneyText(ledger.Amount{}); got != "0.00 usd" {
		t.Errorf("nothing: %q", got)
	}
}

func TestCPUs(t *testing.T) {
	for millis, want := range map[uint32]string{1000: "1", 1500: "1.5", 250: "0.25", 10_000: "10", 0: "0"} {
		if got := cpuText(millis); got != want {
			t.Errorf("%d: %q, want %q", millis, got, want)
		}
	}
}

func TestRowsCarryNoEscapes(t *testing.T) {
	var b strings.Builder
	row(&b, "a\x1b[31m", "b\nc", "d\te")
	if got := b.String(); got != "a [31m\tb c\td e\n" {
		t.Errorf("row %q", got)
	}
}

func TestTransferText(t *testing.T) {
	const root = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
	for want, x := range map[string]client.Transfer{
		"blocks from 2 peers: 5.0 MB of 20.0 MB, 1.0 MB/s, 15s left":     {Direction: "in", Peers: 2, Bytes: 5e6, Total: 20e6, Rate: 1e6, ETA: 15 * time.Second},
		"blocks from 1 peer: 5.0 MB of 5.0 MB, 0 B/s":                    {Direction: "in", Peers: 1, Bytes: 5e6},
		peerText(root) + " to " + peerText(aPeer) + ": 7.0 MB, 2.0 MB/s": {Direction: "out", Root: root, Peer: aPeer, Peers: 1, Bytes: 7e6, Rate: 2e6},
	} {
		if got := transferText(x); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
	if in, out := transferName(client.Transfer{Direction: "in"}), transferName(client.Transfer{Direction: "out"}); in != "fetching" || out != "serving" {
		t.Errorf("%s and %s", in, out)
	}
}
