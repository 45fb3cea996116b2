package job

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// Of TestRandomKills: how many jobs, for a longer run, and the seed of a run to
// repeat.
const (
	envKills = "JOB_TEST_KILLS"
	envSeed  = "JOB_TEST_SEED"
)

func numberFrom(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	return must(strconv.ParseUint(text, 10, 64))
}

// chaos ends jobs, nodes and machines of a town at random moments.
type chaos struct {
	w    *town
	rnd  *rand.Rand
	jobs []string
}

// TestRandomKills runs jobs that are each ended, or whose nodes are killed, at
// random moments in random ways. In the end, as after every test in a town, no
// room is taken, no container, folder, image or lease is left, both sides have
// booked the same, and nothing runs on.
func TestRandomKills(t *testing.T) {
	jobs := numberFrom(t, envKills, 464)
	seed := numberFrom(t, envSeed, uint64(time.Now().UnixNano()))
	t.Logf("%s=%d", envSeed, seed)
	inTown(t, plan{prices: []uint64{testPrice, testPrice, testPrice / 2}}, func(t *testing.T, w *town) {
		c := &chaos{w: w, rnd: rand.New(rand.NewPCG(seed, 1))}
		for i := uint64(0); i < jobs; {
			for range 5 + c.rnd.IntN(6) {
				c.jobs = append(c.jobs, fmt.Sprintf("j%d", i))
				w.submit(c.jobs[i], c.program())
				if i++; i == jobs {
					break
				}
			}
			c.moment(3 * time.Second)
			c.strike()
		}
		for _, id := range c.jobs {
			if j := w.over(id); j.State == "" {
				t.Errorf("job %s has no end", id)
			}
		}
	})
}

// moment lets a random time pass, below most.
func (c *chaos) moment(most time.Duration) { c.w.pass(time.Duration(c.rnd.Int64N(int64(most)))) }

func (c *chaos) program() Spec {
	programs := []Spec{
		oneTask("print", "sleep=500ms", "print"), oneTask("sleep=3s", "exit=3"), oneTask("stubborn", "sleep=5s"), oneTask("print=3", "crash"),
		withFiles("print", "sleep=1s", "print"), array(3, 2, "sleep=700ms"), withFiles("sleep=2s", "exit=1"),
	}
	return programs[c.rnd.IntN(len(programs))]
}

func (c *chaos) provider() *shop { return c.w.shops[c.rnd.IntN(len(c.w.shops))] }

// strike does one bad thing, and mends what does not mend by itself.
func (c *chaos) strike() {
	p := c.provider()
	switch c.rnd.IntN(8) {
	case 0: // the provider's process
		p.kill()
		c.moment(2 * time.Second)
		p.reopen()
	case 1: // its machine
		p.kill()
		p.machine.outage()
		c.moment(20 * time.Second)
		p.reopen()
	case 2:
		c.w.renter.kill()
		c.moment(5 * time.Second)
		c.w.renter.reopen()
	case 3:
		for range 4 {
			id := c.jobs[len(c.jobs)-1-c.rnd.IntN(min(10, len(c.jobs)))]
			c.w.stop(id, time.Duration(c.rnd.IntN(2))*500*time.Millisecond)
		}
	case 4:
		step := []string{"prepare", "start"}[c.rnd.IntN(2)]
		p.machine.breakStep(step, errors.New("the disk is full"))
		c.moment(2 * time.Second)
		p.machine.breakStep(step, nil)
	case 5:
		c.w.cutOff(p)
		c.moment(4 * time.Second)
		c.w.rules(nil)
	case 6:
		p.store.failWhen(func(n int) bool { return n%3 == 0 })
		c.moment(2 * time.Second)
		p.store.failWhen(nil)
	case 7: // nothing but more jobs
	}
}
