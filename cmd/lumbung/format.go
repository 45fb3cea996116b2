package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
)

// sizeText is a count of bytes for people.
func sizeText(n uint64) string { return job.FormatSize(n) }

// spanText is a length of time for people: three digits of it.
func spanText(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < time.Hour:
		d = d.Round(time.Second)
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	d = d.Round(time.Minute)
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}

// ageText is how long ago something was, as docker says it.
func ageText(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := now.Sub(t)
	count := func(n int, unit string) string {
		if n == 1 {
			return "1 " + unit + " ago"
		}
		return fmt.Sprintf("%d %ss ago", n, unit)
	}
	switch {
	case d < time.Second:
		return "just now"
	case d < time.Minute:
		return count(int(d.Seconds()), "second")
	case d < time.Hour:
		return count(int(d.Minutes()), "minute")
	case d < 48*time.Hour:
		return count(int(d.Hours()), "hour")
	case d < 14*24*time.Hour:
		return count(int(d.Hours()/24), "day")
	case d < 60*24*time.Hour:
		return count(int(d.Hours()/24/7), "week")
	}
	return count(int(d.Hours()/24/30), "month")
}

// moneyText is an amount with as many decimals as it needs, two at least.
func moneyText(a ledger.Amount) string {
	if a.Asset == "" {
		a.Asset = job.Asset
	}
	return moneyNumber(a) + " " + a.Asset
}

func moneyNumber(a ledger.Amount) string {
	number, _, _ := strings.Cut(a.String(), " ")
	whole, frac, _ := strings.Cut(number, ".")
	frac = strings.TrimRight(frac, "0")
	for len(frac) < 2 {
		frac += "0"
	}
	return whole + "." + frac
}

// priceText is a price per hour.
func priceText(a ledger.Amount) string { return moneyNumber(a) + "/h" }

// cpuText is thousandths of a core as cores.
func cpuText(millis uint32) string {
	s := fmt.Sprintf("%d.%03d", millis/1000, millis%1000)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}

// peerText shortens a peer id to what tells it apart.
func peerText(id string) string {
	if len(id) <= 16 {
		return id
	}
	return id[:4] + "…" + id[len(id)-8:]
}

// plural is "1 task" or "3 tasks".
func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
