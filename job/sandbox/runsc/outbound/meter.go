package outbound

import (
	"sync"
	"sync/atomic"
)

// What a connection and a datagram cost beside their data: the headers of the
// packets that every one of them has. Empty ones are not free.
const (
	connectCost  = 240 // both handshakes of TCP
	datagramCost = 48  // of IP version 6 and UDP
)

// Meter counts the bytes that a container sends to the internet and gets from
// it. It may be used from any goroutine.
type Meter struct {
	up, down atomic.Uint64
	limit    uint64
	once     sync.Once
	over     chan struct{}
}

// NewMeter makes one that is over beyond limit bytes, both ways together.
func NewMeter(limit uint64) *Meter { return &Meter{limit: limit, over: make(chan struct{})} }

// Up counts bytes that leave; it says false when there were too many.
func (m *Meter) Up(n int) bool { return m.count(&m.up, n) }

// Down counts bytes that arrive.
func (m *Meter) Down(n int) bool { return m.count(&m.down, n) }

func (m *Meter) count(c *atomic.Uint64, n int) bool {
	c.Add(uint64(n)) //nolint:gosec // a length
	if m.up.Load()+m.down.Load() <= m.limit {
		return true
	}
	m.once.Do(func() { close(m.over) })
	return false
}

// Over is closed when the limit was met.
func (m *Meter) Over() <-chan struct{} { return m.over }

// exceeded says whether it was.
func (m *Meter) exceeded() bool {
	select {
	case <-m.over:
		return true
	default:
		return false
	}
}

// Report is what the process says of itself, a line of JSON when it has changed.
type Report struct {
	Up   uint64 `json:"up"`
	Down uint64 `json:"down"`
	Over bool   `json:"over,omitempty"`
}

// Report is how it stands.
func (m *Meter) Report() Report {
	return Report{Up: m.up.Load(), Down: m.down.Load(), Over: m.exceeded()}
}
