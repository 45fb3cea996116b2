package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// makeSkel fills dir with what must lie over the image so that runsc finds
// every mount point: runsc would otherwise create them in the image itself,
// which is shared and only read. Folders repeat the mode and owner the image
// gives them, as the upper one of two merged folders decides.
func makeSkel(dir string, im *image, s Spec) error {
	k := skel{dir: dir, image: im}
	if err := k.folder("/"); err != nil {
		return err
	}
	for _, m := range slices.Concat(s.Mounts, s.Devices.Files) {
		info, err := os.Stat(m.Source)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Dest, err)
		}
		if !info.IsDir() && !info.Mode().IsRegular() {
			return fmt.Errorf("%w: %s is neither a file nor a folder", ErrSpec, m.Source)
		}
		if err := k.mountPoint(m.Dest, info.IsDir()); err != nil {
			return err
		}
	}
	for _, l := range s.Devices.Links {
		if err := k.link(l); err != nil {
			return err
		}
	}
	if s.Secrets {
		if err := k.mountPoint(SecretsDir, true); err != nil {
			return err
		}
	}
	return k.etc(s)
}

type skel struct {
	dir   string
	image *image
}

// mountPoint makes dest; what of it exists in the image must be of its kind.
func (k skel) mountPoint(dest string, isDir bool) error {
	exists, full, err := k.image.resolve(dest)
	if err != nil {
		return err
	}
	if full == "/" {
		return fmt.Errorf("%w: %s is the root of the image", ErrSpec, dest)
	}
	if exists == full {
		f, err := k.image.open(full, unix.O_PATH)
		if err != nil {
			return err
		}
		info, err := f.Stat()
		_ = f.Close()
		if err != nil {
			return err
		}
		if info.IsDir() != isDir {
			return fmt.Errorf("%w: %s is a %s in the image and a %s outside", ErrSpec, dest, kind(info.IsDir()), kind(isDir))
		}
	}
	if isDir {
		return k.folder(full)
	}
	if err := k.folder(path.Dir(full)); err != nil {
		return err
	}
	return k.file(full, nil)
}

// link makes a symbolic link, over what the image has there; never over a mount
// point.
func (k skel) link(l Link) error {
	_, dir, err := k.image.resolve(path.Dir(l.Path))
	if err != nil {
		return err
	}
	if err := k.folder(dir); err != nil {
		return err
	}
	err = os.Symlink(l.Target, filepath.Join(k.dir, dir, path.Base(l.Path)))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func kind(isDir bool) string {
	if isDir {
		return "folder"
	}
	return "file"
}

// folder makes full and its parents, outermost first.
func (k skel) folder(full string) error {
	parts := strings.Split(strings.Trim(full, "/"), "/")
	for i := range len(parts) + 1 {
		at := "/" + path.Join(parts[:i]...)
		host := filepath.Join(k.dir, at)
		if err := os.Mkdir(host, 0o755); errors.Is(err, fs.ErrExist) && at != "/" {
			continue
		} else if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := k.likeImage(at, host); err != nil {
			return err
		}
	}
	return nil
}

// likeImage gives host the mode and owner of the image's folder at, if any.
func (k skel) likeImage(at, host string) error {
	f, err := k.image.open(at, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) {
		return os.Chmod(host, 0o755)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := os.Lchown(host, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	return unix.Chmod(host, st.Mode&0o7777)
}

func (k skel) file(full string, data []byte) error {
	host := filepath.Join(k.dir, full)
	if err := os.WriteFile(host, data, 0o644); err != nil {
		return err
	}
	return os.Chmod(host, 0o644)
}

// etc adds what programs expect of /etc: the container's own name, and
// entries for its user where the image has none.
func (k skel) etc(s Spec) error {
	exists, full, err := k.image.resolve("/etc")
	if err != nil || exists != full && exists != "/" {
		return err
	}
	if exists == full {
		if f, err := k.image.open(full, unix.O_PATH|unix.O_DIRECTORY); err != nil {
			return nil //nolint:nilerr // an image whose /etc is a file runs without these
		} else if err := f.Close(); err != nil {
			return err
		}
	}
	if err := k.folder(full); err != nil {
		return err
	}
	hosts := "127.0.0.1\tlocalhost " + s.Hostname + "\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	type entry struct {
		name, data string
		always     bool // also where the image has such a file
		links      bool // and where it has a link
	}
	entries := []entry{
		{name: "hosts", data: hosts, always: true},
		{name: "hostname", data: s.Hostname + "\n", always: true},
		{name: "passwd", data: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"},
		{name: "group", data: "root:x:0:\nnogroup:x:65534:\n"},
	}
	if s.Outbound {
		// Many an image's is a link to where its own system would keep it.
		entries = append(entries, entry{"resolv.conf", "nameserver " + netServer + "\n", true, true})
	}
	for _, e := range entries {
		name := path.Join(full, e.name)
		there, err := k.present(name)
		if err != nil {
			return err
		}
		mounted := false
		for _, m := range s.Mounts {
			mounted = mounted || m.Dest == path.Join("/etc", e.name) || m.Dest == name
		}
		if mounted || there == "other" || there == "link" && !e.links || there == "file" && !e.always {
			continue
		}
		if err := k.file(name, []byte(e.data)); err != nil {
			return err
		}
	}
	return nil
}

// present says what the image has at name: "", "file", "link" or "other".
func (k skel) present(name string) (string, error) {
	f, err := k.image.open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	switch info.Mode().Type() {
	case 0:
		return "file", nil
	case fs.ModeSymlink:
		return "link", nil
	}
	return "other", nil
}
