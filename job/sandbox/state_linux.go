package sandbox

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Files in a container's folder.
const (
	fileSpec   = "spec.json"   // plan, written by Prepare: its presence makes the container
	fileState  = "state.json"  // state, written by the shim
	fileLock   = "lock"        // held by the shim for as long as it lives
	fileSocket = "shim.sock"   // the shim's control socket
	fileLog    = "log"         // frames of output
	fileError  = "runsc.log"   // runsc's errors as JSON
	filePid    = "sandbox.pid" // written by runsc
	fileShim   = "shim.log"    // what the shim itself complains about
	dirBundle  = "bundle"      // config.json
	fileDisk   = "disk.img"    // backing of an OCI runtime's writable layer
	dirSkel    = "skel"        // mount points and /etc files over the image
	dirRoot    = "root"        // where the shim mounts the root, in its own namespace
	dirSecrets = "secrets"     // where the shim mounts the secrets, in its own namespace
	dirUpper   = "upper"       // backing of the writable layer
	dirRunsc   = "runsc"       // runsc's state and socket
	cid        = "c"           // runsc's id for it: there is one per folder
)

// plan is what the shim needs to run a container.
type plan struct {
	Version int       `json:"version"`
	Spec    Spec      `json:"spec"`
	Runsc   string    `json:"runsc"`         // empty with OCI
	OCI     string    `json:"oci,omitempty"` // the runtime of the host that runs it, instead of gVisor
	UID     uint32    `json:"uid"`           // of the program inside
	GID     uint32    `json:"gid"`
	User    bool      `json:"user"` // run by an ordinary user, in a user namespace
	Cgroup  string    `json:"cgroup,omitempty"`
	Engine  string    `json:"engine,omitempty"`  // that its saved state needs
	Grouped bool      `json:"grouped,omitempty"` // with OCI: a cgroup bounds its memory
	Resolv  string    `json:"resolv,omitempty"`  // the machine's resolv.conf
	Made    time.Time `json:"made"`
}

const planVersion = 1

// program is what runs the container.
func (p plan) program() string { return cmp.Or(p.OCI, p.Runsc) }

// Phases of state.
const (
	phaseRunning = "running"
	phaseExited  = "exited"
)

type state struct {
	Phase   string    `json:"phase"`
	Shim    int       `json:"shim"` // process id
	Started time.Time `json:"started"`
	Exit    *Exit     `json:"exit,omitempty"`
}

// writeJSON replaces dir/name atomically and durably.
func writeJSON(dir, name string, v any) error {
	if err := replaceJSON(dir, name, v, true); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// replaceJSON replaces dir/name atomically. What is not synced may be gone when
// the machine fails, not when a process does.
func replaceJSON(dir, name string, v any, sync bool) (err error) {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", name, err)
	}
	tmp, err := os.CreateTemp(dir, "."+name+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = tmp.Close()
			_ = os.Remove(tmp.Name())
		}
	}()
	if _, err = tmp.Write(data); err != nil {
		return err
	}
	if sync {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), filepath.Join(dir, name))
}

// maxStateFile bounds the files read back.
const maxStateFile = 8 << 20

func readJSON(dir, name string, v any) error {
	file := filepath.Join(dir, name)
	data, err := readBounded(file, maxStateFile)
	if err != nil {
		return err
	}
	if len(data) == 0 { // all that a failure of the machine left of it
		return fmt.Errorf("%s is empty: %w", file, os.ErrNotExist)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s is damaged: %w", file, err)
	}
	return nil
}

func readPlan(dir string) (plan, error) {
	var p plan
	if err := readJSON(dir, fileSpec, &p); err != nil {
		return p, err
	}
	if p.Version != planVersion {
		return p, fmt.Errorf("%s is of version %d, this lumbung reads %d", filepath.Join(dir, fileSpec), p.Version, planVersion)
	}
	return p, nil
}

// readState gives a zero state for a container that was never started.
func readState(dir string) (state, error) {
	var s state
	err := readJSON(dir, fileState, &s)
	if errors.Is(err, os.ErrNotExist) {
		return state{}, nil
	}
	return s, err
}

// lockShim takes the lock that says "a shim lives here".
func lockShim(dir string) (*os.File, bool, error) {
	f, err := os.OpenFile(filepath.Join(dir, fileLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, true, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, false, nil
	}
	return nil, false, fmt.Errorf("locking %s: %w", f.Name(), err)
}
