package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lumbung-net/lumbung/protocol"
)

// Runtime keeps the containers of one node. Its methods may be called from any
// goroutine. It owns no goroutine and no process: supervisors live on.
type Runtime struct {
	dir, jobs string
	asked     string
	resolv    string
	oci       string // asked instead of gVisor
	shim      string
	user      bool // an ordinary user runs the node
	log       *slog.Logger
	now       func() time.Time

	unpacking sync.Mutex
	runsc     string     // set once checked; the OCI runtime, if one is asked for
	asksFor   string     // the runsc that gave the answers
	answers   [][]string // see features

	ociVersion string // what the OCI runtime calls itself
	// groups are the controllers that were found to hold, asked once.
	groups func() map[string]bool

	mu    sync.Mutex
	locks map[string]*sync.Mutex // by id, while in use
	users map[string]int
	shims map[string][]int // supervisors that are this process's children
}

// New opens a runtime in o.Dir. It does not unpack anything yet: see Ready.
func New(o Options) (*Runtime, error) {
	if !filepath.IsAbs(o.Dir) {
		return nil, fmt.Errorf("sandbox folder %q must be absolute", o.Dir)
	}
	if o.Log == nil || o.Now == nil {
		return nil, errors.New("sandbox: Log and Now must be given")
	}
	r := &Runtime{
		dir: filepath.Clean(o.Dir), asked: o.RunscPath, oci: o.OCI, resolv: o.Resolv, shim: o.Shim, log: o.Log, now: o.Now,
		user: os.Geteuid() != 0, locks: map[string]*sync.Mutex{}, users: map[string]int{},
		shims: map[string][]int{},
	}
	r.groups = sync.OnceValue(func() map[string]bool {
		held, _ := probeCgroup(r.jobs)
		return held
	})
	if r.shim == "" {
		r.shim = "/proc/self/exe" // also when the file was replaced meanwhile
	}
	if r.resolv == "" {
		r.resolv = "/etc/resolv.conf"
	}
	r.jobs = filepath.Join(r.dir, "jobs")
	if strings.ContainsAny(r.dir, ",\x00\n") {
		return nil, fmt.Errorf("sandbox folder %q: gVisor's options allow no comma in it: choose another --home", r.dir)
	}
	// 0700: what a container leaves, set-user-id files included, is for nobody.
	if err := os.MkdirAll(r.jobs, 0o700); err != nil {
		return nil, fmt.Errorf("sandbox folder: %w", err)
	}
	if err := os.Chmod(r.jobs, 0o700); err != nil { //nolint:gosec // a folder
		return nil, fmt.Errorf("sandbox folder: %w", err)
	}
	return r, nil
}

// Ready unpacks and checks the runtime; Prepare does it otherwise. It returns
// ErrNoRuntime where there is none.
func (r *Runtime) Ready(ctx context.Context) (string, error) {
	r.unpacking.Lock()
	defer r.unpacking.Unlock()
	if r.runsc != "" {
		if _, err := os.Stat(r.runsc); err == nil {
			return r.runsc, nil
		}
	}
	if r.oci != "" {
		file, version, err := findOCI(ctx, r.oci)
		if err == nil {
			r.runsc, r.ociVersion = file, version
		}
		return file, err
	}
	file, err := locate(ctx, filepath.Join(r.dir, "runtime"), r.asked, embedded())
	if err != nil {
		return "", err
	}
	r.runsc = file
	return file, nil
}

// lock serialises what is done to one container.
func (r *Runtime) lock(id string) func() {
	r.mu.Lock()
	l := r.locks[id]
	if l == nil {
		l = &sync.Mutex{}
		r.locks[id] = l
	}
	r.users[id]++
	r.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.users[id]--; r.users[id] == 0 {
			delete(r.users, id)
			delete(r.locks, id)
		}
	}
}

// folder gives the container's folder, or ErrNotFound.
func (r *Runtime) folder(id string) (string, error) {
	if !idForm.MatchString(id) {
		return "", fmt.Errorf("%w: %.80q", ErrNotFound, id)
	}
	dir := filepath.Join(r.jobs, id)
	if _, err := os.Stat(filepath.Join(dir, fileSpec)); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %s", ErrNotFound, id)
	} else if err != nil {
		return "", err
	}
	return dir, nil
}

// Prepare makes everything a container needs but runs nothing. What it wrote
// is found again by Recover. ErrSpec says that the image or spec cannot be run.
func (r *Runtime) Prepare(ctx context.Context, s Spec) (err error) {
	s = s.withDefaults()
	if err := s.Validate(); err != nil {
		return err
	}
	runsc, err := r.Ready(ctx)
	if err != nil {
		return err
	}
	program, err := r.able(ctx, s)
	if err != nil {
		return fmt.Errorf("preparing %s: %w", s.ID, err)
	}
	defer r.lock(s.ID)()
	if _, err := r.folder(s.ID); err == nil {
		return fmt.Errorf("%w: %s", ErrExists, s.ID)
	}
	dir := filepath.Join(r.jobs, s.ID)
	if err := os.RemoveAll(dir); err != nil { // of a Prepare that was killed
		return fmt.Errorf("clearing %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
			err = fmt.Errorf("preparing %s: %w", s.ID, err)
		}
	}()
	if rel, err := filepath.Rel(s.Rootfs, r.dir); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		return fmt.Errorf("%w: the image %s holds the sandbox's own folder", ErrSpec, s.Rootfs)
	}
	for _, d := range []string{dir, filepath.Join(dir, dirRoot), filepath.Join(dir, dirSecrets), filepath.Join(dir, dirUpper), filepath.Join(dir, dirRunsc)} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	im, err := openImage(s.Rootfs, s.Arriving)
	if err != nil {
		return err
	}
	defer im.close()
	id, err := im.user(s.User)
	if err != nil {
		return err
	}
	if r.user {
		id.groups = nil // no other id is mapped
	}
	if err := makeSkel(filepath.Join(dir, dirSkel), im, s); err != nil {
		return err
	}
	if err := errors.Join(addForwarder(filepath.Join(dir, dirSkel), program), restoreMounts(ctx, s)); err != nil {
		return err
	}
	p := plan{Version: planVersion, Spec: s, UID: id.uid, GID: id.gid, User: r.user, Made: r.now()}
	if s.Outbound {
		p.Resolv = r.resolv
	}
	if !r.user {
		p.Cgroup = cgroupName(dir)
		p.Grouped = r.oci != "" && r.groups()["memory"]
	}
	if s.Savable {
		where, err := r.Portability(ctx)
		if err != nil {
			return err
		}
		p.Engine = where.Engine
	}
	if err := r.bundle(dir, &p, id, runsc); err != nil {
		return err
	}
	return writeJSON(dir, fileSpec, p)
}

// able says by nil that the runtime can do what a spec asks of it beyond running a
// program, and gives what a savable container must have in its files.
func (r *Runtime) able(ctx context.Context, s Spec) (program string, err error) {
	if s.Arriving != "" {
		if err := r.CanArrive(ctx); err != nil {
			return "", err
		}
	}
	if s.Outbound {
		if err := r.CanOutbound(ctx); err != nil {
			return "", err
		}
	}
	if !s.Devices.none() && r.oci != "" {
		return "", r.onlyGVisor("passes GPUs into a container")
	}
	return r.savable(ctx, s)
}

// onlyGVisor is why something cannot be had under an OCI runtime.
func (r *Runtime) onlyGVisor(does string) error {
	return fmt.Errorf("%w: only gVisor %s, and this provider runs %s: leave --runtime out", ErrNoRuntime, does, r.oci)
}

// bundle writes what the runtime is to run, and names it in the plan.
func (r *Runtime) bundle(dir string, p *plan, id identity, runtime string) error {
	if r.oci == "" {
		p.Runsc = runtime
		return writeBundle(dir, p.Spec, id, r.user)
	}
	p.OCI = runtime
	if err := ociUser(*p); err != nil {
		return err
	}
	return writeOCIBundle(dir, *p, id)
}

// Start runs a prepared container and returns when its program runs or has
// ended. The container lives on when the calling process is killed. Secrets are
// given where the spec says so, and only there.
func (r *Runtime) Start(ctx context.Context, id string, secrets protocol.Secrets) (Handle, error) {
	dir, err := r.folder(id)
	if err != nil {
		return Handle{}, err
	}
	defer r.lock(id)()
	p, err := readPlan(dir)
	if err != nil {
		return Handle{}, err
	}
	hand, err := newHandover(p, secrets)
	if err != nil {
		return Handle{}, fmt.Errorf("starting %s: %w", id, err)
	}
	defer hand.close()
	out, in, err := os.Pipe()
	if err != nil {
		return Handle{}, err
	}
	defer func() { _ = out.Close() }()
	pid, err := r.spawn(ctx, dir, p, hand.inherit(in)...)
	_ = in.Close()
	if err != nil {
		return Handle{}, fmt.Errorf("starting the supervisor of %s: %w%s", id, err, hintNamespaces(err))
	}
	stop := context.AfterFunc(ctx, func() { _ = out.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	hand.send(ctx)
	var msg ready
	switch err := json.NewDecoder(io.LimitReader(out, maxControl)).Decode(&msg); {
	case ctx.Err() != nil:
		return Handle{}, fmt.Errorf("starting %s: %w: it may run: Stop or Remove it", id, context.Cause(ctx))
	case err != nil:
		return Handle{}, fmt.Errorf("starting %s: its supervisor ended: %w: %s", id, err, r.complaint(dir))
	case msg.Error != "":
		return Handle{}, fmt.Errorf("starting %s: %s", id, msg.Error)
	}
	return Handle{ID: id, Shim: pid, Started: msg.Started}, nil
}

func hintNamespaces(err error) string {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		return ": this user may make no namespaces: see `lumbung doctor --role provider`"
	}
	return ""
}

// complaint is what the shim wrote when it could not say it otherwise.
func (r *Runtime) complaint(dir string) string {
	data, err := readBounded(filepath.Join(dir, fileShim), 64<<10)
	if err != nil || len(data) == 0 {
		return "it said nothing"
	}
	return strings.TrimSpace(string(data))
}

// spawn starts the shim, with files from readyFD on, and leaves it alone.
func (r *Runtime) spawn(ctx context.Context, dir string, p plan, files ...*os.File) (int, error) {
	complaints, err := os.OpenFile(filepath.Join(dir, fileShim), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { _ = complaints.Close() }()
	// It must outlive ctx, and the node.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), r.shim, dir)
	cmd.Args = []string{"lumbung", ShimArg, dir}
	cmd.Dir = "/"
	// The shim is a large binary that does little: its heap stays small.
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GOGC=25", "GOMEMLIMIT=24MiB", "GOMAXPROCS=2"}
	cmd.Stdout, cmd.Stderr = complaints, complaints
	cmd.ExtraFiles = files
	cmd.SysProcAttr = shimAttr(p)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid := cmd.Process.Pid
	r.mu.Lock()
	r.shims[p.Spec.ID] = append(r.shims[p.Spec.ID], pid)
	r.mu.Unlock()
	return pid, cmd.Process.Release()
}

// shimAttr gives the shim a session and a mount namespace. For an ordinary
// user it has a user namespace too, in which the container's user is the node's
// user under another number: files in outputs are then the node's own. As any
// number but 0 loses its capabilities on exec, they are made ambient.
func shimAttr(p plan) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS}
	if p.OCI != "" {
		attr.Cloneflags |= unix.CLONE_NEWPID
	}
	if !p.User {
		return attr
	}
	attr.Cloneflags |= unix.CLONE_NEWUSER
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: int(p.UID), HostID: os.Geteuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: int(p.GID), HostID: os.Getegid(), Size: 1}}
	attr.AmbientCaps = append(attr.AmbientCaps,
		unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETPCAP,
		unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_FSETID,
		unix.CAP_KILL, unix.CAP_SYS_PTRACE,
	)
	return attr
}

// Wait returns how the container ended, when it has. It may be called any
// number of times, also after a restart of the node.
func (r *Runtime) Wait(ctx context.Context, id string) (Exit, error) {
	dir, err := r.folder(id)
	if err != nil {
		return Exit{}, err
	}
	for {
		var st state
		_, err := watchShim(ctx, dir, func() (bool, error) {
			var err error
			st, err = readState(dir)
			return st.Phase == phaseExited, err
		})
		if err != nil {
			return Exit{}, fmt.Errorf("waiting for %s: %w", id, err)
		}
		x, done, err := r.settle(ctx, id, dir)
		if done || err != nil {
			return x, err
		}
		// Its shim is about to listen, or about to release its lock.
		if err := waitChange(ctx, minLook); err != nil {
			return Exit{}, fmt.Errorf("waiting for %s: %w", id, err)
		}
	}
}

// settle gives the exit of a container whose shim has ended. One whose shim was
// killed gets its exit here: its processes are killed and the truth is written.
func (r *Runtime) settle(ctx context.Context, id, dir string) (Exit, bool, error) {
	defer r.lock(id)()
	if _, err := r.folder(id); err != nil { // removed meanwhile
		return Exit{}, false, err
	}
	st, err := readState(dir)
	if err != nil {
		return Exit{}, false, err
	}
	lock, free, err := lockShim(dir)
	if err != nil || !free {
		if st.Phase == phaseExited && st.Exit != nil { // its shim is tidying up
			return *st.Exit, true, err
		}
		return Exit{}, false, err
	}
	defer func() { _ = lock.Close() }()
	r.collect(id)
	if st, err = readState(dir); err != nil { // it may have ended meanwhile
		return Exit{}, false, err
	}
	if st.Phase == phaseExited && st.Exit != nil {
		return *st.Exit, true, nil
	}
	if _, err := os.Stat(filepath.Join(dir, fileShim)); errors.Is(err, fs.ErrNotExist) {
		return Exit{}, false, fmt.Errorf("%w: %s was not started", ErrNotRunning, id)
	}
	if err := killAll(ctx, dir); err != nil {
		return Exit{}, false, err
	}
	x := Exit{
		Code: CodeSandbox, Source: SourceSandbox, Started: st.Started, Ended: r.now(), Found: true,
		Reason: "its supervisor was killed, and the container with it: " + r.complaint(dir),
	}
	if err := writeJSON(dir, fileState, state{Phase: phaseExited, Shim: st.Shim, Started: st.Started, Exit: &x}); err != nil {
		return Exit{}, false, fmt.Errorf("recording the end of %s: %w", id, err)
	}
	r.log.Warn("the supervisor of a container was killed", "job", id)
	return x, true, nil
}

// collect takes the exit status of a shim that has let go of its lock and is
// this process's child; after a restart of the node it is another's.
func (r *Runtime) collect(id string) {
	r.mu.Lock()
	pids := r.shims[id]
	delete(r.shims, id)
	r.mu.Unlock()
	for _, pid := range pids {
		for { // it is past its last step
			if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
}

// Stop asks the program to end with SIGTERM and kills it after grace. It
// returns when the container has ended; one that has ended before is no error.
func (r *Runtime) Stop(ctx context.Context, id string, grace time.Duration) error {
	dir, err := r.folder(id)
	if err != nil {
		return err
	}
	conn, err := reachShim(ctx, dir, request{Op: "stop", Grace: grace})
	if err != nil {
		return fmt.Errorf("stopping %s: %w", id, err)
	}
	if conn != nil {
		// Its answer comes when it is done; Wait knows better.
		defer func() { _ = conn.Close() }()
	}
	_, err = r.Wait(ctx, id)
	return err
}

// reachShim sends a request to a shim that lives, also to one that has just been
// started and does not listen yet. There is no connection where there is no shim.
func reachShim(ctx context.Context, dir string, req request) (net.Conn, error) {
	for {
		conn, err := dialShim(ctx, dir, req)
		if err == nil {
			return conn, nil
		}
		lock, free, err := lockShim(dir)
		if free {
			return nil, lock.Close()
		}
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			return nil, nil //nolint:nilnil // as said
		}
		if err != nil {
			return nil, err
		}
		if err := waitChange(ctx, minLook); err != nil {
			return nil, err
		}
	}
}

// Usage is what a running container uses, as last sampled by its supervisor.
func (r *Runtime) Usage(ctx context.Context, id string) (Usage, error) {
	dir, err := r.folder(id)
	if err != nil {
		return Usage{}, err
	}
	if a, err := ask(ctx, dir, request{Op: "usage"}); err == nil {
		return a.Usage, nil
	}
	st, err := readState(dir)
	if err != nil {
		return Usage{}, err
	}
	if st.Exit != nil {
		return st.Exit.Usage, nil
	}
	return Usage{}, fmt.Errorf("%w: %s", ErrNotRunning, id)
}

// Remove ends the container if it runs and removes everything of it: processes,
// mounts, cgroups, folders. One that is gone or half-made is no error.
func (r *Runtime) Remove(ctx context.Context, id string) error {
	if id == "" || id != filepath.Base(id) || id == "." || id == ".." {
		return fmt.Errorf("%w: %.80q", ErrNotFound, id)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, removeTimeout, fmt.Errorf("not gone after %s", removeTimeout))
	defer cancel()
	defer r.lock(id)()
	dir := filepath.Join(r.jobs, id)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := r.endShim(ctx, dir); err != nil {
		return fmt.Errorf("removing %s: %w", id, err)
	}
	if err := killAll(ctx, dir); err != nil {
		return fmt.Errorf("removing %s: %w", id, err)
	}
	r.collect(id)
	if !r.user {
		if err := removeCgroup(ctx, cgroupName(dir)); err != nil {
			return fmt.Errorf("removing %s: %w", id, err)
		}
	}
	// The plan last: until then a crash leaves something Recover knows.
	if err := RemoveTree(dir); err != nil {
		return fmt.Errorf("removing %s: %w", id, err)
	}
	return nil
}

// endShim kills the container and waits until its shim has let go of the lock.
func (r *Runtime) endShim(ctx context.Context, dir string) error {
	for {
		lock, free, err := lockShim(dir)
		if err != nil {
			return err
		}
		if free {
			return lock.Close()
		}
		_, _ = ask(ctx, dir, request{Op: "kill"})
		if err := waitChange(ctx, minLook); err != nil {
			return fmt.Errorf("its supervisor does not end: %w", err)
		}
	}
}
