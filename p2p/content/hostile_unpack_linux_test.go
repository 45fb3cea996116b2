package content

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	asUserEnv = "LUMBUNG_TEST_AS_USER"
	nobody    = 65534
)

// capNetRaw is security.capability of a program with cap_net_raw=ep: struct
// vfs_cap_data of linux/capability.h, revision 2.
const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func xattrOf(t testing.TB, path, name string) string {
	t.Helper()
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(path, name, buf)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return ""
	}
	noErr(t, err)
	return string(buf[:n])
}

// keepsXattrs says whether the tests' file system keeps attributes of users.
func keepsXattrs(t testing.TB) bool {
	p := writeTemp(t, "")
	return unix.Setxattr(p, "user.probe", []byte("x"), 0) == nil
}

// What an image says of its files is so on disk: for root all of it, for an
// ordinary user what a user may.
func TestUnpackConformance(t *testing.T) {
	root := os.Geteuid() == 0
	s, log := loggedStore(t)
	long := strings.Repeat("l", 255)
	deep := strings.Repeat(strings.Repeat("d", 100)+"/", 12)
	odd := "caf\xe9\xff\xfe"
	pax := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m["SCHILY.xattr."+kv[i]] = kv[i+1]
		}
		return m
	}
	lower := makeTar(t,
		tarEntry{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o711, Uid: 7, Gid: 8}, ""},
		tarEntry{tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o2750, Uid: 1000, Gid: 1001, PAXRecords: pax("user.of", "folder")}, ""},
		tarEntry{tar.Header{Name: "d/su", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 1000, Gid: 1001}, "#!"},
		tarEntry{tar.Header{Name: "d/sg", Typeflag: tar.TypeReg, Mode: 0o2711}, "#!"},
		tarEntry{tar.Header{Name: "d/none", Typeflag: tar.TypeReg, Mode: 0}, "x"},
		tarEntry{tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, ""},
		tarEntry{tar.Header{Name: "d/ping", Typeflag: tar.TypeReg, Mode: 0o755, Uid: 5, PAXRecords: pax("security.capability", capNetRaw, "user.note", "hi", "trusted.x", "t", "security.selinux", "s")}, "p"},
		tarEntry{tar.Header{Name: "d/link", Typeflag: tar.TypeSymlink, Linkname: "su", Uid: 1000, Gid: 1001}, ""},
		file(long, "long"), file(deep+"f", "deep"), file(odd, "odd"),
		folderAt("opq/", 0o755), file("opq/a", "1"), folderAt("opq/sub/", 0o700), file("opq/sub/b", "2"),
		file("keep", "k"), file("gone", "g"), folderAt("ro/", 0o500), file("ro/f", "r"),
		tarEntry{tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8}, ""},
	)
	upper := makeTar(t,
		hardlink("kept-too", "keep"), hardlink("d/su-too", "/d/su"), file("gone-too", "x"),
		file(".wh.gone", ""), file("opq/.wh..wh..opq", ""), file("opq/c", "3"), file("ro/g", "r"),
	)
	dir, err := unpackOf(t, s, Limits{}, lower, upper)
	noErr(t, err)
	stat := func(name string) (fs.FileInfo, *syscall.Stat_t) {
		t.Helper()
		fi, err := os.Lstat(filepath.Join(dir, name))
		noErr(t, err)
		return fi, fi.Sys().(*syscall.Stat_t)
	}
	for name, want := range map[string]struct {
		asRoot, asUser fs.FileMode
		uid, gid       uint32
	}{
		".":        {fs.ModeDir | 0o711, fs.ModeDir | 0o711, 7, 8},
		"d":        {fs.ModeDir | fs.ModeSetgid | 0o750, fs.ModeDir | 0o750, 1000, 1001},
		"d/su":     {fs.ModeSetuid | 0o755, 0o755, 1000, 1001},
		"d/sg":     {fs.ModeSetgid | 0o711, 0o711, 0, 0},
		"d/none":   {0, 0o400, 0, 0},
		"d/link":   {fs.ModeSymlink | 0o777, fs.ModeSymlink | 0o777, 1000, 1001},
		"tmp":      {fs.ModeDir | fs.ModeSticky | 0o777, fs.ModeDir | 0o777, 0, 0},
		"ro":       {fs.ModeDir | 0o500, fs.ModeDir | 0o700, 0, 0},
		"ro/g":     {0o644, 0o644, 0, 0},
		long:       {0o644, 0o644, 0, 0},
		deep + "f": {0o644, 0o644, 0, 0},
		odd:        {0o644, 0o644, 0, 0},
		"opq":      {fs.ModeDir | 0o755, fs.ModeDir | 0o755, 0, 0},
		"opq/c":    {0o644, 0o644, 0, 0},
	} {
		fi, st := stat(name)
		mode := want.asRoot
		if !root {
			mode, want.uid, want.gid = want.asUser, uint32(os.Geteuid()), uint32(os.Getegid())
		}
		if fi.Mode() != mode || st.Uid != want.uid || st.Gid != want.gid {
			t.Errorf("%.40q: %v of %d:%d, want %v of %d:%d", name, fi.Mode(), st.Uid, st.Gid, mode, want.uid, want.gid)
		}
		if fi.Mode()&fs.ModeSymlink == 0 && !fi.ModTime().Equal(testTime) {
			t.Errorf("%.40q: time %v, want %v", name, fi.ModTime(), testTime)
		}
	}
	for _, name := range []string{"gone", "opq/a", "opq/sub", "dev/sda", ".wh.gone"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there: %v", name, err)
		}
	}
	for a, b := range map[string]string{"keep": "kept-too", "d/su": "d/su-too"} {
		x, _ := stat(a)
		if y, st := stat(b); !os.SameFile(x, y) || st.Nlink != 2 {
			t.Errorf("%s and %s are not one file", a, b)
		}
	}
	checkXattrs(t, dir, root)
	for _, w := range []string{"devices_pipes_sockets=1", "trusted.x", "security.selinux"} {
		if !strings.Contains(log.String(), w) {
			t.Errorf("the log does not say %q: %s", w, log)
		}
	}
	noErr(t, RemoveAll(dir))
}

func checkXattrs(t *testing.T, dir string, root bool) {
	t.Helper()
	ping := filepath.Join(dir, "d/ping")
	for name, dropped := range map[string]string{"trusted.x": "t", "security.selinux": "s"} {
		if got := xattrOf(t, ping, name); got == dropped {
			t.Errorf("%s was kept", name)
		}
	}
	want := map[string]string{"security.capability": ""}
	if keepsXattrs(t) {
		want["user.note"] = "hi"
		if got := xattrOf(t, filepath.Join(dir, "d"), "user.of"); got != "folder" {
			t.Errorf("user.of of a folder is %q", got)
		}
	}
	if root {
		want["security.capability"] = capNetRaw
	}
	for name, v := range want {
		if got := xattrOf(t, ping, name); got != v {
			t.Errorf("%s is %q, want %q", name, got, v)
		}
	}
}

// allocated returns the bytes a file takes on disk.
func allocated(t testing.TB, path string) (size, onDisk int64) {
	t.Helper()
	var st unix.Stat_t
	noErr(t, unix.Stat(path, &st))
	return st.Size, st.Blocks * 512
}

// Runs of zeros become holes, whether the tar says so or spells them out, and
// read back as what they were.
func TestUnpackSparse(t *testing.T) {
	s := testStore(t)
	const big = 2 << 30
	islands := make([]byte, 24<<20)
	copy(islands[8<<20:], noise(1, 5000))
	copy(islands[20<<20-3:], noise(2, 5000))
	dir, err := unpackOf(t, s, Limits{},
		gnuSparse("holes", big, []byte("begin")),
		makeTar(t, file("islands", string(islands)), file("zeros", string(make([]byte, 1<<20))), file("dense", string(noise(5, 1<<20)))))
	noErr(t, err)
	for name, most := range map[string]int64{"holes": 512 << 10, "islands": 2 << 20, "zeros": 64 << 10, "dense": 2 << 20} {
		size, disk := allocated(t, filepath.Join(dir, name))
		if disk > most {
			t.Errorf("%s of %d bytes takes %d on disk", name, size, disk)
		}
	}
	if size, _ := allocated(t, filepath.Join(dir, "holes")); size != big {
		t.Errorf("size %d", size)
	}
	got, err := os.ReadFile(filepath.Join(dir, "islands"))
	if err != nil || !bytes.Equal(got, islands) {
		t.Errorf("islands differ %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "zeros")); err != nil || !bytes.Equal(got, make([]byte, 1<<20)) {
		t.Errorf("zeros differ %v", err)
	}
	f, err := os.Open(filepath.Join(dir, "holes"))
	noErr(t, err)
	defer func() { noErr(t, f.Close()) }()
	head := make([]byte, 10)
	if _, err := f.ReadAt(head, 0); err != nil || string(head) != "begin\x00\x00\x00\x00\x00" {
		t.Errorf("%q %v", head, err)
	}
}

// The same as an ordinary user: root runs the tests again as nobody.
func TestUnpackAsUser(t *testing.T) {
	if os.Getenv(asUserEnv) != "" || os.Geteuid() != 0 {
		t.Skip("the other tests run as an ordinary user already")
	}
	dir := t.TempDir()
	for p := dir; p != "/" && p != "."; p = filepath.Dir(p) {
		if fi, err := os.Stat(p); err == nil && fi.Mode()&1 == 0 && strings.HasPrefix(p, os.TempDir()+"/") {
			noErr(t, os.Chmod(p, fi.Mode().Perm()|0o111))
		}
	}
	noErr(t, os.Chmod(dir, 0o777))
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", "-test.timeout=5m",
		"-test.run=^(TestUnpackConformance|TestUnpackSparse|TestUnpackHostile|TestUnpackLayers|TestUnpackRacingLinks|TestUnpackRefusalsSayWhere|TestExportHostile)$")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asUserEnv+"=1", "TMPDIR="+dir, "HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if errors.Is(err, fs.ErrPermission) && len(out) == 0 {
		t.Skipf("nobody may not run this program or enter %s: %v", dir, err)
	}
	if err != nil || bytes.Count(out, []byte("\n--- PASS")) < 6 {
		t.Errorf("%v\n%s", err, out)
	}
}
