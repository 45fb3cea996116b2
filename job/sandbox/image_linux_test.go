package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func imageOf(t testing.TB) (*image, string) {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "etc"), 0o755))
	im, err := openImage(dir, "")
	must(t, err)
	t.Cleanup(im.close)
	return im, dir
}

// Nothing in an image leads out of it.
func TestImageEscapes(t *testing.T) {
	im, dir := imageOf(t)
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("x:x:0:0::/:"), 0o644))
	for name, target := range map[string]string{
		"abs": filepath.Join(outside, "secret"), "up": "../../../../../../../../" + outside + "/secret", "loop": "loop",
		"proc": "/proc/self/root" + outside + "/secret",
	} {
		must(t, os.Symlink(target, filepath.Join(dir, name)))
		if data, err := im.readFile("/" + name); len(data) > 0 || err != nil && !errors.Is(err, unix.EXDEV) {
			t.Errorf("%s: %q %v", name, data, err)
		}
	}
	must(t, os.Symlink(outside, filepath.Join(dir, "folder")))
	if exists, full, err := im.resolve("/folder/new"); err == nil && exists != "/" {
		t.Errorf("%s %s", exists, full)
	}
	must(t, os.Symlink("/etc", filepath.Join(dir, "conf")))
	if exists, full, err := im.resolve("/conf/a/b"); err != nil || exists != "/etc" || full != "/etc/a/b" {
		t.Errorf("%s %s %v", exists, full, err)
	}
}

// A FIFO or a huge file as /etc/passwd neither hangs nor fills memory.
func TestImageHostilePasswd(t *testing.T) {
	im, dir := imageOf(t)
	passwd := filepath.Join(dir, "etc/passwd")
	must(t, unix.Mkfifo(passwd, 0o644))
	if _, err := im.user("root"); !errors.Is(err, ErrSpec) {
		t.Errorf("a FIFO: %v", err)
	}
	must(t, os.Remove(passwd))
	f, err := os.Create(passwd)
	must(t, err)
	must(t, errors.Join(f.Truncate(1<<40), f.Close()))
	if _, err := im.user("root"); !errors.Is(err, ErrSpec) {
		t.Errorf("a huge file: %v", err)
	}
}

func FuzzUser(f *testing.F) {
	f.Add("root:x:0:0::/root:/bin/sh\nann:x:5:6::/home/ann:\n", "ann:x:6:\nvideo:x:44:bob,ann\n", "ann:video")
	f.Add(":::\n::::::\n", ":,:,:", "0")
	f.Add("a:x:99999999999:0::relative:", "a:x:-1:a", "a")
	dir := f.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		f.Fatal(err)
	}
	im, err := openImage(dir, "")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(im.close)
	f.Fuzz(func(t *testing.T, passwd, group, user string) {
		must(t, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(passwd), 0o644))
		must(t, os.WriteFile(filepath.Join(dir, "etc/group"), []byte(group), 0o644))
		id, err := im.user(user)
		if err == nil && (!strings.HasPrefix(id.home, "/") || len(id.groups) > maxGroups || id.uid > 1<<31-1 || id.gid > 1<<31-1) {
			t.Errorf("%+v", id)
		}
	})
}
