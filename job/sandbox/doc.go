// Package sandbox runs one container at a time per id in gVisor, with nothing
// installed on the machine: no Docker, no daemon, no runtime on the PATH.
//
// It hides runsc (unpacked from the binary itself and checked by hash), the
// OCI bundle, the root file system composed over a shared read-only image, the
// supervisor process that outlives the node, the framed log file, cgroups of
// both versions and what replaces them for an ordinary user, and the control
// sockets. Callers see Prepare, Start, Wait, Stop, Exec, Logs, Recover, Remove.
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
//   - Capabilities of a root user inside: CHOWN, DAC_OVERRIDE, FOWNER, FSETID,
//     KILL, NET_BIND_SERVICE, SETGID, SETUID; docker's default without MKNOD,
//     NET_RAW, SETFCAP, SETPCAP, SYS_CHROOT and AUDIT_WRITE, which package
//     managers do not need to run a job. Any other user has none.
//   - For an ordinary user the container's user is the only id mapped; files
//     it writes to outputs belong to the user who runs the node.
package sandbox
