package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// probeWritable makes a probe try the writable root of an OCI runtime too.
const probeWritable = "writable"

// bounded is what such a probe says when the writable layer is a file system of
// its own.
const bounded = "bounded"

func probeOCI(base string) error {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc of the container's processes: %w", err)
	}
	if err := os.Mkdir(filepath.Join(base, dirUpper), 0o700); err != nil {
		return err
	}
	user := !ownsHost()
	u, err := makeUpper(base, 16<<20, user)
	if err != nil {
		return err
	}
	if u.mounted {
		fmt.Println(bounded)
		defer func() { _ = unix.Unmount(u.dir, unix.MNT_DETACH) }()
	}
	if err := mountWritable(base, filepath.Join(base, "image"), u.dir, user); err != nil {
		return err
	}
	return unix.Unmount(filepath.Join(base, dirRoot), unix.MNT_DETACH)
}

// ownsHost says that this process is in the host's first user namespace: that
// one alone maps every id to itself.
func ownsHost() bool {
	data, err := readBounded("/proc/self/uid_map", 4096)
	return err == nil && len(strings.Fields(string(data))) == 3 && strings.HasSuffix(strings.TrimSpace(string(data)), " 4294967295")
}

// limitsOCI says by which means an OCI runtime's containers are held to their
// limits; held are the controllers, why what is missing.
func (r *Runtime) limitsOCI(held map[string]bool, why, disk string) []Finding {
	looks := fmt.Sprintf("the supervisor looks every %s to %s and ends the job", minLook, maxLook)
	memory := Finding{
		Name: LimitMemory, OK: true, Weaker: true, How: looks + "; no cgroup behind it (" + why + "), and a program that means to can hide memory from a look",
		Remedy: "run the provider as root on a machine with writable cgroups, or leave --runtime out",
	}
	if held["memory"] {
		memory.Weaker, memory.Remedy = false, ""
		memory.How = "a cgroup: the kernel ends the job; " + looks + " sooner"
	}
	counts := fmt.Sprintf("the supervisor counts up to every %s and ends the job", sentryLook)
	pids := Finding{Name: LimitPids, OK: true, How: counts}
	switch {
	case r.user:
		pids.How += ", RLIMIT_NPROC of its user namespace refuses more"
	case held["pids"]:
		pids.How += ", a cgroup refuses more"
	}
	layer := Finding{Name: LimitDisk, OK: true, How: "the writable layer is an ext4 file system of that size on a loop device: the job gets ENOSPC"}
	if strings.TrimSpace(disk) != bounded {
		layer.How = "the supervisor measures the writable layer and ends the job, which may be over for a moment"
		if !r.user {
			layer.How += " (" + strings.TrimSpace(disk) + ")"
		}
	}
	return []Finding{memory, pids, layer, {Name: LimitFiles, OK: true, How: fmt.Sprintf("RLIMIT_NOFILE, up to %d", r.OpenFiles())}}
}
