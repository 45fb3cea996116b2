package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// arriving is an image of which nothing but the shape is there.
type arriving struct {
	t     testing.TB
	shape string
	whole string
	files map[string]string // by path

	mu     sync.Mutex
	asked  []string
	opened []string
}

var oldTime = time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)

func newArriving(t testing.TB, e *env, files map[string]string) *arriving {
	t.Helper()
	job, err := os.ReadFile(filepath.Join(e.image, "job"))
	must(t, err)
	a := &arriving{t: t, shape: filepath.Join(e.base, "shape"), whole: filepath.Join(e.base, "whole"), files: map[string]string{"/job": string(job)}}
	for name, data := range files {
		a.files[name] = data
	}
	must(t, os.Mkdir(a.whole, 0o755))
	for name, data := range a.files {
		at := filepath.Join(a.shape, name)
		must(t, os.MkdirAll(filepath.Dir(at), 0o755))
		must(t, os.WriteFile(at, nil, 0o755))
		must(t, os.Truncate(at, int64(len(data))))
		must(t, os.Chtimes(at, oldTime, oldTime))
	}
	return a
}

// fill puts a file where it belongs, whole from the first moment.
func (a *arriving) fill(_ context.Context, name string) error {
	a.mu.Lock()
	a.asked = append(a.asked, name)
	a.mu.Unlock()
	return a.put(name)
}

func (a *arriving) put(name string) error {
	data, ok := a.files[name]
	if !ok {
		return fmt.Errorf("%s is not in the image", name)
	}
	at := filepath.Join(a.whole, name)
	tmp, err := os.CreateTemp(filepath.Dir(a.whole), "arriving-*")
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(data)
	return errors.Join(err, tmp.Chmod(0o755), tmp.Close(), os.MkdirAll(filepath.Dir(at), 0o755), os.Rename(tmp.Name(), at))
}

func (a *arriving) supplier() Supplier {
	return Supplier{Fill: a.fill, Opened: func(name string) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.opened = append(a.opened, name)
	}}
}

func (a *arriving) spec(e *env, steps ...string) Spec {
	s := e.spec(steps...)
	s.Rootfs, s.Arriving = a.shape, a.whole
	return s
}

// supply runs a supplier until the container is over or stop is called, which
// give its error.
func supplyOf(t testing.TB, r *Runtime, id string, s Supplier) (stop, end func() error) {
	ctx, cancel := context.WithCancel(ctxOf(t))
	done := make(chan error, 1)
	go func() { done <- r.Supply(ctx, id, s) }()
	end = sync.OnceValue(func() error { return <-done })
	stop = func() error {
		cancel()
		return end()
	}
	t.Cleanup(func() { _ = stop() })
	return stop, end
}

// A program starts with nothing of its image there, reads what arrives only
// because it asked, sees names and attributes of the rest at once, and writes
// over all of it.
func TestLazyImage(t *testing.T) {
	e := newEnv(t)
	a := newArriving(t, e, map[string]string{
		"/data/asked": "what was asked for", "/data/mapped": "what was mapped", "/data/never": strings.Repeat("x", 1<<20), "/data/changed": "old",
	})
	must(t, os.Symlink("/data/asked", filepath.Join(a.shape, "link")))
	out := filepath.Join(e.base, "out")
	must(t, os.Mkdir(out, 0o777))
	s := a.spec(e, "stat", "/data/never", ";", "cat", "/link", ";", "mapped", "/data/mapped", ";", "cat", "/data/asked", ";",
		"write", "/data/changed", ";", "cat", "/data/changed", ";", "ls", "/data", ";", "write", "/out/result", ";", "cat", "/etc/hostname")
	s.Mounts = []Mount{{Source: out, Dest: "/out"}}
	must(t, e.r.Prepare(ctxOf(t), s))
	_, end := supplyOf(t, e.r, s.ID, a.supplier())
	_, err := e.r.Start(ctxOf(t), s.ID, nil)
	must(t, err)
	x := e.wait(s.ID)
	must(t, end())
	got := e.output(s.ID)
	if x.Code != 0 {
		t.Fatalf("%+v\n%s", x, got)
	}
	for _, want := range []string{"1048576 -rwxr-xr-x 2001-02-03T04:05:06Z", "what was asked for", "what was mapped", "never", s.Hostname} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if slices.Contains(a.asked, "/data/never") || !slices.Contains(a.asked, "/data/asked") || a.asked[0] != "/job" {
		t.Errorf("asked for %q", a.asked)
	}
	if i, j := slices.Index(a.opened, "/job"), slices.Index(a.opened, "/data/mapped"); i != 0 || j < 1 || slices.Contains(a.opened, "/etc/hostname") {
		t.Errorf("opened %q", a.opened)
	}
	if _, err := os.Stat(filepath.Join(out, "result")); err != nil {
		t.Error(err)
	}
	for name, want := range a.files {
		if data, err := os.ReadFile(filepath.Join(a.whole, name)); err == nil && string(data) != want {
			t.Errorf("%s was changed", name)
		}
		if data, err := os.ReadFile(filepath.Join(a.shape, name)); err != nil || strings.Trim(string(data), "\x00") != "" {
			t.Errorf("the shape of %s was changed: %v", name, err)
		}
	}
}

// Reads wait for their file, however long it takes, over a change of supplier.
func TestLazyReadWaits(t *testing.T) {
	e := newEnv(t)
	a := newArriving(t, e, map[string]string{"/late": "it came"})
	s := a.spec(e, "echo", "begun", ";", "cat", "/late")
	must(t, a.put("/job"))
	must(t, e.r.Prepare(ctxOf(t), s))
	asked := make(chan struct{})
	stuck := Supplier{Fill: func(ctx context.Context, name string) error { // a node that is killed while it fetches
		if name == "/late" {
			close(asked)
		}
		<-ctx.Done()
		return ctx.Err()
	}}
	stop, _ := supplyOf(t, e.r, s.ID, stuck)
	_, err := e.r.Start(ctxOf(t), s.ID, nil)
	must(t, err)
	e.until(s.ID, "begun")
	<-asked
	if err := stop(); err == nil {
		t.Error("a supplier that was stopped says that the container is over")
	}
	u, err := e.r.Usage(ctxOf(t), s.ID)
	must(t, err)
	if u.Waited <= 0 {
		t.Errorf("it waits and %+v", u)
	}
	next := e.open(findRunsc(t)) // the node's next life
	_, end := supplyOf(t, next, s.ID, a.supplier())
	x := e.wait(s.ID)
	must(t, end())
	if got := e.output(s.ID); x.Code != 0 || !strings.Contains(got, "it came") {
		t.Errorf("%+v %q", x, got)
	}
	if x.Usage.Waited <= 0 || x.Usage.Waited > x.Ended.Sub(x.Started) {
		t.Errorf("waited %s of %s", x.Usage.Waited, x.Ended.Sub(x.Started))
	}
	if !slices.Contains(a.opened, "/late") {
		t.Errorf("opened %q", a.opened)
	}
}

// A file that is kept back does not let the rest of the job use more than its
// share of CPU.
func TestLazyHeldBack(t *testing.T) {
	e := newEnv(t)
	a := newArriving(t, e, map[string]string{"/late": "it came"})
	must(t, a.put("/job"))
	asked := make(chan struct{})
	release := make(chan struct{})
	slow := a.supplier()
	slow.Fill = func(ctx context.Context, name string) error {
		if name == "/late" {
			close(asked)
			select {
			case <-release:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return a.fill(ctx, name)
	}
	s := a.spec(e, "background", "3", ";", "cat", "/late")
	s.CPUMillis = 200
	must(t, e.r.Prepare(ctxOf(t), s))
	_, end := supplyOf(t, e.r, s.ID, slow)
	_, err := e.r.Start(ctxOf(t), s.ID, nil)
	must(t, err)
	<-asked
	usage := func() (time.Time, time.Duration) {
		u, err := e.r.Usage(ctxOf(t), s.ID)
		must(t, err)
		return time.Now(), u.CPU
	}
	begin, before := usage()
	time.Sleep(4 * time.Second) // of which it may run one second's debt ahead
	now, after := usage()
	ran := now.Sub(begin)
	t.Logf("%s of CPU in %s", after-before, ran)
	if most := (ran + cpuAhead) / 5 * 3 / 2; after-before > most {
		t.Errorf("used %s of CPU in %s with a fifth of a CPU", after-before, ran)
	}
	close(release)
	x := e.wait(s.ID)
	must(t, end())
	if got := e.output(s.ID); x.Code != 0 || !strings.Contains(got, "it came") {
		t.Errorf("%+v %q", x, got)
	}
}

// Many reads at once, and a file read by all, get what is theirs.
func TestLazyManyReads(t *testing.T) {
	e := newEnv(t)
	files := map[string]string{}
	const n = 100
	for i := range n {
		name := "/many/" + strconv.Itoa(i)
		files[name] = name
	}
	a := newArriving(t, e, files)
	s := a.spec(e, "crowd", "/many", strconv.Itoa(n))
	s.Pids = 4 * n
	must(t, e.r.Prepare(ctxOf(t), s))
	_, end := supplyOf(t, e.r, s.ID, a.supplier())
	_, err := e.r.Start(ctxOf(t), s.ID, nil)
	must(t, err)
	x := e.wait(s.ID)
	must(t, end())
	if got := e.output(s.ID); x.Code != 0 || got != fmt.Sprintf("right: %d\n", n) {
		t.Errorf("%+v %q", x, got)
	}
}

// A file that cannot be had is an error for the program and the end of the
// container, with the file named, and not the job's fault.
func TestLazyFillFails(t *testing.T) {
	e := newEnv(t)
	a := newArriving(t, e, map[string]string{"/lost": "never"})
	fail := a.supplier()
	fail.Fill = func(ctx context.Context, name string) error {
		if name == "/lost" {
			return errors.New("/lost: block bafyx is with no peer")
		}
		return a.fill(ctx, name)
	}
	for name, steps := range map[string][]string{"ends by itself": {"cat", "/lost"}, "goes on": {"cat", "/lost", ";", "deaf"}} {
		t.Run(name, func(t *testing.T) {
			s := a.spec(e, steps...)
			must(t, e.r.Prepare(ctxOf(t), s))
			_, end := supplyOf(t, e.r, s.ID, fail)
			_, err := e.r.Start(ctxOf(t), s.ID, nil)
			must(t, err)
			wantLost(t, e, s.ID)
			must(t, end())
			if got := e.output(s.ID); !strings.Contains(got, "input/output error") || strings.Contains(got, "\x00") {
				t.Errorf("%q", got)
			}
		})
	}
	t.Run("the program itself", func(t *testing.T) {
		fail.Fill = func(context.Context, string) error { return errors.New("/job: block bafyx is with no peer") }
		must(t, os.RemoveAll(filepath.Join(a.whole, "job")))
		s := a.spec(e, "echo")
		must(t, e.r.Prepare(ctxOf(t), s))
		_, end := supplyOf(t, e.r, s.ID, fail)
		if _, err := e.r.Start(ctxOf(t), s.ID, nil); err != nil && !strings.Contains(err.Error(), "bafyx") {
			t.Error(err)
		}
		wantLost(t, e, s.ID)
		must(t, end())
	})
}

func wantLost(t *testing.T, e *env, id string) {
	t.Helper()
	x := e.wait(id)
	if x.Code != CodeSandbox || x.Source != SourceSandbox || !strings.Contains(x.Reason, "block bafyx is with no peer") {
		t.Errorf("%+v", x)
	}
}

// A runtime without our gofer would show empty files: it is not used.
func TestLazyNeedsOurRuntime(t *testing.T) {
	e := newEnv(t)
	a := newArriving(t, e, nil)
	must(t, e.r.CanArrive(ctxOf(t)))
	upstream := filepath.Join(e.base, "upstream")
	must(t, os.WriteFile(upstream, []byte("#!/bin/sh\necho no such command >&2\nexit 128\n"), 0o755))
	if err := e.open(upstream).Prepare(ctxOf(t), a.spec(e, "echo")); !errors.Is(err, ErrNoRuntime) || !strings.Contains(err.Error(), "make payload") {
		t.Error(err)
	}
}
