package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"unsafe"
)

// forbidden tries what a program under an OCI runtime must not be able to do.
func forbidden() {
	call := func(what string, number uintptr, args ...uintptr) {
		args = append(args, 0, 0, 0)
		_, _, errno := syscall.RawSyscall(number, args[0], args[1], args[2])
		fmt.Println(what+":", errno)
	}
	attr := make([]byte, 64)
	call("unshare", syscall.SYS_UNSHARE, syscall.CLONE_NEWUSER)
	call("ptrace", syscall.SYS_PTRACE, syscall.PTRACE_TRACEME)
	call("keyctl", keyctl, 0)
	call("bpf", bpf, 0, uintptr(unsafe.Pointer(&attr[0])), uintptr(len(attr)))
	call("setns", setns, 0, 0)
	call("new namespace", syscall.SYS_CLONE, syscall.CLONE_NEWUSER|uintptr(syscall.SIGCHLD))
	call("unknown call", 4000)
	_, err := syscall.Socket(40, syscall.SOCK_STREAM, 0)
	fmt.Println("vsock:", err)
	wrote := func(what, name string) {
		err := os.WriteFile(name, []byte("1"), 0)
		if pe, is := err.(*os.PathError); is {
			err = pe.Err
		}
		fmt.Println(what+":", err)
	}
	wrote("sysctl", "/proc/sys/kernel/panic")
	wrote("sysfs", "/sys/block/x")
	for what, name := range map[string]string{"kcore": "/proc/kcore", "kallsyms": "/proc/kallsyms"} {
		data, _ := os.ReadFile(name)
		fmt.Println(what+":", len(data), "bytes")
	}
	status, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(status), "\n") {
		if mode, is := strings.CutPrefix(line, "Seccomp:"); is {
			fmt.Println("seccomp mode", strings.TrimSpace(mode))
		}
	}
}
