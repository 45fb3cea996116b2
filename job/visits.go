package job

import (
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
)

// visits counts the connections to a container's ports.
type visits struct {
	mu      sync.Mutex
	open    int           // those that are being made too
	last    time.Time     // when the last of them ended
	changed chan struct{} // tells that one began or ended
}

func (v *visits) begin() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.open++
	v.tell()
}

// end takes back a begin; at is zero where nothing was connected.
func (v *visits) end(at time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.open--
	if at.After(v.last) {
		v.last = at
	}
	v.tell()
}

// tell wakes who watches. The lock is held.
func (v *visits) tell() {
	select {
	case v.changed <- struct{}{}:
	default: // it has not looked since the last change
	}
}

// idle is since when nobody is connected, or the time that it is asked after,
// if that is later; false while somebody is.
func (v *visits) idle(after time.Time) (since time.Time, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.last.After(after) {
		after = v.last
	}
	return after, v.open == 0
}

// counted is a connection that ends its visit with itself.
func (v *visits) counted(c sandbox.Conn, now func() time.Time) sandbox.Conn {
	return visit{c, sync.OnceFunc(func() { v.end(now()) })}
}

type visit struct {
	sandbox.Conn
	done func()
}

// Close implements sandbox.Conn.
func (v visit) Close() error {
	defer v.done()
	return v.Conn.Close()
}

// Reset implements sandbox.Conn.
func (v visit) Reset() error {
	defer v.done()
	return v.Conn.Reset()
}
