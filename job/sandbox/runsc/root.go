package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/lisafs"
	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/fsgofer/extension"
)

const (
	// annotation marks a container whose root must not be served from its
	// folder alone, as the files there are empty. Package sandbox writes it.
	annotation = "lumbung.lazy"
	// envSocket names the supervisor's socket that hands out the files.
	envSocket = "LUMBUNG_LAZY"
	// flagFD carries the connection over the gofer's re-execution, which an
	// ordinary user's gofer needs.
	flagFD = "lumbung-lazy-fd"
)

// lazyRoot serves the root of containers that carry the annotation; gVisor's
// own gofer serves everything else. It needs no system call beyond those the
// stock gofer is allowed.
type lazyRoot struct {
	fd int // connection to the supervisor
}

var _ extension.Extension = (*lazyRoot)(nil)

// reach connects a gofer to its supervisor, before it loses sight of the host's
// files.
func (r *lazyRoot) reach(args []string, socket string) (err error) {
	again := func(a string) bool { return strings.HasPrefix(a, "--"+flagFD+"=") }
	if socket == "" || !slices.Contains(args, "gofer") || slices.ContainsFunc(args, again) {
		return nil
	}
	r.fd, err = connect(socket)
	return err
}

// Name implements extension.Extension.
func (*lazyRoot) Name() string { return "lumbung-lazy" }

// SeccompRules implements extension.Extension.
func (*lazyRoot) SeccompRules() seccomp.SyscallRules { return seccomp.NewSyscallRules() }

// SetFlags lets the gofer command take the flag.
func (r *lazyRoot) SetFlags(f *flag.FlagSet) {
	f.IntVar(&r.fd, flagFD, r.fd, "connection to the supervisor of a container whose image is arriving")
}

// PrepareGofer passes the connection on.
func (r *lazyRoot) PrepareGofer(extension.GoferPrepareContext) (extension.GoferPrepareResult, error) {
	if r.fd < 0 {
		return extension.GoferPrepareResult{}, nil
	}
	return extension.GoferPrepareResult{FlagOverrides: map[string]string{flagFD: strconv.Itoa(r.fd)}}, nil
}

// TryHandleMount implements extension.Extension.
func (r *lazyRoot) TryHandleMount(spec *specs.Spec, mount *specs.Mount, _ string, _ bool) (lisafs.ConnectionImpl, lisafs.ConnectionOpts, error) {
	if mount != nil || spec.Annotations[annotation] == "" {
		return nil, lisafs.ConnectionOpts{}, nil
	}
	if r.fd < 0 {
		return nil, lisafs.ConnectionOpts{}, errors.New("not connected to the supervisor")
	}
	opts := lisafs.ConnectionOpts{Readonly: true, WalkStatSupported: true, OpenOnDeleted: true}
	return &tree{source: newSource(r.fd)}, opts, nil
}

// connect reaches the supervisor's socket. Its folder is opened first, as the
// whole path may be longer than a socket's address can be.
func connect(name string) (int, error) {
	dir, err := unix.Open(filepath.Dir(name), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the folder of %s: %w", name, err)
	}
	defer func() { _ = unix.Close(dir) }()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0) // survives the re-execution
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	at := "/proc/self/fd/" + strconv.Itoa(dir) + "/" + filepath.Base(name)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: at}); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", name, err)
	}
	return fd, nil
}
