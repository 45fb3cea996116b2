package sandbox

import (
	"runtime"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What a program under an OCI runtime may ask of the host's kernel. What is in
// neither list does not exist for it (ENOSYS), so that a C library which tries a
// newer call falls back on an older one; what is refused is not permitted
// (EPERM), as for any program without the rights.

// seccompAllowed are calls of programs that compute, talk to themselves and
// write files.
const seccompAllowed = `
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile splice tee vmsplice copy_file_range
open openat openat2 creat close close_range dup dup2 dup3 fcntl ioctl flock fsync fdatasync sync sync_file_range syncfs
truncate ftruncate fallocate fadvise64 readahead
stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat getdents getdents64
mkdir mkdirat rmdir rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat mknod mknodat
chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat umask utime utimes utimensat futimesat
getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
chdir fchdir getcwd
inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
mmap munmap mremap mprotect madvise brk msync mincore mlock mlock2 munlock mlockall munlockall
pkey_alloc pkey_free pkey_mprotect membarrier cachestat map_shadow_stack mseal
fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill
getpid getppid gettid getpgid getpgrp setpgid getsid setsid pidfd_open pidfd_send_signal
set_tid_address set_robust_list get_robust_list futex futex_waitv futex_wake futex_wait futex_requeue rseq
getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid setresuid setresgid setgroups
setfsuid setfsgid capget capset prctl arch_prctl seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
getpriority setpriority getrlimit setrlimit prlimit64 getrusage times uname sysinfo getrandom getcpu
sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler sched_setscheduler
sched_get_priority_min sched_get_priority_max sched_rr_get_interval sched_getattr sched_setattr ioprio_get ioprio_set
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_tgsigqueueinfo rt_sigsuspend
sigaltstack signalfd signalfd4 pause alarm restart_syscall
nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time getitimer setitimer
timer_create timer_settime timer_gettime timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime
select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 pipe pipe2
io_setup io_destroy io_getevents io_pgetevents io_submit io_cancel
socketpair bind connect listen accept accept4 shutdown getsockname getpeername getsockopt setsockopt
sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg
semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
`

// seccompRefused are calls that change the machine, look into other programs or
// are known for the holes they opened.
const seccompRefused = `
mount umount2 pivot_root chroot move_mount open_tree fsopen fsmount fsconfig fspick mount_setattr swapon swapoff quotactl quotactl_fd
unshare setns init_module finit_module delete_module create_module kexec_load kexec_file_load reboot
ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd
bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register fanotify_init fanotify_mark
add_key request_key keyctl name_to_handle_at open_by_handle_at lookup_dcookie
settimeofday clock_settime clock_adjtime adjtimex stime iopl ioperm modify_ldt acct syslog vhangup sethostname setdomainname
mbind set_mempolicy set_mempolicy_home_node get_mempolicy migrate_pages move_pages uselib ustat sysfs nfsservctl _sysctl
`

// families of sockets: nothing that leads to the hypervisor, the kernel's crypto
// or raw packets.
var socketFamilies = []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// personalities are those that change no more than what uname says and whether
// addresses are random.
var personalities = []uint64{0, 0x8, 0x20000, 0x20008, 0x40000, 0xffffffff}

// newNamespaces are the flags of clone that make one.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
	unix.CLONE_NEWPID | unix.CLONE_NEWNET

// seccompUnseen make memory that only a cgroup counts: it need not be mapped by
// any process, nor lie in a file system.
const seccompUnseen = "memfd_create shmget shmat shmdt shmctl"

// seccompProfile is for a container whose memory a cgroup bounds, or for one whose memory is
// counted by looking.
func seccompProfile(looking bool) *specs.LinuxSeccomp {
	allowed := strings.Fields(seccompAllowed)
	if !looking {
		allowed = append(allowed, strings.Fields(seccompUnseen)...)
	}
	missing, denied := uint(unix.ENOSYS), uint(unix.EPERM)
	arch := specs.ArchX86_64
	if runtime.GOARCH == "arm64" {
		arch = specs.ArchAARCH64
	}
	allow := func(name string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow, Args: args}
	}
	calls := []specs.LinuxSyscall{
		{Names: allowed, Action: specs.ActAllow},
		{Names: strings.Fields(seccompRefused), Action: specs.ActErrno, ErrnoRet: &denied},
		// clone3 hides its flags in memory: programs fall back on clone.
		allow("clone", specs.LinuxSeccompArg{Index: 0, Value: newNamespaces, ValueTwo: 0, Op: specs.OpMaskedEqual}),
	}
	for _, f := range socketFamilies {
		calls = append(calls, allow("socket", specs.LinuxSeccompArg{Index: 0, Value: f, Op: specs.OpEqualTo}))
	}
	for _, p := range personalities {
		calls = append(calls, allow("personality", specs.LinuxSeccompArg{Index: 0, Value: p, Op: specs.OpEqualTo}))
	}
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno, DefaultErrnoRet: &missing,
		Architectures: []specs.Arch{arch}, Syscalls: calls,
	}
}
