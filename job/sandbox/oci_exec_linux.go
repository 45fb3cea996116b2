package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The shim of an OCI runtime's container answers "exec" twice: when the program
// runs, with the terminal's own end if it has one, and when it has ended. The
// request brings the program's three streams, if it has no terminal. Whoever
// hangs up before the second answer ends the program.
type execAnswer struct {
	Error string `json:"error,omitempty"` // of the sandbox
	Code  int    `json:"code"`
	Ended bool   `json:"ended"`
}

// Names in the folder of one exec.
const (
	execProcess = "process.json"
	execLog     = "log"
	execPid     = "pid"
	execConsole = "console.sock"
)

// maxRights bounds the descriptors of one message.
const maxRights = 4

// exec is the shim's side.
func (o *oci) exec(ctx context.Context, conn *net.UnixConn, folder string, files []*os.File) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() { _ = conn.Close() }()
	defer cancel()
	_ = conn.SetDeadline(time.Time{})
	wg.Go(func() { // notices a caller that leaves
		_, _ = io.Copy(io.Discard, conn)
		cancel()
	})
	pid, console, code, err := o.beginExec(ctx, folder, files)
	closeAll(files)
	if err != nil || code != 0 {
		_ = sendAnswer(conn, execAnswer{Error: errText(err), Code: code, Ended: true}, nil)
		return
	}
	err = sendAnswer(conn, execAnswer{}, console)
	if console != nil {
		_ = console.Close()
	}
	if err != nil {
		cancel()
	}
	_ = sendAnswer(conn, execAnswer{Code: waitOrKill(ctx, pid), Ended: true}, nil)
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return boundedText(err.Error())
}

// beginExec has the runtime start a program, or gives docker's code for one that
// cannot be.
func (o *oci) beginExec(ctx context.Context, folder string, files []*os.File) (pid int, console *os.File, code int, err error) {
	select {
	case <-o.runs:
	default:
		return 0, nil, 0, ErrNotRunning
	}
	var p specs.Process
	if err := readJSON(folder, execProcess, &p); err != nil {
		return 0, nil, 0, err
	}
	if code, _ := runnable(o.init, p.Args[0], p.Cwd, p.Env); code != 0 {
		return 0, nil, code, nil
	}
	log := filepath.Join(folder, execLog)
	args := []string{"exec", "--detach", "--process=" + filepath.Join(folder, execProcess), "--pid-file=" + filepath.Join(folder, execPid)}
	var terminal net.Listener
	if p.Terminal {
		if terminal, err = listenUnix(ctx, "unix", filepath.Join(folder, execConsole)); err != nil {
			return 0, nil, 0, err
		}
		defer func() { _ = terminal.Close() }()
		args = append(args, "--console-socket="+execConsole)
	}
	cmd := ociCommand(o.plan, o.dir, log, append(args, cid)...)
	cmd.Dir = folder // paths of sockets are short
	if len(files) == 3 {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	}
	if console, err = o.runExec(cmd, terminal); err != nil {
		return 0, nil, 0, o.execFailed(log, err)
	}
	data, err := readBounded(filepath.Join(folder, execPid), 64)
	if err == nil {
		pid, err = strconv.Atoi(strings.TrimSpace(string(data)))
	}
	return pid, console, 0, err
}

// terminalTime is how long a terminal that was sent is waited for once its sender
// has ended.
const terminalTime = time.Second

// runExec runs the runtime's command, and takes the terminal it makes.
func (o *oci) runExec(cmd *exec.Cmd, terminal net.Listener) (console *os.File, err error) {
	if err := o.begin(cmd); err != nil {
		return nil, err
	}
	if terminal == nil {
		return nil, cmd.Wait()
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		// Who never came will not; who came may wait to be let in.
		_ = terminal.(*net.UnixListener).SetDeadline(time.Now().Add(terminalTime))
		ended <- err
	}()
	conn, err := terminal.Accept()
	if err == nil {
		defer func() { _ = conn.Close() }()
		_, got, rerr := receive(conn.(*net.UnixConn), make([]byte, 4096))
		if err = rerr; err == nil && len(got) != 1 {
			err = errors.New("the runtime sent no terminal")
		}
		if len(got) > 0 {
			console = got[0]
			closeAll(got[1:])
		}
	}
	if werr := <-ended; werr != nil {
		err = werr
	}
	if err != nil && console != nil {
		_ = console.Close()
		console = nil
	}
	return console, err
}

func (o *oci) execFailed(log string, err error) error {
	return errors.New(join(lastError(log), err.Error()))
}

// waitOrKill waits for a process that the runtime left to the shim, and gives
// docker's code of its end. It is killed when ctx ends.
func waitOrKill(ctx context.Context, pid int) int {
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(killed)
		_ = unix.Kill(pid, unix.SIGKILL) // not collected yet, so nobody else's
	})
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		_ = waitPidfd(context.Background(), fd)
		_ = unix.Close(fd)
	}
	if !stop() {
		<-killed
	}
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil: // collected at the container's end
			return codeSignal + int(unix.SIGKILL)
		case status.Signaled():
			return codeSignal + int(status.Signal())
		}
		return status.ExitStatus()
	}
}

// dial connects a socket of the container's own network namespace: the thread
// that enters it does nothing else and ends.
func (o *oci) dial(ctx context.Context, port uint16) (*os.File, error) {
	select {
	case <-o.runs:
	default:
		return nil, ErrNotRunning
	}
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		f, err := dialInside(ctx, o.init, port)
		done <- result{f, err}
	}()
	r := <-done
	return r.f, r.err
}

func dialInside(ctx context.Context, pid int, port uint16) (*os.File, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, ErrNotRunning
	}
	defer func() { _ = ns.Close() }()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("entering the container's network: %w", err)
	}
	var d net.Dialer
	var conn net.Conn
	for _, host := range []string{"127.0.0.1", "::1"} {
		if conn, err = d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port)))); err == nil {
			break
		}
	}
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil, ErrNotListening
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return conn.(*net.TCPConn).File()
}

// sendAnswer writes one line, and a descriptor with it if there is one.
func sendAnswer(conn *net.UnixConn, a any, f *os.File) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	_ = conn.SetWriteDeadline(time.Now().Add(controlTimeout))
	_, _, err = conn.WriteMsgUnix(append(data, '\n'), rights, nil)
	runtime.KeepAlive(f)
	return err
}

// receive reads what comes next, and the descriptors with it.
func receive(conn *net.UnixConn, buf []byte) (n int, files []*os.File, err error) {
	oob := make([]byte, unix.CmsgSpace(4*maxRights))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if n <= 0 && err == nil {
		err = io.EOF
	}
	n, oobn = max(n, 0), max(oobn, 0) // negative with an error
	messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
	for _, m := range messages {
		fds, _ := unix.ParseUnixRights(&m)
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received")) //nolint:gosec // a descriptor
		}
	}
	return n, files, err
}

// readAnswer reads one answer, which the shim writes at one time, and the
// descriptor with it. What of a later one came along is left in rest.
func readAnswer(conn *net.UnixConn, rest *bytes.Buffer, a any) (*os.File, error) {
	var file *os.File
	for {
		if line, err := rest.ReadBytes('\n'); err == nil {
			return file, json.Unmarshal(line, a)
		} else if rest.Write(line); rest.Len() > maxControl {
			return file, errors.New("its answer is too long")
		}
		buf := make([]byte, 8192)
		n, files, err := receive(conn, buf)
		rest.Write(buf[:n])
		if len(files) > 0 && file == nil {
			file, files = files[0], files[1:]
		}
		closeAll(files)
		if err != nil {
			return file, err
		}
	}
}
