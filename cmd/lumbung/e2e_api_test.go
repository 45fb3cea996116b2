//go:build e2e

package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/node"
	"github.com/lumbung-net/lumbung/node/client"
)

// freeAddr is a loopback address that nobody listens on now.
func freeAddr(t *testing.T) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { must(t, l.Close()) }()
	return l.Addr().String()
}

// TestE2EAPIOverTCP asks a real node over TCP: nothing without its token, from
// a page of somebody else's or by another name, and everything with it.
func TestE2EAPIOverTCP(t *testing.T) {
	w := newWorld(t, worldOptions{})
	addr := freeAddr(t)
	n := w.join("web", node.RoleRenter, "--api", addr)
	path := filepath.Join(n.home, "api.token")
	raw, err := os.ReadFile(path)
	must(t, err)
	token := strings.TrimSpace(string(raw))
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the token's file: %v, %v", info, err)
	}
	if log := n.log(); !strings.Contains(log, "http://"+addr) || !strings.Contains(log, path) || strings.Contains(log, token) {
		t.Errorf("the node says:\n%s", log)
	}
	bearer := "Bearer " + token
	for name, c := range map[string]struct {
		header map[string]string
		status int
		code   string
	}{
		"no token":       {nil, 401, "bad_token"},
		"wrong token":    {map[string]string{"Authorization": bearer + "x"}, 401, "bad_token"},
		"the token":      {map[string]string{"Authorization": bearer}, 200, ""},
		"another page":   {map[string]string{"Authorization": bearer, "Origin": "https://example.com"}, 403, "wrong_origin"},
		"another name":   {map[string]string{"Authorization": bearer, "Host": "example.com"}, 421, "wrong_host"},
		"the node's own": {map[string]string{"Authorization": bearer, "Origin": "http://" + addr}, 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/v1/status", nil)
			must(t, err)
			for k, v := range c.header {
				req.Header.Set(k, v)
			}
			req.Host = c.header["Host"]
			resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
			must(t, err)
			defer func() { _ = resp.Body.Close() }()
			var p client.Problem
			must(t, json.NewDecoder(resp.Body).Decode(&p))
			if resp.StatusCode != c.status || p.Code != c.code || c.status != 200 && p.Remedy == "" {
				t.Errorf("status %d, %+v", resp.StatusCode, p)
			}
			if got := resp.Header.Get("Access-Control-Allow-Origin"); got != "" {
				t.Errorf("pages of %q are let in", got)
			}
		})
	}

	n.kill() // the token outlives the node
	must(t, n.start())
	c, err := client.Dial(addr, token)
	must(t, err)
	defer func() { _ = c.Close() }()
	s, err := c.Status(t.Context())
	must(t, err)
	if s.PID != n.cmd.Process.Pid {
		t.Errorf("process %d answers, want %d", s.PID, n.cmd.Process.Pid)
	}
	if r := n.cli(t, n.home, "", "up", "--home", t.TempDir(), "--api", "0.0.0.0:4010"); r.code != exitUsage || !strings.Contains(r.err, "no loopback address") {
		t.Errorf("an open address: %v", r)
	}
}
