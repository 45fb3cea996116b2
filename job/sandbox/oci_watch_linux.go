package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// census is what the processes of a container take together, summed over the
// shim's own /proc, which shows no other's.
type census struct {
	processes, threads uint64
	cpu                time.Duration
	anon, shared       uint64 // bytes that no disk backs; what is shared is counted in each
	pids               []int
}

// runtimeThreads is how many of its threads the first process of an exec is
// forgiven: until the program begins in it, that is the runtime itself.
const runtimeThreads = 16

// ticks of the kernel's clock in a second, as /proc counts.
const ticks = 100

// countProcesses looks at every process that is in a namespace below the shim's:
// so at the container's, not at the runtime's on its way. init is the first of them.
func countProcesses(init int) (c census) {
	entries, _ := os.ReadDir("/proc")
	own, _ := os.Readlink("/proc/self/ns/pid")
	outside := func(pid int) bool {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
		return err == nil && ns == own
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 {
			continue
		}
		if outside(pid) {
			continue
		}
		stat, err := readBounded(fmt.Sprintf("/proc/%d/stat", pid), 4096)
		if err != nil {
			continue
		}
		parent, threads := c.add(pid, stat)
		if pid != init && threads > 1 && outside(parent) {
			c.threads -= min(threads-1, runtimeThreads)
		}
	}
	return c
}

// add reads a line of /proc/PID/stat; the name in brackets may hold anything.
func (c *census) add(pid int, stat []byte) (parent int, threads uint64) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, 0
	}
	f := strings.Fields(string(stat[i+1:]))
	if len(f) < 18 {
		return 0, 0
	}
	number := func(i int) uint64 { n, _ := strconv.ParseUint(f[i], 10, 63); return n }
	if f[0] == "Z" || f[0] == "X" {
		c.processes, c.threads = c.processes+1, c.threads+1 // a zombie takes a place
		return 0, 0
	}
	threads = max(number(17), 1)
	c.processes, c.threads = c.processes+1, c.threads+threads
	c.cpu += time.Duration(number(11)+number(12)+number(13)+number(14)) * (time.Second / ticks) //nolint:gosec // of 63 bits
	anon, shared := kibs(filepath.Join("/proc", strconv.Itoa(pid), "status"), "RssAnon", "RssShmem")
	c.anon, c.shared = c.anon+anon, c.shared+shared
	c.pids = append(c.pids, pid)
	return int(number(1)), threads //nolint:gosec // a process id
}

// observe keeps counters and ends a container with too many processes: where
// there is a group, the kernel refuses them a little above.
func (o *oci) observe(_ context.Context, wg *sync.WaitGroup) {
	wg.Go(func() {
		limit := uint64(o.plan.Spec.Pids) //nolint:gosec // validated positive
		for wait := time.Duration(0); o.pause(wait); {
			begin := time.Now()
			c := countProcesses(o.init)
			o.mu.Lock()
			o.usage.CPU, o.usage.Pids = max(c.cpu, o.usage.CPU), c.threads
			o.mu.Unlock()
			if c.threads > limit {
				o.exceed(Exceeded{Limit: LimitPids, Max: limit, Seen: c.threads, At: time.Now(), Killed: true})
				return
			}
			wait = min(max(time.Duration(limit-c.threads)*time.Second/forkRate, sentryLook), sentryPoll)
			wait = max(wait, 20*time.Since(begin))
		}
	})
}

// memory is the group's count where there is one, without what the kernel can
// drop at will; else what the processes and their memory file systems hold.
func (o *oci) memory() uint64 {
	o.lookOOM()
	if n, ok := o.cg.memory(); ok {
		return n
	}
	c, files := countProcesses(o.init), o.tmpfs()
	// What is mapped of the files is shared memory too.
	if n := c.anon + max(c.shared, files); n <= o.plan.Spec.MemoryBytes {
		return n
	}
	c.anon, c.shared = 0, 0 // processes share: worth the dearer look
	for _, pid := range c.pids {
		anon, shared := kibs(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss_Anon", "Pss_Shmem")
		c.anon, c.shared = c.anon+anon, c.shared+shared
	}
	return c.anon + max(c.shared, files)
}

// kibs reads two figures of a file of /proc, in bytes; 0 for what is not there.
func kibs(file, first, second string) (a, b uint64) {
	data, err := readBounded(file, 1<<16)
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		if name != first && name != second {
			continue
		}
		n, _ := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 53)
		if name == first {
			a = n << 10
		} else {
			b = n << 10
		}
	}
	return a, b
}

// tmpfs is what lies in the container's memory file systems.
func (o *oci) tmpfs() (n uint64) {
	im, err := rootOf(o.init)
	if err != nil {
		return 0
	}
	defer im.close()
	for _, dir := range []string{"/tmp", "/dev/shm", "/dev"} {
		f, err := im.open(dir, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			continue
		}
		var st unix.Statfs_t
		if unix.Fstatfs(int(f.Fd()), &st) == nil && st.Type == unix.TMPFS_MAGIC {
			n += (st.Blocks-st.Bfree)*uint64(st.Bsize) + (st.Files-st.Ffree)*memoryCost //nolint:gosec // positive
		}
		_ = f.Close()
	}
	return n
}

// lookOOM names the limit when the kernel held it.
func (o *oci) lookOOM() {
	if o.cg.oomKills() == 0 {
		return
	}
	limit := o.plan.Spec.MemoryBytes
	o.mu.Lock()
	seen := max(o.usage.MemoryPeak, limit)
	o.mu.Unlock()
	o.exceed(Exceeded{Limit: LimitMemory, Max: limit, Seen: seen, At: time.Now(), Killed: true})
}
