package main

import (
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
)

func TestProgressLine(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		done, total uint64
		rate        float64
		since       time.Duration
		width       int
		has         []string
		hasNot      []string
	}{
		"nothing known":   {0, 0, 0, 3 * time.Second, 80, []string{"load  3s"}, []string{"[", "%"}},
		"half":            {50 * mib, 100 * mib, 10 * mib, time.Second, 100, []string{"[===============               ]", "50%", "5s left", "/s"}, nil},
		"total not known": {50 * mib, 0, 10 * mib, time.Second, 80, []string{"/s"}, []string{"[", "%", "left"}},
		"plain":           {50 * mib, 100 * mib, 10 * mib, time.Second, 0, []string{"50%", "5s left"}, []string{"["}},
		"more than all":   {150 * mib, 100 * mib, 10 * mib, time.Second, 100, []string{"100%"}, []string{"150%", "left", " ]"}},
		"narrow":          {50 * mib, 100 * mib, 10 * mib, time.Second, 30, []string{"50%"}, []string{"["}},
		"stalled":         {50 * mib, 100 * mib, 0, time.Second, 80, []string{"50%"}, []string{"left", "/s"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := progressLine("load", c.done, c.total, c.rate, c.since, c.width)
			for _, part := range c.has {
				if !strings.Contains(got, part) {
					t.Errorf("%q lacks %q", got, part)
				}
			}
			for _, part := range c.hasNot {
				if strings.Contains(got, part) {
					t.Errorf("%q has %q", got, part)
				}
			}
			if c.width > 0 && len([]rune(got)) > max(c.width, 60) {
				t.Errorf("%d wide: %q", len(got), got)
			}
		})
	}
}

// clock is a time that stands until it is moved.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func handMeter(a *testApp, c *clock) *meter {
	m := &meter{con: a.con, now: c.now, label: "load", began: c.t, at: c.t, stop: make(chan struct{}), gone: make(chan struct{})}
	close(m.gone)
	return m
}

func TestMeterOnATerminal(t *testing.T) {
	a, c := newTestApp(t), &clock{t: time.Unix(1000, 0)}
	a.con.errTTY = true
	m := handMeter(a, c)
	m.Update(client.Progress{Done: 10, Total: 4000})
	m.show()
	if got := a.err.String(); got != "" {
		t.Errorf("shown at once: %q", got)
	}
	c.pass(1500 * time.Millisecond)
	m.Update(client.Progress{Done: 2000, Total: 4000})
	m.show()
	if got := a.err.String(); !strings.Contains(got, "50%") || strings.Contains(got, "\n") {
		t.Errorf("the bar is %q", got)
	}
	a.con.Notef("a notice")
	if got := a.err.String(); !strings.Contains(got, "\r\x1b[Ka notice\nload") {
		t.Errorf("a notice does not stand above the bar: %q", got)
	}
	c.pass(time.Second)
	m.Update(client.Progress{Done: 4000, Total: 4000})
	m.Done()
	lines := strings.Split(strings.TrimSpace(a.err.String()), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, "\r\x1b[Kload: 4.0 kB") || !strings.Contains(last, "in 2.5s") {
		t.Errorf("left behind: %q", last)
	}
	if strings.Contains(a.err.String(), "\x1b[3") {
		t.Error("colours on a terminal without")
	}
}

func TestMeterWithoutATerminal(t *testing.T) {
	a, c := newTestApp(t), &clock{t: time.Unix(1000, 0)}
	m := handMeter(a, c)
	for range 100 {
		c.pass(100 * time.Millisecond)
		m.Update(client.Progress{Done: uint64(c.now().UnixMilli()), Total: 4_000_000})
		m.show()
	}
	m.Done()
	got := a.err.String()
	if n := strings.Count(got, "\n"); n != 3 { // after one second, six, and the end
		t.Errorf("%d lines in ten seconds:\n%s", n, got)
	}
	if strings.ContainsAny(got, "\r\x1b[") {
		t.Errorf("escapes in a plain log: %q", got)
	}
}

func TestQuickMeterSaysNothing(t *testing.T) {
	a := newTestApp(t)
	a.con.errTTY = true
	m := a.newMeter("load")
	m.Update(client.Progress{Done: 1, Total: 2})
	m.Done()
	if got := a.err.String(); got != "" {
		t.Errorf("said %q", got)
	}
}

// A job's fetch has bytes, a rate and the time left, on a terminal and
// elsewhere, and of all tasks of an array together.
func TestFetchesHaveAMeter(t *testing.T) {
	const mb = 1_000_000
	for name, tty := range map[string]bool{"terminal": true, "plain": false} {
		for _, array := range []bool{false, true} {
			a, c := newTestApp(t), &clock{t: time.Unix(1000, 0)}
			a.now, a.con.errTTY = c.now, tty
			a.con.width = func() int { return 200 }
			f := newFollower(a.app, nil, "j")
			f.array = array
			fetch := func(i int, had uint64) {
				f.task(job.TaskRecord{Index: i, State: string(job.Fetching), Provider: aPeer, Fetched: had * mb, ToFetch: 100 * mb})
			}
			want := "50%  50.0 MB / 100.0 MB  25.0 MB/s  2s left"
			fetch(0, 0)
			if array {
				fetch(1, 0)
				fetch(2, 0)
				f.task(job.TaskRecord{Index: 2, State: string(job.Running), Provider: aPeer, Fetched: 100 * mb, ToFetch: 100 * mb})
				want = "66%  200.0 MB / 300.0 MB  75.0 MB/s  1s left"
			}
			c.pass(2 * time.Second)
			fetch(0, 50)
			if array {
				fetch(1, 50)
			}
			f.fetch.show()
			if got := a.err.String(); !strings.Contains(got, want) {
				t.Errorf("%s, array %v: no %q in %q", name, array, want, got)
			}
			for i := range f.tasks {
				f.task(job.TaskRecord{Index: i, State: string(job.Running), Provider: aPeer, Fetched: 100 * mb, ToFetch: 100 * mb})
			}
			if got := a.err.String(); f.fetch != nil || !strings.Contains(got, "fetched: ") {
				t.Errorf("%s, array %v: nothing tells that it is fetched: %q", name, array, got)
			}
		}
	}
}

// cat shows what the node fetches for it, and then what it writes.
func TestCatHasAMeter(t *testing.T) {
	a, c := newTestApp(t), &clock{t: time.Unix(1000, 0)}
	a.now = c.now
	n := newFakeNode(t, a, 1)
	n.file = make([]byte, 4_000_000)
	n.status.Transfers = []client.Transfer{
		{Direction: "in", Root: "bafkother", Bytes: 1, Total: 7},
		{Direction: "in", Root: "bafkfile", Bytes: 1_000_000, Total: 4_000_000},
	}
	shows := func(text string) {
		t.Helper()
		err := poll(boundedTest(t), func() (bool, error) {
			c.pass(2 * time.Second) // a plain line comes every five
			return strings.Contains(a.err.String(), text), nil
		})
		if err != nil {
			t.Errorf("no %q in %q", text, a.err.String())
		}
	}
	n.catting = func(w io.Writer) error {
		shows("cat: fetching   25%  1.0 MB / 4.0 MB")
		if _, err := w.Write(n.file[:1_000_000]); err != nil {
			return err
		}
		shows("cat   25%  1.0 MB / 4.0 MB")
		if _, err := w.Write(n.file[1_000_000:3_000_000]); err != nil { // time has passed since: there is a rate
			return err
		}
		shows("cat   75%  3.0 MB / 4.0 MB  ")
		_, err := w.Write(n.file[3_000_000:])
		return err
	}
	if code := a.main([]string{"cat", "bafkfile"}); code != 0 || len(a.out.String()) != len(n.file) {
		t.Errorf("code %d, %d bytes: %s", code, len(a.out.String()), a.err.String())
	}
	if got := a.err.String(); !strings.Contains(got, "/s") {
		t.Errorf("no rate: %q", got)
	}
}
