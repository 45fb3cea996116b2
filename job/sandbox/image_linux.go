package sandbox

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// image reads a root file system made by a stranger: no path in it, symlinks
// included, leads out of it.
type image struct {
	dir   string
	root  *os.File
	whole string // where its files are, if not in root
}

func openImage(dir, whole string) (*image, error) {
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: root file system: %w", ErrSpec, err)
	}
	// What /proc says of open files below is relative to the resolved name.
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", root.Fd()))
	if err != nil {
		_ = root.Close()
		return nil, err
	}
	return &image{dir: real, root: root, whole: whole}, nil
}

func (im *image) close() { _ = im.root.Close() }

func (im *image) open(name string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(int(im.root.Fd()), name, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open in image", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

const maxEtcFile = 4 << 20

// readFile gives a regular file of at most maxEtcFile; a missing one is empty.
func (im *image) readFile(name string) ([]byte, error) {
	// O_NONBLOCK: a FIFO must not hang us.
	f, err := im.open(name, unix.O_RDONLY|unix.O_NONBLOCK)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxEtcFile {
		return nil, fmt.Errorf("%w: %s in the image is no file under %s", ErrSpec, name, bytesText(maxEtcFile))
	}
	if im.whole != "" {
		return im.arrived(name)
	}
	return io.ReadAll(io.LimitReader(f, maxEtcFile))
}

// arrived reads a file of an image that is arriving.
func (im *image) arrived(name string) ([]byte, error) {
	_, full, err := im.resolve(name)
	if err != nil {
		return nil, err
	}
	dir, err := openArriving(im.whole)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	f, err := openBeneath(dir, full, unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("%s of the image, which must be there before the start: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, maxEtcFile))
}

// resolve follows symlinks as far as name exists and gives the path, relative
// to the image, of what is there (exists) and of what is asked for.
func (im *image) resolve(name string) (exists, full string, err error) {
	rest := ""
	for cur := path.Clean("/" + name); ; cur = path.Dir(cur) {
		f, err := im.open(cur, unix.O_PATH)
		if err == nil {
			at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
			_ = f.Close()
			if err != nil {
				return "", "", err
			}
			rel, err := filepath.Rel(im.dir, at)
			if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
				return "", "", fmt.Errorf("%w: %s leads out of the image", ErrSpec, name)
			}
			return path.Clean("/" + rel), path.Clean("/" + path.Join(rel, rest)), nil
		}
		if !errors.Is(err, unix.ENOENT) || cur == "/" {
			return "", "", fmt.Errorf("%w: %s cannot be a mount point: %w", ErrSpec, name, err)
		}
		rest = path.Join(path.Base(cur), rest)
	}
}

// identity is who the program is.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// user resolves an image's User as docker does: name|uid[:group|gid]. Numbers
// need no entry in /etc/passwd; names do.
func (im *image) user(spec string) (identity, error) {
	id := identity{home: "/"}
	name, group, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	passwd, err := im.readFile("/etc/passwd")
	if err != nil {
		return id, err
	}
	groupFile, err := im.readFile("/etc/group")
	if err != nil {
		return id, err
	}
	login := name
	entry := findEntry(passwd, func(f []string) bool { return len(f) >= 4 && (f[0] == name || f[2] == name) })
	if entry == nil {
		if id.uid, err = parseID(name); err != nil {
			return id, fmt.Errorf("%w: user %q is neither a number nor in the image's /etc/passwd", ErrSpec, name)
		}
	} else {
		if id.uid, err = parseID(entry[2]); err != nil {
			return id, fmt.Errorf("%w: the image's /etc/passwd gives %q as uid of %q", ErrSpec, entry[2], name)
		}
		if id.gid, err = parseID(entry[3]); err != nil {
			return id, fmt.Errorf("%w: the image's /etc/passwd gives %q as gid of %q", ErrSpec, entry[3], name)
		}
		login = entry[0]
		if len(entry) >= 6 && path.IsAbs(entry[5]) {
			id.home = entry[5]
		}
	}
	if id.uid == 0 && entry == nil {
		id.home = "/root"
	}
	if hasGroup && group != "" {
		return id, groupID(&id, groupFile, group)
	}
	id.groups = memberOf(groupFile, login)
	return id, nil
}

func groupID(id *identity, groupFile []byte, group string) (err error) {
	if e := findEntry(groupFile, func(f []string) bool { return len(f) >= 3 && (f[0] == group || f[2] == group) }); e != nil {
		group = e[2]
	}
	if id.gid, err = parseID(group); err != nil {
		return fmt.Errorf("%w: group %q is neither a number nor in the image's /etc/group", ErrSpec, group)
	}
	return nil
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err
}

// findEntry scans a colon-separated file of /etc.
func findEntry(data []byte, match func([]string) bool) []string {
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		if f := strings.Split(strings.TrimSpace(lines.Text()), ":"); match(f) {
			return f
		}
	}
	return nil
}

const maxGroups = 64

func memberOf(groupFile []byte, login string) (gids []uint32) {
	findEntry(groupFile, func(f []string) bool {
		if len(f) < 4 || len(gids) == maxGroups {
			return false
		}
		for _, m := range strings.Split(f[3], ",") {
			if gid, err := parseID(f[2]); m == login && err == nil {
				gids = append(gids, gid)
				break
			}
		}
		return false
	})
	return gids
}
