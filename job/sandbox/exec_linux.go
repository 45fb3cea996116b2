package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Exec runs one more program in a running container and returns its exit code
// (126, 127 and 128+n as for a container). When ctx ends, the program is killed.
// The error says that it could not be run for the sandbox's reasons.
func (r *Runtime) Exec(ctx context.Context, id string, e ExecSpec) (code int, err error) {
	dir, err := r.folder(id)
	if err != nil {
		return CodeSandbox, err
	}
	if len(e.Args) == 0 {
		return CodeSandbox, fmt.Errorf("%w: no command", ErrSpec)
	}
	st, err := readState(dir)
	if err != nil {
		return CodeSandbox, err
	}
	if st.Phase != phaseRunning {
		return CodeSandbox, fmt.Errorf("%w: %s", ErrNotRunning, id)
	}
	x := &execution{dir: dir, spec: e}
	if x.plan, err = readPlan(dir); err != nil {
		return CodeSandbox, err
	}
	at, run := "", x.run
	if x.plan.OCI != "" {
		at, run = dir, x.runByShim // which sees what is there
	}
	if x.tmp, err = os.MkdirTemp(at, "lumbung-exec-"); err != nil {
		return CodeSandbox, err
	}
	defer func() { _ = os.RemoveAll(x.tmp) }()
	code, err = run(ctx)
	if err != nil {
		err = fmt.Errorf("exec in %s: %w", id, err)
	}
	return code, err
}

type execution struct {
	dir  string
	plan plan
	spec ExecSpec
	tmp  string
}

// execDelay is how long output is waited for after the program's end.
const execDelay = 2 * time.Second

func (x *execution) run(ctx context.Context) (int, error) {
	if err := x.writeProcess(); err != nil {
		return CodeSandbox, err
	}
	args := []string{
		"--root=" + filepath.Join(x.dir, dirRunsc),
		"--log=" + filepath.Join(x.tmp, execLog), "--log-format=json",
		"--network=none", "exec",
		"--process=" + filepath.Join(x.tmp, execProcess),
		"--internal-pid-file=" + filepath.Join(x.tmp, execPid),
	}
	// Not CommandContext's kill: the program inside must end first.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), x.plan.Runsc, append(args, cid)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	// What a program leaves running inside may hold its output open.
	cmd.WaitDelay = execDelay
	var finish func() error
	var err error
	if x.spec.TTY {
		finish, err = x.terminal(cmd)
	} else {
		finish, err = x.pipes(cmd)
	}
	if err != nil {
		return CodeSandbox, err
	}
	ended, killed := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(killed)
		x.kill(cmd.Process, ended)
	})
	waitErr := cmd.Wait()
	close(ended)
	if !stop() {
		<-killed
	}
	copyErr := finish()
	if ctx.Err() != nil {
		return codeSignal + int(unix.SIGKILL), context.Cause(ctx)
	}
	return x.result(waitErr, copyErr)
}

func (x *execution) result(waitErr, copyErr error) (int, error) {
	var ee *exec.ExitError
	if errors.Is(waitErr, exec.ErrWaitDelay) {
		waitErr = nil // it ended with 0
	}
	if waitErr != nil && !errors.As(waitErr, &ee) {
		return CodeSandbox, waitErr
	}
	if msg := lastError(filepath.Join(x.tmp, execLog)); msg != "" {
		return execFailure(msg)
	}
	if waitErr != nil {
		if ee.ExitCode() < 0 {
			return CodeSandbox, fmt.Errorf("runsc: %w", waitErr)
		}
		return ee.ExitCode(), nil
	}
	return 0, copyErr
}

// execFailure maps runsc's message as startFailure does.
func execFailure(msg string) (int, error) {
	switch {
	case strings.Contains(msg, "error finding executable"), strings.HasSuffix(msg, "no such file or directory"):
		return CodeNotFound, nil
	case strings.Contains(msg, "failed to load"), strings.HasSuffix(msg, "permission denied"), strings.HasSuffix(msg, "exec format error"):
		return CodeCannotExecute, nil
	}
	return CodeSandbox, errors.New(msg)
}

func (x *execution) writeProcess() error {
	var bundle specs.Spec
	if err := readJSON(filepath.Join(x.dir, dirBundle), "config.json", &bundle); err != nil {
		return err
	}
	p := bundle.Process
	p.Args = x.spec.Args
	p.Env = append(p.Env, x.spec.Env...)
	p.Terminal = x.spec.TTY
	if x.spec.TTY && os.Getenv("TERM") != "" {
		p.Env = append(p.Env, "TERM="+os.Getenv("TERM"))
	}
	if x.spec.Cwd != "" {
		p.Cwd = x.spec.Cwd
	}
	if x.spec.User != "" {
		id, err := parseUser(x.spec.User)
		if err != nil {
			return err
		}
		if x.plan.User && (id.uid != x.plan.UID || id.gid != x.plan.GID) {
			return fmt.Errorf("%w: this provider runs as an ordinary user: a container of it has only user %d:%d", ErrSpec, x.plan.UID, x.plan.GID)
		}
		p.User, p.Capabilities = specs.User{UID: id.uid, GID: id.gid}, capsOf(id)
	}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(x.tmp, execProcess), data, 0o600)
}

// parseUser reads uid[:gid].
func parseUser(s string) (id identity, err error) {
	user, group, has := strings.Cut(s, ":")
	if id.uid, err = parseID(user); err == nil && has {
		id.gid, err = parseID(group)
	}
	if err != nil {
		return id, fmt.Errorf("%w: user %q is not uid[:gid]", ErrSpec, s)
	}
	return id, nil
}

// pipes connects the streams. The copy of stdin may outlive the program when
// its reader blocks for ever, as a network stream may: nobody waits for it.
func (x *execution) pipes(cmd *exec.Cmd) (func() error, error) {
	cmd.Stdout, cmd.Stderr = x.spec.Stdout, x.spec.Stderr
	if x.spec.Stdin == nil {
		return func() error { return nil }, cmd.Start()
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(in, x.spec.Stdin)
		_ = in.Close()
	}()
	return func() error {
		_ = in.Close()
		releaseReader(x.spec.Stdin, done)
		return nil
	}, nil
}

// releaseReader waits for a copy from r to end, if r can be told to.
func releaseReader(r io.Reader, done <-chan struct{}) {
	switch c := r.(type) {
	case interface{ SetReadDeadline(time.Time) error }:
		if c.SetReadDeadline(time.Unix(1, 0)) == nil {
			<-done
		}
	case *strings.Reader:
		<-done
	}
}

// terminal starts cmd on a new pseudoterminal, which the program inside shares.
func (x *execution) terminal(cmd *exec.Cmd) (func() error, error) {
	master, replica, err := openTerminal()
	if err != nil {
		return nil, fmt.Errorf("opening a terminal: %w", err)
	}
	defer func() { _ = replica.Close() }()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = replica, replica, replica
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		_ = master.Close()
		return nil, err
	}
	return x.relay(master), nil
}

// relay copies between a terminal's own end and the caller until the function it
// gives is called, at the program's end.
func (x *execution) relay(master *os.File) func() error {
	var out sync.WaitGroup
	dst := x.spec.Stdout
	if dst == nil {
		dst = io.Discard
	}
	out.Go(func() { _, _ = io.Copy(dst, master) }) // ends with EIO when the program does
	inDone := make(chan struct{})
	go func() {
		defer close(inDone)
		if x.spec.Stdin != nil {
			_, _ = io.Copy(master, x.spec.Stdin)
			_, _ = master.Write([]byte{4}) // end of input, for a reader in line mode
		}
	}()
	ended := make(chan struct{})
	out.Go(func() { x.resize(master, ended) })
	return func() error {
		close(ended)
		// What is still in the terminal is read before it is closed.
		_ = master.SetReadDeadline(time.Now().Add(time.Second))
		out.Wait()
		_ = master.Close()
		if x.spec.Stdin != nil {
			releaseReader(x.spec.Stdin, inDone)
		}
		return nil
	}
}

func (x *execution) resize(master *os.File, ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case size, ok := <-x.spec.Resize:
			if !ok {
				return
			}
			raw, err := master.SyscallConn()
			if err != nil {
				return
			}
			_ = raw.Control(func(fd uintptr) {
				_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns})
			})
		}
	}
}

// openTerminal makes a pair whose master can be waited for and interrupted.
func openTerminal() (master, replica *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("/dev/ptmx: %w", err)
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
		// The peer by ioctl: /dev/pts may be another instance's here.
		peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno == 0 {
			return master, os.NewFile(peer, "terminal"), nil
		}
		err = errno
	}
	_ = master.Close()
	return nil, nil, err
}

// kill ends the program inside, then what waits for it outside, unless that
// ends by itself meanwhile.
func (x *execution) kill(p *os.Process, ended <-chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), urpcTimeout)
	defer cancel()
	defer func() { _ = p.Kill() }()
	pid := x.inside(ctx, ended)
	if pid == 0 {
		return
	}
	c, err := dialSentry(ctx, x.dir)
	if err != nil {
		return
	}
	defer c.close()
	_ = c.signal(unix.SIGKILL, pid)
}

// inside is the program's process id in the container, or 0. runsc writes it
// after the program has begun: it may have said something before.
func (x *execution) inside(ctx context.Context, ended <-chan struct{}) int {
	for {
		data, err := readBounded(filepath.Join(x.tmp, execPid), 64)
		if err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
				return pid
			}
		}
		select {
		case <-ended:
			return 0
		default:
		}
		if waitChange(ctx, minLook) != nil {
			return 0
		}
	}
}
