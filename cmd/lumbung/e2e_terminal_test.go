//go:build e2e

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminalPair opens both ends of a new terminal.
func terminalPair(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	must(t, err)
	t.Cleanup(func() { _ = person.Close() })
	must(t, onFD(person, func(fd int) error { return unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0) }))
	var n int
	must(t, onFD(person, func(fd int) (err error) { n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN); return err }))
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { _ = program.Close() })
	must(t, person.SetDeadline(time.Now().Add(e2eWait)))
	return person, program
}

// onFD leaves the file as it is, which File.Fd does not.
func onFD(f *os.File, do func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var doErr error
	err = conn.Control(func(fd uintptr) { doErr = do(int(fd)) })
	return errors.Join(err, doErr)
}

// A person's terminal: its size and its changes come to the program inside, ^C is
// the program's and not the command's, and the terminal is afterwards as it was.
func TestE2ETerminal(t *testing.T) {
	t.Parallel()
	w := sharedNet.get(t)
	spec, out := untilTold(t)
	j := w.renter.submit(t, spec)
	w.renter.awaitLine(t, j.ID, "line 1")
	person, program := terminalPair(t)
	resize := func(columns, rows uint16) {
		t.Helper()
		must(t, onFD(person, func(fd int) error {
			return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows})
		}))
	}
	modes := func() (m *unix.Termios) {
		t.Helper()
		must(t, onFD(program, func(fd int) (err error) { m, err = unix.IoctlGetTermios(fd, unix.TCGETS); return err }))
		return m
	}
	before := modes()
	resize(100, 30)
	cmd := w.renter.command(boundedBy(t, e2eWait), w.dir, "exec", "-it", j.ID, "--", "/job", "terminal")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
	cmd.SysProcAttr.Setctty = true
	must(t, cmd.Start())
	var seen strings.Builder
	until := func(text string) {
		t.Helper()
		buf := make([]byte, 4096)
		for !strings.Contains(seen.String(), text) {
			n, err := person.Read(buf)
			seen.Write(buf[:n])
			if err != nil {
				t.Fatalf("%v, after %q", err, seen.String())
			}
		}
	}
	until("size 100x30\r\n")
	if raw := modes(); raw.Lflag&(unix.ISIG|unix.ICANON|unix.ECHO) != 0 {
		t.Errorf("the terminal is not raw: %x", raw.Lflag)
	}
	resize(77, 20)
	until("size 77x20\r\n")
	_, err := person.WriteString("\x03")
	must(t, err)
	until("interrupted\r\n")
	var ended *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &ended) || ended.ExitCode() != 9 {
		t.Errorf("it ended with %v; %q", err, seen.String())
	}
	if after := modes(); *after != *before {
		t.Errorf("the terminal is %+v, and was %+v", after, before)
	}
	w.renter.goOn(t, j.ID, out)
}
