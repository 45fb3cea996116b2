package sandbox

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

// written are the forms in which a value could lie somewhere.
func written(value []byte) [][]byte {
	return [][]byte{
		value, []byte(hex.EncodeToString(value)), []byte(strings.TrimRight(base64.StdEncoding.EncodeToString(value), "=")),
		[]byte(base64.RawURLEncoding.EncodeToString(value)), []byte(strings.Trim(fmt.Sprintf("%d", value), "[]")),
	}
}

// holding lists the files of a runtime, and of its processes' arguments and
// environments, that contain one of some texts.
func (e *env) holding(texts ...[]byte) (found []string) {
	e.t.Helper()
	look := func(path string) {
		data, err := os.ReadFile(path)
		for _, text := range texts {
			if err == nil && bytes.Contains(data, text) {
				found = append(found, path)
			}
		}
	}
	must(e.t, filepath.WalkDir(e.base, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			look(p)
		}
		return nil // a file may go meanwhile
	}))
	for _, p := range processesWith(e.base) {
		pid, _, _ := strings.Cut(p, " ")
		for _, name := range []string{"cmdline", "environ", "mountinfo", "limits"} {
			look(filepath.Join("/proc", pid, name))
		}
	}
	return found
}

func (e *env) startWith(s Spec, secrets protocol.Secrets) Handle {
	e.t.Helper()
	s.Secrets = true
	must(e.t, e.r.Prepare(ctxOf(e.t), s))
	h, err := e.r.Start(ctxOf(e.t), s.ID, secrets)
	must(e.t, err)
	return h
}

func sumOf(value string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(value))) }

// Secrets are files of the container's user, which nobody can write; they are in
// nothing that lies on the host, nor in any process's arguments or environment.
func TestSecrets(t *testing.T) {
	e := newEnv(t)
	big := make([]byte, 90_000)
	_, _ = rand.Read(big)
	for user, owner := range map[string]string{"": "0:0", "1000:77": "1000:77"} {
		if !slices.Contains(e.users("", "1000:77"), user) {
			continue
		}
		token := rand.Text()
		s := e.spec("hash", "/run/secrets/TOKEN", ";", "hash", "/run/secrets/big.bin", ";", "write", "/run/secrets/TOKEN", "no", ";",
			"write", "/run/secrets/more", "no", ";", "remove", "/run/secrets/TOKEN", ";", "ls", "/run/secrets", ";", "trap")
		s.User = user
		h := e.startWith(s, protocol.Secrets{"TOKEN": []byte(token), "big.bin": bytes.Clone(big)})
		out := e.until(s.ID, "ready")
		for _, want := range []string{
			sumOf(token) + " -r-------- " + owner + "\n", sumOf(string(big)) + " -r-------- " + owner + "\n", "TOKEN\nbig.bin\nready",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("user %q: no %q in %s", user, want, out)
			}
		}
		if n := strings.Count(out, "read-only file system") + strings.Count(out, "permission denied"); n != 3 {
			t.Errorf("user %q could write: %s", user, out)
		}
		var text bytes.Buffer
		code, err := e.r.Exec(ctxOf(t), s.ID, ExecSpec{Args: []string{"/job", "hash", "/run/secrets/TOKEN"}, Stdout: &text})
		if err != nil || code != 0 || !strings.Contains(text.String(), sumOf(token)) {
			t.Errorf("exec: %d %v %s", code, err, text.String())
		}
		e.hidden(s.ID, token, string(big))
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", h.Shim))
		if err != nil || !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 0 bytes") {
			t.Errorf("the supervisor may leave core files: %v\n%s", err, limits)
		}
		must(t, e.r.Stop(ctxOf(t), s.ID, time.Minute))
		if x := e.wait(s.ID); x.Code != 7 {
			t.Errorf("%+v", x)
		}
		e.hidden(s.ID, token, string(big))
		must(t, e.r.Remove(ctxOf(t), s.ID))
	}
}

// hidden looks everywhere for values, and their first bytes; that the search
// finds anything at all is shown by what the program printed.
func (e *env) hidden(id string, values ...string) {
	e.t.Helper()
	for _, v := range values {
		if len(e.holding([]byte(sumOf(v)))) == 0 {
			e.t.Error("the search does not find what the program printed")
		}
		if where := e.holding(written([]byte(v)[:24])...); len(where) > 0 {
			e.t.Errorf("a secret is in %v", where)
		}
	}
	if where := e.holding([]byte("big.bin\x00"), []byte(`"big.bin"`)); len(where) > 0 {
		e.t.Errorf("a secret's name is in %v", where)
	}
	left, err := os.ReadDir(filepath.Join(e.r.jobs, id, dirSecrets))
	if err != nil || len(left) > 0 {
		e.t.Errorf("the host sees %v %v", left, err)
	}
}

// The secrets of a container whose node is killed stay; one that was prepared by
// a node that is gone gets them at its start.
func TestSecretsOverRestart(t *testing.T) {
	e := newEnv(t)
	e.killedNode(t, "c1", "hash", "/run/secrets/A", ";", "trap")
	s := e.spec("hash", "/run/secrets/A")
	s.Secrets = true
	must(t, e.r.Prepare(ctxOf(t), s))

	e.r = e.open(findRunsc(t))
	found, err := e.r.Recover(ctxOf(t))
	must(t, err)
	if len(found) != 2 || !found[0].Running || !found[1].Prepared {
		t.Fatalf("%+v", found)
	}
	const value = "given by a node that is gone"
	if out := e.until("c1", "ready"); !strings.Contains(out, sumOf(value)) {
		t.Error(out)
	}
	var text bytes.Buffer
	if code, err := e.r.Exec(ctxOf(t), "c1", ExecSpec{Args: []string{"/job", "cat", "/run/secrets/A"}, Stdout: &text}); code != 0 || err != nil || text.String() != value {
		t.Errorf("%d %v %q", code, err, text.String())
	}
	must(t, e.r.Stop(ctxOf(t), "c1", time.Minute))
	if _, err := e.r.Start(ctxOf(t), s.ID, protocol.Secrets{"A": []byte("again")}); err != nil {
		t.Fatal(err)
	}
	if x := e.wait(s.ID); x.Code != 0 || !strings.Contains(e.output(s.ID), sumOf("again")) {
		t.Errorf("%+v %s", x, e.output(s.ID))
	}
}

// A supervisor that is killed takes the secrets with it.
func TestSecretsOfShimKilled(t *testing.T) {
	e := newEnv(t)
	token := rand.Text()
	s := e.spec("hash", "/run/secrets/TOKEN", ";", "deaf")
	h := e.startWith(s, protocol.Secrets{"TOKEN": []byte(token)})
	e.until(s.ID, "ready")
	p, err := os.FindProcess(h.Shim)
	must(t, err)
	must(t, p.Kill())
	if x := e.wait(s.ID); x.Source != SourceSandbox {
		t.Errorf("%+v", x)
	}
	e.hidden(s.ID, token)
}

// The folder for secrets may lie anywhere in the image, and a link lead there.
func TestSecretsInImage(t *testing.T) {
	for name, rig := range map[string]func(e *env){
		"none":       func(*env) {},
		"own folder": func(e *env) { must(t, os.MkdirAll(filepath.Join(e.image, "run/secrets/old"), 0o755)) },
		"link": func(e *env) {
			must(t, os.MkdirAll(filepath.Join(e.image, "var/run"), 0o755))
			must(t, os.Symlink("var/run", filepath.Join(e.image, "run")))
		},
	} {
		e := newEnv(t)
		rig(e)
		s := e.spec("ls", "/run/secrets", ";", "hash", "/run/secrets/A")
		in := filepath.Join(e.base, "in")
		must(t, os.Mkdir(in, 0o755))
		s.Mounts = []Mount{{in, "/run/other", true, 0}}
		e.startWith(s, protocol.Secrets{"A": []byte(name)})
		if x := e.wait(s.ID); x.Code != 0 || !strings.HasPrefix(e.output(s.ID), "A\n"+sumOf(name)) {
			t.Errorf("%s: %+v %s", name, x, e.output(s.ID))
		}
	}
}

// They are there from the start, however late the image comes.
func TestSecretsWhileImageArrives(t *testing.T) {
	e := newEnv(t)
	a := newArriving(t, e, nil)
	s := a.spec(e, "hash", "/run/secrets/A")
	s.Secrets, s.User = true, "5:5"
	must(t, e.r.Prepare(ctxOf(t), s))
	_, end := supplyOf(t, e.r, s.ID, a.supplier())
	_, err := e.r.Start(ctxOf(t), s.ID, protocol.Secrets{"A": []byte("early")})
	must(t, err)
	x := e.wait(s.ID)
	must(t, end())
	if x.Code != 0 || !strings.HasPrefix(e.output(s.ID), sumOf("early")+" -r-------- 5:5") {
		t.Errorf("%+v %s", x, e.output(s.ID))
	}
}

func TestSecretsRefused(t *testing.T) {
	e := newEnv(t)
	for _, dest := range []string{"/run", "/run/secrets", "/run/secrets/x"} {
		s := e.spec("exit", "0")
		s.Secrets, s.Mounts = true, []Mount{{e.base, dest, true, 0}}
		if err := e.r.Prepare(ctxOf(t), s); !errors.Is(err, ErrSpec) {
			t.Errorf("mount on %s: %v", dest, err)
		}
	}
	must(t, os.MkdirAll(filepath.Join(e.image, "run"), 0o755))
	must(t, os.WriteFile(filepath.Join(e.image, "run/secrets"), nil, 0o644))
	file := e.spec("exit", "0")
	file.Secrets = true
	if err := e.r.Prepare(ctxOf(t), file); !errors.Is(err, ErrSpec) {
		t.Errorf("a file in the image: %v", err)
	}
	must(t, os.Remove(filepath.Join(e.image, "run/secrets")))

	with, without := e.spec("exit", "0"), e.spec("exit", "0")
	with.Secrets = true
	must(t, e.r.Prepare(ctxOf(t), with))
	must(t, e.r.Prepare(ctxOf(t), without))
	for name, start := range map[string]func() (Handle, error){
		"none given":     func() (Handle, error) { return e.r.Start(ctxOf(t), with.ID, nil) },
		"given for none": func() (Handle, error) { return e.r.Start(ctxOf(t), without.ID, protocol.Secrets{"A": {1}}) },
		"a path":         func() (Handle, error) { return e.r.Start(ctxOf(t), with.ID, protocol.Secrets{"../A": {1}}) },
	} {
		if _, err := start(); !errors.Is(err, ErrSpec) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Neither was started by that.
	if _, err := e.r.Start(ctxOf(t), with.ID, protocol.Secrets{"A": {1}}); err != nil {
		t.Error(err)
	}
}
