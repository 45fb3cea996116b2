package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// sentry talks to the control socket of a running sandbox, the same way the
// runsc command does: one JSON object per call over a Unix stream. The runsc is
// embedded and pinned, so that its protocol is known. Starting a runsc process
// of 83 MB for each look at a counter would cost more than the job.
type sentry struct {
	conn net.Conn
}

// errSentry is an answer "no" of the sandbox, as against no answer.
var errSentry = errors.New("the sandbox refused")

const (
	urpcTimeout = 2 * time.Second
	urpcAnswer  = 1 << 20 // bytes of one answer
)

// dialSentry connects to the sandbox of the container in dir.
func dialSentry(ctx context.Context, dir string) (*sentry, error) {
	conn, err := dialUnix(ctx, filepath.Join(dir, dirRunsc, "runsc-"+cid+".sock"))
	if err != nil {
		return nil, err
	}
	return &sentry{conn: conn}, nil
}

func (s *sentry) close() { _ = s.conn.Close() }

func (s *sentry) call(method string, arg, result any) error {
	return s.callFor(urpcTimeout, method, arg, result)
}

// callFor waits for the answer as long as limit says; 0 is for ever.
// Files go along with the request.
func (s *sentry) callFor(limit time.Duration, method string, arg, result any, files ...*os.File) error {
	deadline := time.Time{}
	if limit > 0 {
		deadline = time.Now().Add(limit)
	}
	if err := s.conn.SetDeadline(deadline); err != nil {
		return err
	}
	req, err := json.Marshal(map[string]any{"method": method, "arg": arg})
	if err != nil {
		return err
	}
	if err := s.send(req, files); err != nil {
		return fmt.Errorf("asking the sandbox for %s: %w", method, err)
	}
	var answer struct {
		Success bool            `json:"success"`
		Err     string          `json:"err"`
		Result  json.RawMessage `json:"result"`
	}
	// The sandbox holds hostile code: its answer is bounded like a peer's.
	if err := json.NewDecoder(io.LimitReader(s.conn, urpcAnswer)).Decode(&answer); err != nil {
		return fmt.Errorf("answer of the sandbox to %s: %w", method, err)
	}
	if !answer.Success {
		return fmt.Errorf("%w %s: %s", errSentry, method, answer.Err)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(answer.Result, result)
}

// send writes a request; descriptors travel with its first byte.
func (s *sentry) send(req []byte, files []*os.File) error {
	if len(files) == 0 {
		_, err := s.conn.Write(req)
		return err
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	n, _, err := s.conn.(*net.UnixConn).WriteMsgUnix(req, unix.UnixRights(fds...), nil)
	runtime.KeepAlive(files)
	if err == nil && n < len(req) {
		_, err = s.conn.Write(req[n:])
	}
	return err
}

// run starts one more program, given as an open file or, where that is nil, by
// the name of a file inside, as a user without any capability. The files are its
// descriptors from 0 on.
func (s *sentry) run(uid, gid uint32, args []string, program *os.File, files ...*os.File) error {
	guest := make([]int, len(files))
	for i := range files {
		guest[i] = i
	}
	arg := map[string]any{
		"ContainerID": cid, "argv": args, "envv": []string{}, "wd": "/", "KUID": uid, "KGID": gid,
		"NoNewPrivileges": true, "Capabilities": map[string]any{}, "GuestFDs": guest,
	}
	if program == nil {
		arg["filename"] = args[0]
	} else {
		files = append(files[:len(files):len(files)], program)
	}
	var pid int32
	return s.callFor(urpcTimeout, "containerManager.ExecuteAsync", arg, &pid, files...)
}

// running says whether the program inside has been started.
func (s *sentry) running() (bool, error) {
	var st int
	err := s.call("containerManager.ContainerRuntimeState", cid, &st)
	return st >= 2, err // invalid, creating, running, stopped
}

// signal sends to the container's first process, or to pid.
func (s *sentry) signal(sig unix.Signal, pid int) error {
	return s.call("containerManager.Signal", map[string]any{"CID": cid, "Signo": int(sig), "PID": pid, "Mode": 0}, nil)
}

// wait gives the wait status of the container's first process, when it has
// ended. It fails when the sandbox ends without saying.
func (s *sentry) wait() (unix.WaitStatus, error) {
	var status uint32
	err := s.callFor(0, "containerManager.Wait", cid, &status)
	return unix.WaitStatus(status), err
}

// counters are the sandbox's own: CPU time and the number of processes.
func (s *sentry) counters() (cpu time.Duration, pids uint64, err error) {
	var out struct {
		Event struct {
			Data struct {
				Pids struct {
					Current uint64 `json:"current"`
				} `json:"pids"`
			} `json:"data"`
		} `json:"event"`
		ContainerUsage map[string]uint64 `json:"containerUsage"`
	}
	if err := s.call("containerManager.Event", cid, &out); err != nil {
		return 0, 0, err
	}
	return time.Duration(out.ContainerUsage[cid]), out.Event.Data.Pids.Current, nil //nolint:gosec // nanoseconds of CPU
}

// dialUnix connects to a socket whose path may be longer than the kernel takes.
func dialUnix(ctx context.Context, name string) (net.Conn, error) {
	f, err := os.OpenFile(filepath.Dir(name), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), filepath.Base(name)))
}
