//go:build e2e

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/node"
	"github.com/lumbung-net/lumbung/node/client"
)

// e2eWait bounds every wait of these tests: long, for the machine may be busy.
const e2eWait = 90 * time.Second

// world is a network of processes that one test, or several, use.
type world struct {
	t         testing.TB // whoever made it; nil for the shared one
	dir       string
	network   string
	heartbeat time.Duration
	as        *syscall.Credential
	bin       string
	boot      *testNode
	renter    *testNode
	providers []*testNode
	nodes     []*testNode
}

// worldOptions say what is not usual about a network.
type worldOptions struct {
	dir       string // default a temporary one of the test
	network   string
	providers int
	args      func(provider int) []string // more flags of a provider
	heartbeat time.Duration               // default 1s
	as        *syscall.Credential         // whom the nodes run as
	bin       string                      // default the binary under test
}

// testNode is one node of a world: its home, and its process while it runs.
type testNode struct {
	w      *world
	name   string
	home   string
	role   string
	more   []string
	ip     string // it listens on; default 127.0.0.1
	c      *client.Client
	id     client.Identity
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	exited chan struct{}
}

// newWorld starts a network through its bootstrap node, and ends it with the
// test.
func newWorld(t testing.TB, o worldOptions) *world {
	t.Helper()
	if o.dir == "" {
		o.dir = t.TempDir()
	}
	w, err := startWorld(o)
	w.t = t
	t.Cleanup(func() {
		if t.Failed() {
			w.tell(t.Log)
		}
		if err := w.end(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func startWorld(o worldOptions) (*world, error) {
	if o.heartbeat == 0 {
		o.heartbeat = time.Second
	}
	if o.network == "" {
		o.network = "test-e2e"
	}
	w := &world{dir: o.dir, network: o.network, heartbeat: o.heartbeat, as: o.as, bin: o.bin}
	if w.bin == "" {
		w.bin = e2e.bin
	}
	var err error
	if w.boot, err = w.add("boot", node.RoleBootstrap, nil); err != nil {
		return w, err
	}
	for i := range o.providers {
		args := []string{"--cpus", "8", "--memory", "16GB", "--disk", "40GB"}
		if o.args == nil { // a base unit for each millisecond: the shortest job costs something
			args = append(args, "--price-cpu", "3.60")
		} else {
			args = append(args, o.args(i)...)
		}
		p, err := w.add("p"+strconv.Itoa(i), node.RoleProvider, args)
		if err != nil {
			return w, err
		}
		w.providers = append(w.providers, p)
	}
	if w.renter, err = w.add("renter", node.RoleRenter, nil); err != nil {
		return w, err
	}
	if err := w.boot.start(); err != nil {
		return w, err
	}
	errs := make(chan error, len(w.nodes))
	for _, n := range w.nodes[1:] {
		go func() { errs <- n.start() }()
	}
	for range w.nodes[1:] {
		err = firstError(err, <-errs)
	}
	if err != nil {
		return w, err
	}
	return w, w.renter.sees(w.providers...)
}

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// add makes a node that does not run yet.
func (w *world) add(name, role string, more []string) (*testNode, error) {
	n := &testNode{w: w, name: name, role: role, more: more, home: filepath.Join(w.dir, name)}
	w.nodes = append(w.nodes, n)
	if err := os.MkdirAll(n.home, 0o700); err != nil {
		return n, err
	}
	if w.as != nil {
		if err := os.Chown(n.home, int(w.as.Uid), int(w.as.Gid)); err != nil {
			return n, err
		}
	}
	var err error
	n.c, err = client.New(n.home)
	return n, err
}

// join adds a node to the network and starts it.
func (w *world) join(name, role string, more ...string) *testNode {
	w.t.Helper()
	n, err := w.add(name, role, more)
	if err == nil {
		err = n.start()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (n *testNode) args() []string {
	ip := cmp.Or(n.ip, "127.0.0.1")
	args := []string{
		"up", "--home", n.home, "--network", n.w.network, "--role", n.role, "--with-parent",
		"--heartbeat", n.w.heartbeat.String(), "--bid-window", "1s",
		"--listen", "/ip4/" + ip + "/tcp/0", "--listen", "/ip4/" + ip + "/udp/0/quic-v1",
	}
	if n != n.w.boot {
		for _, a := range n.w.boot.id.Addrs {
			args = append(args, "--bootstrap", a)
		}
	}
	return append(args, n.more...)
}

func (n *testNode) logName() string { return filepath.Join(n.w.dir, n.name+".log") }

// start runs the node and waits until its API answers.
func (n *testNode) start() error {
	if err := n.launch(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), e2eWait)
	defer cancel()
	err := poll(ctx, func() (bool, error) {
		select {
		case <-n.exited:
			return false, fmt.Errorf("%s: the node ended: %v; its log:\n%s", n.name, n.cmd.ProcessState, n.log())
		default:
		}
		s, err := n.c.Status(ctx)
		return err == nil && s.PID == n.cmd.Process.Pid, nil
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	n.id, err = n.c.Identity(ctx)
	return err
}

// launch runs the node without waiting for it.
func (n *testNode) launch() error {
	log, err := os.OpenFile(n.logName(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	n.cmd = exec.CommandContext(context.Background(), n.w.bin, n.args()...)
	n.cmd.Dir, n.cmd.Stdout, n.cmd.Stderr = "/", log, log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: n.w.as}
	n.cmd.Env = n.w.env(n.home)
	if n.stdin, err = n.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := n.cmd.Start(); err != nil {
		return err
	}
	n.exited = make(chan struct{})
	go func() {
		defer close(n.exited)
		_ = n.cmd.Wait()
	}()
	return nil
}

// env is a plain environment: nothing of the caller's own settings.
func (w *world) env(home string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.dir, "LUMBUNG_HOME=" + home, "LUMBUNG_RUNSC=" + os.Getenv("LUMBUNG_RUNSC")}
}

func (n *testNode) log() string {
	raw, err := os.ReadFile(n.logName())
	if err != nil {
		return err.Error()
	}
	const most = 6 << 10
	return string(raw[max(0, len(raw)-most):])
}

// kill ends the node with SIGKILL: it gets no chance to put anything right.
func (n *testNode) kill() {
	_ = n.cmd.Process.Kill()
	<-n.exited
	_ = n.stdin.Close()
}

func (n *testNode) runs() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// sees waits until this node finds providers that answer.
func (n *testNode) sees(providers ...*testNode) error {
	ctx, cancel := context.WithTimeout(context.Background(), e2eWait)
	defer cancel()
	err := poll(ctx, func() (bool, error) {
		offers, err := n.c.Offers(ctx, "")
		if err != nil {
			return false, nil //nolint:nilerr // it is still joining; the context bounds it
		}
		live := map[string]bool{}
		for _, o := range offers {
			live[o.Peer] = o.Live
		}
		for _, p := range providers {
			if !live[p.id.PeerID] {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("%s does not find all providers: %w", n.name, err)
	}
	return nil
}

// tell shows the logs after a failure.
func (w *world) tell(log func(...any)) {
	for _, n := range w.nodes {
		log("--- log of " + n.name + "\n" + n.log())
	}
}

// end stops every node with its jobs, then kills what is left, and reports what
// should not have been there.
func (w *world) end() error {
	if w == nil {
		return nil
	}
	killed := false
	var group sync.WaitGroup
	for i := len(w.nodes) - 1; i >= 0; i-- {
		n := w.nodes[i]
		if i == 0 {
			group.Wait()
		}
		if !n.runs() {
			killed = killed || n.cmd != nil
			_ = n.c.Close()
			continue
		}
		group.Go(func() {
			_ = n.stdin.Close()
			t := time.NewTimer(stopWait)
			defer t.Stop()
			select {
			case <-n.exited:
			case <-t.C:
				n.kill()
			}
			_ = n.c.Close()
		})
	}
	group.Wait()
	left := processesOf(w.dir)
	killAll(left)
	mounts := mountsBelow(w.dir)
	if err := sandbox.RemoveTree(w.dir); err != nil {
		return fmt.Errorf("remove the network: %w", err)
	}
	// A killed node's containers outlive it, as they should.
	if len(left) > 0 && !killed {
		return fmt.Errorf("left running: %v", left)
	}
	if len(mounts) > 0 {
		return fmt.Errorf("left mounted: %v", mounts)
	}
	return nil
}

// runningProcess is a process that names a folder in its arguments.
type runningProcess struct {
	pid  int
	args string
}

// processesOf lists the processes that have a path below dir in their
// arguments: nodes, supervisors and the sandboxes with all that runs in them.
func processesOf(dir string) []runningProcess {
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil
	}
	var out []runningProcess
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(raw, []byte(dir+"/")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err == nil && pid != os.Getpid() && alive(pid) {
			out = append(out, runningProcess{pid, strings.ReplaceAll(string(raw), "\x00", " ")})
		}
	}
	return out
}

// killAll kills processes and waits until they are gone.
func killAll(list []runningProcess) {
	for _, p := range list {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
	ctx, cancel := context.WithTimeout(context.Background(), e2eWait)
	defer cancel()
	_ = poll(ctx, func() (bool, error) {
		for _, p := range list {
			if alive(p.pid) {
				return false, nil
			}
		}
		return true, nil
	})
}

// containers lists the processes of the node's containers.
func (n *testNode) containers() []runningProcess {
	return processesOf(filepath.Join(n.home, "sandbox", "jobs"))
}

// result is what a command did.
type result struct {
	code     int
	out, err string
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\nstdout: %s\nstderr: %s", r.code, r.out, r.err)
}

// command prepares the binary with this node's home.
func (n *testNode) command(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, n.w.bin, args...)
	cmd.Dir, cmd.Env = dir, n.w.env(n.home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: n.w.as}
	return cmd
}

// cli runs the binary as a user would, in a folder.
func (n *testNode) cli(t testing.TB, dir, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), e2eWait)
	defer cancel()
	cmd := n.command(ctx, dir, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("lumbung %s took over %s\nstdout: %s\nstderr: %s", strings.Join(args, " "), e2eWait, &out, &errs)
	}
	if cmd.ProcessState == nil {
		t.Fatalf("lumbung %s: %v", strings.Join(args, " "), err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// ok runs a command that must succeed and returns its stdout.
func (n *testNode) ok(t testing.TB, args ...string) string {
	t.Helper()
	r := n.cli(t, n.w.dir, "", args...)
	if r.code != 0 {
		t.Fatalf("lumbung %s: %v", strings.Join(args, " "), r)
	}
	return r.out
}

// decode reads the JSON that a command printed.
func decode[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("not the JSON that was asked for: %v\n%s", err, text)
	}
	return v
}
