// Package sandbox runs one container at a time per id in gVisor, with nothing
// installed on the machine: no Docker, no daemon, no runtime on the PATH.
//
// It hides runsc (unpacked from the binary itself and checked by hash), the
// OCI bundle, the root file system composed over a shared read-only image, the
// supervisor process that outlives the node, the framed log file, cgroups of
// both versions and what replaces them for an ordinary user, and the control
// sockets. Callers see Prepare, Start, Wait, Stop, Exec, Logs, Recover, Remove.
//
// An operator may choose an OCI runtime of the machine instead (Options.OCI):
// runc, crun. It is weaker, for the host's own kernel then serves the job, and
// needs all of an image; see oci_linux.go. The rest is the same, and passes the
// same tests but for the differences that oci_linux_test.go names.
//
// # Processes
//
// Start spawns a supervisor (the shim): the calling binary again, with
// "sandbox-shim" as its first argument, in a session, a mount namespace and,
// for an ordinary user, a user namespace of its own. The shim mounts the root
// file system (visible to nobody else, gone with it), runs runsc, owns the
// container's stdout and stderr, enforces limits and records the exit. It
// survives the node. The container does not survive it: every process below
// carries a parent-death signal, so that nothing runs unsupervised. A service
// manager that ends a node must leave supervisors alone (systemd:
// KillMode=process), or running jobs end with it.
//
// # Decisions
//
//   - Logs beyond MaxLogBytes are dropped, not fatal: the last record says so
//     (stream 3) and Exit.LogDropped counts the bytes. The job is not killed.
//   - A full writable layer gives the job ENOSPC, as Linux would; Exit.Exceeded
//     names it with Killed=false. Too much memory, output, time or too many
//     processes kill the job, with Killed=true.
//   - CPU: a cgroup's quota where there is one. Else the supervisor measures the
//     sandbox's processes by their own clocks and pauses the programs, through
//     gVisor, when they are ahead of their share.
//   - A container with a network (Spec.Outbound) has its own TCP/IP stack in
//     gVisor and one end of a socket pair as its interface. At the other end is
//     a process beside it, the shim's child, that takes its connections and
//     dials out as the policy allows (runsc/outbound): no interface, namespace,
//     route or firewall rule of the host, and no root, has a part in it. It runs
//     as nobody where the shim is root, without capabilities. Dead, it takes the
//     container with it, as the sandbox's failure.
//   - More bytes than NetBytes end connections, not the job: they are reset, new
//     ones are refused, and Exit.Exceeded names it with Killed=false, so that
//     what was computed can still be saved.
//   - Capabilities of a root user inside: CHOWN, DAC_OVERRIDE, FOWNER, FSETID,
//     KILL, NET_BIND_SERVICE, SETGID, SETUID; docker's default without MKNOD,
//     NET_RAW, SETFCAP, SETPCAP, SYS_CHROOT and AUDIT_WRITE, which package
//     managers do not need to run a job. Any other user has none.
//   - For an ordinary user the container's user is the only id mapped; files
//     it writes to outputs belong to the user who runs the node.
package sandbox
