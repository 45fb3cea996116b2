package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountRoot mounts the container's root on dir/root: the image under the
// skeleton, read-only as there is no upper layer, so that no write can reach
// either on the host. The calling process has a mount namespace of its own.
func mountRoot(dir, rootfs string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	return mountOverlay(dir, rootfs, unix.MS_RDONLY, "")
}

// mountWritable is mountRoot for an OCI runtime: what is written goes to
// upper/data, and is no more than a folder there to an ordinary user.
func mountWritable(dir, rootfs, upper string, user bool) error {
	f, err := os.OpenFile(upper, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	options := fmt.Sprintf(",upperdir=/proc/self/fd/%d/data,workdir=/proc/self/fd/%d/work", f.Fd(), f.Fd())
	if user {
		options += ",userxattr"
	}
	return mountOverlay(dir, rootfs, 0, options)
}

func mountOverlay(dir, rootfs string, flags uintptr, more string) error {
	lower := make([]string, 0, 2)
	for _, d := range []string{filepath.Join(dir, dirSkel), rootfs} {
		f, err := os.OpenFile(d, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		// By descriptor: paths may hold the ':' and ',' that separate options.
		lower = append(lower, fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	}
	target := filepath.Join(dir, dirRoot)
	options := "lowerdir=" + strings.Join(lower, ":") + more
	err := unix.Mount("overlay", target, "overlay", flags|unix.MS_NOSUID|unix.MS_NODEV, options)
	if err != nil {
		return fmt.Errorf("mounting the image with the kernel's overlayfs (an ordinary user needs Linux 5.11 or newer and user namespaces): %w", err)
	}
	return nil
}

// startFailure maps runsc's words for a program that cannot be started to
// docker's codes. Everything else is the sandbox's own failure.
func startFailure(msg string) (code int, source, reason string) {
	_, cause, found := strings.Cut(msg, "starting sandbox: ")
	if !found {
		return CodeSandbox, SourceSandbox, msg
	}
	cause = strings.TrimPrefix(cause, "creating process: ")
	exec := strings.HasPrefix(cause, "failed to load ") || strings.HasPrefix(cause, "error finding executable ")
	switch {
	case !exec:
		return CodeSandbox, SourceSandbox, msg
	case strings.HasSuffix(cause, "no such file or directory"), strings.HasSuffix(cause, "not a directory"):
		return CodeNotFound, SourceJob, "command not found: " + cause
	}
	return CodeCannotExecute, SourceJob, "command cannot be executed: " + cause
}

// RemoveTree removes a folder that a container wrote to, folders without
// permissions included, which an ordinary user's os.RemoveAll cannot enter.
func RemoveTree(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || !errors.Is(err, os.ErrPermission) {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		if chErr := os.Chmod(dir, 0o700); chErr != nil { //nolint:gosec // about to be removed
			return err
		}
		if root, err = os.OpenRoot(dir); err != nil {
			return err
		}
	}
	openUp(root, ".")
	_ = root.Close()
	return os.RemoveAll(dir)
}

func openUp(root *os.Root, name string) {
	_ = root.Chmod(name, 0o700)
	d, err := root.Open(name)
	if err != nil {
		return
	}
	entries, _ := d.ReadDir(-1)
	_ = d.Close()
	for _, e := range entries {
		if e.IsDir() {
			openUp(root, filepath.Join(name, e.Name()))
		}
	}
}
