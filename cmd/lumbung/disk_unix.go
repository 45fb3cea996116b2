//go:build !windows

package main

import "golang.org/x/sys/unix"

// diskFree is the room, in bytes, that this user may still fill at dir.
func diskFree(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil //nolint:gosec,unconvert // types differ by system
}
