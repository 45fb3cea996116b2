package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ShimArg is the first argument that makes main call ShimMain.
const ShimArg = "sandbox-shim"

// readyFD is where the shim says that the container runs, or why it does not.
const readyFD = 3

type ready struct {
	Error   string    `json:"error,omitempty"`
	Started time.Time `json:"started"`
}

// shim supervises one container.
type shim struct {
	dir    string
	pid    int // of this process, as the host counts
	plan   plan
	engine engine
	hub    hub
	log    *logWriter
	cg     *cgroup
	cmd    *exec.Cmd // runsc
	net    *network  // nil without one
	done   chan struct{}
	// lazy hands out the image's files while it arrives; nil for a whole image.
	lazy   *arrivals
	broken chan struct{} // closed when a part of it cannot be had

	mu       sync.Mutex
	started  time.Time
	stopped  bool
	asked    chan struct{} // closed when it is first asked to stop
	exceeded *Exceeded
	usage    Usage
	sandbox  int // process id of the sentry
	killed   bool
	process  *os.Process      // runsc, once it is started
	status   *unix.WaitStatus // of the program, said by the sandbox
	mute     bool             // the sandbox was asked and ended without saying
	failure  string           // of the sandbox, found by the shim
	saving   sync.Mutex       // one checkpoint at a time
	refused  *refusal         // why the program was never run
	// waitedBefore is how long the image was waited for before the start.
	waitedBefore time.Duration
}

// ShimMain is the supervisor process. A program that uses this package calls
// it at the very start of main, before anything else, with os.Args[2:], when
// os.Args[1] is ShimArg, and exits with what it returns.
func ShimMain(args []string) int {
	// The parent-death signal of runsc is tied to the thread that starts it.
	runtime.LockOSThread()
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	if len(args) > 0 && args[0] == probeArg {
		return probeMain(len(args) > 1 && args[1] == probeWritable)
	}
	if len(args) != 1 || !filepath.IsAbs(args[0]) {
		fmt.Fprintln(os.Stderr, "this is started by lumbung itself")
		return 2
	}
	// What is in a container's memory belongs in no file of this machine.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		fmt.Fprintln(os.Stderr, "forbid core files:", err)
	}
	pipe := os.NewFile(readyFD, "ready")
	unix.CloseOnExec(readyFD)
	s := &shim{dir: args[0], pid: os.Getpid(), done: make(chan struct{}), asked: make(chan struct{}), broken: make(chan struct{})}
	if err := s.run(pipe); err != nil {
		fmt.Fprintln(os.Stderr, err)
		_ = json.NewEncoder(pipe).Encode(ready{Error: err.Error()})
		return 1
	}
	return 0
}

func (s *shim) run(pipe *os.File) error {
	lock, err := takeLock(s.dir)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }() // last of all: its release says that the shim is gone
	if s.plan, err = readPlan(s.dir); err != nil {
		return err
	}
	if st, err := readState(s.dir); err != nil || st.Phase != "" {
		return errors.Join(err, fmt.Errorf("it was started before (%s)", st.Phase))
	}
	secrets, err := takeSecrets(s.plan)
	if err != nil {
		return err
	}
	s.engine = s.newEngine()
	if err := s.engine.mount(); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(s.dir, fileLog), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	s.log = newLogWriter(file, s.plan.Spec.MaxLogBytes, time.Now, s.hub.changed)
	if err := s.engine.limits(); err != nil {
		return err
	}
	if err := mountSecrets(s.dir, s.plan, secrets); err != nil { // it counts as the container's memory in gVisor
		return err
	}

	ctx, cancel := context.WithCancel(context.Background())
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	l, err := listenUnix(ctx, "unix", filepath.Join(s.dir, fileSocket))
	if err != nil {
		return err
	}
	if s.plan.Spec.Arriving != "" {
		a, gofers, err := s.beginArrivals(ctx)
		if err != nil {
			_ = l.Close()
			return err
		}
		defer a.close()
		s.lazy = a
		background.Go(func() { a.serve(ctx, gofers) })
	}
	ctl := &control{hub: &s.hub, stop: s.stop, kill: s.kill, usage: s.usageNow, save: s.checkpoint, lazy: s.lazy}
	ctl.inside, _ = s.engine.(insider)
	background.Go(func() { ctl.serve(ctx, l) })
	return s.supervise(ctx, pipe, file)
}

// takeLock takes the lock that says that a shim lives. Somebody who looks for
// one may hold it for a moment.
func takeLock(dir string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for {
		lock, ok, err := lockShim(dir)
		if ok || err != nil {
			return lock, err
		}
		if waitChange(ctx, minLook) != nil {
			return nil, errors.New("this container has a supervisor already")
		}
	}
}

func listenUnix(ctx context.Context, network, name string) (net.Listener, error) {
	d, err := os.OpenFile(filepath.Dir(name), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, network, fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), filepath.Base(name)))
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // its short name is gone by then
	return l, nil
}

// enterLimits puts this process, and so all that it starts, under the limits
// the kernel holds.
func (s *shim) enterLimits() {
	if s.plan.Cgroup != "" {
		g, err := makeCgroup(s.plan.Cgroup, s.plan.Spec, sentryRoom(s.plan.Spec))
		if err == nil {
			err = g.join()
		}
		if err == nil { // else it holds nothing, and others must
			s.cg = g
		} else {
			fmt.Fprintln(os.Stderr, "cgroup:", err)
		}
	}
	if !s.cg.holds("cpu") && !treeListed() { // else see watchCPU
		if err := pinCPUs(s.plan.Spec.CPUMillis, s.pid); err != nil {
			fmt.Fprintln(os.Stderr, "cpu affinity:", err)
		}
	}
}

// supervise runs the container to its end and records it.
func (s *shim) supervise(ctx context.Context, pipe, logFile *os.File) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	launched := time.Now()
	var err error
	if s.net, err = s.beginNetwork(ctx); err != nil {
		return fmt.Errorf("starting the container's network: %w", err)
	}
	outputs, err := s.engine.launch(ctx)
	if err != nil {
		s.net.end()
		return fmt.Errorf("starting %s: %w", s.plan.program(), err)
	}
	var work sync.WaitGroup
	work.Go(func() { s.watch(ctx, pipe) })
	waitErr := s.engine.wait()
	s.net.end()
	if err := reap(ctx, s.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	close(s.done)
	work.Wait()
	outputs.Wait()
	s.lastLook()
	exit := s.exit(launched, waitErr)
	if exit.Exceeded != nil && exit.Exceeded.Limit != LimitLog { // which is told where it was met
		s.log.notice(exit.Exceeded.String())
	}
	dropped, logErr := s.log.close()
	exit.LogDropped = dropped
	if logErr != nil {
		exit.Reason = join(exit.Reason, "the log could not be written: "+logErr.Error())
	}
	st := state{Phase: phaseExited, Shim: s.pid, Started: exit.Started, Exit: &exit}
	if err := errors.Join(logFile.Sync(), writeJSON(s.dir, fileState, st)); err != nil {
		return fmt.Errorf("recording the exit: %w", err)
	}
	s.hub.changed()
	// For one that ended before it was seen to run; else nobody reads.
	_ = json.NewEncoder(pipe).Encode(ready{Started: exit.Started})
	return nil
}

// launch starts runsc with its output in pipes that this process reads.
func (s *shim) launch(ctx context.Context) (*sync.WaitGroup, error) {
	s.cmd = exec.CommandContext(context.WithoutCancel(ctx), s.plan.Runsc, s.runscArgs()...)
	s.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	if s.lazy != nil {
		s.cmd.Env = append(s.cmd.Env, envLazy+"="+filepath.Join(s.dir, fileLazy))
	}
	if s.net != nil {
		s.cmd.ExtraFiles = []*os.File{s.net.link}
		s.cmd.Env = append(s.cmd.Env, fmt.Sprintf("%s=%d", envNet, linkFD))
	}
	s.cmd.Dir = "/"
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	readers, begin, err := s.outputOf(s.cmd)
	if err != nil {
		return nil, err
	}
	defer begin()
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.process = s.cmd.Process
	killed := s.killed
	s.mu.Unlock()
	if killed { // before it was there
		_ = s.cmd.Process.Kill()
	}
	// When memory runs out on the machine, jobs go first. Best effort.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", s.cmd.Process.Pid), []byte("500"), 0o644)
	return readers, nil
}

// outputOf gives cmd pipes for its output, which the readers log until both
// end. Begin closes this process's own ends of them: after the start.
func (s *shim) outputOf(cmd *exec.Cmd) (readers *sync.WaitGroup, begin func(), err error) {
	readers = &sync.WaitGroup{}
	var ends []*os.File
	begin = func() {
		for _, f := range ends {
			_ = f.Close()
		}
	}
	for _, stream := range []uint8{Stdout, Stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			begin()
			return nil, nil, err
		}
		ends = append(ends, w)
		if stream == Stdout {
			cmd.Stdout = w
		} else {
			cmd.Stderr = w
		}
		readers.Go(func() {
			defer func() { _ = r.Close() }()
			s.copyOutput(stream, r)
		})
	}
	return readers, begin, nil
}

func (s *shim) copyOutput(stream uint8, r io.Reader) {
	buf := make([]byte, maxChunk)
	says := s.engine.speaks() // else what comes is no output of the job's
	for {
		n, err := r.Read(buf)
		if n > 0 && says {
			s.log.write(stream, buf[:n])
		}
		if err != nil {
			return
		}
	}
}

func (s *shim) runscArgs() []string {
	args := []string{
		"--root=" + filepath.Join(s.dir, dirRunsc),
		"--log=" + filepath.Join(s.dir, fileError), "--log-format=json",
		"--network=none",
		"--host-settings=ignore",
		"--control-rpc-stop-timeout=0", // our idle connection must not hold up its end
		"--ignore-cgroups",             // the shim joined its own before
		fmt.Sprintf("--overlay2=root:dir=%s,size=%d", filepath.Join(s.dir, dirUpper), s.plan.Spec.DiskBytes),
	}
	if d := s.plan.Spec.Devices; !d.none() {
		args = append(args, "--nvproxy", "--nvproxy-allowed-driver-capabilities="+strings.Join(d.Capabilities, ","))
	}
	if s.plan.User && s.plan.UID == 0 {
		args = append(args, "--rootless")
	}
	command := []string{"run"}
	if s.plan.Spec.Restore != "" {
		command = []string{restoreCommand, "--image-path=" + s.plan.Spec.Restore}
	}
	return append(append(args, command...),
		"--bundle="+filepath.Join(s.dir, dirBundle),
		"--pid-file="+filepath.Join(s.dir, filePid), cid)
}

// reap kills and collects whatever runsc left behind: as a subreaper the shim
// inherits it.
func reap(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := killAll(ctx, dir)
	for {
		pid, werr := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if pid <= 0 && !errors.Is(werr, unix.EINTR) {
			return err
		}
	}
}

// stop is the request of that name: SIGTERM, then SIGKILL after grace.
func (s *shim) stop(ctx context.Context, grace time.Duration) error {
	s.mu.Lock()
	if !s.stopped {
		s.stopped = true
		close(s.asked)
	}
	running := !s.started.IsZero()
	s.mu.Unlock()
	if !running || grace <= 0 {
		s.kill()
		return nil
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	for {
		err := s.engine.signal(ctx, unix.SIGTERM)
		if err == nil {
			break
		}
		select {
		case <-s.done:
			return nil
		case <-t.C:
			s.kill()
			return nil
		default:
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) { // else it is only slow to hear
			s.kill()
			return nil
		}
	}
	select {
	case <-s.done:
	case <-ctx.Done():
	case <-t.C:
		s.kill()
	}
	return nil
}

func (s *shim) signal(ctx context.Context, sig unix.Signal) error {
	c, err := dialSentry(ctx, s.dir)
	if err != nil {
		return err
	}
	defer c.close()
	return c.signal(sig, 0)
}

// kill ends the container at once. runsc is killed with it, so that it writes
// nothing into the job's stderr; what both leave is cleaned up by the shim.
func (s *shim) kill() {
	s.mu.Lock()
	s.killed = true
	s.mu.Unlock()
	select {
	case <-s.done:
		return // its process ids may be others' by now
	default:
	}
	s.engine.kill()
}

// exceed ends the container for a limit, the first one that says so.
func (s *shim) exceed(e Exceeded) {
	s.mu.Lock()
	first := s.exceeded == nil || !s.exceeded.Killed && e.Killed
	if first {
		s.exceeded = &e
	}
	s.mu.Unlock()
	if first && e.Killed {
		s.kill()
	}
}

func (s *shim) usageNow() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.usage
	u.Waited = s.waitedRunning()
	return u
}

// waitedRunning is how long the running program waited for its image. The lock
// is held.
func (s *shim) waitedRunning() time.Duration {
	if s.started.IsZero() {
		return 0
	}
	return s.lazy.waitedFor() - s.waitedBefore
}

// pinCPUs keeps this thread, and what it starts, to as many CPUs as the limit
// rounds up to. Which ones follows from seed, so that containers spread.
func pinCPUs(millis, seed int) error {
	var have, want unix.CPUSet
	if err := unix.SchedGetaffinity(0, &have); err != nil {
		return err
	}
	n := (millis + 999) / 1000
	if n >= have.Count() {
		return nil
	}
	var cpus []int
	for i := 0; len(cpus) < have.Count(); i++ {
		if have.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	for i := range n {
		want.Set(cpus[(seed*n+i)%len(cpus)])
	}
	return unix.SchedSetaffinity(0, &want)
}

// sandboxPid reads what runsc wrote, or 0.
func (s *shim) sandboxPid() int {
	data, err := readBounded(filepath.Join(s.dir, filePid), 64)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil {
		return 0
	}
	return pid
}
