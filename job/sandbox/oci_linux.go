package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// An OCI runtime of the host (runc, crun) is an operator's choice: its
// containers are processes of the host's own kernel. The shim is then process 1
// of a process namespace, so that its death is theirs, and everything that the
// runtime detaches comes home to it: it waits for the program itself and knows
// how it ended. Whoever is to run inside or to connect there goes by the shim,
// which alone is in those namespaces.

// oci is the engine by such a runtime.
type oci struct {
	*shim
	create *exec.Cmd
	writer upper
	say    chan struct{} // closed when it is known who speaks
	says   bool          // the program does
	runs   chan struct{} // closed when the program runs
	init   int           // its process id, set before runs is closed

	collecting sync.Once
}

func newOCI(s *shim) *oci {
	return &oci{shim: s, say: make(chan struct{}), runs: make(chan struct{})}
}

// mount makes /proc show the shim's own process namespace, and lays out a root
// that can be written.
func (o *oci) mount() error {
	if os.Getpid() != 1 {
		return errors.New("the supervisor of an OCI runtime's container must be process 1")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	own, err := os.Readlink("/proc/self") // still by the host's count
	if err != nil {
		return err
	}
	if o.pid, err = strconv.Atoi(own); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc of the container's processes: %w", err)
	}
	if isCrun(o.plan.OCI) {
		hideHybrid()
	}
	o.writer, err = makeUpper(o.dir, o.plan.Spec.DiskBytes, o.plan.User)
	if err != nil {
		return err
	}
	return mountWritable(o.dir, o.plan.Spec.Rootfs, o.writer.dir, o.plan.User)
}

// hideHybrid hides the unified hierarchy beside those of version 1 from this mount
// namespace: crun runs nothing where it sees both, even when told to leave
// cgroups alone.
func hideHybrid() {
	const unified = "/sys/fs/cgroup/unified"
	if _, err := os.Stat(unified); err != nil {
		return
	}
	if err := unix.Mount("none", unified, "tmpfs", unix.MS_RDONLY, "size=4k"); err != nil {
		fmt.Fprintln(os.Stderr, "hiding", unified, "from crun:", err)
	}
}

// ociRoom is for the runtime's first steps in the group, and for what the kernel
// keeps of processes. The shim is not in it.
func ociRoom(Spec) room { return room{memory: 32 << 20, pids: 32} }

func (o *oci) limits() error {
	if o.plan.Cgroup == "" {
		return nil
	}
	g, err := makeCgroup(o.plan.Cgroup, o.plan.Spec, ociRoom(o.plan.Spec))
	if err != nil {
		fmt.Fprintln(os.Stderr, "cgroup:", err)
	}
	o.cg = g
	if o.plan.Grouped && !g.holds("memory") {
		return errors.Join(errors.New("its memory cannot be bounded as it was when the provider began"), err)
	}
	return nil
}

// command is the runtime with a subcommand.
func (o *oci) command(args ...string) *exec.Cmd {
	return ociCommand(o.plan, o.dir, filepath.Join(o.dir, fileError), args...)
}

func ociCommand(p plan, dir, log string, args ...string) *exec.Cmd {
	all := append([]string{"--root=" + filepath.Join(dir, dirRunsc), "--log=" + log, "--log-format=json"}, ociFlags(p)...)
	cmd := exec.CommandContext(context.Background(), p.OCI, append(all, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	return cmd
}

// ociFlags are those in which runtimes differ. crun knows no cgroups of both
// versions at once; it is started in the group.
func ociFlags(p plan) []string {
	switch {
	case isCrun(p.OCI):
		return []string{"--cgroup-manager=disabled"}
	case p.User || p.Cgroup == "":
		return []string{"--rootless=true"}
	}
	return nil
}

func isCrun(path string) bool { return strings.HasPrefix(filepath.Base(path), "crun") }

// begin starts a command of the runtime on the CPUs and, where the runtime does
// not see to it, in the group of the container.
func (o *oci) begin(cmd *exec.Cmd) error {
	group := o.cg
	if !isCrun(o.plan.OCI) {
		group = nil
	}
	return group.start(cmd, func() {
		if !o.cg.holds("cpu") {
			if err := pinCPUs(o.plan.Spec.CPUMillis, o.pid); err != nil {
				fmt.Fprintln(os.Stderr, "cpu affinity:", err)
			}
		}
	})
}

func (o *oci) launch(context.Context) (*sync.WaitGroup, error) {
	o.create = o.command("create", "--bundle="+filepath.Join(o.dir, dirBundle), "--pid-file="+filepath.Join(o.dir, filePid), cid)
	readers, begun, err := o.outputOf(o.create)
	if err != nil {
		return nil, err
	}
	defer begun()
	if err := o.begin(o.create); err != nil {
		return nil, err
	}
	if o.wasKilled() { // before it was there
		killNamespace()
	}
	return readers, nil
}

func (o *oci) speaks() bool {
	<-o.say
	return o.says
}

// wait goes from the created container to the program's end.
func (o *oci) wait() error {
	refused, err := o.start()
	if refused != nil || err != nil {
		o.mu.Lock()
		o.refused = refused
		o.mu.Unlock()
		close(o.say)
		killNamespace()
		return err
	}
	o.says = true
	close(o.say)
	close(o.runs)
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(o.init, &status, 0, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("waiting for the program: %w", err)
		}
	}
	o.mu.Lock()
	o.status = &status
	o.mu.Unlock()
	o.lookOOM()
	return nil
}

// start brings the container to life: created, so that its mounts are there,
// then looked at, then started.
func (o *oci) start() (*refusal, error) {
	if err := o.create.Wait(); err != nil {
		if o.wasKilled() {
			return nil, err
		}
		return o.createFailure(err), nil
	}
	o.init = o.sandboxPid()
	if o.init <= 1 {
		return &refusal{CodeSandbox, SourceSandbox, o.plan.OCI + " left no process id"}, nil
	}
	var bundle bundleProcess
	if err := readJSON(filepath.Join(o.dir, dirBundle), "config.json", &bundle); err != nil {
		return nil, err
	}
	if code, reason := runnable(o.init, bundle.Process.Args[0], bundle.Process.Cwd, bundle.Process.Env); code != 0 {
		return &refusal{code, SourceJob, reason}, nil
	}
	cmd := o.command("start", cid)
	if err := o.begin(cmd); err != nil {
		return nil, err
	}
	if err := cmd.Wait(); err != nil && !o.wasKilled() {
		return &refusal{CodeSandbox, SourceSandbox, join(o.complaint(), err.Error())}, nil
	}
	return nil, nil //nolint:nilnil // neither refused nor failed
}

// bundleProcess is what of a bundle says how to find the program.
type bundleProcess struct {
	Process struct {
		Args, Env []string
		Cwd       string
	}
}

func (o *oci) wasKilled() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.killed
}

// createFailure tells a command that cannot be run from a failure of the
// runtime's.
func (o *oci) createFailure(err error) *refusal {
	msg := o.complaint()
	if code := commandFailure(msg); code != 0 {
		what := "command not found: "
		if code == CodeCannotExecute {
			what = "command cannot be executed: "
		}
		return &refusal{code, SourceJob, what + msg}
	}
	return &refusal{CodeSandbox, SourceSandbox, join(join(o.plan.OCI, msg), err.Error())}
}

func (o *oci) complaint() string { return lastError(filepath.Join(o.dir, fileError)) }

// commandFailure is docker's code for what runc or crun says of a program it
// cannot find or execute; 0 for anything else.
func commandFailure(msg string) int {
	if !strings.Contains(msg, `exec: "`) && !strings.Contains(msg, "executable") {
		return 0
	}
	msg = strings.ToLower(msg)
	switch {
	case strings.Contains(msg, "permission denied"), strings.Contains(msg, "operation not permitted"), strings.Contains(msg, "is a directory"), strings.Contains(msg, "exec format error"):
		return CodeCannotExecute
	case strings.Contains(msg, "not found"), strings.Contains(msg, "no such file or directory"), strings.Contains(msg, "not a directory"):
		return CodeNotFound
	}
	return 0
}

func (o *oci) awaitRunning(context.Context) bool {
	t := time.NewTimer(startLimit)
	defer t.Stop()
	select {
	case <-o.runs:
		return true
	case <-o.done:
		return false
	case <-t.C:
		o.startedLate(startLimit)
		return false
	}
}

// signal sends to the program, which is not waited for yet or gone.
func (o *oci) signal(_ context.Context, sig unix.Signal) error {
	select {
	case <-o.runs:
		return unix.Kill(o.init, sig)
	default:
		return ErrNotRunning
	}
}

func (o *oci) kill() {
	killNamespace()
	o.collecting.Do(func() { go o.collect() })
}

// orphanTime is how long whoever waits for a process has to collect it.
const orphanTime = 100 * time.Millisecond

// collect takes the dead whom nobody waits for until the container is over. Its
// program, as process 1 of its namespace, ends only when all in that are
// collected, and nobody knows of an exec that was killed half-way.
func (o *oci) collect() {
	select {
	case <-o.runs:
	case <-o.done:
		return
	}
	for o.pause(orphanTime) {
		below, err := children(os.Getpid())
		if err != nil {
			fmt.Fprintln(os.Stderr, "looking for what is left of the container:", err)
			return
		}
		for _, pid := range below {
			if pid != o.init {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
		}
	}
}

// killNamespace ends every process of the shim's process namespace but itself.
func killNamespace() {
	if os.Getpid() == 1 {
		_ = unix.Kill(-1, unix.SIGKILL)
	}
}
