package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestConformance(t *testing.T) {
	e := newEnv(t)
	must(t, os.WriteFile(filepath.Join(e.image, "text"), []byte("not a program"), 0o755))
	must(t, os.WriteFile(filepath.Join(e.image, "closed"), []byte("x"), 0o644))
	for _, c := range []struct {
		name   string
		steps  []string
		change func(*Spec)
		code   int
		signal int
		out    string // contained
		source string
	}{
		{name: "echo", steps: []string{"echo", "hello"}, out: "hello\n"},
		{name: "exit code", steps: []string{"exit", "42"}, code: 42},
		{name: "exit code of runsc's own failures", steps: []string{"exit", "128"}, code: 128},
		{name: "own signal", steps: []string{"child"}, code: 0},
		{name: "killed", steps: []string{"signal", "9"}, code: 137, signal: 9},
		{name: "segfault", steps: []string{"signal", "11"}, code: 2}, // Go prints a trace and exits with 2
		{name: "not found", change: func(s *Spec) { s.Args = []string{"/nope"} }, code: 127},
		{name: "not on the path", change: func(s *Spec) { s.Args = []string{"nope"} }, code: 127},
		{name: "on the path", change: func(s *Spec) { s.Args = []string{"job", "echo", "found"}; s.Env = []string{"PATH=/"} }, out: "found"},
		{name: "not executable", change: func(s *Spec) { s.Args = []string{"/closed"} }, code: 126},
		{name: "no program", change: func(s *Spec) { s.Args = []string{"/text"} }, code: 126},
		{name: "a folder", change: func(s *Spec) { s.Args = []string{"/proc"} }, code: 126},
		{name: "numeric user", steps: []string{"who"}, change: func(s *Spec) { s.User = "1234:77"; s.Hostname = "box" }, out: "uid=1234 gid=77 groups=[] cwd=/ host=box home=/ x=\n"},
		{name: "numeric user alone", steps: []string{"who"}, change: func(s *Spec) { s.User = "1234" }, out: "uid=1234 gid=0 "},
		{name: "root", steps: []string{"who"}, change: func(s *Spec) { s.Env = []string{"X=y z"} }, out: "home=/root x=y z\n"},
		{name: "cwd", steps: []string{"who"}, change: func(s *Spec) { s.Cwd = "/tmp" }, out: "cwd=/tmp "},
		{name: "no tmp in the image", steps: []string{"write", "/tmp/x", "1", ";", "cat", "/tmp/x"}, out: "write /tmp/x: <nil>\n1"},
		{name: "tmp for a user", steps: []string{"write", "/tmp/x", "1"}, change: func(s *Spec) { s.User = "5:5" }, out: "write /tmp/x: <nil>"},
		{name: "devices", steps: []string{"write", "/dev/null", "1", ";", "ls", "/dev"}, out: "urandom"},
		{name: "passwd", steps: []string{"cat", "/etc/passwd", ";", "cat", "/etc/hosts"}, out: "127.0.0.1\tlocalhost"},
		{name: "stderr", steps: []string{"warn", "careful"}, out: "careful\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			differs(t)
			s := e.spec(c.steps...)
			if c.change != nil {
				c.change(&s)
			}
			x, out := e.run(s)
			if x.Code != c.code || x.Signal != c.signal || x.Source != SourceJob || x.Exceeded != nil {
				t.Errorf("exit %+v, want code %d signal %d", x, c.code, c.signal)
			}
			if !strings.Contains(out, c.out) {
				t.Errorf("output %q, want %q", out, c.out)
			}
			if never := c.code == 126 || c.code == 127; never != x.Started.IsZero() || never == (x.Reason == "") {
				t.Errorf("started %v, reason %q", x.Started, x.Reason)
			}
			must(t, e.r.Remove(ctxOf(t), s.ID))
		})
	}
	// The image is as it was.
	entries, err := os.ReadDir(e.image)
	must(t, err)
	if len(entries) != 3 {
		t.Errorf("the image has changed: %v", entries)
	}
}

func TestNamedUser(t *testing.T) {
	e := newEnv(t)
	must(t, os.Mkdir(filepath.Join(e.image, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(e.image, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(e.image, "etc/group"), []byte("ann:x:1001:\nvideo:x:44:bob,ann\n"), 0o644))
	for user, want := range map[string]string{
		"ann":       "uid=1000 gid=1001 groups=[44] cwd=/ ",
		"1000":      "uid=1000 gid=1001 groups=[44] ",
		"ann:video": "uid=1000 gid=44 groups=[] ",
		"ann:5":     "uid=1000 gid=5 ",
	} {
		if e.r.user { // only one group is mapped
			want = strings.ReplaceAll(want, "[44]", "[]")
		}
		s := e.spec("who", ";", "status")
		s.User = user
		x, out := e.run(s)
		if x.Code != 0 || !strings.Contains(out, want) || !strings.Contains(out, "home=/home/ann") {
			t.Errorf("user %s: %+v %s", user, x, out)
		}
		if !strings.Contains(out, "CapEff 0000000000000000") || !strings.Contains(out, "CapBnd 0000000000000000") {
			t.Errorf("user %s has capabilities: %s", user, out)
		}
	}
	s := e.spec("who")
	s.User = "eve"
	if err := e.r.Prepare(ctxOf(t), s); err == nil || !strings.Contains(err.Error(), "eve") {
		t.Errorf("unknown user: %v", err)
	}
}

func TestConfinement(t *testing.T) {
	e := newEnv(t)
	x, out := e.run(e.spec("tries", ";", "status"))
	if x.Code != 0 {
		t.Fatalf("%+v %s", x, out)
	}
	for _, want := range []string{
		"mount: operation not permitted", "mknod: operation not permitted", "raw: operation not permitted",
		"net: dial tcp 1.1.1.1:80: connect: network is unreachable",
		"loopback: <nil>", "NoNewPrivs 1", "CapEff 00000000000004fb",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("missing %q in\n%s", want, out)
		}
	}
}

func TestRootIsSharedAndUntouched(t *testing.T) {
	e := newEnv(t)
	must(t, os.Mkdir(filepath.Join(e.image, "data"), 0o755))
	must(t, os.WriteFile(filepath.Join(e.image, "data/a"), []byte("original"), 0o644))
	before := listing(t, e.image)
	a, b := e.spec("write", "/data/a", "changed", ";", "remove", "/job", ";", "write", "/new", "1", ";", "cat", "/data/a"), e.spec("sleep", "300ms", ";", "cat", "/data/a")
	e.start(a)
	e.start(b)
	if x := e.wait(a.ID); x.Code != 0 || !strings.Contains(e.output(a.ID), "changed") {
		t.Errorf("%+v %s", x, e.output(a.ID))
	}
	if x := e.wait(b.ID); x.Code != 0 || e.output(b.ID) != "original" {
		t.Errorf("%+v %s", x, e.output(b.ID))
	}
	if after := listing(t, e.image); before != after {
		t.Errorf("the image has changed:\n%s\n%s", before, after)
	}
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err == nil {
			b.WriteString(p + " " + info.Mode().String() + " " + info.ModTime().String() + "\n")
		}
		return err
	}))
	return b.String()
}

func TestMounts(t *testing.T) {
	e := newEnv(t)
	in, out, file := filepath.Join(e.base, "in"), filepath.Join(e.base, "out"), filepath.Join(e.base, "one,file")
	must(t, os.Mkdir(in, 0o755))
	must(t, os.Mkdir(out, 0o777))
	must(t, os.Chmod(out, 0o777))
	must(t, os.WriteFile(filepath.Join(in, "x"), []byte("input"), 0o644))
	must(t, os.WriteFile(file, []byte("single"), 0o644))
	must(t, os.Symlink("/srv", filepath.Join(e.image, "var")))
	for _, user := range e.users("", "1000:1000") {
		s := e.spec("cat", "/in/x", ";", "cat", "/etc/deep/conf", ";", "write", "/in/x", "no", ";", "remove", "/in/x", ";",
			"mustwrite", "/var/run/out/r"+user, "data", ";", "chmod", "/var/run/out/r"+user, "4755", ";", "mkdir", "/var/run/out/d"+user, "0")
		s.User = user
		s.Mounts = []Mount{{in, "/in", true, 0}, {file, "/etc/deep/conf", true, 0}, {out, "/var/run/out", false, 0}}
		x, text := e.run(s)
		if x.Code != 0 || !strings.Contains(text, "inputsingle") || strings.Count(text, "read-only file system")+strings.Count(text, "permission denied") != 2 {
			t.Errorf("%+v %s", x, text)
		}
		data, err := os.ReadFile(filepath.Join(out, "r"+user))
		must(t, err)
		info, err := os.Stat(filepath.Join(out, "r"+user))
		must(t, err)
		if string(data) != "data" || info.Mode() != 0o755|os.ModeSetuid {
			t.Errorf("%q %v", data, info.Mode())
		}
		must(t, e.r.Remove(ctxOf(t), s.ID))
	}
	must(t, RemoveTree(out))
	if _, err := os.Stat(out); !os.IsNotExist(err) {
		t.Errorf("outputs are left: %v", err)
	}
	if data, err := os.ReadFile(filepath.Join(in, "x")); err != nil || string(data) != "input" {
		t.Errorf("the input has changed: %q %v", data, err)
	}
}

func TestSpecErrors(t *testing.T) {
	e := newEnv(t)
	must(t, os.WriteFile(filepath.Join(e.image, "afile"), nil, 0o644))
	must(t, os.Symlink("../../../../etc", filepath.Join(e.image, "esc")))
	for name, change := range map[string]func(*Spec){
		"no command":      func(s *Spec) { s.Args = nil },
		"bad id":          func(s *Spec) { s.ID = "../x" },
		"holds the home":  func(s *Spec) { s.Rootfs = e.base },
		"no image":        func(s *Spec) { s.Rootfs = filepath.Join(e.base, "nope") },
		"mount on proc":   func(s *Spec) { s.Mounts = []Mount{{e.base, "/proc/x", true, 0}} },
		"mount on file":   func(s *Spec) { s.Mounts = []Mount{{e.base, "/afile", true, 0}} },
		"under a file":    func(s *Spec) { s.Mounts = []Mount{{e.base, "/afile/x", true, 0}} },
		"missing source":  func(s *Spec) { s.Mounts = []Mount{{filepath.Join(e.base, "nope"), "/in", true, 0}} },
		"two on one":      func(s *Spec) { s.Mounts = []Mount{{e.base, "/in", true, 0}, {e.base, "/in", true, 0}} },
		"little memory":   func(s *Spec) { s.MemoryBytes = 1 },
		"zero byte":       func(s *Spec) { s.Args = []string{"a\x00b"} },
		"bad environment": func(s *Spec) { s.Env = []string{"novalue"} },
	} {
		s := e.spec("echo")
		change(&s)
		if err := e.r.Prepare(ctxOf(t), s); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	// A symlink that climbs out ends inside the image.
	s := e.spec("cat", "/esc/mounted/x")
	in := filepath.Join(e.base, "in2")
	must(t, os.Mkdir(in, 0o755))
	must(t, os.WriteFile(filepath.Join(in, "x"), []byte("inside"), 0o644))
	s.Mounts = []Mount{{in, "/esc/mounted", true, 0}}
	if x, out := e.run(s); x.Code != 0 || out != "inside" {
		t.Errorf("%+v %s", x, out)
	}
	if _, err := os.Stat("/etc/mounted"); err == nil {
		t.Error("the host's /etc was written")
	}
}

func TestTwice(t *testing.T) {
	e := newEnv(t)
	s := e.spec("trap")
	e.start(s)
	if err := e.r.Prepare(ctxOf(t), s); err == nil {
		t.Error("the id was taken and Prepare took it again")
	}
	if _, err := e.r.Start(ctxOf(t), s.ID, nil); err == nil {
		t.Error("it was started twice")
	}
	e.until(s.ID, "ready")
	must(t, e.r.Stop(ctxOf(t), s.ID, 20*time.Second))
	if x := e.wait(s.ID); x.Code != 7 || !x.Stopped {
		t.Errorf("%+v", x)
	}
	if _, err := e.r.Start(ctxOf(t), s.ID, nil); err == nil {
		t.Error("it was started again after its end")
	}
}
