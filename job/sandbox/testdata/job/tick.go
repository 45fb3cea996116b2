package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// tick counts for ever, every D, in its memory, in each of FILES, in a file that
// has no name any more, and through a child that adds one; all must agree.
func tick(args []string) {
	every, err := time.ParseDuration(args[0])
	check(err)
	child := exec.Command("/proc/self/exe", "addone")
	in, err := child.StdinPipe()
	check(err)
	out, err := child.StdoutPipe()
	check(err)
	check(child.Start())
	files := map[string]*os.File{}
	for _, name := range args[1:] {
		files[name], err = os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o644)
		check(err)
	}
	nameless, err := os.CreateTemp("/tmp", "")
	check(err)
	check(os.Remove(nameless.Name()))
	files["nameless"] = nameless
	for n := 0; ; time.Sleep(every) {
		for name, f := range files {
			b := make([]byte, 32)
			k, err := f.ReadAt(b, 0)
			if err != nil && !errors.Is(err, io.EOF) {
				check(fmt.Errorf("%s: %w", name, err))
			}
			if got := strings.TrimSpace(string(b[:k])); n > 0 && got != strconv.Itoa(n) {
				check(fmt.Errorf("%s holds %q and not %d", name, got, n))
			}
		}
		_, err := fmt.Fprintln(in, n)
		check(err)
		_, err = fmt.Fscan(out, &n)
		check(err)
		for _, f := range files {
			_, err := f.WriteAt([]byte(strconv.Itoa(n)+"\n"), 0)
			check(err)
		}
		fmt.Printf("tick %d pid %d child %d x %s\n", n, os.Getpid(), child.Process.Pid, os.Getenv("X"))
	}
}

// addone gives each number of stdin plus one.
func addone() {
	for {
		var n int
		if _, err := fmt.Scan(&n); err != nil {
			return
		}
		fmt.Println(n + 1)
	}
}
