package sandbox

import (
	"sync"
	"time"
)

// watchBounded holds the limits of writable mounts that have one of their own.
func (s *shim) watchBounded(wg *sync.WaitGroup) {
	for _, m := range s.plan.Spec.Mounts {
		if m.MaxBytes > 0 && !m.ReadOnly {
			wg.Go(func() { s.watchMount(m) })
		}
	}
}

func (s *shim) watchMount(m Mount) {
	limit := m.MaxBytes
	m.MaxBytes = 0
	alone := Spec{Mounts: []Mount{m}}
	for wait := minLook; s.pause(wait); {
		begin := time.Now()
		n := outputSize(alone, limit)
		if n > limit {
			s.exceed(Exceeded{Limit: LimitCache, Max: limit, Seen: n, At: time.Now(), Killed: true})
			return
		}
		wait = s.lookAgain(n, limit, time.Since(begin))
	}
}
