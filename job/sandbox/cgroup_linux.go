package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A cgroup bounds memory, cpu and threads of one container's processes, shim included,
// where root finds cgroups it can write. It stands behind the limits the shim
// holds by looking, which work everywhere.
type cgroup struct {
	name string
	v2   bool
	dirs map[string]string // controller to folder
}

// hostOverhead is what the cgroup adds to the job's memory for the sandbox's
// own processes: the sentry, the gofer, runsc and the shim.
const hostOverhead = 192 << 20

// netOverhead is what it adds for the process that is a container's network: its
// buffers are bounded, and it keeps to that by itself.
const netOverhead = 256 << 20

const cpuPeriod = 100_000 // microseconds

// pidsMost is the most that the kernel takes for a limit of threads.
const pidsMost = 1 << 22

// cgroupName is unique on the machine, also between two nodes on it.
func cgroupName(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return fmt.Sprintf("lumbung-%x", sum[:8])
}

// cgroupParents finds where groups may be made.
func cgroupParents() (dirs map[string]string, v2 bool, err error) {
	mounts, err := readBounded("/proc/self/mounts", 4<<20)
	if err != nil {
		return nil, false, err
	}
	own, err := readBounded("/proc/self/cgroup", 1<<20)
	if err != nil {
		return nil, false, err
	}
	dirs = map[string]string{}
	unified := ""
	lines := bufio.NewScanner(bytes.NewReader(mounts))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 4 {
			continue
		}
		switch f[2] {
		case "cgroup2":
			unified = f[1]
		case "cgroup":
			for _, o := range strings.Split(f[3], ",") {
				if o == "memory" || o == "cpu" || o == "pids" {
					dirs[o] = ownGroup(f[1], own, o)
				}
			}
		}
	}
	if len(dirs) > 0 {
		return dirs, false, nil
	}
	if unified == "" {
		return nil, false, errors.New("no cgroups are mounted")
	}
	return map[string]string{"memory": unified, "cpu": unified, "pids": unified}, true, nil
}

// ownGroup is this process's own group of a v1 controller, so that limits
// above it still hold for what is made below.
func ownGroup(mount string, own []byte, controller string) string {
	lines := bufio.NewScanner(bytes.NewReader(own))
	for lines.Scan() {
		f := strings.SplitN(lines.Text(), ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, c := range strings.Split(f[1], ",") {
			dir := filepath.Join(mount, f[2])
			// Under a container's cgroup mount the host's path does not exist.
			if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); c == controller && err == nil {
				return dir
			}
		}
	}
	return mount
}

// room is what a group gets beyond what the job was promised, for what of the
// sandbox itself is in it.
type room struct {
	memory uint64 // bytes
	pids   int    // threads
}

// sentryRoom: the shim is in the group too, and of the host's threads a program
// inside takes several.
func sentryRoom(s Spec) room {
	over := room{hostOverhead, min(3*s.Pids+2048, pidsMost-s.Pids)}
	if s.Outbound {
		over.memory += netOverhead
	}
	return over
}

// makeCgroup makes the groups that can be made. An error says why none could.
func makeCgroup(name string, s Spec, over room) (*cgroup, error) {
	parents, v2, err := cgroupParents()
	if err != nil {
		return nil, err
	}
	g := &cgroup{name: name, v2: v2, dirs: map[string]string{}}
	var errs []error
	for controller, parent := range parents {
		dir := filepath.Join(parent, name)
		if v2 {
			if dir, err = unifiedDir(parent, name); err != nil {
				errs = append(errs, err)
				continue
			}
		} else if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			errs = append(errs, err)
			continue
		}
		if err := g.limit(controller, dir, s, over); err != nil {
			errs = append(errs, err)
			if !v2 { // there they share one folder
				_ = os.Remove(dir)
			}
			continue
		}
		g.dirs[controller] = dir
	}
	if len(g.dirs) == 0 {
		if v2 {
			_ = removeCgroup(context.Background(), name)
		}
		return nil, errors.Join(errs...)
	}
	return g, nil
}

// unifiedDir makes root/lumbung/name with the controllers switched on.
func unifiedDir(root, name string) (string, error) {
	const on = "+memory +cpu +pids"
	if err := put(root, "cgroup.subtree_control", on); err != nil {
		return "", err
	}
	top := filepath.Join(root, "lumbung")
	if err := os.Mkdir(top, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	if err := put(top, "cgroup.subtree_control", on); err != nil {
		return "", err
	}
	dir := filepath.Join(top, name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return dir, nil
}

func (g *cgroup) limit(controller, dir string, s Spec, over room) error {
	memory := strconv.FormatUint(s.MemoryBytes+over.memory, 10)
	quota := strconv.Itoa(max(s.CPUMillis*cpuPeriod/1000, 1000))
	switch {
	case controller == "pids":
		return put(dir, "pids.max", strconv.Itoa(s.Pids+over.pids))
	case controller == "memory" && g.v2:
		_ = put(dir, "memory.swap.max", "0") // absent without swap
		return put(dir, "memory.max", memory)
	case controller == "memory":
		if err := put(dir, "memory.limit_in_bytes", memory); err != nil {
			return err
		}
		_ = put(dir, "memory.memsw.limit_in_bytes", memory) // absent without swap accounting
		return nil
	case g.v2:
		return put(dir, "cpu.max", quota+" "+strconv.Itoa(cpuPeriod))
	}
	if err := put(dir, "cpu.cfs_period_us", strconv.Itoa(cpuPeriod)); err != nil {
		return err
	}
	return put(dir, "cpu.cfs_quota_us", quota)
}

func put(dir, name, value string) error {
	return os.WriteFile(filepath.Join(dir, name), []byte(value), 0o644)
}

// join moves this process, and what it will start, into the groups.
func (g *cgroup) join() error {
	for _, dir := range g.dirs {
		if err := put(dir, "cgroup.procs", strconv.Itoa(os.Getpid())); err != nil {
			return err
		}
	}
	return nil
}

// holds reports whether the kernel holds the limit of a controller.
func (g *cgroup) holds(controller string) bool { return g != nil && g.dirs[controller] != "" }

// start starts a command in the groups, on a thread of its own that before may
// change: it is used for nothing else.
func (g *cgroup) start(cmd *exec.Cmd, before func()) error {
	var threads []string
	if g != nil && g.v2 { // where all have one folder
		group, err := os.Open(slices.Collect(maps.Values(g.dirs))[0])
		if err != nil {
			return err
		}
		defer func() { _ = group.Close() }()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	} else if g != nil {
		threads = slices.Collect(maps.Values(g.dirs))
	}
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never free: it is another thread from here on
		before()
		for _, dir := range threads {
			if err := put(dir, "tasks", "0"); err != nil { // this thread alone
				failed <- err
				return
			}
		}
		err := cmd.Start()
		for _, dir := range threads { // a process's first thread does not end with this
			_ = put(filepath.Dir(dir), "tasks", "0")
		}
		failed <- err
	}()
	return <-failed
}

// oomKills counts the processes the kernel killed for want of memory.
func (g *cgroup) oomKills() uint64 {
	if !g.holds("memory") {
		return 0
	}
	name := "memory.oom_control"
	if g.v2 {
		name = "memory.events"
	}
	data, err := readBounded(filepath.Join(g.dirs["memory"], name), 4096)
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(data), "\n") {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			kills, _ := strconv.ParseUint(n, 10, 64)
			return kills
		}
	}
	return 0
}

// memory is what programs hold in the group, in bytes, without what the kernel
// can drop at will; false where there is no such group.
func (g *cgroup) memory() (uint64, bool) {
	if g == nil || g.dirs["memory"] == "" {
		return 0, false
	}
	data, err := readBounded(filepath.Join(g.dirs["memory"], "memory.stat"), 1<<16)
	if err != nil {
		return 0, false
	}
	var sum uint64
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == "anon" || name == "rss" || name == "shmem" {
			n, _ := strconv.ParseUint(value, 10, 63)
			sum += n
		}
	}
	return sum, true
}

// removeCgroup removes the groups of that name; killed processes take a moment
// to leave them.
func removeCgroup(ctx context.Context, name string) error {
	parents, v2, err := cgroupParents()
	if err != nil {
		return nil //nolint:nilerr // no cgroups, nothing to remove
	}
	dirs := allGroups(name)
	for _, parent := range parents {
		if v2 {
			parent = filepath.Join(parent, "lumbung")
		}
		dirs = append(dirs, filepath.Join(parent, name))
	}
	for _, dir := range dirs {
		for {
			err := unix.Rmdir(dir)
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if !errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("removing cgroup %s: %w", dir, err)
			}
			if err := waitChange(ctx, 5*time.Millisecond); err != nil {
				return fmt.Errorf("cgroup %s is still in use: %w", dir, err)
			}
		}
	}
	return nil
}
