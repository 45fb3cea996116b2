package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// readBounded reads a file that should be small.
func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %s", name, bytesText(uint64(limit))) //nolint:gosec // positive
	}
	return data, err
}

// processesOf lists the processes of the container in dir, except this one:
// runsc's carry its state folder in their arguments, a shim the folder itself.
// Only this finds what a killed shim may have left.
func processesOf(dir string) []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && pid != os.Getpid() && belongs(dir, pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func belongs(dir string, pid int) bool {
	line, err := readBounded(fmt.Sprintf("/proc/%d/cmdline", pid), 1<<20)
	return err == nil && (bytes.Contains(line, []byte("--root="+filepath.Join(dir, dirRunsc)+"\x00")) ||
		bytes.Contains(line, []byte(ShimArg+"\x00"+dir+"\x00")))
}

// killAll ends every process of the container and waits until none is left.
func killAll(ctx context.Context, dir string) error {
	for {
		pids := processesOf(dir)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := killPid(ctx, dir, pid); err != nil {
				return err
			}
		}
	}
}

// killPid kills one process by a handle that cannot come to mean another one,
// and waits for its end.
func killPid(ctx context.Context, dir string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil //nolint:nilerr // it is gone
	}
	defer func() { _ = unix.Close(fd) }()
	// The handle is held: if the arguments are still ours, so is the process.
	if !belongs(dir, pid) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return fmt.Errorf("killing process %d of %s: %w", pid, dir, err)
	}
	return waitPidfd(ctx, fd)
}

// killOwn kills a process of the container in dir, if that is what pid still is.
func killOwn(dir string, pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	if belongs(dir, pid) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// waitPidfd waits for the end of a process.
func waitPidfd(ctx context.Context, fd int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100) //nolint:gosec // a descriptor
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case n > 0:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("a killed process does not end: %w", context.Cause(ctx))
		}
	}
}

// waitChange lets a loop that watches a file system wait.
func waitChange(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
