package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// probeArg makes a shim try what it needs of the machine, and nothing else.
const probeArg = "probe"

// probeMain runs in the namespaces a shim would have: it mounts an overlay.
func probeMain(writable bool) int {
	base, err := os.MkdirTemp("", "lumbung-probe-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(base) }()
	for _, d := range []string{dirSkel, "image", dirRoot} {
		if err := os.Mkdir(filepath.Join(base, d), 0o700); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if err := mountRoot(base, filepath.Join(base, "image")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	err = unix.Unmount(filepath.Join(base, dirRoot), unix.MNT_DETACH)
	if err == nil && writable {
		err = probeOCI(base)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Check says, for `lumbung doctor`, whether containers can run here and which
// limit holds by which means. Nothing is left changed.
func (r *Runtime) Check(ctx context.Context) []Finding {
	namespaces, disk := r.checkNamespaces(ctx)
	found := []Finding{r.checkRuntime(ctx), namespaces, r.checkContainer(ctx, false)}
	if r.oci == "" { // which alone can give a network
		found = append(found, r.checkContainer(ctx, true))
	}
	return append(found, r.limitFindings(disk)...)
}

// Unheld are the limits that this machine cannot hold, with why and a remedy.
func (r *Runtime) Unheld() []Finding {
	return slices.DeleteFunc(r.limitFindings(""), func(f Finding) bool { return f.OK })
}

// OpenFiles is the most files that a process inside can be given: the sandbox
// opens each of the host's for it, and needs some itself.
func (r *Runtime) OpenFiles() int {
	const own = 256
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil || have.Max > maxOpenFiles+own {
		return maxOpenFiles
	}
	return max(int(have.Max)-own, 16) //nolint:gosec // small
}

// Pids is the most processes that one job can be given: half of what the machine
// has room for is left to others, and gVisor takes several of the host's threads for
// one.
func (r *Runtime) Pids() int {
	const least = 1024 // what jobs get that say nothing
	most := pidsMost
	for _, file := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"} {
		data, err := readBounded(file, 64)
		if n, convErr := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && convErr == nil {
			most = min(most, n)
		}
	}
	var have unix.Rlimit
	if r.user && unix.Getrlimit(unix.RLIMIT_NPROC, &have) == nil && have.Cur < pidsMost {
		most = min(most, int(have.Cur)) //nolint:gosec // small
	}
	return min(max((most/2-2048)/4, least), maxPids)
}

// limitFindings says which limit holds by which means; disk is what the probe of an
// OCI runtime's writable layer said.
func (r *Runtime) limitFindings(disk string) []Finding {
	held := map[string]bool{}
	why := "run as an ordinary user"
	if !r.user {
		held, why = probeCgroup(r.jobs)
	}
	memory := Finding{Name: LimitMemory, OK: true, How: fmt.Sprintf("the supervisor looks every %s to %s and ends the job", minLook, maxLook)}
	cpu := Finding{Name: LimitCPU, OK: true, How: "cgroup quota"}
	if held["memory"] {
		memory.How += ", with a cgroup behind it"
	} else {
		memory.How += "; no cgroup behind it (" + why + ")"
	}
	switch {
	case held["cpu"]:
	case r.oci != "":
		cpu = Finding{
			Name: LimitCPU, OK: false, How: "CPU affinity, which a program can undo: whole CPUs, shared by the jobs that land on the same ones (" + why + ", and only gVisor pauses a job)",
			Remedy: "run the provider as root on a machine with writable cgroups, or leave --runtime out; until then only offers that take every CPU are bid for, unless --allow-unheld",
		}
	case treeListed():
		cpu.How = "the supervisor measures and pauses the job, to about a tenth over a few seconds; no cgroup quota (" + why + ")"
	default:
		cpu = Finding{
			Name: LimitCPU, OK: false, How: "CPU affinity: whole CPUs only, shared by the jobs that land on the same ones (" + why + ", and " + errNoChildren.Error() + ")",
			Remedy: "run the provider as root on a machine with writable cgroups for a share by quota; until then only offers that take every CPU are bid for, unless --allow-unheld",
		}
	}
	own := []Finding{
		memory,
		{Name: LimitPids, OK: true, How: fmt.Sprintf("the supervisor counts up to every %s and ends the job", sentryLook)},
		{Name: LimitDisk, OK: true, How: "gVisor bounds the writable layer: the job gets ENOSPC"},
		{Name: LimitFiles, OK: true, How: fmt.Sprintf("RLIMIT_NOFILE inside the sandbox, up to %d", r.OpenFiles())},
	}
	if r.oci != "" {
		own = r.limitsOCI(held, why, disk)
	}
	return append(
		own, cpu,
		Finding{Name: LimitOutput, OK: true, How: fmt.Sprintf("the supervisor measures up to every %s and ends the job", minLook)},
		Finding{Name: LimitLog, OK: true, How: "the supervisor drops what is over"},
		Finding{Name: LimitTime, OK: true, How: "the supervisor's timer"},
	)
}

func (r *Runtime) checkRuntime(ctx context.Context) Finding {
	f := Finding{Name: "runtime"}
	file, err := r.Ready(ctx)
	if err != nil {
		f.How, f.Remedy = err.Error(), "use a lumbung built with `make build`"
		if r.oci != "" {
			f.Remedy = "install the runtime, or leave --runtime out"
		}
		return f
	}
	f.OK, f.How = true, "gVisor, "+file
	if r.oci != "" {
		f.Weaker, f.Remedy = true, "leave --runtime out, and jobs run in gVisor"
		f.How, _ = r.Describe(ctx)
	}
	return f
}

// checkContainer runs a real one, whose image is the runtime itself: it is a
// static binary, and tells its version. The second one has a network.
func (r *Runtime) checkContainer(ctx context.Context, outbound bool) Finding {
	f := Finding{Name: "container", Remedy: "see the findings above; on a noexec file system choose another --home; in a container, start that with CAP_SYS_ADMIN and without a seccomp filter on ptrace"}
	if outbound {
		f.Name, f.Remedy = "network", "needed for `up --allow-net` alone; use a lumbung built with `make build`"
	}
	program, err := r.Ready(ctx)
	if err == nil && r.oci != "" { // which need not be static; run alone the forwarder ends at once
		program, err = r.forwarder(ctx)
	}
	if err != nil {
		f.How = err.Error()
		return f
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("no container ran within 30s"))
	defer cancel()
	id := fmt.Sprintf("doctor-%d-%d", os.Getpid(), r.now().UnixNano())
	defer func() {
		if err := r.Remove(context.WithoutCancel(ctx), id); err != nil {
			r.log.Warn("removing the doctor's container", "job", id, "err", err)
		}
	}()
	image, err := imageOfOne(filepath.Join(r.dir, "runtime"), program)
	if err != nil {
		f.How = err.Error()
		return f
	}
	defer func() { _ = os.RemoveAll(image) }()
	x, err := r.tryOne(ctx, Spec{ID: id, Rootfs: image, Args: []string{"/program", "--version"}, RunLimit: 20 * time.Second, Outbound: outbound})
	switch {
	case err != nil:
		f.How = err.Error()
	case x.Code != 0:
		f.How = fmt.Sprintf("it ended with %d: %s", x.Code, x.Reason)
	default:
		f.OK, f.Remedy = true, ""
		f.How = fmt.Sprintf("ran and ended in %s", x.Ended.Sub(x.Started).Round(time.Millisecond))
	}
	if f.OK && outbound {
		f.How = "a container with a network of its own " + f.How + "; what it may reach is decided at each connection"
	}
	return f
}

// imageOfOne makes a folder with nothing but a program in it, a link if it can.
func imageOfOne(dir, program string) (image string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if image, err = os.MkdirTemp(dir, "unpack-"); err != nil { // swept like the others
		return "", err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(image)
		}
	}()
	target := filepath.Join(image, "program")
	if os.Link(program, target) == nil {
		return image, nil
	}
	src, err := os.Open(program)
	if err != nil {
		return "", err
	}
	defer func() { _ = src.Close() }()
	dst, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(dst, src)
	return image, errors.Join(err, dst.Close())
}

func (r *Runtime) tryOne(ctx context.Context, s Spec) (Exit, error) {
	if err := r.Prepare(ctx, s); err != nil {
		return Exit{}, err
	}
	if _, err := r.Start(ctx, s.ID, nil); err != nil {
		return Exit{}, err
	}
	return r.Wait(ctx, s.ID)
}

// checkNamespaces also gives what the probe says of an OCI runtime's disk.
func (r *Runtime) checkNamespaces(ctx context.Context) (Finding, string) {
	f := Finding{Name: "namespaces"}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.shim)
	cmd.Args = []string{"lumbung", ShimArg, probeArg}
	cmd.Env = []string{"TMPDIR=" + r.dir, "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = shimAttr(plan{User: r.user, OCI: r.oci})
	if r.oci != "" {
		cmd.Args = append(cmd.Args, probeWritable)
	}
	out, err := cmd.CombinedOutput()
	if err == nil {
		f.OK, f.How = true, "user and mount namespaces with the kernel's overlayfs"
		if !r.user {
			f.How = "mount namespaces with the kernel's overlayfs"
		}
		if r.oci != "" {
			f.How = "process namespaces, " + f.How
		}
		return f, string(out)
	}
	f.How = strings.TrimSpace(fmt.Sprintf("%v %s", err, out))
	f.Remedy = "as an ordinary user: Linux 5.11 or newer, user.max_user_namespaces > 0 and, on Ubuntu 24.04 or newer, " +
		"kernel.apparmor_restrict_unprivileged_userns=0; or run the provider as root, in a container with CAP_SYS_ADMIN"
	return f, ""
}

// probeCgroup makes and removes a group.
func probeCgroup(jobs string) (held map[string]bool, why string) {
	held = map[string]bool{}
	name := cgroupName(filepath.Join(jobs, ".probe"))
	g, err := makeCgroup(name, Spec{}.withDefaults(), room{})
	if err != nil {
		return held, "no usable cgroup: " + err.Error()
	}
	for c := range g.dirs {
		held[c] = true
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), time.Second, errors.New("probe"))
	defer cancel()
	if err := removeCgroup(ctx, name); err != nil {
		return held, err.Error()
	}
	return held, "no such controller"
}

// Check is Runtime.Check for a folder no Runtime is open on yet.
func Check(ctx context.Context, o Options) []Finding {
	r, err := New(o)
	if err != nil {
		return []Finding{{Name: "runtime", How: err.Error(), Remedy: "choose a --home this user can write"}}
	}
	return r.Check(ctx)
}
