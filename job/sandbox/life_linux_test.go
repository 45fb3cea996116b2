package sandbox

import (
	"bufio"
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
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lumbung-net/lumbung/protocol"
)

func TestStop(t *testing.T) {
	e := newEnv(t)
	polite, deaf, quick := e.spec("trap"), e.spec("deaf"), e.spec("deaf")
	for _, s := range []Spec{polite, deaf, quick} {
		e.start(s)
		e.until(s.ID, "ready")
	}
	must(t, e.r.Stop(ctxOf(t), polite.ID, 30*time.Second))
	if x := e.wait(polite.ID); x.Code != 7 || !x.Stopped || !strings.Contains(e.output(polite.ID), "bye") {
		t.Errorf("%+v", x)
	}
	begin := time.Now()
	must(t, e.r.Stop(ctxOf(t), deaf.ID, 300*time.Millisecond))
	if x := e.wait(deaf.ID); x.Code != 137 || x.Signal != 9 || !x.Stopped || x.Exceeded != nil || time.Since(begin) < 300*time.Millisecond {
		t.Errorf("%+v after %s", x, time.Since(begin))
	}
	must(t, e.r.Stop(ctxOf(t), quick.ID, 0))
	if x := e.wait(quick.ID); x.Code != 137 {
		t.Errorf("%+v", x)
	}
	must(t, e.r.Stop(ctxOf(t), quick.ID, time.Second)) // once more
	prepared := e.spec("echo")
	must(t, e.r.Prepare(ctxOf(t), prepared))
	if err := e.r.Stop(ctxOf(t), prepared.ID, time.Second); !errors.Is(err, ErrNotRunning) {
		t.Errorf("stop of one not started: %v", err)
	}
	if err := e.r.Stop(ctxOf(t), "nobody", time.Second); !errors.Is(err, ErrNotFound) {
		t.Errorf("stop of none: %v", err)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	e := newEnv(t)
	s := e.spec("deaf")
	e.start(s)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("enough"))
	defer cancel()
	if _, err := e.r.Wait(ctx, s.ID); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("%v", err)
	}
}

func TestExec(t *testing.T) {
	e := newEnv(t)
	s := e.spec("deaf")
	s.Env = []string{"X=container"}
	s.Cwd = "/tmp"
	e.start(s)
	e.until(s.ID, "ready")
	do := func(x ExecSpec) (int, string, string) {
		t.Helper()
		var out, errOut strings.Builder
		x.Stdout, x.Stderr = &out, &errOut
		code, err := e.r.Exec(ctxOf(t), s.ID, x)
		must(t, err)
		return code, out.String(), errOut.String()
	}
	code, out, errOut := do(ExecSpec{Args: []string{"/job", "upper", ";", "exit", "5"}, Stdin: strings.NewReader("from outside")})
	if code != 5 || out != "FROM OUTSIDE" || errOut != "done\n" {
		t.Errorf("%d %q %q", code, out, errOut)
	}
	if code, out, _ := do(ExecSpec{Args: []string{"/job", "who"}, Env: []string{"X=exec"}}); code != 0 || !strings.Contains(out, "cwd=/tmp") || !strings.Contains(out, "x=exec") {
		t.Errorf("%d %q", code, out)
	}
	if code, out, _ := do(ExecSpec{Args: []string{"/job", "who"}, Cwd: "/"}); code != 0 || !strings.Contains(out, "cwd=/ ") || !strings.Contains(out, "x=container") {
		t.Errorf("%d %q", code, out)
	}
	if code, _, _ := do(ExecSpec{Args: []string{"/nope"}}); code != CodeNotFound {
		t.Errorf("not found gives %d", code)
	}
	if code, _, _ := do(ExecSpec{Args: []string{"nope"}}); code != CodeNotFound {
		t.Errorf("not on the path gives %d", code)
	}
	if code, _, _ := do(ExecSpec{Args: []string{"/tmp"}}); code != CodeCannotExecute {
		t.Errorf("a folder gives %d", code)
	}
	if code, _, _ := do(ExecSpec{Args: []string{"/job", "signal", "9"}}); code != 137 {
		t.Errorf("a signal gives %d", code)
	}
	// Cancelled: the program inside ends with it.
	before := e.processes(s.ID)
	ctx, cancel := context.WithCancelCause(ctxOf(t))
	r, w := io.Pipe()
	result := make(chan error, 1)
	go func() {
		_, err := e.r.Exec(ctx, s.ID, ExecSpec{Args: []string{"/job", "deaf"}, Stdout: w})
		_ = w.Close()
		result <- err
	}()
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	cancel(errors.New("the caller left"))
	if err := <-result; err == nil || !strings.Contains(err.Error(), "the caller left") {
		t.Errorf("cancelled: %v", err)
	}
	e.eventually(func() bool { return e.processes(s.ID) <= before })
	if _, err := e.r.Exec(ctxOf(t), "nobody", ExecSpec{Args: []string{"x"}}); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// processes is how many there are in a container. Their threads come and go.
func (e *env) processes(id string) int {
	e.t.Helper()
	if os.Getenv(testOCI) != "" {
		return e.processesOCI(id)
	}
	c, err := dialSentry(ctxOf(e.t), filepath.Join(e.r.jobs, id))
	must(e.t, err)
	defer c.close()
	var list []struct {
		PID int `json:"pid"`
	}
	must(e.t, c.call("containerManager.Processes", cid, &list))
	return len(list)
}

func (e *env) eventually(ok func() bool) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 30*time.Second)
	defer cancel()
	for !ok() {
		if err := waitChange(ctx, 10*time.Millisecond); err != nil {
			e.t.Fatal("it did not happen")
		}
	}
}

func TestExecTerminal(t *testing.T) {
	e := newEnv(t)
	s := e.spec("deaf")
	e.start(s)
	e.until(s.ID, "ready")
	resize := make(chan Size, 1)
	resize <- Size{Columns: 123, Rows: 45}
	in, typed, err := os.Pipe()
	must(t, err)
	defer func() { must(t, errors.Join(in.Close(), typed.Close())) }()
	r, w := io.Pipe()
	result := make(chan error, 1)
	code := 0
	go func() {
		var err error
		code, err = e.r.Exec(ctxOf(t), s.ID, ExecSpec{Args: []string{"/job", "echo", "go", ";", "tty", ";", "exit", "3"}, TTY: true, Stdin: in, Stdout: w, Resize: resize})
		_ = w.Close()
		result <- err
	}()
	lines := bufio.NewReader(r)
	first, err := lines.ReadString('\n')
	must(t, err)
	e.eventually(func() bool { return len(resize) == 0 })
	_, err = typed.WriteString("typed\n")
	must(t, err)
	rest, err := io.ReadAll(lines)
	must(t, err)
	must(t, <-result)
	if code != 3 || first != "go\r\n" || !strings.Contains(string(rest), "terminal 123x45 line typed") {
		t.Errorf("%d %q %q", code, first, rest)
	}
}

func TestUsage(t *testing.T) {
	e := newEnv(t)
	s := e.spec("echo", "ready", ";", "spin", "1h")
	e.start(s)
	e.eventually(func() bool {
		u, err := e.r.Usage(ctxOf(t), s.ID)
		must(t, err)
		return u.CPU > 100*time.Millisecond && u.Pids > 0 && u.MemoryPeak > 0
	})
}

// nodeMain is a node that starts a container and is killed: it says "started"
// and waits for ever.
func nodeMain(args []string) int {
	base, image, runsc, id := args[0], args[1], args[2], args[3]
	r, err := New(testOptions(base, runsc))
	var secrets protocol.Secrets
	if slices.Contains(args, SecretsDir+"/A") {
		secrets = protocol.Secrets{"A": []byte("given by a node that is gone")}
	}
	if err == nil {
		err = r.Prepare(context.Background(), Spec{ID: id, Rootfs: image, Args: append([]string{"/job"}, args[4:]...), RunLimit: 2 * time.Minute, Secrets: len(secrets) > 0, Outbound: os.Getenv(envWorld) != ""})
	}
	if err == nil {
		_, err = r.Start(context.Background(), id, secrets)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("started")
	select {}
}

// killedNode starts a container by another process and kills that with SIGKILL.
func (e *env) killedNode(t *testing.T, id string, steps ...string) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	e.n++
	cmd := exec.CommandContext(ctxOf(t), self, append([]string{"node", e.base, e.image, findRunsc(t), id}, steps...)...)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, _ := bufio.NewReader(out).ReadString('\n')
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if line != "started\n" {
		t.Fatal(line)
	}
}

func TestNodeKilled(t *testing.T) {
	e := newEnv(t)
	const lines = 200
	e.killedNode(t, "c1", "count", strconv.Itoa(lines), "10ms", ";", "exit", "17")
	r := e.open(findRunsc(t))
	found, err := r.Recover(ctxOf(t))
	must(t, err)
	if len(found) != 1 || found[0].ID != "c1" || !found[0].Running {
		t.Fatalf("%+v", found)
	}
	e.r = r
	// Live reading works again, from the middle on too.
	e.until("c1", "line 20\n")
	if x := e.wait("c1"); x.Code != 17 || x.Source != SourceJob {
		t.Errorf("%+v", x)
	}
	var want strings.Builder
	for i := range lines {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if got := e.output("c1"); got != want.String() {
		t.Errorf("the log has a gap: %q", got)
	}
	recs := e.records("c1")
	for i, rec := range recs {
		if rec.Seq != uint64(i+1) || i > 0 && rec.Time.Before(recs[i-1].Time) {
			t.Fatalf("record %d: %d at %s", i, rec.Seq, rec.Time)
		}
	}
	found, err = e.open(findRunsc(t)).Recover(ctxOf(t))
	must(t, err)
	if len(found) != 1 || found[0].Running || found[0].Exit.Code != 17 {
		t.Errorf("%+v", found)
	}
	must(t, e.r.Remove(ctxOf(t), "c1"))
}

func TestShimKilled(t *testing.T) {
	for _, who := range []string{"seen by a waiter", "found by Recover"} {
		t.Run(who, func(t *testing.T) {
			e := newEnv(t)
			s := e.spec("echo", "ready", ";", "spin", "1h")
			h := e.start(s)
			e.until(s.ID, "ready")
			waited := make(chan Exit, 1)
			if who == "seen by a waiter" {
				go func() {
					x, _ := e.r.Wait(ctxOf(t), s.ID)
					waited <- x
				}()
			}
			must(t, unix.Kill(h.Shim, unix.SIGKILL))
			var x Exit
			if who == "seen by a waiter" {
				x = <-waited
			} else {
				gone(t, h.Shim)
				found, err := e.r.Recover(ctxOf(t))
				must(t, err)
				if len(found) != 1 || found[0].Running {
					t.Fatalf("%+v", found)
				}
				x = found[0].Exit
			}
			if x.Code != CodeSandbox || x.Source != SourceSandbox || x.Started.IsZero() || !strings.Contains(x.Reason, "supervisor") {
				t.Errorf("%+v", x)
			}
			if left := processesOf(filepath.Join(e.r.jobs, s.ID)); len(left) > 0 {
				t.Errorf("processes are left: %v", left)
			}
			if out := e.output(s.ID); out != "ready\n" {
				t.Errorf("log %q", out)
			}
		})
	}
}

// A container whose supervisor dies dies by itself, node or no node.
func TestShimAndNodeKilled(t *testing.T) {
	e := newEnv(t)
	e.killedNode(t, "c1", "spin", "1h")
	dir := filepath.Join(e.r.jobs, "c1")
	st, err := readState(dir)
	must(t, err)
	must(t, unix.Kill(st.Shim, unix.SIGKILL))
	e.eventually(func() bool { return len(processesOf(dir)) == 0 })
}

func TestSandboxKilled(t *testing.T) {
	e := newEnv(t)
	s := e.spec("echo", "ready", ";", "spin", "1h")
	e.start(s)
	e.until(s.ID, "ready")
	e.eventually(func() bool { // it runs for longer than its start may be in doubt
		st, err := readState(filepath.Join(e.r.jobs, s.ID))
		must(t, err)
		return !st.Started.IsZero() && time.Since(st.Started) > 5*statusDoubt
	})
	data, err := os.ReadFile(filepath.Join(e.r.jobs, s.ID, filePid))
	must(t, err)
	pid, err := strconv.Atoi(string(data))
	must(t, err)
	must(t, unix.Kill(pid, unix.SIGKILL))
	if x := e.wait(s.ID); x.Code != CodeSandbox || x.Source != SourceSandbox || x.Reason == "" {
		t.Errorf("%+v", x)
	}
}

func TestRecover(t *testing.T) {
	e := newEnv(t)
	prepared, done := e.spec("echo", "later"), e.spec("exit", "4")
	must(t, e.r.Prepare(ctxOf(t), prepared))
	e.run(done)
	half := filepath.Join(e.r.jobs, "half") // a Prepare that was killed
	must(t, os.MkdirAll(filepath.Join(half, dirUpper), 0o700))
	must(t, os.WriteFile(filepath.Join(e.r.jobs, prepared.ID, fileState), nil, 0o600)) // of a machine that failed
	r := e.open(findRunsc(t))
	found, err := r.Recover(ctxOf(t))
	must(t, err)
	if len(found) != 2 || !found[0].Prepared || found[1].Prepared || found[1].Running || found[1].Exit.Code != 4 {
		t.Fatalf("%+v", found)
	}
	if _, err := os.Stat(half); !os.IsNotExist(err) {
		t.Error("the half-made one is left")
	}
	e.r = r
	_, err = r.Start(ctxOf(t), prepared.ID, nil)
	must(t, err)
	if x := e.wait(prepared.ID); x.Code != 0 || e.output(prepared.ID) != "later\n" {
		t.Errorf("%+v", x)
	}
}

func TestRemove(t *testing.T) {
	e := newEnv(t)
	running, prepared := e.spec("deaf"), e.spec("echo")
	h := e.start(running)
	must(t, e.r.Prepare(ctxOf(t), prepared))
	for _, id := range []string{running.ID, running.ID, prepared.ID, "never-there"} {
		must(t, e.r.Remove(ctxOf(t), id))
	}
	gone(t, h.Shim)
	e.nothingLeft()
	for _, id := range []string{"", ".", "..", "../x", "a/b"} {
		if err := e.r.Remove(ctxOf(t), id); err == nil {
			t.Errorf("%q was removed", id)
		}
	}
	if _, err := e.r.Wait(ctxOf(t), running.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestTwoAtOnce(t *testing.T) {
	e := newEnv(t)
	a, b := e.spec("echo", "I am a", ";", "trap"), e.spec("echo", "I am b", ";", "deaf")
	for _, s := range []Spec{a, b} {
		e.start(s)
	}
	for _, s := range []Spec{a, b} {
		e.until(s.ID, "ready")
	}
	must(t, e.r.Stop(ctxOf(t), a.ID, time.Minute))
	if u, err := e.r.Usage(ctxOf(t), b.ID); err != nil {
		t.Errorf("b ended with a: %v %v", u, err)
	}
	must(t, e.r.Stop(ctxOf(t), b.ID, 0))
	if x, y := e.wait(a.ID), e.wait(b.ID); x.Code != 7 || y.Code != 137 {
		t.Errorf("%+v %+v", x, y)
	}
	if e.output(a.ID) != "I am a\nready\nbye\n" || e.output(b.ID) != "I am b\nready\n" {
		t.Errorf("%q %q", e.output(a.ID), e.output(b.ID))
	}
}

func TestCheck(t *testing.T) {
	e := newEnv(t)
	found := e.r.Check(ctxOf(t))
	names := map[string]Finding{}
	for _, f := range found {
		t.Logf("%+v", f)
		names[f.Name] = f
		if !f.OK && f.Remedy == "" {
			t.Errorf("%s has no remedy", f.Name)
		}
	}
	for _, want := range []string{"runtime", "namespaces", "container", LimitCPU, LimitMemory, LimitPids, LimitDisk, LimitOutput, LimitLog, LimitTime, LimitFiles} {
		if want == LimitCPU && os.Getenv(testOCI) != "" {
			continue // TestOCIRefuses
		}
		if !names[want].OK {
			t.Errorf("%s: %+v", want, names[want])
		}
	}
}

// TestStopOfOneThatStarts has a stop come at every moment of a container's start,
// as one does after a restart of the node: it is heard.
func TestStopOfOneThatStarts(t *testing.T) {
	e := newEnv(t)
	for i := range 8 {
		s := e.spec("deaf")
		must(t, e.r.Prepare(ctxOf(t), s))
		started := make(chan error, 1)
		go func() {
			_, err := e.r.Start(ctxOf(t), s.ID, nil)
			started <- err
		}()
		dir := filepath.Join(e.r.jobs, s.ID)
		e.eventually(func() bool { // its supervisor lives
			_, err := os.Stat(filepath.Join(dir, fileShim))
			if err != nil {
				return false
			}
			lock, free, err := lockShim(dir)
			if free {
				must(t, lock.Close())
			}
			st, _ := readState(dir)
			return err == nil && !free || st.Phase != ""
		})
		must(t, waitChange(ctxOf(t), time.Duration(i)*10*time.Millisecond))
		must(t, e.r.Stop(ctxOf(t), s.ID, 0))
		if err := <-started; err != nil {
			t.Logf("start: %v", err)
		}
		if x := e.wait(s.ID); x.Code != 137 || !x.Stopped || x.Source != SourceJob {
			t.Errorf("%+v", x)
		}
		must(t, e.r.Remove(ctxOf(t), s.ID))
	}
}
