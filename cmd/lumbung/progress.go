package main

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/node/client"
)

const (
	showAfter  = time.Second            // what is quicker is not worth a bar
	redrawEach = 125 * time.Millisecond // on a terminal
	sayEach    = 5 * time.Second        // elsewhere
)

// phaseDone is the phase of a transfer that has come to its end.
const phaseDone = "done"

// meter shows how far one thing is: a bar with bytes, rate and time left on a
// terminal, a plain line now and then elsewhere. It says nothing of what is
// over within a second.
type meter struct {
	con   *console
	now   func() time.Time
	began time.Time

	mu    sync.Mutex
	label string
	p     client.Progress
	rate  float64
	full  time.Time // when the last byte came
	at    time.Time // of the last measure of the rate
	from  uint64
	said  time.Time
	shown bool
	stop  chan struct{}
	gone  chan struct{}
}

// newMeter starts a meter; Done must end it.
func (a *app) newMeter(label string) *meter {
	m := &meter{con: a.con, now: a.now, label: label, stop: make(chan struct{}), gone: make(chan struct{})}
	m.began = m.now()
	m.at = m.began
	go m.tick()
	return m
}

func (m *meter) tick() {
	defer close(m.gone)
	t := time.NewTicker(redrawEach)
	defer t.Stop()
	for {
		select {
		case <-m.stop:
			return
		case <-t.C:
			m.show()
		}
	}
}

// Update takes the newest progress.
func (m *meter) Update(p client.Progress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if p.Phase != m.p.Phase || p.Done < m.from {
		m.from, m.at, m.rate = p.Done, now, 0
	}
	if d := now.Sub(m.at); d >= 500*time.Millisecond {
		r := float64(p.Done-m.from) / d.Seconds()
		if m.rate > 0 {
			r = 0.7*m.rate + 0.3*r
		}
		m.rate, m.from, m.at = r, p.Done, now
	}
	if p.Done != m.p.Done {
		m.full = now
	}
	m.p = p
}

// relabel says anew what is shown.
func (m *meter) relabel(label string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.label = label
}

// visible reports whether there was something to show.
func (m *meter) visible() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shown
}

// show draws what there is to say now.
func (m *meter) show() {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	since := now.Sub(m.began)
	if since < showAfter {
		return
	}
	line := func(width int) string {
		if m.p.Phase == phaseDone || m.p.Total > 0 && m.p.Done >= m.p.Total { // what comes now has no bytes
			return progressLine(m.label, 0, 0, 0, since, width)
		}
		return progressLine(m.name(), m.p.Done, m.p.Total, m.rate, since, width)
	}
	if m.con.errTTY {
		m.shown = true
		m.con.Live(line(m.con.width()))
		return
	}
	if m.said.IsZero() || now.Sub(m.said) >= sayEach {
		m.said, m.shown = now, true
		m.con.Notef("%s", line(0))
	}
}

func (m *meter) name() string {
	if m.p.Phase == "" {
		return m.label
	}
	return m.label + ": " + m.p.Phase
}

// Done takes the bar away and leaves one line of what was shown.
func (m *meter) Done() {
	close(m.stop)
	<-m.gone
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.shown {
		return
	}
	m.con.Live("")
	if took := m.full.Sub(m.began); m.p.Done > 0 && took >= showAfter {
		m.con.Notef("%s: %s in %s (%s/s)", m.label, sizeText(m.p.Done), spanText(took), sizeText(uint64(float64(m.p.Done)/took.Seconds())))
	}
}

// progressLine is one state of a meter. Width is that of the terminal; 0 makes a
// plain line without a bar.
func progressLine(label string, done, total uint64, rate float64, since time.Duration, width int) string {
	if done == 0 && total == 0 {
		return fmt.Sprintf("%s  %s", label, spanText(since))
	}
	amount := sizeText(done)
	if total > 0 {
		amount = fmt.Sprintf("%3d%%  %s / %s", min(100, done*100/total), sizeText(done), sizeText(total))
	}
	if rate > 0 {
		amount += "  " + sizeText(uint64(rate)) + "/s"
	}
	if eta := timeLeft(done, total, rate); eta > 0 {
		amount += "  " + spanText(eta) + " left"
	}
	room := width - len(label) - len(amount) - 8
	if total == 0 || room < 8 {
		return label + "  " + amount
	}
	room = min(room, 30)
	full := int(uint64(room) * min(done, total) / total) //nolint:gosec // at most room
	return fmt.Sprintf("%s  [%s%s]  %s", label, strings.Repeat("=", full), strings.Repeat(" ", room-full), amount)
}

func timeLeft(done, total uint64, rate float64) time.Duration {
	if rate <= 0 || done >= total {
		return 0
	}
	left := float64(total-done) / rate
	if left > 1e6 {
		return 0
	}
	return max(time.Duration(left*float64(time.Second)).Round(time.Second), time.Second)
}
