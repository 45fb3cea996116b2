package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where no cgroup holds the CPU limit, the shim does: it measures what the
// sandbox's processes have used, and pauses the programs inside, by gVisor's own
// means, until their share has caught up. What one look was late for is a debt
// that the next pause pays, so the share holds over a second or two, whatever a
// program does between looks.
const (
	cpuBurst = 50 * time.Millisecond // of its share, that an idle job may save up
	cpuDebt  = 25 * time.Millisecond // of its share, that is let run up before a pause
	cpuLook  = 5 * time.Millisecond  // between looks, at least
	cpuIdle  = 100 * time.Millisecond
	cpuRest  = time.Minute // bounds one pause
	cpuAhead = time.Second // of rest, that is owed while a part of the image is waited for
	cpuHeard = cpuIdle     // that a job may run to hear that it is to end
)

// allowance is CPU time that is earned at a rate and used up.
type allowance struct {
	millis  int // thousandths of a CPU
	cpus    int // that can be used at once
	left    time.Duration
	used    time.Duration
	at      time.Time
	started bool
}

// share is how much CPU time is earned in a time.
func (a *allowance) share(d time.Duration) time.Duration {
	return time.Duration(float64(d) * float64(a.millis) / 1000)
}

// look takes what was used up to now. It says for how long the job must rest,
// and if not at all, when to look again.
func (a *allowance) look(now time.Time, used time.Duration) (rest, next time.Duration) {
	if a.started {
		earned := a.share(now.Sub(a.at))
		a.left = min(a.left+earned-max(0, used-a.used), a.share(cpuBurst))
	}
	a.started, a.at, a.used = true, now, max(a.used, used)
	if debt := -a.left; debt > a.share(cpuDebt) {
		return min(max(time.Duration(float64(debt)*1000/float64(a.millis)), cpuLook), cpuRest), 0
	}
	// All CPUs at work use up what is left this fast.
	fastest := float64(a.cpus) - float64(a.millis)/1000
	if fastest <= 0 {
		return 0, cpuIdle
	}
	return 0, min(max(time.Duration(float64(a.left+a.share(cpuDebt))/fastest), cpuLook), cpuIdle)
}

// governs reports whether it is the shim that holds the CPU limit.
func (s *shim) governs() bool {
	return !s.cg.holds("cpu") && s.plan.Spec.CPUMillis < 1000*usableCPUs() && treeListed()
}

// watchCPU holds the CPU limit where no cgroup does, until the container ends.
func (s *shim) watchCPU(ctx context.Context) {
	if !s.governs() {
		return
	}
	a := &allowance{millis: s.plan.Spec.CPUMillis, cpus: usableCPUs()}
	g := &governor{dir: s.dir}
	defer g.close()
	asked := s.asked
	for wait := time.Duration(0); s.pause(wait); {
		begin := time.Now()
		used, err := treeCPU(s.pid)
		if err != nil {
			wait = cpuIdle
			continue
		}
		// At most a tenth of its share goes into looking.
		cost := min(time.Since(begin)*10_000/time.Duration(a.millis), 2*cpuIdle)
		rest, next := a.look(begin, used)
		wait = max(next, cost)
		// While a part of the image is waited for, a pause comes to be only when it
		// has arrived: most arrive at once. What runs on meanwhile may not get far.
		if rest == 0 || s.lazy.waits() && rest < cpuAhead {
			continue
		}
		err = g.hold(ctx, func() {
			t := time.NewTimer(rest)
			defer t.Stop()
			select {
			case <-s.done:
			case <-t.C:
			case <-asked:
				asked, wait = nil, cpuHeard
			}
		})
		if err == nil && wait != cpuHeard {
			wait = max(cost-rest, cpuLook)
		}
	}
}

// governor pauses the programs of a sandbox.
type governor struct {
	dir string
	c   *sentry
}

// hold keeps all programs of the sandbox from running while rest lasts. A pause
// that was asked for is always waited for, and then ended: gVisor counts them,
// and fails when one is ended that had not begun.
func (g *governor) hold(ctx context.Context, rest func()) (err error) {
	if g.c == nil {
		if g.c, err = dialSentry(ctx, g.dir); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if err := g.c.callFor(0, "containerManager.Pause", nil, nil); err != nil {
		return err
	}
	rest()
	return g.c.callFor(0, "containerManager.Resume", nil, nil)
}

func (g *governor) close() {
	if g.c != nil {
		g.c.close()
		g.c = nil
	}
}

// usableCPUs is how many CPUs this process may run on.
func usableCPUs() int {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil || set.Count() == 0 {
		return 1
	}
	return set.Count()
}

var errNoChildren = errors.New("this kernel does not list a process's children (CONFIG_PROC_CHILDREN)")

// treeListed reports whether the kernel tells what is below a process.
func treeListed() bool {
	_, err := children(os.Getpid())
	return err == nil
}

// maxTree bounds the processes that are measured.
const maxTree = 1 << 16

// treeCPU is the CPU time of a process and everything below it, what has ended
// included.
func treeCPU(root int) (time.Duration, error) {
	var total time.Duration
	pids := []int{root}
	for i := 0; i < len(pids) && len(pids) < maxTree; i++ {
		own, err := processCPU(pids[i])
		if err != nil {
			if i == 0 {
				return 0, err
			}
			continue // it has just ended
		}
		total += own + reapedCPU(pids[i])
		below, err := children(pids[i])
		if err != nil && i == 0 {
			return 0, err
		}
		pids = append(pids, below...)
	}
	return total, nil
}

// processCPU is the CPU time of all threads of a process, ended ones included,
// by its own clock.
func processCPU(pid int) (time.Duration, error) {
	const whole = 2 // CPUCLOCK_SCHED: what the scheduler has given it
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|whole, &ts); err != nil { //nolint:gosec // as the kernel makes them
		return 0, err
	}
	return time.Duration(ts.Nano()), nil
}

// reapedCPU is the CPU time of a process's children that are no more.
func reapedCPU(pid int) time.Duration {
	data, err := readBounded(fmt.Sprintf("/proc/%d/stat", pid), 4096)
	if err != nil {
		return 0
	}
	// After the name, which may hold anything: the state is the third field.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 15 {
		return 0
	}
	var ticks int64
	for _, f := range fields[13:15] { // cutime and cstime
		n, _ := strconv.ParseInt(f, 10, 64)
		ticks += n
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 wherever Linux runs
	return time.Duration(ticks) * tick
}

// children are the processes that the threads of a process have started.
func children(pid int) ([]int, error) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	threads, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var pids []int
	listed := false
	for _, t := range threads {
		data, err := readBounded(filepath.Join(dir, t.Name(), "children"), 1<<20)
		if err != nil {
			continue // the thread has just ended
		}
		listed = true
		for _, f := range strings.Fields(string(data)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
	}
	if !listed {
		return nil, errNoChildren
	}
	return pids, nil
}
