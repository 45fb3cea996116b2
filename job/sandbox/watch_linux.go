package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	startLimit = 60 * time.Second // for runsc to start the program
	// restoreLimit is for the memory of a restored program to be read too.
	restoreLimit = 30 * time.Minute
	// statusDoubt is how long a sandbox may have been ending already when it was
	// asked how its program ended. Only one that was asked before and ended
	// without an answer was killed.
	statusDoubt = 200 * time.Millisecond
	startPoll   = 2 * time.Millisecond   // between looks whether it did
	diskFind    = 5 * time.Millisecond   // between looks for the writable layer
	sentryPoll  = 250 * time.Millisecond // between looks at the sandbox's counters, at most
	sentryLook  = 10 * time.Millisecond  // and at least
	forkRate    = 5000                   // processes a second that a job may start
	minLook     = 5 * time.Millisecond
	// diskLook is shorter: a full disk ends a program by itself, and its file is
	// emptied a moment later.
	diskLook = time.Millisecond
	maxLook  = 200 * time.Millisecond
	// growth is how fast memory or a file can grow, bytes per second: it
	// decides when to look again.
	growth = 4 << 30
	// sentryOverhead is anonymous memory of the sandbox itself that is not
	// counted as the job's.
	sentryOverhead = 64 << 20
	// entryCost is what one file or folder in the outputs counts beside its
	// data, so that millions of empty ones meet the limit too: an inode and a block.
	entryCost = 4 << 10
	// memoryCost is the same in a memory file system, whose data is counted beside.
	memoryCost = 1 << 10
)

// watch follows the container from its start to its end: it says when the
// program runs, and ends it when a limit that the kernel does not hold is
// exceeded.
func (s *shim) watch(ctx context.Context, pipe *os.File) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(s.engine.watchDisk)
	wg.Go(s.watchImage)
	if !s.engine.awaitRunning(ctx) {
		return
	}
	s.mu.Lock()
	s.started = time.Now()
	s.waitedBefore = s.lazy.waitedFor()
	st := state{Phase: phaseRunning, Shim: s.pid, Started: s.started}
	s.mu.Unlock()
	// A machine that fails takes the container along: there is nothing to sync for.
	if err := replaceJSON(s.dir, fileState, st, false); err != nil {
		fmt.Fprintln(os.Stderr, "recording the start:", err)
	}
	s.hub.changed()
	_ = json.NewEncoder(pipe).Encode(ready{Started: st.Started})

	s.engine.observe(ctx, &wg)
	wg.Go(func() { s.watchOutputs() })
	s.watchBounded(&wg)
	s.watchMemory(st.Started)
}

// pause waits; it says false when the container has ended.
func (s *shim) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.done:
		return false
	case <-t.C:
		return true
	}
}

func (s *shim) awaitRunning(ctx context.Context) bool {
	limit := startLimit
	if s.plan.Spec.Restore != "" {
		limit = restoreLimit
	}
	deadline := time.Now().Add(limit)
	var c *sentry
	defer func() {
		if c != nil {
			c.close()
		}
	}()
	for s.pause(startPoll) {
		if time.Now().Add(-s.lazy.waitedFor()).After(deadline) {
			s.startedLate(limit)
			return false
		}
		if c == nil {
			c, _ = dialSentry(ctx, s.dir)
			continue
		}
		running, err := c.running()
		if err != nil && !errors.Is(err, errSentry) {
			c.close()
			c = nil
			continue
		}
		if !running {
			continue
		}
		s.mu.Lock()
		s.sandbox = s.sandboxPid()
		s.mu.Unlock()
		return true
	}
	return false
}

// startedLate ends a container that takes too long to start.
func (s *shim) startedLate(limit time.Duration) {
	s.mu.Lock()
	s.failure = fmt.Sprintf("the program did not start within %s", limit)
	s.mu.Unlock()
	s.kill()
}

// watchStatus learns how the program ended from the sandbox itself: runsc's own
// code for a sandbox that was killed looks like one for a killed program.
func (s *shim) watchStatus(ctx context.Context) {
	c, err := dialSentry(ctx, s.dir)
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	defer cancel()
	asked := time.Now()
	status, err := c.wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.status = &status
	case !errors.Is(err, errSentry) && time.Since(asked) > statusDoubt:
		s.mute = true
	}
}

// watchSentry keeps the counters only the sandbox knows, and holds the limit of
// processes: this version of gVisor has pids limits inside the sandbox, but
// refuses (cgroup v1) or crashes (v2) when they are set from outside.
func (s *shim) watchSentry(ctx context.Context) {
	var c *sentry
	defer func() {
		if c != nil {
			c.close()
		}
	}()
	limit := uint64(s.plan.Spec.Pids) //nolint:gosec // validated positive
	var measured time.Time
	for wait := time.Duration(0); s.pause(wait); {
		wait = sentryPoll
		if c == nil {
			if c, _ = dialSentry(ctx, s.dir); c == nil {
				continue
			}
		}
		_, pids, err := c.counters() // its count of CPU is of time that passed
		if err != nil {
			c.close()
			c = nil
			continue
		}
		var cpu time.Duration
		if now := time.Now(); now.Sub(measured) >= sentryPoll { // it costs more than to count
			measured = now
			cpu, _ = treeCPU(s.pid)
		}
		s.mu.Lock()
		s.usage.CPU, s.usage.Pids = max(cpu, s.usage.CPU), pids
		s.mu.Unlock()
		if pids > limit {
			s.exceed(Exceeded{Limit: LimitPids, Max: limit, Seen: pids, At: time.Now(), Killed: true})
			return
		}
		wait = min(max(time.Duration(limit-pids)*time.Second/forkRate, sentryLook), sentryPoll)
	}
}

// watchDisk notices a full writable layer. It looks from before the program's
// start on: a program that fills its disk and gives up may be over before
// anybody noticed that it runs.
func (s *shim) watchDisk() {
	m := &meter{}
	defer m.close()
	for s.pause(diskFind) {
		for _, m.pid = range s.mayHoldDisk() {
			if m.find(); m.disk != nil {
				break
			}
		}
		if m.disk != nil {
			break
		}
	}
	for wait := time.Duration(0); s.pause(wait); {
		wait = headroom(s.lookDisk(m), s.plan.Spec.DiskBytes, diskLook)
	}
	s.lookDisk(m)
}

// mayHoldDisk are processes that may have the writable layer open: the sandbox,
// once its id is told, and before that all that runsc has started. A program that
// is over a moment after its start leaves no time to look for it then.
func (s *shim) mayHoldDisk() []int {
	if pid := s.sandboxPid(); pid != 0 {
		return []int{pid}
	}
	s.mu.Lock()
	runsc := s.process
	s.mu.Unlock()
	if runsc == nil {
		return nil
	}
	pids := []int{runsc.Pid}
	for i := 0; i < len(pids) && len(pids) < 16; i++ {
		below, _ := children(pids[i])
		pids = append(pids, below...)
	}
	return pids
}

// lookDisk says what the writable layer takes, and names one that is full to
// the last fiftieth: the sandbox refuses more by itself.
func (s *shim) lookDisk(m *meter) uint64 {
	disk := m.lastDisk()
	s.mu.Lock()
	s.usage.Disk = max(disk, s.usage.Disk)
	s.mu.Unlock()
	if limit := s.plan.Spec.DiskBytes; disk >= limit-limit/50 {
		s.exceed(Exceeded{Limit: LimitDisk, Max: limit, Seen: disk, At: time.Now()})
	}
	return disk
}

// watchMemory holds the memory and time limits.
func (s *shim) watchMemory(started time.Time) {
	spec := s.plan.Spec
	var over time.Time // since when
	for wait := time.Duration(0); s.pause(wait); {
		now := time.Now()
		if ran := now.Sub(started); ran >= spec.RunLimit {
			s.exceed(Exceeded{Limit: LimitTime, Max: uint64(spec.RunLimit), Seen: uint64(ran), At: now, Killed: true}) //nolint:gosec // positive
			return
		}
		memory := s.engine.memory()
		s.mu.Lock()
		s.usage.Memory = memory
		s.usage.MemoryPeak = max(s.usage.MemoryPeak, memory)
		s.mu.Unlock()
		// Freed pages are given back a moment late: to be just over the limit for
		// that long is not enough to be killed.
		limit := spec.MemoryBytes
		switch {
		case memory <= limit:
			over = time.Time{}
		case over.IsZero():
			over = now
		}
		if !over.IsZero() {
			limit = limit / 4 * 5
		}
		if memory > limit || !over.IsZero() && now.Sub(over) >= maxLook {
			s.exceed(Exceeded{Limit: LimitMemory, Max: spec.MemoryBytes, Seen: memory, At: now, Killed: true})
			return
		}
		wait = min(headroom(memory, limit, minLook), spec.RunLimit-now.Sub(started))
		wait = max(wait, minLook)
	}
}

// headroom is how long what is used needs to grow to the limit at most, no less
// than least.
func headroom(used, limit uint64, least time.Duration) time.Duration {
	if used >= limit {
		return maxLook // it was said already, or the limit is the sandbox's to hold
	}
	return min(max(time.Duration((limit-used)/(growth/uint64(time.Second/time.Microsecond)))*time.Microsecond, least), maxLook) //nolint:gosec // small
}

// meter measures a sandbox through its open files: the memory file that backs
// all memory of the programs inside, tmpfs included, and the file that backs
// the writable layer. Both work for root and for the user it runs as, with or
// without cgroups.
type meter struct {
	pid    int
	memory int // descriptor numbers in the sandbox, found once
	disk   *os.File
}

func (m *meter) close() {
	if m.disk != nil {
		_ = m.disk.Close()
	}
}

func (m *meter) find() {
	dir := fmt.Sprintf("/proc/%d/fd", m.pid)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		n, _ := strconv.Atoi(e.Name())
		switch {
		case m.memory == 0 && strings.HasPrefix(target, "/memfd:runsc-memory"):
			m.memory = n
		case m.disk == nil && strings.Contains(target, "/runsc-filestore-"):
			// O_PATH: the file may be looked at after the sandbox is gone.
			m.disk, _ = os.OpenFile(filepath.Join(dir, e.Name()), unix.O_PATH|unix.O_CLOEXEC, 0)
		}
	}
}

func (m *meter) look() (memory uint64) {
	if m.memory == 0 {
		m.find()
	}
	if m.memory != 0 {
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", m.pid, m.memory), &st) == nil {
			memory = uint64(st.Blocks) * 512 //nolint:gosec // never negative
		}
	}
	if own := anonymous(m.pid); own > sentryOverhead {
		memory += own - sentryOverhead
	}
	return memory
}

func (m *meter) lastDisk() uint64 {
	var st unix.Stat_t
	if m.disk == nil || unix.Fstat(int(m.disk.Fd()), &st) != nil {
		return 0
	}
	return uint64(st.Blocks) * 512 //nolint:gosec // never negative
}

// anonymous is the memory of a process that is backed by no file.
func anonymous(pid int) uint64 {
	data, err := readBounded(fmt.Sprintf("/proc/%d/statm", pid), 4096)
	if err != nil {
		return 0
	}
	var size, resident, shared uint64
	if _, err := fmt.Sscan(string(data), &size, &resident, &shared); err != nil || shared > resident {
		return 0
	}
	return (resident - shared) * uint64(os.Getpagesize()) //nolint:gosec // positive
}

// watchOutputs holds the limit of what is written to the host's folders.
func (s *shim) watchOutputs() {
	limit := s.plan.Spec.OutputBytes
	for wait := minLook; s.pause(wait); {
		begin := time.Now()
		n := outputSize(s.plan.Spec, limit)
		s.mu.Lock()
		s.usage.Output = n
		s.mu.Unlock()
		if n > limit {
			s.exceed(Exceeded{Limit: LimitOutput, Max: limit, Seen: n, At: time.Now(), Killed: true})
			return
		}
		wait = s.lookAgain(n, limit, time.Since(begin))
	}
}

// blindLook bounds the time between looks at files, however long one takes.
const blindLook = time.Second

// lookAgain is when to measure files again of which a look found n bytes and
// took so long: at most a twentieth of one CPU goes into looking, unless a look
// takes long because a job has made it so.
func (s *shim) lookAgain(n, limit uint64, took time.Duration) time.Duration {
	return max(headroom(n, limit, minLook), min(20*took, blindLook))
}

// lastLook measures the outputs once more when nobody can write them anymore.
func (s *shim) lastLook() {
	limit := s.plan.Spec.OutputBytes
	n := outputSize(s.plan.Spec, limit)
	s.mu.Lock()
	s.usage.Output = n
	s.mu.Unlock()
	if n > limit {
		s.exceed(Exceeded{Limit: LimitOutput, Max: limit, Seen: n, At: time.Now()})
	}
}

// outputSize sums what is in the writable mounts; it stops over limit. A file
// counts its length or its blocks, whichever is more: a sparse one would be as
// long when it is sent.
func outputSize(s Spec, limit uint64) (total uint64) {
	for _, m := range s.Mounts {
		if m.ReadOnly || m.MaxBytes > 0 || total > limit {
			continue
		}
		info, err := os.Stat(m.Source)
		if err != nil {
			continue
		}
		if !info.IsDir() {
			total += fileSize(info)
			continue
		}
		// os.Root: the job may swap folders for symlinks while this walks.
		root, err := os.OpenRoot(m.Source)
		if err != nil {
			continue
		}
		total = treeSize(root, ".", limit, total)
		_ = root.Close()
	}
	return total
}

// listed is how many names of a folder are in memory at once.
const listed = 256

// treeSize adds what is in a folder and below, until it is over limit. Of a
// folder it keeps the names of folders alone: a job may make millions of files.
func treeSize(root *os.Root, name string, limit, total uint64) uint64 {
	dir, err := root.OpenFile(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return total
	}
	var below []string
	for total <= limit {
		entries, err := dir.ReadDir(listed)
		for _, e := range entries {
			total += entryCost
			if e.IsDir() {
				below = append(below, e.Name())
			} else if info, err := e.Info(); err == nil && e.Type().IsRegular() {
				total += fileSize(info)
			}
		}
		if err != nil {
			break
		}
	}
	_ = dir.Close()
	for _, sub := range below {
		if total > limit {
			break
		}
		total = treeSize(root, filepath.Join(name, sub), limit, total)
	}
	return total
}

func fileSize(info fs.FileInfo) uint64 {
	n := uint64(max(info.Size(), 0)) //nolint:gosec // not negative
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		n = max(n, uint64(max(st.Blocks, 0))*512) //nolint:gosec // not negative
	}
	return n
}
