package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// testOCI names the OCI runtime that the tests of containers run by.
const testOCI = "SANDBOX_TEST_OCI"

// difference is a test that an OCI runtime does not pass, and why it need not.
type difference struct{ test, reason string }

// differences from gVisor of every OCI runtime.
var differences = []difference{
	{"TestConformance/killed", "Linux spares the first process of a namespace from signals that it sends itself"},
	{"TestSandboxKilled", "there is no sandbox beside the program: who kills it has killed the program"},
	{"TestForwardIntoAStoppedProgram", "the supervisor connects: nothing of ours is inside that could be stopped"},
	{"TestLazyImage", "only gVisor asks before it opens a file: images come whole"},
	{"TestLazyReadWaits", "images come whole"},
	{"TestLazyHeldBack", "images come whole"},
	{"TestLazyManyReads", "images come whole"},
	{"TestLazyFillFails", "images come whole"},
	{"TestLazyNeedsOurRuntime", "images come whole: TestOCITakesWholeImages"},
	{"TestSecretsWhileImageArrives", "images come whole"},
	{"TestCheckpointRestore", "only gVisor saves a container's state: TestOCIRefuses"},
	{"TestCheckpointLeaves", "the same"},
	{"TestCheckpointRefused", "the same"},
	{"TestRestoredLimits", "the same"},
	{"TestRestoreWithSecrets", "the same"},
	{"TestPortability", "the same"},
	{"TestDevicesInBundle", "only gVisor passes GPUs into a container: TestOCIRefuses"},
	{"TestDevicesWithoutDriver", "the same"},
	{"TestDrivers", "the same"},
	{"TestHostile/attacks/tiny-files", "its layer is a file system that has room for only so many"},
	{"TestHostile/attacks/zombies", "the kernel refuses more processes, and the program may end well"},
	{"TestHostile/attacks/host-sockets", "Linux connects to sockets and pipes that lie in a mounted folder; the node lays out none"},
	{"TestProtectionsAreKept", "it is about gVisor's flags and processes: TestOCIConfinement"},
}

// userDifferences are those of one that an ordinary user runs.
var userDifferences = []difference{
	{"TestConformance/numeric_user", "one id is mapped, and these runtimes want it to be root's: TestOCIUser"},
	{"TestConformance/numeric_user_alone", "the same"},
	{"TestConformance/tmp_for_a_user", "the same"},
	{"TestNamedUser", "the same"},
	{"TestCPULimit", "only gVisor pauses a job, and TestOCIRefuses sees that it is said"},
	{"TestDiskLimit", "no file system of its own: the supervisor ends the job, TestOCIDiskMeasured"},
}

// crunDifferences are crun's alone.
var crunDifferences = []difference{
	{"TestOpenFiles", "crun opens more files than the test allows, under the job's limit already"},
}

// TestKibs reads both forms that /proc has.
func TestKibs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x")
	must(t, os.WriteFile(file, []byte("Name:\tRssAnon: 7 kB\nRssAnon:\t     100 kB\nRssShmem:\t       3 kB\n"), 0o600))
	if a, b := kibs(file, "RssAnon", "RssShmem"); a != 100<<10 || b != 3<<10 {
		t.Errorf("%d %d", a, b)
	}
	must(t, os.WriteFile(file, []byte("5581-7ffd ---p 00000000 00:00 0    [rollup]\nPss_Anon:             100 kB\nPss_Shmem:             3 kB\n"), 0o600))
	if a, b := kibs(file, "Pss_Anon", "Pss_Shmem"); a != 100<<10 || b != 3<<10 {
		t.Errorf("%d %d", a, b)
	}
}

// users are those of a test that an image may name here: see userDifferences.
func (e *env) users(names ...string) []string {
	if os.Getenv(testOCI) != "" && e.r.user {
		return []string{""}
	}
	return names
}

// differs skips a test that the runtime does not pass.
func differs(t testing.TB) {
	t.Helper()
	if os.Getenv(testOCI) == "" {
		return
	}
	all := slices.Clone(differences)
	if os.Geteuid() != 0 {
		all = append(all, userDifferences...)
	}
	if isCrun(os.Getenv(testOCI)) {
		all = append(all, crunDifferences...)
	}
	for _, d := range all {
		if d.test == t.Name() || strings.HasPrefix(t.Name(), d.test+"/") {
			t.Skipf("differs under %s: %s", os.Getenv(testOCI), d.reason)
		}
	}
}

// ordinaryOCI are the tests that an ordinary user runs by an OCI runtime: those
// in which it differs from root, or rests on other means.
const ordinaryOCI = "^(TestConformance|TestConfinement|TestMounts|TestExec|TestExecTerminal|TestForward|TestUsage|TestShimAndNodeKilled|TestRemove|TestCheck|" +
	"TestMemoryLimit|TestMemoryHeldByTmpfs|TestPidsLimit|TestOpenFiles|TestCPULimit|TestSecrets|TestStopOfOneThatStarts|TestOCI.*)$"

// TestOCIRuntimes runs the tests of containers again by each OCI runtime that is
// installed, but for what differences names.
func TestOCIRuntimes(t *testing.T) {
	if os.Getenv(testOCI) != "" {
		t.Skip("this run is by an OCI runtime already")
	}
	if os.Geteuid() != 0 {
		t.Skip("root runs it, also as an ordinary user")
	}
	if testing.Short() {
		t.Skip("skips the tests by OCI runtimes, which take a minute each: run without -short")
	}
	findRunsc(t)
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) {
			file, err := exec.LookPath(name)
			if err != nil {
				t.Skipf("no %s on the PATH (Debian: apt-get install %s)", name, name)
			}
			t.Setenv(testOCI, file)
			t.Run("root", func(t *testing.T) { againAsRoot(t) })
			t.Run("ordinary user", TestAsOrdinaryUser)
		})
	}
}

func againAsRoot(t *testing.T) {
	self, err := os.Executable()
	must(t, err)
	program, err := jobProgram()
	must(t, err)
	job := filepath.Join(t.TempDir(), "job")
	must(t, os.WriteFile(job, program, 0o755))
	args := []string{"-test.timeout=30m", "-test.skip=^(TestWithoutCgroups|TestAsOrdinaryUser|TestNetwork|TestUnpack.*|TestLog[BOP].*|TestImage.*)$"}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := exec.CommandContext(ctxOfLong(t), self, args...)
	cmd.Env = append(os.Environ(), "SANDBOX_TEST_JOB="+job)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("by %s: %v\n%s", os.Getenv(testOCI), err, out)
	}
	t.Logf("by %s:\n%s", os.Getenv(testOCI), out)
}

// onlyOCI skips a test that is about OCI runtimes alone.
func onlyOCI(t testing.TB) {
	t.Helper()
	if os.Getenv(testOCI) == "" {
		t.Skip("TestOCIRuntimes runs it")
	}
}

// processesOCI counts the processes in the shim's namespace but for the shim and
// what it has run of the runtime.
func (e *env) processesOCI(id string) (n int) {
	e.t.Helper()
	st, err := readState(filepath.Join(e.r.jobs, id))
	must(e.t, err)
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", st.Shim))
	must(e.t, err)
	proc := fmt.Sprintf("/proc/%d/root/proc", st.Shim)
	entries, err := os.ReadDir(proc)
	must(e.t, err)
	for _, p := range entries {
		if ns, err := os.Readlink(filepath.Join(proc, p.Name(), "ns/pid")); err == nil && ns != own && strings.Trim(p.Name(), "0123456789") == "" {
			n++
		}
	}
	return n
}

// noLoopLeft waits for the loop devices of ended containers: the kernel frees
// them a moment after the mount namespace.
func (e *env) noLoopLeft() {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	defer cancel()
	for {
		left := loopsOf(e.base)
		if len(left) == 0 {
			return
		}
		if err := waitChange(ctx, minLook); err != nil {
			e.t.Errorf("loop devices are left: %q", left)
			return
		}
	}
}

func loopsOf(base string) (found []string) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.Contains(string(data), base) {
			found = append(found, f)
		}
	}
	return found
}

// A container cannot get at what a seccomp filter, masks and read-only paths
// keep from it, whoever it is.
func TestOCIConfinement(t *testing.T) {
	onlyOCI(t)
	e := newEnv(t)
	x, out := e.run(e.spec("forbidden"))
	if x.Code != 0 {
		t.Fatalf("%+v %s", x, out)
	}
	for _, want := range []string{
		"unshare: operation not permitted", "ptrace: operation not permitted", "keyctl: operation not permitted", "bpf: operation not permitted",
		"setns: operation not permitted", "new namespace: function not implemented", "vsock: function not implemented",
		"unknown call: function not implemented", "sysctl: read-only file system", "kcore: 0 bytes", "sysfs: read-only file system",
		"kallsyms: 0 bytes", "seccomp mode 2",
	} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("missing %q in\n%s", want, out)
		}
	}
}

// Every call is in one list only, and the profile is for this machine.
func TestSeccompLists(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range strings.Fields(seccompAllowed + seccompRefused + seccompUnseen) {
		if seen[name] || name == "clone" || name == "clone3" || name == "socket" || name == "personality" {
			t.Errorf("%s stands twice", name)
		}
		seen[name] = true
	}
	if p := seccompProfile(false); len(p.Architectures) != 1 || runtime.GOARCH == "amd64" && p.Architectures[0] != "SCMP_ARCH_X86_64" {
		t.Errorf("%+v", p.Architectures)
	}
}

func TestOCITakesWholeImages(t *testing.T) {
	onlyOCI(t)
	e := newEnv(t)
	if err := e.r.CanArrive(ctxOf(t)); err == nil || !strings.Contains(err.Error(), "whole") {
		t.Errorf("%v", err)
	}
	s := e.spec("echo")
	s.Arriving = e.image
	if err := e.r.Prepare(ctxOf(t), s); err == nil {
		t.Error("an arriving image was taken")
	}
}

// What only gVisor can do is neither said to be had nor prepared, and where no
// cgroup holds the CPU that is said.
func TestOCIRefuses(t *testing.T) {
	onlyOCI(t)
	e := newEnv(t)
	for what, err := range map[string]error{
		"network": e.r.CanOutbound(ctxOf(t)),
		"state":   func() error { _, err := e.r.Portability(ctxOf(t)); return err }(),
		"GPUs":    func() error { _, err := e.r.Drivers(ctxOf(t)); return err }(),
	} {
		if !errors.Is(err, ErrNoRuntime) || !strings.Contains(err.Error(), "only gVisor") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, change := range map[string]func(*Spec){
		"network": func(s *Spec) { s.Outbound = true },
		"state":   func(s *Spec) { s.Savable = true },
		"GPUs":    func(s *Spec) { s.Devices = oneCard(); s.Devices.Files = nil },
	} {
		s := e.spec("echo")
		change(&s)
		if err := e.r.Prepare(ctxOf(t), s); !errors.Is(err, ErrNoRuntime) || !strings.Contains(err.Error(), "only gVisor") {
			t.Errorf("%s: %v", what, err)
		}
	}
	held := !e.r.user
	if held {
		groups, _ := probeCgroup(e.r.jobs)
		held = groups["cpu"]
	}
	unheld := slices.ContainsFunc(e.r.Unheld(), func(f Finding) bool { return f.Name == LimitCPU })
	if held == unheld {
		t.Errorf("cpu: held by a cgroup %t, said to be unheld %t", held, unheld)
	}
}

func TestOCIDescribed(t *testing.T) {
	onlyOCI(t)
	e := newEnv(t)
	text, err := e.r.Describe(ctxOf(t))
	if err != nil || !strings.Contains(text, filepath.Base(os.Getenv(testOCI))) || !strings.Contains(text, "weaker than gVisor") {
		t.Errorf("%q %v", text, err)
	}
	for _, f := range e.r.Check(ctxOf(t)) {
		if f.Name == "runtime" && (!f.OK || !f.Weaker || f.Remedy == "") {
			t.Errorf("%+v", f)
		}
	}
}

// An ordinary user's container has root, its own user outside, alone.
func TestOCIUser(t *testing.T) {
	onlyOCI(t)
	if os.Geteuid() == 0 {
		t.Skip("it is about an ordinary user")
	}
	e := newEnv(t)
	s := e.spec("who")
	s.User = "1000"
	if err := e.r.Prepare(ctxOf(t), s); err == nil || !strings.Contains(err.Error(), "ordinary user") {
		t.Errorf("%v", err)
	}
	out := filepath.Join(e.base, "out")
	must(t, os.Mkdir(out, 0o700))
	s = e.spec("mustwrite", "/out/x", "1", ";", "who")
	s.Mounts = []Mount{{Source: out, Dest: "/out"}}
	if x, text := e.run(s); x.Code != 0 || !strings.Contains(text, "uid=0 gid=0") {
		t.Errorf("%+v %s", x, text)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(out, "x"), &st); err != nil || int(st.Uid) != os.Geteuid() {
		t.Errorf("%+v %v", st.Uid, err)
	}
}

// Where the writable layer is no file system of its own, its limit is measured.
func TestOCIDiskMeasured(t *testing.T) {
	onlyOCI(t)
	if os.Geteuid() == 0 {
		t.Skip("root has a file system for it: TestDiskLimit")
	}
	e := newEnv(t)
	for _, steps := range [][]string{{"fill", "/big", ";", "deaf"}, {"tiny", "/"}} {
		s := e.spec(steps...)
		s.DiskBytes, s.OutputBytes = 4<<20, 1<<30 // one file may be large
		x, _ := e.run(s)
		wantExceeded(t, x, LimitDisk, 137, true)
	}
}

func TestCommandFailure(t *testing.T) {
	for msg, want := range map[string]int{
		`runc create failed: unable to start container process: exec: "/nope": stat /nope: no such file or directory`:              127,
		`runc create failed: unable to start container process: exec: "nope": executable file not found in $PATH`:                  127,
		`runc create failed: unable to start container process: exec: "/closed": permission denied`:                                126,
		`runc create failed: unable to start container process: exec: "/proc": is a directory`:                                     126,
		"open executable: Operation not permitted":                                                                                 126,
		"executable file `nope` not found in $PATH: No such file or directory":                                                     127,
		`runc create failed: unable to start container process: error mounting "/x" to rootfs at "/in": no such file or directory`: 0,
	} {
		if got := commandFailure(msg); got != want {
			t.Errorf("%s: %d, want %d", msg, got, want)
		}
	}
}

func TestRunnable(t *testing.T) {
	im, dir := imageOf(t)
	program, err := jobProgram()
	must(t, err)
	loader := []byte("\x7fELF\x02\x01")
	loader = append(loader, make([]byte, 250)...)
	loader[18], loader[19], loader[32], loader[54], loader[56], loader[64], loader[72], loader[96] = byte(elfMachine), byte(elfMachine>>8), 64, 56, 1, 3, 120, 12
	copy(loader[120:], "/lib/none.so")
	files := map[string]struct {
		data []byte
		mode os.FileMode
		code int
	}{
		"static":  {program, 0o755, 0},
		"script":  {[]byte("#! /static -x\n"), 0o755, 0},
		"lost":    {[]byte("#!/no/such\n"), 0o755, CodeNotFound},
		"loader":  {loader, 0o755, CodeNotFound},
		"text":    {[]byte("hello"), 0o755, CodeCannotExecute},
		"empty":   {nil, 0o755, CodeCannotExecute},
		"closed":  {program, 0o644, CodeCannotExecute},
		"foreign": {[]byte("\x7fELF\x01\x01" + strings.Repeat("\x00", 80)), 0o755, CodeCannotExecute},
	}
	for name, f := range files {
		must(t, os.WriteFile(filepath.Join(dir, name), f.data, f.mode))
		must(t, os.Chmod(filepath.Join(dir, name), f.mode))
	}
	for name, f := range files {
		if code, why := im.runnable("/" + name); code != f.code {
			t.Errorf("%s: %d %s, want %d", name, code, why, f.code)
		}
	}
	if code, _ := im.runnable("/etc"); code != CodeCannotExecute {
		t.Errorf("a folder: %d", code)
	}
	if code, _ := im.runnable("/nope"); code != CodeNotFound {
		t.Errorf("none: %d", code)
	}
}

func FuzzInterpreter(f *testing.F) {
	f.Add([]byte("#!/bin/sh -e\n"))
	f.Add([]byte("\x7fELF\x02\x01" + strings.Repeat("\x00", 100)))
	f.Fuzz(func(t *testing.T, head []byte) {
		name, err := interpreter(head)
		if err == nil && len(name) > len(head) {
			t.Errorf("%q of %d bytes", name, len(head))
		}
	})
}
