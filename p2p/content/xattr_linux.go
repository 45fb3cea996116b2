package content

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// setXattrs sets extended attributes. A file system that keeps none is no error.
func setXattrs(f *os.File, list []fileXattr) error {
	for _, x := range list {
		err := unix.Fsetxattr(int(f.Fd()), x.name, []byte(x.value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("attribute %.100q of %d bytes: %w", x.name, len(x.value), err)
		}
	}
	return nil
}
