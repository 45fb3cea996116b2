package content

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxXattrs bounds the names of a file's attributes and each value, in bytes:
// what Linux allows.
const maxXattrs = 64 << 10

// xattrsOf returns the extended attributes of a file that belong into an image,
// as a tar has them.
func xattrsOf(f *os.File) (map[string]string, error) {
	fd := int(f.Fd())
	n, err := unix.Flistxattr(fd, nil)
	if n == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	names, value := make([]byte, maxXattrs), []byte(nil)
	if err == nil {
		n, err = unix.Flistxattr(fd, names)
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	pax := map[string]string{}
	for _, name := range bytes.Split(names[:n], []byte{0}) {
		if string(name) != "security.capability" && !strings.HasPrefix(string(name), "user.") {
			continue
		}
		if value == nil {
			value = make([]byte, maxXattrs)
		}
		n, err := unix.Fgetxattr(fd, string(name), value)
		if errors.Is(err, unix.ENODATA) { // gone meanwhile
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("attribute %.100q: %w", name, err)
		}
		pax["SCHILY.xattr."+string(name)] = string(value[:n])
	}
	return pax, nil
}
