package gpu

import (
	"log/slog"
	"time"
)

// Ours says whether a process that uses a card belongs to a container of this
// node.
type Ours func(pid uint32, uuid string) bool

// DefaultEvery is how often the cards are looked at.
const DefaultEvery = 5 * time.Second

// WatchOptions are how the cards are watched.
type WatchOptions struct {
	Ours Ours
	Log  *slog.Logger
	Now  func() time.Time
	// Ticks are when to look; nil looks every DefaultEvery.
	Ticks <-chan time.Time
}

// nowhen is a time for looks that remember nothing.
var nowhen = time.Time{}
