//go:build !windows

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"
)

// ownSession takes a process out of the terminal's reach: a ^C there is not
// for it.
func ownSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// alive reports whether a process runs. One that has ended and that nobody has
// taken note of does not.
func alive(pid int) bool {
	if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist) || !hasProc()
	}
	// The state follows the name, which stands in brackets and may hold any.
	i := bytes.LastIndexByte(stat, ')')
	return i < 0 || len(stat) < i+3 || stat[i+2] != 'Z'
}

// hasProc reports whether this system shows its processes as files.
func hasProc() bool {
	_, err := os.Stat("/proc/self/stat")
	return err == nil
}
