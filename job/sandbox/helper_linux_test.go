package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be the shim, as lumbung's main does.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == ShimArg {
		os.Exit(ShimMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "node" {
		os.Exit(nodeMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "hide-cgroups" {
		os.Exit(hideCgroups(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

// hideCgroups runs this binary again where no cgroup can be seen, as in many a
// CI container. It has a mount namespace of its own.
func hideCgroups(args []string) int {
	err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("none", "/sys/fs/cgroup", "tmpfs", unix.MS_RDONLY, ""),
	)
	if err == nil {
		err = syscall.Exec("/proc/self/exe", append([]string{"test"}, args...), os.Environ())
	}
	fmt.Println(err)
	return 1
}

// TestWithoutCgroups runs the tests of limits again as root without cgroups.
func TestWithoutCgroups(t *testing.T) {
	if os.Geteuid() != 0 || testing.Short() {
		t.Skip("it is run by root, and not with -short")
	}
	findRunsc(t)
	self, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(ctxOfLong(t), self, "hide-cgroups", "-test.v", "-test.timeout=30m", "-test.run=^(TestMemoryLimit|TestPidsLimit|TestCPULimit|TestStopWhileHeldBack|TestLazyHeldBack|TestNodeKilled|TestRemove|TestNoCgroups)$")
	cmd.Env = append(os.Environ(), "SANDBOX_TEST_NO_CGROUPS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("without cgroups: %v\n%s", err, out)
	}
	t.Logf("without cgroups:\n%s", out)
}

func TestNoCgroups(t *testing.T) {
	if os.Getenv("SANDBOX_TEST_NO_CGROUPS") == "" {
		t.Skip("TestWithoutCgroups runs it")
	}
	e := newEnv(t)
	for _, f := range e.r.Check(ctxOf(t)) {
		if f.Name == LimitCPU && (!f.OK || !strings.Contains(f.How, "pauses")) {
			t.Errorf("%+v", f)
		}
	}
}

// ordinary is the user the tests become when they are run again without root.
const ordinary = 65534

// findRunsc skips where there is no runtime: `make test` builds one first.
func findRunsc(t testing.TB) string {
	t.Helper()
	if file := os.Getenv(EnvRunsc); file != "" {
		return file
	}
	if Payload() {
		return ""
	}
	file, err := filepath.Abs("../../build/runsc")
	if err == nil {
		if _, err = os.Stat(file); err == nil {
			return file
		}
	}
	t.Skipf("no runsc: build/runsc is made by `make build`, or set %s (%v)", EnvRunsc, err)
	return ""
}

// jobProgram builds the static program once per run.
var jobProgram = sync.OnceValues(func() ([]byte, error) {
	if ready := os.Getenv("SANDBOX_TEST_JOB"); ready != "" {
		return os.ReadFile(ready)
	}
	dir, err := os.MkdirTemp("", "sandbox-job-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	out := filepath.Join(dir, "job")
	cmd := exec.CommandContext(context.Background(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./testdata/job")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the test program: %w: %s", err, msg)
	}
	return os.ReadFile(out)
})

type env struct {
	t     testing.TB
	r     *Runtime
	base  string
	image string
	n     int
}

// newEnv makes a runtime and an image from scratch: one static binary.
func newEnv(t testing.TB) *env {
	t.Helper()
	differs(t)
	runsc := findRunsc(t)
	program, err := jobProgram()
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	image := filepath.Join(base, "image")
	must(t, os.Mkdir(image, 0o755))
	must(t, os.WriteFile(filepath.Join(image, "job"), program, 0o755))
	e := &env{t: t, base: base, image: image}
	e.r = e.open(runsc)
	t.Cleanup(func() { e.removeAll() })
	return e
}

func (e *env) open(runsc string) *Runtime {
	e.t.Helper()
	r, err := New(testOptions(e.base, runsc))
	must(e.t, err)
	return r
}

// testOptions are for gVisor, or for the OCI runtime that the tests run by.
func testOptions(base, runsc string) Options {
	return Options{
		Dir: filepath.Join(base, "home"), RunscPath: runsc, OCI: os.Getenv(testOCI), Resolv: os.Getenv(envWorld), Now: time.Now, Log: slog.New(slog.DiscardHandler),
	}
}

func (e *env) removeAll() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	entries, _ := os.ReadDir(e.r.jobs)
	for _, d := range entries {
		if err := e.r.Remove(ctx, d.Name()); err != nil {
			e.t.Errorf("removing %s: %v", d.Name(), err)
		}
	}
	e.nothingLeft()
}

// nothingLeft fails for any process, mount, cgroup or folder of the runtime.
func (e *env) nothingLeft() {
	e.t.Helper()
	for _, p := range processesWith(e.base) {
		e.t.Errorf("a process is left: %s", p)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(e.t, err)
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, e.base) {
			e.t.Errorf("a mount is left: %s", line)
		}
	}
	entries, err := os.ReadDir(e.r.jobs)
	must(e.t, err)
	for _, d := range entries {
		e.t.Errorf("a folder is left: %s", d.Name())
	}
	e.noLoopLeft()
	parents, _, err := cgroupParents()
	if err != nil {
		return
	}
	for _, id := range e.ids() {
		name := cgroupName(filepath.Join(e.r.jobs, id))
		for _, dir := range allGroups(name) {
			e.t.Errorf("a cgroup is left: %s of %s", dir, id)
		}
		for _, p := range parents {
			if _, err := os.Stat(filepath.Join(p, name)); err == nil {
				e.t.Errorf("a cgroup is left: %s of %s", p, id)
			}
		}
	}
}

func (e *env) ids() (ids []string) {
	for i := range e.n {
		ids = append(ids, fmt.Sprintf("c%d", i+1))
	}
	return ids
}

func processesWith(mark string) (found []string) {
	entries, _ := os.ReadDir("/proc")
	for _, p := range entries {
		line, err := os.ReadFile(filepath.Join("/proc", p.Name(), "cmdline"))
		if err == nil && strings.Contains(string(line), mark) && p.Name() != fmt.Sprint(os.Getpid()) && p.Name() != "self" && p.Name() != "thread-self" {
			found = append(found, p.Name()+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

// spec is a small container running steps of the test program.
func (e *env) spec(steps ...string) Spec {
	e.n++
	return Spec{
		ID: fmt.Sprintf("c%d", e.n), Rootfs: e.image, Args: append([]string{"/job"}, steps...),
		MemoryBytes: 256 << 20, DiskBytes: 64 << 20, OutputBytes: 64 << 20, MaxLogBytes: 1 << 20,
		CPUMillis: 2000, Pids: 64, RunLimit: 10 * time.Minute, // a slow machine, under the race detector
	}
}

func (e *env) start(s Spec) Handle {
	e.t.Helper()
	must(e.t, e.r.Prepare(ctxOf(e.t), s))
	h, err := e.r.Start(ctxOf(e.t), s.ID, nil)
	must(e.t, err)
	return h
}

func (e *env) wait(id string) Exit {
	e.t.Helper()
	x, err := e.r.Wait(ctxOf(e.t), id)
	must(e.t, err)
	return x
}

// run runs a container to its end.
func (e *env) run(s Spec) (Exit, string) {
	e.t.Helper()
	e.start(s)
	x := e.wait(s.ID)
	return x, e.output(s.ID)
}

// output is all of stdout and stderr, notices excluded.
func (e *env) output(id string) string {
	e.t.Helper()
	var b strings.Builder
	for _, r := range e.records(id) {
		if r.Stream != Notice {
			b.Write(r.Data)
		}
	}
	return b.String()
}

func (e *env) records(id string) []Record {
	e.t.Helper()
	l, err := e.r.Logs(id)
	must(e.t, err)
	defer func() { must(e.t, l.Close()) }()
	var all []Record
	for seq := uint64(0); ; {
		recs, next, closed, err := l.ReadFrom(ctxOf(e.t), seq, 1<<20)
		must(e.t, err)
		if len(recs) == 0 {
			if !closed {
				e.t.Errorf("the log of %s is not closed", id)
			}
			return all
		}
		all, seq = append(all, recs...), next
	}
}

// until reads the live log until it holds text, and gives what it read.
func (e *env) until(id, text string) string {
	e.t.Helper()
	l, err := e.r.Logs(id)
	must(e.t, err)
	defer func() { must(e.t, l.Close()) }()
	var got strings.Builder
	for seq := uint64(0); !strings.Contains(got.String(), text); {
		recs, next, closed, err := l.Next(ctxOf(e.t), seq, 1<<20)
		must(e.t, err)
		if closed {
			e.t.Fatalf("the log of %s ended without %q: %s", id, text, got.String())
		}
		for _, r := range recs {
			got.Write(r.Data)
		}
		seq = next
	}
	return got.String()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testWait is a backstop for what comes at once.
const testWait = time.Minute

// ctxOf bounds a test that would hang.
func ctxOf(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 5*time.Minute, errors.New("the test took too long"))
	t.Cleanup(cancel)
	return ctx
}

// gone waits for the end of a process that is no child.
func gone(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	must(t, waitPidfd(ctxOf(t), fd))
}

// TestAsOrdinaryUser runs the tests again without root.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it is run by root only")
	}
	if testing.Short() {
		t.Skip("skips the package's tests as an ordinary user, which take minutes: run as root without -short")
	}
	runsc := findRunsc(t)
	program, err := jobProgram()
	must(t, err)
	dir, err := os.MkdirTemp("", "sandbox-ordinary-") //nolint:usetesting // t.TempDir's parents may be closed to others
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	self, err := os.Executable()
	must(t, err)
	tools := map[string]string{"test": self, "runsc": runsc}
	if runsc != "" {
		tools["forwarder"] = filepath.Join(filepath.Dir(runsc), "forwarder")
	}
	for name, src := range tools {
		if src == "" {
			continue
		}
		data, err := os.ReadFile(src)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, name), data, 0o755))
	}
	must(t, os.WriteFile(filepath.Join(dir, "job"), program, 0o755))
	must(t, os.Chown(dir, ordinary, ordinary))
	args := []string{"-test.timeout=30m"}
	if os.Getenv(testOCI) != "" {
		args = append(args, "-test.run="+ordinaryOCI)
	}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := exec.CommandContext(ctxOfLong(t), filepath.Join(dir, "test"), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "SANDBOX_TEST_JOB=" + filepath.Join(dir, "job"), testOCI + "=" + os.Getenv(testOCI)}
	if runsc != "" {
		cmd.Env = append(cmd.Env, EnvRunsc+"="+filepath.Join(dir, "runsc"))
	}
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinary, Gid: ordinary, Groups: []uint32{}}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("as user %d: %v\n%s", ordinary, err, out)
	}
	t.Logf("as user %d:\n%s", ordinary, out)
}

func ctxOfLong(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	t.Cleanup(cancel)
	return ctx
}
