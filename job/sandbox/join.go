package sandbox

import "github.com/lumbung-net/lumbung/job/sandbox/internal/portmux"

// Half is a connection whose directions end apart.
type Half = portmux.Half

// Join copies both ways until both directions have ended, or one has broken,
// and closes both ends. The end of one direction is passed on alone; a
// connection that has a method Reset breaks by it. It returns the bytes that
// went from a to b and from b to a.
func Join(a, b Half) (there, back int64) { return portmux.Join(a, b) }
