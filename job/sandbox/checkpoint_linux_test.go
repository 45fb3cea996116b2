package sandbox

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lumbung-net/lumbung/protocol"
)

// ticks is a container whose program counts in its memory, in a file of the
// image, in one of /tmp and in one of an output folder.
func (e *env) ticks(out string) Spec {
	s := e.spec("tick", "10ms", "/counted", "/tmp/counted", "/out/deep/counted")
	s.Env, s.Savable = []string{"X=kept"}, true
	s.Mounts = []Mount{{Source: out, Dest: "/out"}}
	return s
}

// outFolder is a folder for outputs, with a folder in it.
func (e *env) outFolder(name string) string {
	e.t.Helper()
	dir := filepath.Join(e.base, name)
	must(e.t, os.Mkdir(dir, 0o777))
	must(e.t, os.Chmod(dir, 0o777))
	return dir
}

type ticked struct {
	n, pid, child int
	x             string
}

func ticksIn(t *testing.T, log string) (list []ticked) {
	t.Helper()
	for line := range strings.Lines(log) {
		var k ticked
		if _, err := fmt.Sscanf(line, "tick %d pid %d child %d x %s\n", &k.n, &k.pid, &k.child, &k.x); err != nil {
			t.Fatalf("%q in the log: %v", line, err)
		}
		list = append(list, k)
	}
	return list
}

// checkpointed runs a counting container to its 20th step, saves it and ends it.
func (e *env) checkpointed(s Spec) (dir string, last ticked) {
	e.t.Helper()
	e.start(s)
	e.until(s.ID, "tick 20 ")
	dir = filepath.Join(e.base, s.ID+"-saved")
	must(e.t, os.Mkdir(dir, 0o700))
	must(e.t, e.r.Checkpoint(ctxOf(e.t), s.ID, dir, true))
	if x := e.wait(s.ID); !x.Stopped {
		e.t.Errorf("%+v", x)
	}
	list := ticksIn(e.t.(*testing.T), e.output(s.ID))
	return dir, list[len(list)-1]
}

func TestCheckpointRestore(t *testing.T) {
	e := newEnv(t)
	from := e.outFolder("out-1")
	must(t, os.Mkdir(filepath.Join(from, "deep"), 0o777))
	must(t, os.Chmod(filepath.Join(from, "deep"), 0o777))
	must(t, os.Symlink("deep/counted", filepath.Join(from, "link")))
	s := e.ticks(from)
	dir, last := e.checkpointed(s)

	// Elsewhere: another runtime's folder, id and output folder.
	away := *e
	away.base = t.TempDir()
	away.r = away.open(findRunsc(t))
	t.Cleanup(away.removeAll)
	to := s
	to.ID, to.Restore = "elsewhere", dir
	to.Mounts = []Mount{{Source: away.outFolder("out-2"), Dest: "/out"}}
	away.start(to)
	must(t, os.RemoveAll(dir)) // not needed any more
	away.until(to.ID, fmt.Sprintf("tick %d ", last.n+20))

	// And once more: what was restored can be saved.
	again := filepath.Join(away.base, "again")
	must(t, os.Mkdir(again, 0o700))
	must(t, away.r.Checkpoint(ctxOf(t), to.ID, again, false))
	must(t, away.r.Stop(ctxOf(t), to.ID, 0))
	away.wait(to.ID)
	list := ticksIn(t, away.output(to.ID))
	for i, k := range list {
		if want := (ticked{last.n + 1 + i, last.pid, last.child, "kept"}); k != want {
			t.Fatalf("step %d after the checkpoint: %+v, want %+v", i, k, want)
		}
	}
	if link, err := os.Readlink(filepath.Join(away.base, "out-2", "link")); err != nil || link != "deep/counted" {
		t.Errorf("the link in the outputs: %q %v", link, err)
	}
	to.ID, to.Restore = "third", again
	to.Mounts = []Mount{{Source: away.outFolder("out-3"), Dest: "/out"}}
	away.start(to)
	away.until(to.ID, "tick ")
	must(t, away.r.Stop(ctxOf(t), to.ID, 0))
	third := ticksIn(t, func() string { away.wait(to.ID); return away.output(to.ID) }())
	if first := third[0]; first.n <= last.n+20 || first.n > list[len(list)-1].n+1 || first.pid != last.pid {
		t.Errorf("the second checkpoint went on from %+v, taken between %d and %d", first, last.n+20, list[len(list)-1].n)
	}
}

// TestCheckpointLeaves lets the container go on, its port connections too, and
// restores it where nobody is connected.
func TestCheckpointLeaves(t *testing.T) {
	e := newEnv(t)
	s := e.spec("serve", "7000")
	s.User, s.Savable = "1000:1000", true
	e.start(s)
	e.until(s.ID, "serving")
	f, err := e.r.Forward(ctxOf(t), s.ID)
	must(t, err)
	defer func() { _ = f.Close() }()
	c, err := f.Dial(ctxOf(t), 7000)
	must(t, err)
	talk := func(c Conn, text string) {
		t.Helper()
		_, err := io.WriteString(c, text)
		must(t, err)
		got := make([]byte, len(text))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
			t.Fatalf("%q came back for %q: %v", got, text, err)
		}
	}
	talk(c, "before")
	dir := filepath.Join(e.base, "saved")
	must(t, os.Mkdir(dir, 0o700))
	must(t, e.r.Checkpoint(ctxOf(t), s.ID, dir, false))
	talk(c, "after")
	must(t, c.Close())
	must(t, e.r.Stop(ctxOf(t), s.ID, 0))

	to := s
	to.ID, to.Restore = "elsewhere", dir
	e.start(to)
	g, err := e.r.Forward(ctxOf(t), to.ID)
	if err != nil {
		t.Fatalf("%v: %+v", err, e.wait(to.ID))
	}
	defer func() { must(t, g.Close()) }()
	c, err = g.Dial(ctxOf(t), 7000) // its program listens still
	must(t, err)
	talk(c, "elsewhere")
	must(t, c.Close())
}

// TestRestoredLimits: a restored container has the limits of its own spec.
func TestRestoredLimits(t *testing.T) {
	e := newEnv(t)
	s := e.spec("trapeat")
	s.Savable = true
	e.start(s)
	e.until(s.ID, "ready")
	dir := filepath.Join(e.base, "saved")
	must(t, os.Mkdir(dir, 0o700))
	must(t, e.r.Checkpoint(ctxOf(t), s.ID, dir, true))
	e.wait(s.ID)
	to := s
	to.ID, to.Restore = "elsewhere", dir
	e.start(to)
	must(t, e.signal(to.ID, unix.SIGTERM)) // it begins to eat
	x := e.wait(to.ID)
	if x.Exceeded == nil || x.Exceeded.Limit != LimitMemory || !x.OOM {
		t.Errorf("%+v", x)
	}
}

// signal sends to the program, as Stop does.
func (e *env) signal(id string, sig unix.Signal) error {
	c, err := dialSentry(ctxOf(e.t), filepath.Join(e.r.jobs, id))
	if err != nil {
		return err
	}
	defer c.close()
	return c.signal(sig, 0)
}

// TestRestoreWithSecrets: secrets are in no checkpoint but as the program's own
// memory, and are given anew to the container that goes on.
func TestRestoreWithSecrets(t *testing.T) {
	e := newEnv(t)
	token := rand.Text()
	s := e.spec("deaf")
	s.Savable = true
	e.startWith(s, protocol.Secrets{"TOKEN": []byte(token)})
	e.until(s.ID, "ready")
	dir := filepath.Join(e.base, "saved")
	must(t, os.Mkdir(dir, 0o700))
	must(t, e.r.Checkpoint(ctxOf(t), s.ID, dir, true))
	e.wait(s.ID)
	must(t, e.r.Remove(ctxOf(t), s.ID))
	if found := e.holding([]byte(token)); len(found) > 0 {
		t.Errorf("a secret that nobody has read is in %q", found)
	}
	to := s
	to.ID, to.Restore = "elsewhere", dir
	e.startWith(to, protocol.Secrets{"TOKEN": []byte(token)})
	var text bytes.Buffer
	code, err := e.r.Exec(ctxOf(t), to.ID, ExecSpec{Args: []string{"/job", "hash", SecretsDir + "/TOKEN"}, Stdout: &text})
	if err != nil || code != 0 || !strings.Contains(text.String(), sumOf(token)) {
		t.Errorf("%d %v %s", code, err, text.String())
	}
	must(t, e.r.Stop(ctxOf(t), to.ID, 0))
	e.wait(to.ID)
}

func TestCheckpointRefused(t *testing.T) {
	e := newEnv(t)
	s := e.spec("trap")
	s.Savable = true
	dir := filepath.Join(e.base, "saved")
	must(t, os.Mkdir(dir, 0o700))
	if err := e.r.Checkpoint(ctxOf(t), s.ID, dir, false); !errors.Is(err, ErrNotFound) {
		t.Errorf("of none: %v", err)
	}
	e.start(s)
	e.until(s.ID, "ready")
	if err := e.r.Checkpoint(ctxOf(t), s.ID, filepath.Join(dir, "missing"), true); !errors.Is(err, ErrCheckpoint) {
		t.Errorf("into no folder: %v", err)
	}
	// It goes on, and answers.
	must(t, e.r.Checkpoint(ctxOf(t), s.ID, dir, false))
	must(t, e.signal(s.ID, unix.SIGTERM))
	if x := e.wait(s.ID); x.Code != 7 {
		t.Errorf("%+v", x)
	}

	// Damaged state ends the start, and says so.
	must(t, os.Truncate(filepath.Join(dir, fileKernel), 4096))
	to := s
	to.ID, to.Restore = "damaged", dir
	must(t, e.r.Prepare(ctxOf(t), to))
	if _, err := e.r.Start(ctxOf(t), to.ID, nil); err != nil {
		t.Log(err)
	}
	if x := e.wait(to.ID); x.Code != CodeSandbox || x.Source != SourceSandbox || x.Reason == "" {
		t.Errorf("%+v", x)
	}
}

// TestRestoreMountsHostile lays out tars that want to leave their folder or to
// be more than the job may write.
func TestRestoreMountsHostile(t *testing.T) {
	reg := func(name string, size int) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(size), Mode: 0o4755}
	}
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}
	}
	for _, c := range []struct {
		name    string
		entries []tar.Header
		ok      bool
	}{
		{"fine", []tar.Header{reg("0/a", 10), link("0/b", "/etc/passwd")}, true},
		{"above", []tar.Header{reg("0/../../a", 10)}, false},
		{"no mount", []tar.Header{reg("1/a", 10)}, false},
		{"no number", []tar.Header{reg("x", 10)}, false},
		{"through a link", []tar.Header{link("0/up", ".."), reg("0/up/a", 10)}, false},
		{"over a link", []tar.Header{link("0/up", "../outside"), reg("0/up", 10)}, false},
		{"too much", []tar.Header{reg("0/a", 1<<20), reg("0/b", 1<<20)}, false},
		{"a device", []tar.Header{{Typeflag: tar.TypeChar, Name: "0/null", Devmajor: 1, Devminor: 3}}, false},
		{"a hard link", []tar.Header{reg("0/a", 1), {Typeflag: tar.TypeLink, Name: "0/b", Linkname: "0/a"}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := t.TempDir()
			out, saved := filepath.Join(base, "out"), filepath.Join(base, "saved")
			must(t, errors.Join(os.Mkdir(out, 0o755), os.Mkdir(saved, 0o755)))
			for _, name := range []string{fileKernel, filePagesMeta, filePages} {
				must(t, os.WriteFile(filepath.Join(saved, name), nil, 0o600))
			}
			f, err := os.Create(filepath.Join(saved, fileMounts))
			must(t, err)
			w := tar.NewWriter(f)
			for _, h := range c.entries {
				must(t, w.WriteHeader(&h))
				_, err := io.CopyN(w, zeroReader{}, h.Size)
				must(t, err)
			}
			must(t, errors.Join(w.Close(), f.Close()))
			err = restoreMounts(t.Context(), Spec{Restore: saved, OutputBytes: 2<<20 - 1, Mounts: []Mount{{Source: out, Dest: "/out"}}})
			if c.ok != (err == nil) || err != nil && !errors.Is(err, ErrCheckpoint) {
				t.Errorf("%v", err)
			}
			entries, err := os.ReadDir(base)
			if err != nil || len(entries) != 2 {
				t.Errorf("outside: %v %v", entries, err)
			}
			if info, err := os.Stat(filepath.Join(out, "a")); err == nil && info.Mode()&os.ModeSetuid != 0 {
				t.Errorf("a file is %s", info.Mode())
			}
		})
	}
}

// TestRestoreFromLinks: a checkpoint whose files are links to the host's gives the
// container nothing of them.
func TestRestoreFromLinks(t *testing.T) {
	base := t.TempDir()
	secret := filepath.Join(base, "secret")
	must(t, os.WriteFile(secret, make([]byte, 1024), 0o600))
	names := []string{fileKernel, filePagesMeta, filePages, fileMounts}
	for _, bad := range append(names, ".") {
		dir := filepath.Join(base, "saved-"+bad)
		must(t, os.Mkdir(dir, 0o700))
		for _, name := range names {
			if name == bad {
				must(t, os.Symlink(secret, filepath.Join(dir, name)))
				continue
			}
			must(t, os.WriteFile(filepath.Join(dir, name), make([]byte, 1024), 0o600))
		}
		if bad == "." {
			link := filepath.Join(base, "link")
			must(t, os.Symlink(dir, link))
			dir = link
		}
		if err := restoreMounts(t.Context(), Spec{Restore: dir}); !errors.Is(err, ErrCheckpoint) {
			t.Errorf("%s is a link: %v", bad, err)
		}
	}
}

// FuzzRestoreMounts: whatever a checkpoint's tar is, nothing appears outside of
// the mount, and no more than the job may write.
func FuzzRestoreMounts(f *testing.F) {
	seed := func(headers ...tar.Header) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			must(f, w.WriteHeader(&h))
			_, err := io.CopyN(w, zeroReader{}, h.Size)
			must(f, err)
		}
		must(f, w.Close())
		f.Add(b.Bytes())
	}
	seed(tar.Header{Typeflag: tar.TypeDir, Name: "0/", Mode: 0o755}, tar.Header{Typeflag: tar.TypeReg, Name: "0/a", Size: 3, Mode: 0o644})
	seed(tar.Header{Typeflag: tar.TypeSymlink, Name: "0/up", Linkname: "..", Mode: 0o777}, tar.Header{Typeflag: tar.TypeReg, Name: "0/up/a", Size: 3})
	seed(tar.Header{Typeflag: tar.TypeReg, Name: "0/../../a", Size: 3}, tar.Header{Typeflag: tar.TypeReg, Name: "7/a"})
	f.Fuzz(func(t *testing.T, data []byte) {
		base := t.TempDir()
		out, saved := filepath.Join(base, "out"), filepath.Join(base, "saved")
		must(t, errors.Join(os.Mkdir(out, 0o755), os.Mkdir(saved, 0o755)))
		for _, name := range []string{fileKernel, filePagesMeta, filePages} {
			must(t, os.WriteFile(filepath.Join(saved, name), nil, 0o600))
		}
		must(t, os.WriteFile(filepath.Join(saved, fileMounts), data, 0o600))
		s := Spec{Restore: saved, OutputBytes: 64 << 10, Mounts: []Mount{{Source: out, Dest: "/out"}}}
		err := restoreMounts(t.Context(), s)
		if err != nil && !errors.Is(err, ErrCheckpoint) {
			t.Errorf("%v", err)
		}
		if entries, err := os.ReadDir(base); err != nil || len(entries) != 2 {
			t.Errorf("outside: %v %v", entries, err)
		}
		var total int64
		_ = filepath.WalkDir(out, func(_ string, d os.DirEntry, _ error) error {
			if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
				total += info.Size()
			}
			return nil
		})
		if total > 64<<10 {
			t.Errorf("%d bytes were written", total)
		}
		must(t, RemoveTree(out))
	})
}

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func TestPortability(t *testing.T) {
	e := newEnv(t)
	here, err := e.r.Portability(ctxOf(t))
	must(t, err)
	if !strings.HasPrefix(here.Engine, "gvisor-") {
		t.Errorf("%+v", here)
	}
	must(t, here.Holds(here))
	less := Portability{here.Engine, append([]byte(nil), here.CPU...)}
	less.CPU[0] = 0
	must(t, here.Holds(less))
	if err := less.Holds(here); !errors.Is(err, ErrCheckpoint) {
		t.Errorf("features are missing: %v", err)
	}
	must(t, Portability{here.Engine, append(here.CPU[:len(here.CPU):len(here.CPU)], 1)}.Holds(here))
	if err := (Portability{"gvisor-other", here.CPU}).Holds(here); !errors.Is(err, ErrCheckpoint) {
		t.Errorf("another engine: %v", err)
	}
}
