package job

import (
	"math"
	"testing"
	"time"
)

func TestStartIn(t *testing.T) {
	for _, c := range []struct {
		missing, rate uint64
		want          time.Duration
	}{
		{0, 0, 0},
		{DefaultFetchRate, 0, time.Second},
		{3 << 20, 2 << 20, 1500 * time.Millisecond},
		{math.MaxUint64, 1, maxStartIn},
		{math.MaxUint64, math.MaxUint64, time.Second},
		{uint64(maxStartIn/time.Second) + 1, 1, maxStartIn},
	} {
		if got := startIn(c.missing, c.rate); got != c.want {
			t.Errorf("%d bytes at %d a second: %s, want %s", c.missing, c.rate, got, c.want)
		}
	}
}
