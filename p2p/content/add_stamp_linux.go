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
	return stamp{uint64(st.Dev), st.Ino, uint64(st.Size), st.Mtim.Nano(), st.Ctim.Nano()}, true //nolint:gosec,unconvert // widths differ by machine
}
