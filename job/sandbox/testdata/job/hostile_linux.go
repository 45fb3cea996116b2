package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hostile does what a job should not; false says that op is no such step.
func hostile(op string, args []string) bool {
	switch op {
	case "forks": // every process starts two more, for ever
		for {
			for range 2 {
				_ = exec.Command("/job", "forks").Start()
			}
			time.Sleep(time.Millisecond)
		}
	case "many": // empty files in DIR until it cannot, as fast as it goes
		for i := 0; ; i++ {
			if i%1000 == 0 {
				fmt.Println("made", i)
			}
			check(syscall.Mknod(filepath.Join(args[0], strconv.Itoa(i)), syscall.S_IFREG|0o600, 0))
		}
	case "flood-all": // fills every folder that it can
		for _, dir := range []string{"/", "/tmp", "/dev/shm", "/dev", "/out"} {
			fmt.Printf("%s: %s\n", dir, fillUp(filepath.Join(dir, "big")))
		}
		os.Exit(5)
	case "privileges":
		privileges()
	case "host": // MARKER PATH...: looks for a file of the host's through every mount
		lookForHost(args)
	case "timebomb": // leaves processes behind that would write later
		for _, dir := range args {
			cmd := exec.Command("/job", "bomb-later", dir)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			check(cmd.Start())
		}
		fmt.Println("left", len(args))
	case "bomb-later":
		signal.Ignore(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
		for n := 0; ; n++ {
			_ = os.WriteFile(filepath.Join(args[0], "late"), []byte(strconv.Itoa(n)), 0o600)
			time.Sleep(time.Millisecond)
		}
	case "zombies": // N children that end and are never waited for
		n, _ := strconv.Atoi(args[0])
		for i := range n {
			cmd := exec.Command("/job", "exit", "0")
			if err := cmd.Start(); err != nil {
				fmt.Println("refused after", i, err)
				return true
			}
			// One after the other: while they live, each has several threads.
			check(unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil))
		}
		fmt.Println("zombies", n)
	case "orphans": // N grandchildren whose parents are gone
		n, _ := strconv.Atoi(args[0])
		for range n {
			_ = exec.Command("/job", "orphan").Run()
		}
		fmt.Println("orphans", n)
	case "orphan":
		check(exec.Command("/job", "exit", "0").Start())
	case "shoot": // all signals at process 1 and at everybody, from a child
		cmd := exec.Command("/job", "shooter")
		cmd.Stdout = os.Stdout
		_ = cmd.Run()
		fmt.Println("still here")
	case "shooter":
		for sig := syscall.Signal(1); sig < 65; sig++ {
			_ = syscall.Kill(1, sig)
			_ = syscall.Kill(-1, sig)
		}
	case "stopall": // SIGSTOP for everybody, itself too
		_ = syscall.Kill(-1, syscall.SIGSTOP)
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	default:
		return false
	}
	return true
}

// fillUp writes a file until it cannot.
func fillUp(name string) string {
	f, err := os.Create(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	b := bytes.Repeat([]byte("x"), 1<<20)
	for {
		if _, err := f.Write(b); err != nil {
			return err.Error()
		}
	}
}

// privileges tries what needs the machine, and says what came of it.
func privileges() {
	raw := func(what string, nr uintptr, args ...uintptr) {
		var a [6]uintptr
		copy(a[:], args)
		_, _, errno := syscall.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		if errno == 0 {
			fmt.Println("ALLOWED", what)
			return
		}
		fmt.Println("refused", what, errno)
	}
	text := func(s string) uintptr {
		b := append([]byte(s), 0)
		return uintptr(unsafe.Pointer(&b[0]))
	}
	raw("module", syscall.SYS_INIT_MODULE, text("x"), 1, text(""))
	raw("unmodule", syscall.SYS_DELETE_MODULE, text("x"), 0)
	raw("module file", unix.SYS_FINIT_MODULE, 0, text(""), 0)
	raw("kexec", syscall.SYS_KEXEC_LOAD, 0, 0, 0, 0)
	raw("bpf", unix.SYS_BPF, 0, 0, 0)
	raw("perf", syscall.SYS_PERF_EVENT_OPEN, 0, 0, 0, 0, 0)
	raw("mount", syscall.SYS_MOUNT, text("none"), text("/tmp"), text("tmpfs"), 0, 0)
	raw("mount a disk", syscall.SYS_MOUNT, text("/dev/vda"), text("/tmp"), text("ext4"), 0, 0)
	raw("unmount", syscall.SYS_UMOUNT2, text("/proc"), syscall.MNT_DETACH)
	raw("pivot", syscall.SYS_PIVOT_ROOT, text("/tmp"), text("/tmp"))
	raw("chroot", syscall.SYS_CHROOT, text("/tmp"))
	raw("swap", syscall.SYS_SWAPON, text("/dev/vda"), 0)
	raw("reboot", syscall.SYS_REBOOT, 0xfee1dead, 672274793, 0x1234567)
	raw("clock", syscall.SYS_SETTIMEOFDAY, text("0123456789abcdef"), 0)
	raw("handle", unix.SYS_OPEN_BY_HANDLE_AT, ^uintptr(99), text("xxxxxxxxxxxxxxxx"), 0)
	raw("accounting", syscall.SYS_ACCT, text("/tmp/acct"))
	raw("quota", syscall.SYS_QUOTACTL, 0, text("/dev/vda"), 0, 0)
	raw("keys", syscall.SYS_ADD_KEY, text("user"), text("x"), text("y"), 1, ^uintptr(3))
	raw("device", syscall.SYS_MKNOD, text("/disk"), syscall.S_IFBLK|0o600, 254<<8)
	for _, family := range []int{syscall.AF_INET, syscall.AF_INET6, syscall.AF_PACKET} {
		_, err := syscall.Socket(family, syscall.SOCK_RAW, 1)
		say(fmt.Sprintf("raw socket of family %d", family), err)
	}
	for _, name := range []string{
		"/dev/mem", "/dev/kmem", "/dev/kmsg", "/dev/port", "/dev/kvm", "/dev/sda", "/dev/vda", "/dev/fuse", "/dev/net/tun",
		"/proc/kcore", "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/sys/kernel/uevent_helper",
		"/sys/fs/cgroup/release_agent", "/proc/1/mem",
	} {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString("x")
			f.Close()
		}
		say("write to "+name, err)
	}
	// A tracer may look at what is in the container, and at nothing else.
	for pid := range 5000 {
		if pid > 1 && pid != os.Getpid() && syscall.PtraceAttach(pid) == nil {
			fmt.Println("ALLOWED trace of", pid)
		}
	}
}

func say(what string, err error) {
	if err == nil {
		fmt.Println("ALLOWED", what)
		return
	}
	fmt.Println("refused", what, err)
}

// lookForHost tries to reach a file of the host's, whose path is args[0], from
// every mount and through every link, and to connect to a socket of the host's.
func lookForHost(args []string) {
	marker := args[0]
	try := func(name string) {
		if data, err := os.ReadFile(name); err == nil {
			fmt.Printf("READ %s %s\n", name, data)
		}
	}
	mounts, err := os.ReadFile("/proc/mounts")
	check(err)
	roots := []string{"/", "/proc/1/root", "/proc/self/root", "/proc/self/cwd", "/proc/1/cwd", "/dev/fd"}
	for _, line := range strings.Split(strings.TrimSpace(string(mounts)), "\n") {
		roots = append(roots, strings.Fields(line)[1])
	}
	for n := range 64 {
		roots = append(roots, fmt.Sprintf("/proc/self/fd/%d", n), fmt.Sprintf("/proc/1/fd/%d", n))
	}
	for _, root := range roots {
		try(root + marker)
		try(root + strings.Repeat("/..", 12) + marker)
		link := filepath.Join(root, "link-to-host")
		if os.Symlink(marker, link) == nil {
			try(link)
		}
		if os.Symlink(strings.Repeat("../", 12)+marker, link+"2") == nil {
			try(link + "2")
		}
		if os.Link(marker, filepath.Join(root, "hard")) == nil {
			fmt.Println("READ a hard link")
		}
	}
	for _, name := range args[1:] { // what the mounts hold of links and sockets
		try(name)
		conn, err := net.Dial("unix", name)
		if err == nil {
			fmt.Println("READ a socket of the host's", name)
			conn.Close()
		}
		if f, err := os.OpenFile(name, os.O_RDWR|syscall.O_NONBLOCK, 0); err == nil {
			if _, err := f.WriteString("x"); err == nil {
				fmt.Println("READ a pipe of the host's", name)
			}
			f.Close()
		}
	}
	// Whatever can be read anywhere must not be the host's.
	_ = filepath.WalkDir("/", func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrPermission) || err != nil || strings.HasPrefix(name, "/sys") || strings.Count(name, "/") > 8 {
			return fs.SkipDir
		}
		if strings.Contains(name, filepath.Base(marker)) && !strings.HasPrefix(name, "/proc") {
			try(name)
		}
		return nil
	})
	fmt.Println("looked")
}
