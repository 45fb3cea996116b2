package sandbox

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Files of a checkpoint: the first three are gVisor's, under its own names.
const (
	fileKernel    = "checkpoint.img"
	filePagesMeta = "pages_meta.img"
	filePages     = "pages.img"
	fileMounts    = "mounts.tar" // what lay in the writable mounts

	fileForwarder = "forwarder" // in SavableDir

	restoreCommand    = "lumbung-restore" // as runsc/restore.go says
	checkpointFeature = "checkpoint/1"    // as runsc/features.go says
	// checkpointLimit is how long the sandbox may take to write its state, in
	// which the program stands still.
	checkpointLimit = 30 * time.Minute
)

// Portability says where this runtime's checkpoints can be restored, and which
// can be here. ErrNoRuntime says that it can make none.
func (r *Runtime) Portability(ctx context.Context) (Portability, error) {
	runsc, err := r.Ready(ctx)
	if err != nil {
		return Portability{}, err
	}
	if r.oci != "" {
		return Portability{}, r.onlyGVisor("saves a container's state")
	}
	list, err := r.features(ctx, runsc)
	if err != nil {
		return Portability{}, fmt.Errorf("%w that can save a container's state: %s: %w", ErrNoRuntime, runsc, err)
	}
	i := slices.IndexFunc(list, func(f []string) bool { return len(f) == 3 && f[0] == checkpointFeature })
	if i < 0 {
		return Portability{}, fmt.Errorf("%w that can save a container's state: %s is another than `make payload` builds", ErrNoRuntime, runsc)
	}
	cpu, err := hex.DecodeString(list[i][2])
	p := Portability{Engine: list[i][1] + r.kind(), CPU: cpu}
	if err != nil || !p.valid() {
		return Portability{}, fmt.Errorf("%w that can save a container's state: %s gave an answer that is not understood", ErrNoRuntime, runsc)
	}
	return p, nil
}

// kind tells containers of root from those of an ordinary user, in which one
// user exists.
func (r *Runtime) kind() string {
	if r.user {
		return "-user"
	}
	return "-root"
}

// savable gives the program that a savable container must have in its files.
func (r *Runtime) savable(ctx context.Context, s Spec) (program string, err error) {
	if !s.Savable {
		return "", nil
	}
	if _, err := r.Portability(ctx); err != nil {
		return "", err
	}
	return r.forwarder(ctx)
}

// addForwarder puts the program into the folder that lies over the image.
func addForwarder(skel, program string) error {
	if program == "" {
		return nil
	}
	dir := filepath.Join(skel, SavableDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // a folder of the container
		return err
	}
	at := filepath.Join(dir, fileForwarder)
	if os.Link(program, at) == nil {
		return nil
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	return os.WriteFile(at, data, 0o755) //nolint:gosec // a program of the container
}

// Checkpoint saves the state of a running container into dir, an empty host
// folder: its programs, their memory, what they wrote to the image's files and to
// the writable mounts, those with bounds of their own excluded. The programs
// stand still meanwhile and notice nothing but the time. With end the container
// ends with it, without another step of its programs.
//
// What dir holds is as secret as the container. Connections to other machines
// and programs of Exec are not part of it. ErrCheckpoint says that the state of
// this container cannot be saved; the container goes on.
func (r *Runtime) Checkpoint(ctx context.Context, id, dir string, end bool) error {
	from, err := r.folder(id)
	if err != nil {
		return err
	}
	st, err := readState(from)
	if err != nil {
		return err
	}
	p, err := readPlan(from)
	switch {
	case err != nil:
		return err
	case st.Phase != phaseRunning:
		return fmt.Errorf("%w: %s", ErrNotRunning, id)
	case !p.Spec.Savable:
		return fmt.Errorf("%w: %s was not made to be saved", ErrCheckpoint, id)
	case !filepath.IsAbs(dir):
		return fmt.Errorf("the folder of a checkpoint, %q, must be absolute", dir)
	}
	now, err := r.Portability(ctx)
	if err != nil {
		return err
	}
	if now.Engine != p.Engine {
		return fmt.Errorf("%w: %s was started by another version of lumbung, whose states this one cannot name", ErrCheckpoint, id)
	}
	// Its supervisor does it, so that a node that dies meanwhile leaves no
	// container standing still.
	if _, err := ask(ctx, from, request{Op: "checkpoint", Dir: dir, End: end}); err != nil {
		return fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	return nil
}

// checkpoint is the request of that name. With end the programs stand still when
// it returns nil: whoever answers the request kills the container then, after its
// answer, which would end with it.
func (s *shim) checkpoint(ctx context.Context, dir string, end bool) (err error) {
	s.saving.Lock()
	defer s.saving.Unlock()
	c, err := dialSentry(ctx, s.dir)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.callFor(checkpointLimit, "containerManager.Pause", struct{}{}, nil); err != nil {
		return err
	}
	defer func() {
		if err == nil && end {
			return
		}
		err = errors.Join(err, c.callFor(checkpointLimit, "containerManager.Resume", struct{}{}, nil))
	}()
	if err := s.saveState(c, dir); err != nil {
		return err
	}
	// The programs stand still: the mounts are as their memory knows them.
	if err := saveMounts(s.plan.Spec, filepath.Join(dir, fileMounts)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped { // it may know already, and would end at once wherever it goes on
		return errors.New("it is being ended")
	}
	s.stopped = end
	return nil
}

// restoreFailed reports whether runsc's last word is that a state could not be
// restored.
func restoreFailed(s Spec, failure string) bool {
	return s.Restore != "" && strings.HasPrefix(failure, `restoring container: restoring container "`)
}

// saveState has the sandbox write its state. Nothing is compressed: that would
// be done while the programs stand still.
func (s *shim) saveState(c *sentry, dir string) error {
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for _, name := range []string{fileKernel, filePagesMeta, filePages} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	arg := map[string]any{
		"metadata":                            map[string]string{"compression": "none"},
		"app_mf_exclude_committed_zero_pages": true,
		"have_pages_file":                     true,
		"Resume":                              true,
	}
	return c.callFor(checkpointLimit, "containerManager.Checkpoint", arg, nil, files...)
}
