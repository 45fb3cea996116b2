// Command job is the static program that the sandbox's tests run inside.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		os.Exit(0)
	}
	// "a ; b ; c" runs several steps.
	var step []string
	for _, a := range append(os.Args[1:], ";") {
		if a != ";" {
			step = append(step, a)
			continue
		}
		run(step[0], step[1:])
		step = nil
	}
}

func check(err error) {
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(3)
	}
}

func crowd(args []string) {
	n, err := strconv.Atoi(args[1])
	check(err)
	var wg sync.WaitGroup
	var right atomic.Int64
	for i := range n {
		name := filepath.Join(args[0], strconv.Itoa(i))
		wg.Go(func() {
			if data, err := os.ReadFile(name); err == nil && string(data) == name {
				right.Add(1)
			}
		})
	}
	wg.Wait()
	fmt.Println("right:", right.Load())
}

func report(what string, err error) { fmt.Println(what+":", err) }

func run(op string, args []string) {
	switch op {
	case "echo":
		fmt.Println(strings.Join(args, " "))
	case "warn":
		fmt.Fprintln(os.Stderr, strings.Join(args, " "))
	case "exit":
		n, _ := strconv.Atoi(args[0])
		os.Exit(n)
	case "sleep":
		d, err := time.ParseDuration(args[0])
		check(err)
		time.Sleep(d)
	case "count": // N every D
		n, _ := strconv.Atoi(args[0])
		d, err := time.ParseDuration(args[1])
		check(err)
		for i := range n {
			fmt.Println("line", i)
			time.Sleep(d)
		}
	case "signal": // kill oneself
		n, _ := strconv.Atoi(args[0])
		signal.Reset()
		pid := os.Getpid()
		check(syscall.Kill(pid, syscall.Signal(n)))
		time.Sleep(time.Second)
	case "child": // a child killed by a signal gives this program's code
		cmd := exec.Command("/job", "sleep", "1h")
		check(cmd.Start())
		check(cmd.Process.Kill())
		_ = cmd.Wait()
	case "trap": // ends with 7 on SIGTERM
		ch := make(chan os.Signal, 1)
		signal.Notify(ch, syscall.SIGTERM)
		fmt.Println("ready")
		<-ch
		fmt.Println("bye")
		os.Exit(7)
	case "trapeat": // eats memory from SIGTERM on
		ch := make(chan os.Signal, 1)
		signal.Notify(ch, syscall.SIGTERM)
		fmt.Println("ready")
		<-ch
		run("eat", nil)
	case "deaf":
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "eat": // memory
		fmt.Println("eating")
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
		}
	case "hold": // N MiB for D
		n, _ := strconv.Atoi(args[0])
		b := bytes.Repeat([]byte{1}, n<<20)
		d, _ := time.ParseDuration(args[1])
		time.Sleep(d)
		fmt.Println("held", len(b)>>20)
	case "bomb": // forks until it cannot, then stays
		var n int
		for {
			cmd := exec.Command("/job", "sleep", "1h")
			if err := cmd.Start(); err != nil {
				fmt.Println("refused after", n, err)
				break
			}
			n++
		}
		time.Sleep(time.Second)
		os.Exit(9)
	case "fill": // PATH until it cannot
		f, err := os.Create(args[0])
		check(err)
		b := bytes.Repeat([]byte("x"), 1<<20)
		total := 0
		for {
			n, err := f.Write(b)
			total += n
			if err != nil {
				fmt.Println("filled", total>>20, err)
				break
			}
		}
		os.Exit(5)
	case "tiny": // empty files in DIR until it cannot
		for i := 0; ; i++ {
			if err := os.WriteFile(filepath.Join(args[0], strconv.Itoa(i)), nil, 0o600); err != nil {
				fmt.Println("made", i, err)
				os.Exit(5)
			}
		}
	case "flood": // N MiB to stdout as fast as it goes
		n, _ := strconv.Atoi(args[0])
		b := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
		for range n {
			if _, err := os.Stdout.Write(b); err != nil {
				os.Exit(4)
			}
		}
	case "spin":
		d, _ := time.ParseDuration(args[0])
		for end := time.Now().Add(d); time.Now().Before(end); {
		}
	case "spinners": // N at once for D, each for a moment at a time in a process of its own
		n, _ := strconv.Atoi(args[0])
		d, _ := time.ParseDuration(args[1])
		end := time.Now().Add(d)
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				for time.Now().Before(end) {
					_ = exec.Command("/job", "spin", "20ms").Run()
				}
			})
		}
		wg.Wait()
	case "crunch": // N threads at work for D
		n, _ := strconv.Atoi(args[0])
		d, _ := time.ParseDuration(args[1])
		end := time.Now().Add(d)
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				for time.Now().Before(end) {
				}
			})
		}
		wg.Wait()
	case "background": // N threads at work from now on
		n, _ := strconv.Atoi(args[0])
		for range n {
			go func() {
				for {
				}
			}()
		}
	case "syscalls": // N threads in system calls for D
		n, _ := strconv.Atoi(args[0])
		d, _ := time.ParseDuration(args[1])
		end := time.Now().Add(d)
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				f, err := os.Open("/dev/zero")
				check(err)
				b := make([]byte, 8<<20)
				for time.Now().Before(end) {
					_, _ = f.Read(b)
				}
			})
		}
		wg.Wait()
	case "write":
		report("write "+args[0], os.WriteFile(args[0], []byte(strings.Join(args[1:], " ")), 0o644))
	case "mustwrite":
		check(os.WriteFile(args[0], []byte(strings.Join(args[1:], " ")), 0o644))
	case "mkdir":
		mode, err := strconv.ParseUint(args[1], 8, 32)
		check(err)
		syscall.Umask(0)
		check(os.Mkdir(args[0], os.FileMode(mode)))
	case "chmod":
		mode, err := strconv.ParseUint(args[1], 8, 32)
		check(err)
		check(syscall.Chmod(args[0], uint32(mode)))
	case "remove":
		report("remove "+args[0], os.RemoveAll(args[0]))
	case "cat":
		b, err := os.ReadFile(args[0])
		if err != nil {
			report("cat "+args[0], err)
			return
		}
		os.Stdout.Write(b)
	case "stat":
		fi, err := os.Stat(args[0])
		check(err)
		fmt.Println(fi.Size(), fi.Mode(), fi.ModTime().UTC().Format(time.RFC3339))
	case "hash": // SHA-256, mode and owner of a file
		b, err := os.ReadFile(args[0])
		check(err)
		fi, err := os.Stat(args[0])
		check(err)
		own := fi.Sys().(*syscall.Stat_t)
		fmt.Printf("%x %v %d:%d\n", sha256.Sum256(b), fi.Mode(), own.Uid, own.Gid)
	case "mapped": // PATH, read through a mapping
		f, err := os.Open(args[0])
		check(err)
		fi, err := f.Stat()
		check(err)
		b, err := syscall.Mmap(int(f.Fd()), 0, int(fi.Size()), syscall.PROT_READ, syscall.MAP_PRIVATE)
		check(err)
		fmt.Printf("%s\n", b)
	case "crowd": // DIR N: read DIR/0 to DIR/N-1 at once; each holds its own name
		crowd(args)
	case "ls":
		entries, err := os.ReadDir(args[0])
		check(err)
		for _, e := range entries {
			fmt.Println(e.Name())
		}
	case "who":
		groups, _ := os.Getgroups()
		host, _ := os.Hostname()
		cwd, _ := os.Getwd()
		fmt.Printf("uid=%d gid=%d groups=%v cwd=%s host=%s home=%s x=%s\n", os.Getuid(), os.Getgid(), groups, cwd, host, os.Getenv("HOME"), os.Getenv("X"))
	case "status":
		f, err := os.Open("/proc/self/status")
		check(err)
		for s := bufio.NewScanner(f); s.Scan(); {
			if k, v, _ := strings.Cut(s.Text(), ":"); strings.HasPrefix(k, "Cap") || k == "NoNewPrivs" {
				fmt.Println(k, strings.TrimSpace(v))
			}
		}
	case "tries": // what must not work
		report("mount", syscall.Mount("none", "/tmp", "tmpfs", 0, ""))
		report("mknod", syscall.Mknod("/sda", syscall.S_IFBLK|0o600, 8<<8))
		_, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_RAW, 1)
		report("raw", err)
		_, err = net.DialTimeout("tcp", "1.1.1.1:80", time.Second)
		report("net", err)
		_, err = net.Listen("tcp", "127.0.0.1:0")
		report("loopback", err)
	case "work":
		work(args[0])
	case "forbidden":
		forbidden()
	case "files": // open files until it cannot
		n := 0
		for {
			if _, err := os.Open("/job"); err != nil {
				fmt.Println("opened", n, err)
				more := syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}
				report("raise", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &more))
				_, _, errno := syscall.Syscall(syscall.SYS_DUP3, 1, 5000, 0)
				report("beyond", errno)
				return
			}
			n++
		}
	case "stopothers": // stops every process but the first and this one
		entries, err := os.ReadDir("/proc")
		check(err)
		for _, e := range entries {
			if pid, err := strconv.Atoi(e.Name()); err == nil && pid > 1 && pid != os.Getpid() {
				check(syscall.Kill(pid, syscall.SIGSTOP))
			}
		}
	case "serve":
		serve(args)
	case "addone":
		addone()
	case "tick":
		tick(args)
	case "upper": // stdin to stdout in capitals
		b, err := io.ReadAll(os.Stdin)
		check(err)
		os.Stdout.WriteString(strings.ToUpper(string(b)))
		fmt.Fprintln(os.Stderr, "done")
	case "tty": // a line in, the terminal's size and the line out
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		check(err)
		fmt.Printf("terminal %s line %s", size(), line)
	default:
		if !hostile(op, args) && !netStep(op, args) {
			fmt.Println("unknown step", op)
			os.Exit(2)
		}
	}
}
