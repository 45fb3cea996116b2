// Command e2ejob is the program that the end-to-end tests run in containers.
// It is built static and is the whole of its image.
package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		return // a job that does nothing
	}
	arg := func(i int) string {
		if len(os.Args) <= i+1 {
			die("%s: too few arguments", os.Args[1])
		}
		return os.Args[i+1]
	}
	switch os.Args[1] {
	case "noop":
	case "lines": // COUNT DELAY: a unique id, then numbered lines at a steady pace
		lines(span(arg(2)), func(printed int) bool { return printed == number(arg(1)) })
	case "until": // DIR DELAY: like lines, until it finds a file named go in the folder
		lines(span(arg(2)), func(int) bool {
			_, err := os.Stat(filepath.Join(arg(1), "go"))
			return err == nil
		})
	case "fail": // DIR CODE: like write, and then fails
		write(arg(1))
		os.Exit(number(arg(2)))
	case "exit":
		os.Exit(number(arg(1)))
	case "say":
		fmt.Println(strings.Join(os.Args[2:], " "))
		fmt.Fprintln(os.Stderr, "to stderr")
	case "cat": // stdin, or files
		cat(os.Args[2:])
	case "hash": // FILES: the SHA-256 and the mode of each
		hash(os.Args[2:])
	case "keep": // FILES: hash, before and after it is asked to end
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		hash(os.Args[2:])
		fmt.Println("ready")
		<-term
		hash(os.Args[2:])
	case "env":
		fmt.Println(os.Getenv(arg(1)))
	case "write": // DIR: files of several modes, below the folder
		write(arg(1))
	case "ls": // DIR: name, mode and content of all that is below
		list(arg(1))
	case "copy": // FROM TO: all that is in a folder
		check(os.CopyFS(arg(2), os.DirFS(arg(1))))
	case "terminal": // tells its size at each change, until it is interrupted
		terminal()
	case "touch":
		check(os.WriteFile(arg(1), nil, 0o644))
	case "stages": // DIR: writes a file, and another when it finds one named go
		stages(arg(1))
	case "reach": // what a program sees of a network, and asks of it
		cat([]string{"/etc/resolv.conf", "/proc/net/dev"})
		_, err := net.LookupHost("www.example.com")
		fmt.Println("lookup", err != nil)
		for _, addr := range os.Args[2:] {
			_, err := net.Dial("tcp", addr)
			fmt.Println(err)
		}
	case "serve":
		serve()
	case "service": // DIR: unwell until it finds a file named go in the folder
		service(arg(1))
	case "counter":
		counter()
	case "hang":
		select {}
	case "tick": // like hang, but with a timer, so that the runtime sees no deadlock
		for range time.Tick(time.Second) {
		}
	case "polite": // ends by itself when it is asked to, with 7
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		fmt.Println("waiting")
		<-term
		fmt.Println("asked to stop")
		os.Exit(7)
	case "stubborn": // does not care
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("waiting")
		for range time.Tick(time.Second) {
		}
	case "eat": // memory, until it is ended for it
		for all := [][]byte{}; ; {
			all = append(all, bytes.Repeat([]byte{1}, 1<<20))
		}
	case "burn":
		for end := time.Now().Add(span(arg(1))); time.Now().Before(end); {
		}
	case "odd": // fails where the array's index is odd
		fmt.Println("index", os.Getenv("LUMBUNG_INDEX"), "first", os.Getenv("LUMBUNG_FIRST"), "last", os.Getenv("LUMBUNG_LAST"))
		if number(os.Getenv("LUMBUNG_INDEX"))%2 == 1 {
			os.Exit(9)
		}
	default:
		die("unknown mode %q", os.Args[1])
	}
}

func lines(delay time.Duration, enough func(printed int) bool) {
	fmt.Println("id", rand.Text())
	t := time.NewTicker(max(delay, 1))
	defer t.Stop()
	count := 0
	for !enough(count) {
		<-t.C
		count++
		fmt.Println("line", count)
	}
	if info, err := os.Stat("/out"); err == nil && info.IsDir() {
		check(os.WriteFile("/out/count", []byte(strconv.Itoa(count)), 0o600))
	}
}

func hash(names []string) {
	for _, name := range names {
		raw, err := os.ReadFile(name)
		check(err)
		info, err := os.Stat(name)
		check(err)
		fmt.Printf("%x %s\n", sha256.Sum256(raw), info.Mode())
	}
}

func cat(names []string) {
	if len(names) == 0 {
		_, err := io.Copy(os.Stdout, os.Stdin)
		check(err)
	}
	for _, name := range names {
		raw, err := os.ReadFile(name)
		check(err)
		_, err = os.Stdout.Write(raw)
		check(err)
	}
}

func write(dir string) {
	check(os.MkdirAll(filepath.Join(dir, "sub"), 0o755))
	for name, mode := range map[string]os.FileMode{"plain": 0o644, "tool": 0o755, "sub/secret": 0o600} {
		name = filepath.Join(dir, name)
		check(os.WriteFile(name, []byte(filepath.Base(name)+"\n"), mode))
		check(os.Chmod(name, mode))
	}
}

func stages(dir string) {
	check(os.WriteFile(filepath.Join(dir, "stage1"), []byte("one\n"), 0o644))
	fmt.Println("stage 1")
	for range time.Tick(50 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, "go")); err == nil {
			break
		}
	}
	check(os.WriteFile(filepath.Join(dir, "stage2"), []byte("two\n"), 0o644))
}

func list(dir string) {
	check(filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		raw, err := os.ReadFile(path)
		fmt.Printf("%s %o %s\n", path, info.Mode().Perm(), strings.TrimSpace(string(raw)))
		return err
	}))
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	check(err)
	return n
}

func span(s string) time.Duration {
	d, err := time.ParseDuration(s)
	check(err)
	return d
}

func check(err error) {
	if err != nil {
		die("%v", err)
	}
}

func die(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(99)
}

func terminal() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGWINCH, syscall.SIGINT)
	for {
		size, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		check(err)
		fmt.Printf("size %dx%d\n", size.Col, size.Row)
		if <-signals == syscall.SIGINT {
			fmt.Println("interrupted")
			os.Exit(9)
		}
	}
}
