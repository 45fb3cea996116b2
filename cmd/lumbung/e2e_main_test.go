//go:build e2e

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lumbung-net/lumbung/examples/pack"
	"github.com/lumbung-net/lumbung/job/sandbox"
)

// The end-to-end tests start real nodes of the built binary, as processes on
// loopback, and real containers. LUMBUNG_BIN names the binary, the default is
// what `make build` leaves.

// e2e is what all of the tests share.
var e2e struct {
	bin     string // the binary under test
	dir     string // everything shared, removed in the end
	program string // the static program that containers run
	image   string // an OCI layout of it
}

func TestMain(m *testing.M) {
	// Tests of the whole binary act as the shim too when they use the sandbox
	// themselves.
	if len(os.Args) > 1 && os.Args[1] == sandbox.ShimArg {
		os.Exit(sandbox.ShimMain(os.Args[2:]))
	}
	if err := prepareE2E(); err != nil {
		_ = os.RemoveAll(e2e.dir) // "" is no folder
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(e2eRun{m})
}

// e2eRun ends what the tests share before goroutines are counted.
type e2eRun struct{ m *testing.M }

func (r e2eRun) Run() int {
	code := r.m.Run()
	if err := finishE2E(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func prepareE2E() (err error) {
	e2e.bin = os.Getenv("LUMBUNG_BIN")
	if e2e.bin == "" {
		e2e.bin = filepath.Join("..", "..", "build", "lumbung")
	}
	if e2e.bin, err = filepath.Abs(e2e.bin); err != nil {
		return err
	}
	if _, err := os.Stat(e2e.bin); err != nil {
		return fmt.Errorf("the binary under test: %w; run make build, or name one by LUMBUNG_BIN", err)
	}
	if e2e.dir, err = os.MkdirTemp("", "lb-e2e-"); err != nil {
		return err
	}
	// Nodes of other users read the image.
	if err := os.Chmod(e2e.dir, 0o755); err != nil { //nolint:gosec // nothing in it is secret
		return err
	}
	e2e.program = filepath.Join(e2e.dir, "job")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", e2e.program, "./testdata/e2ejob")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the test program: %w: %s", err, out)
	}
	e2e.image = filepath.Join(e2e.dir, "image")
	return packE2E(e2e.image, "e2ejob:latest")
}

// packE2E makes an OCI layout of the test program, with more files.
func packE2E(dir, name string, more ...pack.File) error {
	raw, err := os.ReadFile(e2e.program)
	if err != nil {
		return err
	}
	files := append([]pack.File{
		{Path: "/job", Mode: 0o755, Data: raw},
		{Path: "/notes", Mode: 0o644, Data: []byte("not a program\n")},
	}, more...)
	_, err = pack.Layout(dir, pack.Image{Name: name, Files: files, Env: []string{"FROM_IMAGE=yes"}, Workdir: "/"})
	return err
}

// finishE2E ends what is left of the shared network and complains about what a
// test has left behind.
func finishE2E() error {
	sharedNet.end()
	var errs []error
	if left := processesOf(e2e.dir); len(left) > 0 {
		errs = append(errs, fmt.Errorf("processes left behind: %v", left))
		killAll(left)
	}
	if mounts := mountsBelow(e2e.dir); len(mounts) > 0 {
		errs = append(errs, fmt.Errorf("mounts left behind: %v", mounts))
	}
	return errors.Join(append(errs, sandbox.RemoveTree(e2e.dir))...)
}

// mountsBelow lists what is mounted below a folder.
func mountsBelow(dir string) []string {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.SplitSeq(string(raw), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			out = append(out, f[4])
		}
	}
	return out
}

// sharedNet is the network of the tests that change nothing in it.
var sharedNet shared

// shared is a network that is started once, when it is first wanted.
type shared struct {
	once sync.Once
	w    *world
	err  error
}

// get starts the network with the options of whoever comes first; they are the
// same for all.
func (s *shared) get(t testing.TB) *world {
	t.Helper()
	s.once.Do(func() {
		s.w, s.err = startWorld(worldOptions{dir: filepath.Join(e2e.dir, "net"), providers: 2, args: func(i int) []string {
			if i == 0 {
				return []string{"--fake-gpu", "rtx4090:2", "--region", "here"}
			}
			return []string{"--price-cpu", "0.02"}
		}})
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			s.w.tell(t.Log)
		}
	})
	return s.w
}

func (s *shared) end() {
	if s.w == nil {
		return
	}
	if err := s.w.end(); err != nil {
		fmt.Fprintln(os.Stderr, "the shared network:", err)
	}
}
