package sandbox

import (
	"os"
	"testing"
	"time"
)

// TestAllowance runs jobs that use all CPUs whenever they may, in a time of its
// own, with looks and pauses that come late: their share holds.
func TestAllowance(t *testing.T) {
	for _, millis := range []int{10, 100, 500, 1000, 1900, 3500} {
		for _, late := range []time.Duration{0, 3 * time.Millisecond, 200 * time.Millisecond} {
			const cpus = 4
			a := &allowance{millis: millis, cpus: cpus}
			begin := time.Unix(0, 0)
			now, used, wait := begin, time.Duration(0), cpuLook
			for now.Sub(begin) < 20*time.Minute {
				now = now.Add(wait + late)
				used += cpus * (wait + late)
				var rest time.Duration
				if rest, wait = a.look(now, used); rest > 0 {
					now, wait = now.Add(rest), cpuLook
				}
			}
			share := float64(used) / float64(now.Sub(begin)) * 1000
			if share < float64(millis)*0.9 || share > float64(millis)*1.1+50 {
				t.Errorf("%d thousandths of a CPU, looks %s late: used %.0f", millis, late, share)
			}
		}
	}
}

// TestAllowanceIsNotSaved has a job that was idle get no more than a burst.
func TestAllowanceIsNotSaved(t *testing.T) {
	a := &allowance{millis: 500, cpus: 4}
	now := time.Unix(0, 0)
	a.look(now, 0)
	now = now.Add(time.Hour)
	if rest, _ := a.look(now, 0); rest != 0 {
		t.Errorf("an idle job rests %s", rest)
	}
	if rest, _ := a.look(now.Add(50*time.Millisecond), 200*time.Millisecond); rest < 200*time.Millisecond {
		t.Errorf("a job rests %s after 200 ms of CPU at half a CPU", rest)
	}
}

func TestTreeCPU(t *testing.T) {
	before, err := treeCPU(os.Getpid())
	must(t, err)
	for n := 0; ; n++ { // until it shows
		after, err := treeCPU(os.Getpid())
		must(t, err)
		if after > before {
			return
		}
	}
}
