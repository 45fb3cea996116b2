package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/store"
)

// link is what the node's own link to the network has brought so far: a moving
// average over fetches, which outlives a restart.
type link struct {
	db  *store.DB
	log *slog.Logger

	mu   sync.Mutex
	seen uint64 // bytes a second, 0 before the first measurement
}

const (
	// settingLink keeps the average, in bytes a second.
	settingLink = "link.fetch_rate"
	// measuredBytes is the least a fetch must bring: a smaller one measures
	// round trips.
	measuredBytes = 1 << 20
	// newestWeighs is the share of the newest fetch in the average.
	newestWeighs = 0.3
)

func newLink(ctx context.Context, db *store.DB, log *slog.Logger) (*link, error) {
	l := &link{db: db, log: log}
	if err := db.Setting(ctx, settingLink, &l.seen); err != nil && !errors.Is(err, job.ErrNotFound) {
		return nil, fmt.Errorf("read the rate of the link: %w", err)
	}
	return l, nil
}

// rate is how many bytes a second a fetch brings, 0 when none was measured.
func (l *link) rate() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen
}

// measured takes a whole fetch into the average.
func (l *link) measured(ctx context.Context, bytes uint64, took time.Duration) {
	if bytes < measuredBytes {
		return
	}
	if err := l.db.SetSetting(ctx, settingLink, l.average(float64(bytes)/max(took, time.Millisecond).Seconds())); err != nil {
		l.log.Warn("keep the rate of the link", "err", err)
	}
}

func (l *link) average(newest float64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen > 0 {
		newest = newestWeighs*newest + (1-newestWeighs)*float64(l.seen)
	}
	l.seen = max(1, uint64(newest))
	return l.seen
}
