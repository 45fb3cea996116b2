//go:build !linux

package content

import (
	"io/fs"
	"os"
	"time"
)

// setFileTime sets the time of last change of an open file, if one is told.
func setFileTime(dir *os.Root, name string, _ *os.File, t time.Time) error {
	return setTime(dir, name, t)
}

// create makes a file in the folder, which must not be there.
func (f *treeFolder) create(name string, perm fs.FileMode) (*os.File, error) {
	return f.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
}
