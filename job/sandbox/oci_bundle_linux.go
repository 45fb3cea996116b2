package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// writeOCIBundle writes the bundle of a container by an OCI runtime: gVisor's,
// with what keeps a program that talks to the host's own kernel in its place.
func writeOCIBundle(dir string, p plan, id identity) error {
	bundle := filepath.Join(dir, dirBundle)
	if err := os.Mkdir(bundle, 0o700); err != nil {
		return err
	}
	spec := ociSpec(dir, p.Spec, id, false)
	spec.Version = "1.0.2" // what these runtimes have long known
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	spec.Linux.Seccomp = seccompProfile(!p.Grouped)
	spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = maskedPaths, readonlyPaths
	spec.Process.OOMScoreAdj = oomScore()
	if err := boundRlimits(spec.Process, p); err != nil {
		return err
	}
	if p.Cgroup != "" && !isCrun(p.OCI) {
		group, err := groupForRuntime(p.Cgroup)
		if err != nil {
			return err
		}
		spec.Linux.CgroupsPath = group
		spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600)
}

// groupForRuntime is the name by which a runtime finds the group that the shim
// makes: below its own of each controller, or, in one hierarchy, from the top.
func groupForRuntime(name string) (string, error) {
	_, v2, err := cgroupParents()
	if err != nil {
		return "", fmt.Errorf("an OCI runtime as root needs cgroups: %w", err)
	}
	if v2 {
		return "/lumbung/" + name, nil
	}
	return name, nil
}

// oomScore makes jobs go first when memory runs out on the machine, if the node
// itself does not go sooner.
func oomScore() *int {
	score := 500
	if data, err := readBounded("/proc/self/oom_score_adj", 64); err == nil {
		if own, err := strconv.Atoi(string(bytes.TrimSpace(data))); err == nil {
			score = max(score, own)
		}
	}
	return &score
}

// boundRlimits keeps to what this process may set, and gives an ordinary user the
// kernel's own bound of processes: it counts those in the user namespace.
func boundRlimits(process *specs.Process, p plan) error {
	if p.User {
		process.Rlimits = append(process.Rlimits, rlimit("RLIMIT_NPROC", uint64(p.Spec.Pids)+uint64(ociRoom(p.Spec).pids))) //nolint:gosec // positive
	} else if mayRaiseLimits() {
		return nil
	}
	for i, l := range process.Rlimits {
		var own unix.Rlimit
		if err := unix.Getrlimit(rlimits[l.Type], &own); err != nil {
			return fmt.Errorf("looking at %s: %w", l.Type, err)
		}
		process.Rlimits[i] = rlimit(l.Type, min(l.Hard, own.Max))
	}
	return nil
}

// mayRaiseLimits: root in a container often may not.
func mayRaiseLimits() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

var rlimits = map[string]int{
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_CORE": unix.RLIMIT_CORE,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_NPROC": unix.RLIMIT_NPROC,
}

// maskedPaths tell of the machine or reach into its kernel: they are empty
// inside.
var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/config.gz", "/proc/interrupts", "/proc/iomem", "/proc/ioports", "/proc/kallsyms",
	"/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags",
	"/proc/latency_stats", "/proc/modules", "/proc/mtrr", "/proc/sched_debug", "/proc/schedstat", "/proc/scsi", "/proc/slabinfo",
	"/proc/timer_list", "/proc/timer_stats", "/proc/vmallocinfo", "/proc/driver", "/proc/sysvipc",
	"/sys/devices/virtual/dmi", "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/bpf", "/sys/fs/pstore", "/sys/hypervisor",
	"/sys/kernel", "/sys/module", "/sys/power",
}

var readonlyPaths = []string{"/proc/bus", "/proc/dynamic_debug", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
