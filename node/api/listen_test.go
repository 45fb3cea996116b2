package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/node/client"
)

func dialRaw(t *testing.T, path string) net.Conn {
	t.Helper()
	var d net.Dialer
	conn := must(d.DialContext(t.Context(), "unix", path))(t)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func closeWrite(c net.Conn) error {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return errors.New("no Unix connection")
	}
	return u.CloseWrite()
}

func TestSocketIsPrivate(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("modes are of Unix")
	}
	r := start(t)
	st := must(os.Stat(r.server.SocketPath()))(t)
	if st.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket is %s", st.Mode())
	}
	if st := must(os.Stat(client.RunDir(r.home)))(t); st.Mode().Perm() != 0o700 {
		t.Errorf("its folder is %s", st.Mode())
	}
	if !strings.HasPrefix(r.server.SocketPath(), r.home+"/") {
		t.Errorf("%s is not in the home", r.server.SocketPath())
	}
}

func options(home string) Options {
	return Options{Home: home, Backend: newFake(), Log: quiet(), Gatherer: noMetrics()}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	home := t.TempDir()
	path, _ := client.HomeSocket(home)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l := must(net.ListenUnix("unix", &net.UnixAddr{Name: path}))(t)
	l.SetUnlinkOnClose(false) // as if killed
	_ = l.Close()
	c := must(client.New(home))(t)
	defer func() { _ = c.Close() }()
	if _, err := c.Status(t.Context()); !errors.Is(err, client.ErrNoNode) {
		t.Fatalf("a dead node: %v", err)
	}
	s := must(New(t.Context(), options(home)))(t)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket was left behind: %v", err)
	}
}

func TestLiveNodeIsNotReplaced(t *testing.T) {
	r := start(t)
	_, err := New(t.Context(), options(r.home))
	if !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) || !strings.Contains(err.Error(), "lumbung down") {
		t.Errorf("got %v", err)
	}
	must(r.Status(t.Context()))(t)
}

func TestLongHome(t *testing.T) {
	home := filepath.Join(t.TempDir(), strings.Repeat("deep/", 30))
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	r := start(t, func(o *Options) { o.Home = home })
	c := must(client.New(home))(t)
	defer func() { _ = c.Close() }()
	must(c.Status(t.Context()))(t)
	// The client needs none of the environment that the node had.
	t.Setenv("XDG_RUNTIME_DIR", "/nowhere")
	t.Setenv("TMPDIR", "/nowhere")
	_ = c.Close()
	must(c.Status(t.Context()))(t)
	dir := filepath.Dir(r.server.SocketPath())
	if st := must(os.Stat(dir))(t); st.Mode().Perm() != 0o700 {
		t.Errorf("%s is %s", dir, st.Mode())
	}
	r.stop()
	if err := r.server.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s was left behind: %v", dir, err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, client.ErrNoNode) {
		t.Errorf("got %v", err)
	}
}

func TestForeignFolderIsNotUsed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.Symlink(t.TempDir(), dir); err != nil {
		t.Fatal(err)
	}
	if err := privateDir(dir); err == nil {
		t.Error("a link was taken for a folder of one's own")
	}
}

const token = "0123456789abcdef-token"

func TestTCPGuard(t *testing.T) {
	r := start(t, func(o *Options) { o.TCPAddr, o.Token = "127.0.0.1:0", token })
	addr := r.server.TCPAddr()
	_, port, _ := net.SplitHostPort(addr)
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	web := &http.Client{Transport: tr}
	auth := "Bearer " + token
	tests := []struct {
		name   string
		header http.Header
		status int
		code   string
	}{
		{"right", http.Header{"Authorization": {auth}}, 200, ""},
		{"by name", http.Header{"Authorization": {auth}, "Host": {"LOCALHOST:" + port}}, 200, ""},
		{"own page", http.Header{"Authorization": {auth}, "Origin": {"http://localhost:" + port}}, 200, ""},
		{"no token", http.Header{}, 401, "bad_token"},
		{"wrong token", http.Header{"Authorization": {auth + "x"}}, 401, "bad_token"},
		{"no scheme", http.Header{"Authorization": {token}}, 401, "bad_token"},
		{"other scheme", http.Header{"Authorization": {"Basic " + token}}, 401, "bad_token"},
		{"rebound name", http.Header{"Authorization": {auth}, "Host": {"evil.example:" + port}}, 421, "wrong_host"},
		{"no port", http.Header{"Authorization": {auth}, "Host": {"localhost"}}, 421, "wrong_host"},
		{"other page", http.Header{"Authorization": {auth}, "Origin": {"http://evil.example"}}, 403, "wrong_origin"},
		{"other port's page", http.Header{"Authorization": {auth}, "Origin": {"http://localhost:1"}}, 403, "wrong_origin"},
		{"secure page", http.Header{"Authorization": {auth}, "Origin": {"https://localhost:" + port}}, 403, "wrong_origin"},
		{"file", http.Header{"Authorization": {auth}, "Origin": {"null"}}, 403, "wrong_origin"},
		{"two origins", http.Header{"Authorization": {auth}, "Origin": {"http://localhost:" + port, "http://evil.example"}}, 403, "wrong_origin"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, path := range []string{"/v1/status", "/metrics", "/openapi.json", "/nothing"} {
				status, header, body := do(t, web, "GET", "http://"+addr+path, "", tt.header)
				want := tt.status
				if path == "/nothing" && want == 200 {
					want = 404
				}
				if status != want || !strings.Contains(body, tt.code) || strings.Contains(body, token) {
					t.Errorf("%s: %d %.200s", path, status, body)
				}
				if header.Get("Access-Control-Allow-Origin") != "" {
					t.Error("a page was let in")
				}
			}
		})
	}
	c := must(client.Dial(addr, token))(t)
	defer func() { _ = c.Close() }()
	must(c.Status(t.Context()))(t)
	r.fake.hooks.exec = func(_ context.Context, _ client.ExecRequest, tty ExecIO) (int, error) {
		_, err := fmt.Fprint(tty.Stdout, "over TCP")
		return 4, err
	}
	var out strings.Builder
	if code, err := c.Exec(t.Context(), "j", shell(), endless{}, &out, nil, nil); code != 4 || err != nil || out.String() != "over TCP" {
		t.Errorf("%d %v %q", code, err, out.String())
	}
}

func TestTCPIsRefused(t *testing.T) {
	for name, o := range map[string]Options{
		"any address": {TCPAddr: "0.0.0.0:0", Token: token},
		"no host":     {TCPAddr: ":0", Token: token},
		"outside":     {TCPAddr: "192.0.2.1:80", Token: token},
		"a name":      {TCPAddr: "example.org:80", Token: token},
		"no port":     {TCPAddr: "127.0.0.1", Token: token},
		"no token":    {TCPAddr: "127.0.0.1:0"},
		"short token": {TCPAddr: "127.0.0.1:0", Token: "secret"},
	} {
		full := options(t.TempDir())
		full.TCPAddr, full.Token = o.TCPAddr, o.Token
		if s, err := New(t.Context(), full); err == nil {
			t.Errorf("%s: served on %s", name, s.TCPAddr())
			_ = s.Close()
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the token is in %v", name, err)
		}
		if s, err := New(t.Context(), options(full.Home)); err != nil {
			t.Errorf("%s: the home was not given back: %v", name, err)
		} else if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
