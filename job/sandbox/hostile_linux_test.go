package sandbox

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// host is what a job must not reach: a file with a secret in it, a socket that
// somebody listens on, a pipe that somebody reads; and what it must not change.
type host struct {
	marker, secret string
	socket, pipe   string
	in             string // a folder that is mounted, with links to all of them
	state          map[string]string
}

func newHost(t *testing.T, base string) *host {
	t.Helper()
	h := &host{
		marker: filepath.Join(base, "marker-of-the-host"), secret: "secret of " + base,
		in: filepath.Join(base, "input"), state: hostState(t),
	}
	h.socket, h.pipe = filepath.Join(h.in, "socket"), filepath.Join(h.in, "pipe")
	must(t, os.WriteFile(h.marker, []byte(h.secret), 0o666))
	must(t, os.Mkdir(h.in, 0o777))
	must(t, os.Symlink(h.marker, filepath.Join(h.in, "absolute")))
	must(t, os.Symlink("../"+filepath.Base(h.marker), filepath.Join(h.in, "relative")))
	must(t, os.Symlink("/proc/1/root"+h.marker, filepath.Join(h.in, "proc")))
	l, err := listenUnix(t.Context(), "unix", h.socket)
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Error("a container has connected to a socket of the host's")
			_ = conn.Close()
		}
	}()
	must(t, unix.Mkfifo(h.pipe, 0o666))
	r, err := os.OpenFile(h.pipe, os.O_RDONLY|unix.O_NONBLOCK, 0)
	must(t, err)
	t.Cleanup(func() {
		if n, err := r.Read(make([]byte, 1)); n > 0 {
			t.Errorf("a container has written to a pipe of the host's (%v)", err)
		}
		must(t, r.Close())
	})
	return h
}

// hostState is what a container that reaches the machine would change.
func hostState(t *testing.T) map[string]string {
	t.Helper()
	state := map[string]string{}
	for _, name := range []string{"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname", "/proc/swaps"} {
		if data, err := os.ReadFile(name); err == nil {
			state[name] = string(data)
			if name == "/proc/swaps" { // which, not how much of it is used
				state[name] = ""
				for line := range strings.Lines(string(data)) {
					state[name] += strings.Fields(line)[0] + "\n"
				}
			}
		}
	}
	return state
}

// untouched fails where the host is not as it was.
func (h *host) untouched(t *testing.T) {
	t.Helper()
	for name, was := range h.state {
		if is := hostState(t)[name]; is != was {
			t.Errorf("%s was %q and is %q", name, was, is)
		}
	}
	if data, err := os.ReadFile(h.marker); err != nil || string(data) != h.secret {
		t.Errorf("the host's file: %q %v", data, err)
	}
	info, err := os.Stat(h.marker)
	must(t, err)
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink != 1 {
		t.Errorf("the host's file has %d names", st.Nlink)
	}
}

// of is the same runtime and image for a test beside others.
func (e *env) of(t *testing.T) *env {
	c := *e
	c.t = t
	return &c
}

// attack is one thing that a hostile program does.
type attack struct {
	name   string
	steps  []string
	change func(*Spec)
	// end, if set, ends a program that does not end by itself.
	end  func(e *env, id string)
	want func(t *testing.T, x Exit, out string)
}

func exceeds(limits ...string) func(*testing.T, Exit, string) {
	return func(t *testing.T, x Exit, _ string) {
		t.Helper()
		if x.Exceeded == nil || !x.Exceeded.Killed || x.Code != 137 || x.Source != SourceJob || x.Reason != x.Exceeded.String() || !strings.Contains(strings.Join(limits, " "), x.Exceeded.Limit) {
			t.Errorf("want a limit of %v: %+v, exceeded %+v", limits, x, x.Exceeded)
		}
	}
}

func exits(code int, says string) func(*testing.T, Exit, string) {
	return func(t *testing.T, x Exit, out string) {
		t.Helper()
		if x.Code != code || x.Source != SourceJob || !strings.Contains(out, says) {
			t.Errorf("want exit %d and %q: %+v\n%s", code, says, x, out)
		}
	}
}

func stopped(e *env, id string) {
	e.t.Helper()
	must(e.t, e.r.Stop(ctxOf(e.t), id, 100*time.Millisecond))
}

func attacks(h *host) []attack {
	seesNothing := func(t *testing.T, x Exit, out string) {
		t.Helper()
		exits(0, "looked\n")(t, x, out)
		if strings.Contains(out, h.secret) || strings.Contains(out, "READ") {
			t.Error(out)
		}
	}
	return []attack{
		{name: "fork-bomb", steps: []string{"forks"}, change: func(s *Spec) { s.MemoryBytes = 2 << 30 }, want: exceeds(LimitPids)},
		{name: "fills-everything", steps: []string{"flood-all"}, want: exceeds(LimitMemory, LimitOutput)},
		{name: "deaf", steps: []string{"deaf"}, end: func(e *env, id string) {
			e.until(id, "ready")
			stopped(e, id)
		}, want: func(t *testing.T, x Exit, _ string) {
			if x.Code != 137 || !x.Stopped || x.Signal != 9 {
				t.Errorf("%+v", x)
			}
		}},
		// An empty file takes about 3 KB of the sandbox's own memory, which is the
		// job's: ten million would take 30 GB, here the limit ends it before.
		{name: "tiny-files", steps: []string{"many", "/"}, change: func(s *Spec) { s.MemoryBytes, s.RunLimit = minMemory, 10*time.Minute }, want: func(t *testing.T, x Exit, out string) {
			exceeds(LimitMemory)(t, x, out)
			lines := strings.Split(strings.TrimSpace(out), "\n")
			t.Logf("%s files; %s", lines[len(lines)-1], x.Reason)
		}},
		{name: "privileges", steps: []string{"privileges"}, want: func(t *testing.T, x Exit, out string) {
			exits(0, "refused mount")(t, x, out)
			for _, line := range strings.Split(out, "\n") {
				if strings.HasPrefix(line, "ALLOWED") {
					t.Error(line)
				}
			}
		}},
		{name: "host-files", steps: []string{"host", h.marker, "/in/absolute", "/in/relative", "/in/proc"}, want: seesNothing},
		{name: "host-sockets", steps: []string{"host", h.marker, "/in/socket", "/in/pipe"}, want: seesNothing},
		{name: "time-bomb", steps: []string{"timebomb", "/out", "/tmp", "/"}, want: exits(0, "left 3\n")},
		{name: "zombies", steps: []string{"zombies", "500"}, want: exceeds(LimitPids)},
		{name: "orphans", steps: []string{"orphans", "500"}, want: exceeds(LimitPids)},
		{name: "zombies-within-the-limit", steps: []string{"zombies", "30", ";", "orphans", "5"}, want: exits(0, "zombies 30\norphans 5\n")},
		{name: "shoots-at-process-1", steps: []string{"shoot"}, want: func(t *testing.T, x Exit, _ string) {
			if x.Source != SourceJob || x.Exceeded != nil {
				t.Errorf("%+v", x)
			}
			t.Logf("exit %d, signal %d", x.Code, x.Signal)
		}},
		{name: "stops-itself", steps: []string{"echo", "ready", ";", "stopall", ";", "deaf"}, end: func(e *env, id string) {
			e.until(id, "ready")
			stopped(e, id)
		}, want: func(t *testing.T, x Exit, _ string) {
			if (x.Code != 137 && x.Code != 143) || !x.Stopped { // it may not be deaf yet
				t.Errorf("%+v", x)
			}
		}},
	}
}

// TestHostile runs hostile programs beside a container that must not notice, and
// one after each that must run.
func TestHostile(t *testing.T) {
	e := newEnv(t)
	h := newHost(t, e.base)
	beside := e.spec("trap")
	e.start(beside)
	e.until(beside.ID, "ready")
	t.Run("attacks", func(t *testing.T) {
		for _, a := range attacks(h) {
			t.Run(a.name, func(t *testing.T) {
				differs(t)
				t.Parallel()
				e.of(t).suffer(a, h, beside.ID)
			})
		}
	})
	must(t, e.r.Stop(ctxOf(t), beside.ID, time.Minute))
	if x := e.wait(beside.ID); x.Code != 7 || e.output(beside.ID) != "ready\nbye\n" {
		t.Errorf("the container beside: %+v %q", x, e.output(beside.ID))
	}
	h.untouched(t)
}

// suffer runs an attack and holds what is left of it against nothing.
func (e *env) suffer(a attack, h *host, beside string) {
	t := e.t.(*testing.T)
	out := filepath.Join(e.base, "out-"+a.name)
	must(t, os.Mkdir(out, 0o777))
	must(t, os.Chmod(out, 0o777))
	s := e.spec(a.steps...)
	s.ID = a.name
	s.OutputBytes = 16 << 20
	s.Mounts = []Mount{{Source: h.in, Dest: "/in", ReadOnly: true}, {Source: out, Dest: "/out"}}
	if a.change != nil {
		a.change(&s)
	}
	dir := filepath.Join(e.r.jobs, s.ID)
	e.start(s)
	e.answers(beside)
	if a.end != nil {
		a.end(e, s.ID)
	}
	x := e.wait(s.ID)
	a.want(t, x, e.output(s.ID))
	e.answers(beside)
	if n := sizeOf(t, dir); n > s.DiskBytes+s.MaxLogBytes+16<<20 {
		t.Errorf("%d bytes lie in its folder", n)
	}
	if n := x.Usage.Disk; os.Getenv(testOCI) == "" && n > s.DiskBytes+1<<20 { // gVisor's file has no name
		t.Errorf("%d bytes lay in its writable layer", n)
	}
	late, _ := os.ReadFile(filepath.Join(out, "late"))
	must(t, e.r.Remove(ctxOf(t), s.ID))
	if left := processesOf(dir); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	e.noCgroup(dir)
	if _, err := os.Stat(dir); err == nil {
		t.Error("its folder is left")
	}

	next := e.spec("echo", "next")
	next.ID = a.name + "-next"
	if x, text := e.run(next); x.Code != 0 || text != "next\n" {
		t.Errorf("the next one: %+v %q", x, text)
	}
	must(t, e.r.Remove(ctxOf(t), next.ID))
	if now, _ := os.ReadFile(filepath.Join(out, "late")); string(now) != string(late) {
		t.Errorf("something wrote after the end: %q, then %q", late, now)
	}
	must(t, RemoveTree(out))
}

// answers asks a container that runs, and the runtime, for a sign of life.
func (e *env) answers(id string) {
	e.t.Helper()
	var out strings.Builder
	code, err := e.r.Exec(ctxOf(e.t), id, ExecSpec{Args: []string{"/job", "echo", "alive"}, Stdout: &out})
	if err != nil || code != 0 || out.String() != "alive\n" {
		e.t.Errorf("the container beside: %d %q %v", code, out.String(), err)
	}
	if _, err := e.r.Usage(ctxOf(e.t), id); err != nil {
		e.t.Error(err)
	}
}

// noCgroup fails for a group of the container in dir.
func (e *env) noCgroup(dir string) {
	e.t.Helper()
	parents, v2, err := cgroupParents()
	if err != nil {
		return
	}
	for _, p := range parents {
		if v2 {
			p = filepath.Join(p, "lumbung")
		}
		if _, err := os.Stat(filepath.Join(p, cgroupName(dir))); err == nil {
			e.t.Errorf("a cgroup is left in %s", p)
		}
	}
}

// sizeOf is what the files below dir take on the disk.
func sizeOf(t *testing.T, dir string) (n uint64) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // what cannot be read takes nothing here
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				n += uint64(st.Blocks) * 512
			}
		}
		return nil
	}))
	return n
}
