package sandbox

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Errors a caller decides on.
var (
	// ErrNoRuntime says that this build or machine has no sandbox in it.
	ErrNoRuntime = errors.New("no sandbox runtime")
	// ErrNotFound says that there is no container of that id.
	ErrNotFound = errors.New("no such container")
	// ErrExists says that the id is taken.
	ErrExists = errors.New("container exists already")
	// ErrNotRunning says that the container has not started or has ended.
	ErrNotRunning = errors.New("container is not running")
	// ErrNotListening says that nothing in the container listens there.
	ErrNotListening = errors.New("nothing listens")
	// ErrCheckpoint says that a container's state cannot be saved, or that a
	// checkpoint cannot be restored here.
	ErrCheckpoint = errors.New("no checkpoint")
	// ErrSpec says that the spec or the image cannot be run as asked.
	ErrSpec = errors.New("invalid container spec")
)

// Docker's exit codes for what is not the program's own code.
const (
	CodeTimeout       = 124 // the run limit ended the job
	CodeSandbox       = 125 // the sandbox failed, not the job
	CodeCannotExecute = 126 // the command exists and cannot be executed
	CodeNotFound      = 127 // there is no such command
	codeSignal        = 128 // plus the number of the signal
)

// SecretsDir is where a container finds its secrets, each a file of mode 0400 of
// the container's user, in memory.
const SecretsDir = "/run/secrets"

// Mount is one host file or folder shown inside the container. The host side
// belongs to the job alone.
type Mount struct {
	Source   string `json:"source"` // absolute host path, a file or a folder
	Dest     string `json:"dest"`   // absolute path inside
	ReadOnly bool   `json:"read_only,omitempty"`
	// MaxBytes bounds what is in the folder, be it from before; 0 counts it with
	// the outputs.
	MaxBytes uint64 `json:"max_bytes,omitempty"`
}

// Spec is one container. Zero limits mean the defaults of withDefaults, never
// "unlimited".
type Spec struct {
	// ID is unique in a Runtime: 1-64 of [a-zA-Z0-9_.-], starting with a
	// letter or digit.
	ID string `json:"id"`
	// Rootfs is the merged image: a host folder that is only read and may be
	// shared between containers.
	Rootfs string `json:"rootfs"`
	// Arriving is empty for an image that is whole. Otherwise Rootfs holds its
	// names, sizes and attributes only, and Arriving is the host folder in which
	// each file appears, under the same name, once it is whole: atomically, and
	// never to change. The program's reads wait for that; see Runtime.Supply.
	Arriving string `json:"arriving,omitempty"`
	// Savable lets the state be saved (see Runtime.Checkpoint). What reaches its
	// ports then lies in the container's files, under SavableDir, as a program
	// that was started from outside cannot be saved.
	Savable bool `json:"savable,omitempty"`
	// Restore is empty for a container that starts from its beginning. Otherwise
	// it is the host folder of a checkpoint (see Runtime.Checkpoint), of a
	// container of the same image and spec; ID and the sources of mounts may be
	// others. It is read until the container runs.
	Restore string   `json:"restore,omitempty"`
	Args    []string `json:"args"`
	Env     []string `json:"env,omitempty"` // KEY=VALUE; PATH, HOME, HOSTNAME are added where missing
	Cwd     string   `json:"cwd,omitempty"` // default /
	// User is as in an image's config: name|uid[:group|gid]; empty is root.
	User     string  `json:"user,omitempty"`
	Hostname string  `json:"hostname,omitempty"` // default: the id
	Mounts   []Mount `json:"mounts,omitempty"`
	Devices  Devices `json:"devices,omitzero"`
	// Secrets says that Start is given secrets, which lie in SecretsDir. Their
	// names and values are in no file of the container's.
	Secrets bool `json:"secrets,omitempty"`
	// Outbound gives the container connections to the public internet; without
	// it, it has none but its own loopback.
	Outbound bool `json:"outbound,omitempty"`

	CPUMillis   int           `json:"cpu_millis"`    // thousandths of a CPU
	MemoryBytes uint64        `json:"memory_bytes"`  // programs, /tmp and /dev/shm together
	DiskBytes   uint64        `json:"disk_bytes"`    // writable layer over the image
	OutputBytes uint64        `json:"output_bytes"`  // all writable mounts together
	MaxLogBytes uint64        `json:"max_log_bytes"` // stdout and stderr together
	Pids        int           `json:"pids"`          // processes and threads
	OpenFiles   int           `json:"open_files"`    // per process
	RunLimit    time.Duration `json:"run_limit"`     // wall time from start
	NetBytes    uint64        `json:"net_bytes"`     // with Outbound: to the internet and from it together
}

// DefaultOpenFiles is how many files a process may have open when nothing is said.
const DefaultOpenFiles = 1 << 16

// SavableDir holds what of lumbung's own is in a savable container.
const SavableDir = "/.lumbung"

// Bounds of a spec, so that a hostile one costs nothing.
const (
	maxArgs       = 4096
	maxEnv        = 4096
	maxArgBytes   = 1 << 20
	maxMounts     = 64
	minMemory     = 16 << 20
	minDisk       = 1 << 20
	maxPids       = 1 << 20
	maxOpenFiles  = 1 << 20
	maxCPUMillis  = 1 << 20
	maxRunLimit   = 365 * 24 * time.Hour
	maxLimitBytes = 1 << 50
)

var (
	idForm       = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$`)
	hostnameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9.-]{0,62}$`)
)

// withDefaults fills what was left zero.
func (s Spec) withDefaults() Spec {
	if s.Cwd == "" {
		s.Cwd = "/"
	}
	if s.Hostname == "" {
		s.Hostname = strings.Trim(strings.ReplaceAll(s.ID, "_", "-"), "-.")
		s.Hostname = s.Hostname[:min(len(s.Hostname), 63)]
	}
	def(&s.CPUMillis, 1000)
	def(&s.MemoryBytes, 512<<20)
	def(&s.DiskBytes, 1<<30)
	def(&s.OutputBytes, 1<<30)
	def(&s.MaxLogBytes, 64<<20)
	def(&s.Pids, 1024)
	def(&s.OpenFiles, DefaultOpenFiles)
	def(&s.RunLimit, time.Hour)
	def(&s.NetBytes, 10<<30)
	return s
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Validate checks form and bounds; it does not look at the file system.
func (s Spec) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrSpec, fmt.Sprintf(format, args...))
	}
	switch {
	case !idForm.MatchString(s.ID):
		return bad("id %.80q must be 1-64 letters, digits, '_', '.', '-'", s.ID)
	case !filepath.IsAbs(s.Rootfs):
		return bad("rootfs %q must be an absolute path", s.Rootfs)
	case s.Arriving != "" && !filepath.IsAbs(s.Arriving):
		return bad("the folder the image arrives in, %q, must be an absolute path", s.Arriving)
	case s.Restore != "" && (!filepath.IsAbs(s.Restore) || !s.Savable):
		return bad("a checkpoint, %q, must be an absolute path, and the container savable", s.Restore)
	case s.Savable && s.Arriving != "":
		return bad("the state of a container can be saved only if its image is whole when it begins")
	case s.Savable && s.Outbound:
		return bad("the state of a container with a network cannot be saved")
	case s.Savable && !s.Devices.none():
		return bad("the state of a container with devices cannot be saved")
	case len(s.Args) == 0 || s.Args[0] == "":
		return bad("no command: name one, or use an image with an entrypoint")
	case len(s.Args) > maxArgs, len(s.Env) > maxEnv, size(s.Args)+size(s.Env) > maxArgBytes:
		return bad("arguments and environment exceed %d entries or %d bytes", maxArgs, maxArgBytes)
	case !path.IsAbs(s.Cwd):
		return bad("working directory %q must be absolute", s.Cwd)
	case !hostnameForm.MatchString(s.Hostname):
		return bad("hostname %.80q is not a host name", s.Hostname)
	case strings.ContainsRune(strings.Join(s.Args, "")+strings.Join(s.Env, "")+s.Cwd+s.User, 0):
		return bad("an argument, the environment, the user or the working directory holds a zero byte")
	}
	for _, e := range s.Env {
		if k, _, ok := strings.Cut(e, "="); !ok || k == "" {
			return bad("environment entry %.80q is not KEY=VALUE", e)
		}
	}
	if err := s.validateLimits(bad); err != nil {
		return err
	}
	if err := s.Devices.validate(bad); err != nil {
		return err
	}
	return s.validateMounts(bad)
}

func (s Spec) validateLimits(bad func(string, ...any) error) error {
	for _, b := range []struct {
		name          string
		got, min, max uint64
	}{
		{"memory", s.MemoryBytes, minMemory, maxLimitBytes},
		{"disk", s.DiskBytes, minDisk, maxLimitBytes},
		{"output", s.OutputBytes, 0, maxLimitBytes},
		{"log", s.MaxLogBytes, 0, maxLimitBytes},
		{"network", s.NetBytes, 0, maxLimitBytes},
	} {
		if b.got < b.min || b.got > b.max {
			return bad("%s limit of %d bytes is outside %d-%d", b.name, b.got, b.min, b.max)
		}
	}
	switch {
	case s.CPUMillis < 10 || s.CPUMillis > maxCPUMillis:
		return bad("cpu limit of %d thousandths is outside 10-%d", s.CPUMillis, maxCPUMillis)
	case s.Pids < 1 || s.Pids > maxPids:
		return bad("pids limit %d is outside 1-%d", s.Pids, maxPids)
	case s.OpenFiles < 16 || s.OpenFiles > maxOpenFiles:
		return bad("open files limit %d is outside 16-%d", s.OpenFiles, maxOpenFiles)
	case s.RunLimit < time.Millisecond || s.RunLimit > maxRunLimit:
		return bad("run limit %s is outside 1ms-%s", s.RunLimit, maxRunLimit)
	}
	return nil
}

// reserved are the places the sandbox itself mounts something on.
var reserved = []string{"/", "/proc", "/sys", "/dev", SavableDir}

func (s Spec) validateMounts(bad func(string, ...any) error) error {
	if len(s.Mounts) > maxMounts {
		return bad("%d mounts, at most %d", len(s.Mounts), maxMounts)
	}
	seen := map[string]bool{}
	for _, m := range s.Mounts {
		if !filepath.IsAbs(m.Source) || strings.ContainsRune(m.Source, 0) {
			return bad("mount source %q must be an absolute path", m.Source)
		}
		if !path.IsAbs(m.Dest) || path.Clean(m.Dest) != m.Dest || strings.ContainsAny(m.Dest, "\x00\n") {
			return bad("mount destination %q must be an absolute, clean path", m.Dest)
		}
		if s.Secrets && (m.Dest == path.Dir(SecretsDir) || m.Dest == SecretsDir || strings.HasPrefix(m.Dest, SecretsDir+"/")) {
			return bad("nothing may be mounted on %s: the job's secrets lie in %s", m.Dest, SecretsDir)
		}
		for _, r := range reserved {
			if m.Dest == r || (r != "/" && strings.HasPrefix(m.Dest, r+"/")) {
				return bad("nothing may be mounted on %s: choose a folder of its own, as /in or /out", m.Dest)
			}
		}
		if seen[m.Dest] {
			return bad("two mounts on %s", m.Dest)
		}
		seen[m.Dest] = true
	}
	return nil
}

func size(ss []string) (n int) {
	for _, s := range ss {
		n += len(s) + 1
	}
	return n
}
