//go:build unix

package node

import "golang.org/x/sys/unix"

// freeDisk is how many bytes an ordinary user may still write in a folder.
func freeDisk(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil //nolint:gosec,unconvert // the types differ between systems
}
