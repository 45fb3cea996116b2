package content

import (
	"io/fs"
	"syscall"
)

// stampOf is a file's stamp.
func stampOf(fi fs.FileInfo) (stamp, bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return stamp{}, false
	}
	return stamp{uint64(st.Dev), st.Ino, uint64(st.Size), st.Mtimespec.Nano(), st.Ctimespec.Nano()}, true //nolint:gosec // bits are kept
}
