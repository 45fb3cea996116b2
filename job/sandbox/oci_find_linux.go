package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// ociTime bounds a question to a runtime that is no container.
const ociTime = 10 * time.Second

// findOCI gives the path of an OCI runtime that an operator has named, and what
// it calls itself.
func findOCI(ctx context.Context, asked string) (file, version string, err error) {
	file, err = exec.LookPath(asked)
	if err == nil {
		file, err = filepath.Abs(file)
	}
	if err != nil {
		return "", "", fmt.Errorf("%w: OCI runtime %s: %w: install it (Debian: apt-get install runc), or leave --runtime out for gVisor", ErrNoRuntime, asked, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, ociTime, fmt.Errorf("no answer within %s", ociTime))
	defer cancel()
	out, err := exec.CommandContext(ctx, file, "--version").Output()
	if err != nil {
		return "", "", fmt.Errorf("%w: %s --version: %w", ErrNoRuntime, file, errors.Join(err, context.Cause(ctx)))
	}
	version, _, _ = strings.Cut(string(out), "\n")
	return file, strings.Replace(version, " version ", " ", 1), nil
}

// weaker is what an operator must know of every OCI runtime.
const weaker = "weaker than gVisor: jobs share this machine's kernel, and a hole in it is a way out"

// Describe says what runs containers, for people; an error says why nothing can.
func (r *Runtime) Describe(ctx context.Context) (string, error) {
	file, err := r.Ready(ctx)
	if err != nil || r.oci == "" {
		return file, err
	}
	r.unpacking.Lock()
	defer r.unpacking.Unlock()
	return fmt.Sprintf("%s, %s (%s)", r.ociVersion, file, weaker), nil
}

// errWhole is why no image can arrive under an OCI runtime.
func errWhole(file string) error {
	return fmt.Errorf("%w that can start a container before its image is whole: only gVisor asks before it opens a file, and this provider runs %s", ErrNoRuntime, file)
}

// ociUser says why a user of an image cannot be had by an ordinary user's node.
func ociUser(p plan) error {
	if !p.User || p.UID == 0 && p.GID == 0 {
		return nil
	}
	return fmt.Errorf("%w: this provider runs %s as an ordinary user: a container of it has only user 0:0, the job wants %d:%d",
		ErrSpec, filepath.Base(p.OCI), p.UID, p.GID)
}

// allGroups are the folders of a name below this process's own group of every
// controller of version 1, also of those that lumbung does not use: a runtime
// makes them.
func allGroups(name string) []string {
	own, err := readBounded("/proc/self/cgroup", 1<<20)
	if err != nil {
		return nil
	}
	mounts, err := readBounded("/proc/self/mounts", 4<<20)
	if err != nil {
		return nil
	}
	var dirs []string
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 4 || f[2] != "cgroup" && f[2] != "cgroup2" {
			continue
		}
		for _, at := range groupsIn(f[1], f[3], string(own)) {
			dir := filepath.Join(at, name)
			if _, err := os.Stat(dir); err == nil {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

// groupsIn are this process's groups in one mounted hierarchy: by its options'
// controller or name, the empty one for the unified.
func groupsIn(mount, options, own string) []string {
	dirs := []string{mount}
	for line := range strings.Lines(own) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		first, _, _ := strings.Cut(f[1], ",")
		if first == "" || strings.Contains(","+options+",", ","+first+",") {
			dirs = append(dirs, filepath.Join(mount, f[2]))
		}
	}
	return dirs
}
