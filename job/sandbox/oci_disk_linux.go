package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// upper is the writable layer of a container by an OCI runtime.
type upper struct {
	dir string // holds data and work
	// mounted says that dir is a file system of its own, as large as the limit:
	// the job gets ENOSPC. Else the shim measures, and ends the job.
	mounted bool
}

// makeUpper lays out the writable layer in a container's folder.
func makeUpper(dir string, limit uint64, user bool) (upper, error) {
	u := upper{dir: filepath.Join(dir, dirUpper)}
	if !user {
		if err := mountBounded(filepath.Join(dir, fileDisk), u.dir, limit); err != nil {
			fmt.Fprintln(os.Stderr, "bounded disk:", err)
		} else {
			u.mounted = true
		}
	}
	for _, d := range []string{"data", "work"} {
		if err := os.Mkdir(filepath.Join(u.dir, d), 0o755); err != nil {
			return u, err
		}
	}
	// The upper one of merged folders decides what the root is like.
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, dirSkel), &st); err != nil {
		return u, err
	}
	data := filepath.Join(u.dir, "data")
	return u, errors.Join(os.Lchown(data, int(st.Uid), int(st.Gid)), unix.Chmod(data, st.Mode&0o7777))
}

// mountBounded mounts a new file system of that size, kept sparsely in file, in
// the caller's own mount namespace. It is gone with that, its loop device too.
func mountBounded(file, target string, size uint64) error {
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		return errors.New("no mke2fs on the PATH (e2fsprogs)")
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	// Inodes take a part of it that the job was not to lose.
	if err := f.Truncate(int64(size + size/24 + 1<<20)); err != nil { //nolint:gosec // validated
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, mke2fs, "-q", "-F", "-t", "ext4", "-m", "0", "-i", "8192", "-O", "^has_journal,^resize_inode",
		"-E", "lazy_itable_init=1,nodiscard", file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	loop, err := attachLoop(f)
	if err != nil {
		return err
	}
	defer func() { _ = loop.Close() }() // the mount holds it from now on
	if err := unix.Mount(loop.Name(), target, "ext4", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, "noinit_itable"); err != nil {
		return fmt.Errorf("mounting %s: %w", loop.Name(), err)
	}
	return nil
}

// loopTries bounds how often another program may be quicker.
const loopTries = 64

// attachLoop gives a loop device on f that frees itself when it is closed.
func attachLoop(f *os.File) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ctl.Close() }()
	for range loopTries {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("looking for a loop device: %w", err)
		}
		dev, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(f.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO}} //nolint:gosec // a descriptor
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		if errors.Is(err, unix.EINVAL) { // not every file system does direct I/O
			config.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO
			err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		}
		if err == nil {
			return dev, nil
		}
		_ = dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("loop device %s: %w", dev.Name(), err)
		}
	}
	return nil, errors.New("no loop device is free for long enough")
}

// used is how much of limit is taken; it stops over it.
func (u upper) used(limit uint64) uint64 {
	if !u.mounted {
		return outputSize(Spec{Mounts: []Mount{{Source: filepath.Join(u.dir, "data")}}}, limit)
	}
	var st unix.Statfs_t
	if unix.Statfs(u.dir, &st) != nil {
		return 0
	}
	if st.Ffree == 0 { // no room for one more file is a full disk
		return limit
	}
	return limit - min(limit, st.Bavail*uint64(st.Bsize)) //nolint:gosec // positive
}

// watchDisk holds the limit, or notices that the file system did.
func (o *oci) watchDisk() {
	limit := o.plan.Spec.DiskBytes
	for wait := minLook; o.pause(wait); {
		begin := time.Now()
		n := o.lookUpper(limit)
		wait = headroom(n, limit, minLook)
		if !o.writer.mounted {
			wait = o.lookAgain(n, limit, time.Since(begin))
		}
	}
	o.lookUpper(limit)
}

func (o *oci) lookUpper(limit uint64) uint64 {
	n := o.writer.used(limit)
	o.mu.Lock()
	o.usage.Disk = max(o.usage.Disk, n)
	o.mu.Unlock()
	switch {
	case !o.writer.mounted && n > limit:
		o.exceed(Exceeded{Limit: LimitDisk, Max: limit, Seen: n, At: time.Now(), Killed: true})
	case o.writer.mounted && n >= limit-limit/50:
		o.exceed(Exceeded{Limit: LimitDisk, Max: limit, Seen: n, At: time.Now()})
	}
	return n
}
