package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Of TestRandomKills: how many jobs, for a longer run, and the seed of a run to
// repeat.
const (
	envKills = "SANDBOX_TEST_KILLS"
	envSeed  = "SANDBOX_TEST_SEED"
)

func numberFrom(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	must(t, err)
	return n
}

// TestRandomKills runs real containers, each ended at a random moment in a random
// way, and finds nothing left of any: no process, mount, cgroup, folder, open
// descriptor or goroutine. The market's test of that name has more jobs, and no
// real containers.
func TestRandomKills(t *testing.T) {
	e := newEnv(t)
	jobs := numberFrom(t, envKills, 36)
	seed := numberFrom(t, envSeed, uint64(time.Now().UnixNano())) //nolint:gosec // any will do
	t.Logf("%s=%d", envSeed, seed)
	e.run(e.spec("echo")) // what is opened once is open now
	must(t, e.r.Remove(ctxOf(t), "c1"))
	before := descriptors(t)
	others, err := children(os.Getpid()) // of tests before
	must(t, err)
	const workers = 3
	var wg sync.WaitGroup
	for w := range uint64(workers) {
		wg.Go(func() {
			k := &killer{env: e.home(fmt.Sprintf("home%d", w)), runsc: findRunsc(t), rnd: rand.New(rand.NewPCG(seed, w))} //nolint:gosec // a test's
			for i := w; i < jobs; i += workers {
				if err := k.one(fmt.Sprintf("k%d", i)); err != nil {
					t.Errorf("job %d: %v", i, err)
					return
				}
			}
			if err := k.nothing(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	e.eventually(func() bool { return descriptors(t) <= before })
	below, err := children(os.Getpid())
	must(t, err)
	if left := slices.DeleteFunc(below, func(pid int) bool { return slices.Contains(others, pid) }); len(left) > 0 {
		t.Errorf("children are left: %v", left)
	}
}

// descriptors are how many this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// home is an env with a folder of its own, as another node has.
func (e *env) home(name string) *env {
	c := *e
	c.base = filepath.Join(e.base, name)
	must(e.t, os.MkdirAll(c.base, 0o755))
	c.r = c.open(findRunsc(e.t))
	return &c
}

// killer is a node that does not let a container live. Its methods are called
// from a goroutine of its own, so they give errors.
type killer struct {
	*env
	rnd   *rand.Rand
	runsc string
}

// moment lets a random time pass, below most.
func (k *killer) moment(ctx context.Context, most time.Duration) error {
	return waitChange(ctx, time.Duration(k.rnd.Int64N(int64(most))))
}

// one runs a job to a random end and removes it.
func (k *killer) one(id string) error {
	ctx, cancel := context.WithTimeoutCause(k.t.Context(), 2*time.Minute, errors.New("the job does not end"))
	defer cancel()
	type way struct {
		name string
		do   func(context.Context, string) error
	}
	ways := []way{
		{"stop", k.stop},
		{"start cancelled", k.startCancelled},
		{"supervisor killed", k.killShim},
		{"sandbox killed", k.killSentry},
		{"runsc or a gofer killed", k.killAny},
		{"node killed", k.killNode},
		{"removed while running", k.removeRunning},
		{"exec and stop", k.execStop},
		{"never started", k.neverStarted},
	}
	if os.Getenv(testOCI) != "" { // there is none beside the program, and the program's id is of another namespace
		ways = slices.DeleteFunc(ways, func(w way) bool { return w.name == "sandbox killed" })
	}
	chosen := ways[k.rnd.IntN(len(ways))]
	begin := time.Now()
	dir := filepath.Join(k.r.jobs, id)
	told := make(chan struct{})
	slow := time.AfterFunc(slowKill, func() {
		defer close(told)
		k.t.Log(picture(dir, chosen.name))
	})
	defer func() {
		if !slow.Stop() {
			<-told
		}
	}()
	if err := chosen.do(ctx, id); err != nil {
		return fmt.Errorf("%s: %w", chosen.name, err)
	}
	if took := time.Since(begin); took > slowKill {
		k.t.Logf("%s: %s took %s", id, chosen.name, took)
	}
	if err := k.r.Remove(ctx, id); err != nil {
		return fmt.Errorf("%s: %w", chosen.name, err)
	}
	if left := processesOf(dir); len(left) > 0 {
		return fmt.Errorf("%s: processes are left: %v", chosen.name, left)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: its folder is left: %v", chosen.name, err) //nolint:errorlint // nil too
	}
	k.noCgroup(dir)
	return nil
}

// slowKill is after how long it is told what a job waits for.
const slowKill = 15 * time.Second

// picture is what a person needs to see why a job does not end.
func picture(dir, way string) string {
	text := fmt.Sprintf("%s, %s:\n", filepath.Base(dir), way)
	for _, name := range []string{fileState, fileShim, fileError, filePid, fileSpec} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		text += fmt.Sprintf("%s: %s %v\n", name, data[:min(len(data), 2000)], err)
	}
	for _, pid := range processesOf(dir) {
		status, _ := os.ReadFile(procFile(pid, "status"))
		wchan, _ := os.ReadFile(procFile(pid, "wchan"))
		line, _ := os.ReadFile(procFile(pid, "cmdline"))
		text += fmt.Sprintf("process %d %.300q: %.120q %s\n", pid, line, status, wchan)
	}
	return text
}

// nothing looks for what all of them have left.
func (k *killer) nothing() error {
	if left := processesWith(k.base); len(left) > 0 {
		return fmt.Errorf("processes are left: %v", left)
	}
	entries, err := os.ReadDir(k.r.jobs)
	if err != nil || len(entries) > 0 {
		return fmt.Errorf("folders are left: %v %w", entries, err)
	}
	return nil
}

func (k *killer) program() []string {
	programs := [][]string{{"echo", "hello"}, {"spin", "80ms"}, {"deaf"}, {"trap"}, {"forks"}, {"fill", "/big"}, {"fill", "/tmp/big"}, {"flood", "64"}, {"count", "1000", "1ms"}}
	return programs[k.rnd.IntN(len(programs))]
}

func (k *killer) prepare(ctx context.Context, id string) error {
	return k.r.Prepare(ctx, Spec{
		ID: id, Rootfs: k.image, Args: append([]string{"/job"}, k.program()...), MemoryBytes: 256 << 20, DiskBytes: 64 << 20,
		MaxLogBytes: 1 << 20, CPUMillis: 1000, Pids: 64, RunLimit: time.Minute,
	})
}

func (k *killer) start(ctx context.Context, id string) (Handle, error) {
	if err := k.prepare(ctx, id); err != nil {
		return Handle{}, err
	}
	return k.r.Start(ctx, id, nil)
}

// ends waits for an end, whichever it is.
func (k *killer) ends(ctx context.Context, id string) error {
	x, err := k.r.Wait(ctx, id)
	if err == nil && (x.Ended.IsZero() || x.Source == "") {
		err = fmt.Errorf("an end that says nothing: %+v", x)
	}
	return err
}

func (k *killer) stop(ctx context.Context, id string) error {
	if _, err := k.start(ctx, id); err != nil {
		return err
	}
	if err := k.moment(ctx, 150*time.Millisecond); err != nil {
		return err
	}
	if err := k.r.Stop(ctx, id, time.Duration(k.rnd.IntN(2))*50*time.Millisecond); err != nil {
		return err
	}
	return k.ends(ctx, id)
}

func (k *killer) startCancelled(ctx context.Context, id string) error {
	if err := k.prepare(ctx, id); err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, time.Duration(k.rnd.Int64N(int64(200*time.Millisecond))))
	defer cancel()
	_, err := k.r.Start(short, id, nil)
	if err != nil && short.Err() == nil {
		return err
	}
	return nil
}

func (k *killer) neverStarted(ctx context.Context, id string) error { return k.prepare(ctx, id) }

func (k *killer) killShim(ctx context.Context, id string) error {
	h, err := k.start(ctx, id)
	if err != nil {
		return err
	}
	if err := k.moment(ctx, 150*time.Millisecond); err != nil {
		return err
	}
	_ = unix.Kill(h.Shim, unix.SIGKILL) // a zombie of ours at most: Wait collects it
	return k.ends(ctx, id)
}

func (k *killer) killSentry(ctx context.Context, id string) error {
	if _, err := k.start(ctx, id); err != nil {
		return err
	}
	if err := k.moment(ctx, 150*time.Millisecond); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(k.r.jobs, id, filePid))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil {
		return err
	}
	if err := killPid(ctx, filepath.Join(k.r.jobs, id), pid); err != nil {
		return err
	}
	return k.ends(ctx, id)
}

// killAny kills one of the container's processes.
func (k *killer) killAny(ctx context.Context, id string) error {
	if _, err := k.start(ctx, id); err != nil {
		return err
	}
	if err := k.moment(ctx, 150*time.Millisecond); err != nil {
		return err
	}
	dir := filepath.Join(k.r.jobs, id)
	if pids := processesOf(dir); len(pids) > 0 {
		if err := killPid(ctx, dir, pids[k.rnd.IntN(len(pids))]); err != nil {
			return err
		}
	}
	// A gofer's death need not end the program: it is stopped then.
	if err := k.r.Stop(ctx, id, 0); err != nil {
		return err
	}
	return k.ends(ctx, id)
}

func (k *killer) removeRunning(ctx context.Context, id string) error {
	if _, err := k.start(ctx, id); err != nil {
		return err
	}
	waited := make(chan error, 1)
	go func() { waited <- k.ends(ctx, id) }()
	err := errors.Join(k.moment(ctx, 150*time.Millisecond), k.r.Remove(ctx, id))
	// It may have been gone when it was asked for.
	if werr := <-waited; werr != nil && !errors.Is(werr, ErrNotFound) && !errors.Is(werr, ErrNotRunning) {
		err = errors.Join(err, werr)
	}
	return err
}

func (k *killer) execStop(ctx context.Context, id string) error {
	if _, err := k.start(ctx, id); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = k.r.Exec(ctx, id, ExecSpec{Args: []string{"/job", "count", "100000", "1ms"}}) // ends with its container
	}()
	err := errors.Join(k.moment(ctx, 150*time.Millisecond), k.r.Stop(ctx, id, 0))
	<-done
	return errors.Join(err, k.ends(ctx, id))
}

// killNode has another process prepare and start the container, kills it at a
// random moment, and takes up what it left as a node that starts does.
func (k *killer) killNode(ctx context.Context, id string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"node", k.base, k.image, k.runsc, id}, k.program()...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if k.rnd.IntN(2) == 0 { // else at any moment before
		_, _ = bufio.NewReader(out).ReadString('\n')
	}
	err = errors.Join(k.moment(ctx, 300*time.Millisecond), cmd.Process.Kill())
	_ = cmd.Wait()
	if err != nil {
		return err
	}
	// A child that it was starting looks like it until it runs the supervisor. No
	// node starts again so soon that it meets one.
	for len(processesWith("node\x00"+k.base+"\x00")) > 0 {
		if err := waitChange(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	k.r = k.open(k.runsc)
	found, err := k.r.Recover(ctx)
	if err != nil {
		return err
	}
	for _, f := range found {
		if f.ID != id {
			return fmt.Errorf("found %+v", f)
		}
		if !f.Running {
			continue
		}
		if err := k.r.Stop(ctx, id, 0); err != nil {
			return err
		}
		if err := k.ends(ctx, id); err != nil {
			return err
		}
	}
	return nil
}
