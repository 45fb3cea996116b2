//go:build e2e

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/node/client"
)

// formsOf are the ways in which a value could be written somewhere.
func formsOf(value string) []string {
	raw := []byte(value)
	whole := raw[:len(raw)/3*3] // base64 of the rest depends on what follows
	return []string{
		value, hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw)), base64.StdEncoding.EncodeToString(whole),
		base64.URLEncoding.EncodeToString(whole), strings.Trim(fmt.Sprintf("%d", raw), "[]"),
	}
}

// seen lists where some texts are: in the nodes' files, in the arguments and
// environment of any process of the machine, in what the nodes answer, and in
// what this program and lumbung leave in the folder for temporary files.
func (w *world) seen(t testing.TB, texts ...string) []string {
	t.Helper()
	out := w.holdingAny(t, texts...)
	look := func(where string, raw []byte) {
		for _, text := range texts {
			if bytes.Contains(raw, []byte(text)) {
				out = append(out, where)
				return
			}
		}
	}
	for _, pattern := range []string{"/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ", filepath.Join(os.TempDir(), "lumbung-*", "*")} {
		names, err := filepath.Glob(pattern)
		must(t, err)
		for _, name := range names {
			if raw, err := os.ReadFile(name); err == nil { // processes come and go
				look(name, raw)
			}
		}
	}
	for _, n := range w.nodes {
		for _, args := range [][]string{
			{"status", "-o", "json"}, {"ps", "-a", "-o", "json"}, {"events", "-o", "jsonl"}, {"offers", "-o", "json"}, {"ledger", "statement", "-o", "json"},
		} {
			look(n.name+" "+args[0], []byte(n.ok(t, args...)))
		}
		for _, path := range []string{"/metrics", "/openapi.json", "/v1/jobs?all=true"} {
			look(n.name+" "+path, n.fetched(t, path))
		}
	}
	jobs, err := w.renter.c.Jobs(boundedBy(t, e2eWait), true)
	must(t, err)
	for _, j := range jobs {
		for _, args := range [][]string{{"inspect", "-o", "json", j.ID}, {"inspect", j.ID}, {"logs", j.ID}, {"logs", "-o", "jsonl", j.ID}} {
			look(strings.Join(args, " "), []byte(w.renter.ok(t, args...)))
		}
	}
	return out
}

// fetched is what the node's API answers to a path.
func (n *testNode) fetched(t testing.TB, path string) []byte {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.home, "run", "api.sock"))
	}}}
	req, err := http.NewRequestWithContext(boundedBy(t, e2eWait), http.MethodGet, "http://lumbung"+path, nil)
	must(t, err)
	resp, err := c.Do(req)
	must(t, err)
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if must(t, err); resp.StatusCode != http.StatusOK || len(raw) == 0 {
		t.Fatalf("%s %s: %s", n.name, path, resp.Status)
	}
	return raw
}

// provider is who runs a job's one task.
func (w *world) provider(t testing.TB, id string) *testNode {
	t.Helper()
	d := w.renter.detail(t, id)
	for _, p := range w.providers {
		if p.id.PeerID == d.Tasks[0].Provider {
			return p
		}
	}
	t.Fatalf("nobody runs %s: %+v", id, d.Tasks)
	return nil
}

// A job's secrets reach its program, over restarts of both nodes, and are found
// nowhere else: while it runs, after it has ended.
func TestE2ESecrets(t *testing.T) {
	secretsReachTheProgramAlone(t, worldOptions{providers: 2, heartbeat: 4 * time.Second})
}

func TestE2ESecretsOrdinaryUser(t *testing.T) {
	o := ofOrdinaryUser(t)
	o.providers, o.heartbeat = 2, 4*time.Second
	secretsReachTheProgramAlone(t, o)
}

func secretsReachTheProgramAlone(t *testing.T, o worldOptions) {
	fromFile, fromIn := "file-"+rand.Text()+rand.Text(), "stdin-"+rand.Text()+rand.Text()
	forms := append(formsOf(fromFile), formsOf(fromIn)...)
	hashes := fmt.Sprintf("%x -r--------\n%x -r--------\n", sha256.Sum256([]byte(fromFile)), sha256.Sum256([]byte(fromIn)))
	keys, err := os.MkdirTemp("", "lb-keys-") //nolint:usetesting // an ordinary user reads it too
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(keys) })
	must(t, os.Chmod(keys, 0o755))
	must(t, os.WriteFile(filepath.Join(keys, "key"), []byte(fromFile), 0o644))
	w := newWorld(t, o)

	if q := decode[client.Quote](t, w.renter.ok(t, "quote", "-o", "json", "--secret", "KEY", "oci:"+e2e.image, "/job")); len(q.Bids) != 2 {
		t.Fatalf("nobody will lose the auction: %+v", q)
	}
	files := []string{"/run/secrets/KEY", "/run/secrets/in.pem"}
	args := []string{
		"run", "-d", "-y", "--memory", "256MB", "--disk", "256MB", "--secret", "KEY=" + filepath.Join(keys, "key"), "--secret", "in.pem=-",
		"oci:" + e2e.image, "/job", "keep",
	}
	r := w.renter.cli(t, w.dir, fromIn, append(args, files...)...)
	id := strings.TrimSpace(r.out)
	if r.code != 0 {
		t.Fatalf("%v", r)
	}
	w.renter.awaitLine(t, id, "ready")
	nowhere := func(when string) {
		t.Helper()
		if where := w.seen(t, forms...); len(where) > 0 {
			t.Errorf("%s, a secret is in %v", when, where)
		}
	}
	nowhere("while the job runs")
	if text := w.renter.ok(t, "inspect", id); !strings.Contains(text, "in.pem") {
		t.Errorf("inspect does not name the secrets: %s", text)
	}

	// The search finds what the program prints, and would find a variable.
	if found := w.seen(t, hashes[:64]); len(found) < 3 {
		t.Errorf("what the program printed is only in %v", found)
	}

	p := w.provider(t, id)
	p.kill()
	must(t, p.start())
	w.renter.kill()
	must(t, w.renter.start())
	var exec result
	must(t, poll(boundedBy(t, e2eWait), func() (bool, error) { // they find each other again
		exec = w.renter.cli(t, w.dir, "", append([]string{"exec", id, "--", "/job", "hash"}, files...)...)
		return exec.code == 0, nil
	}))
	if exec.out != hashes {
		t.Errorf("after both nodes were killed: %v", exec)
	}
	nowhere("after both nodes were killed")
	w.renter.ok(t, "stop", id)
	w.renter.over(t, id)
	if got := w.renter.output(t, id); got != hashes+"ready\n"+hashes {
		t.Errorf("the program has read %q", got)
	}
	p.idle(t)
	nowhere("after the job")

	// A job file, and an array that ends by itself; each task has them.
	must(t, os.WriteFile(filepath.Join(keys, "job.yaml"), []byte(fmt.Sprintf("version: 1\nimage: oci:%s\nmemory: 256MB\ndisk: 256MB\narray: 1-3\n"+
		"command: [/job, hash, %s, %s]\nsecrets: [{name: KEY, file: ./key}, {name: in.pem, file: '-'}]\n", e2e.image, files[0], files[1])), 0o644))
	r = w.renter.cli(t, w.dir, fromIn, "submit", filepath.Join(keys, "job.yaml"))
	if r.code != 0 {
		t.Fatalf("%v", r)
	}
	id = strings.TrimSpace(r.out)
	w.renter.done(t, id)
	if got := w.renter.output(t, id); got != strings.Repeat(hashes, 3) {
		t.Errorf("the tasks have read %q", got)
	}
	nowhere("after an array")

	// The same search finds a value that is no secret.
	if r := w.renter.run(t, w.dir, []string{"-e", "KEY=" + fromFile}, "env", "NONE"); r.code != 0 {
		t.Fatalf("%v", r)
	}
	if found := w.seen(t, forms...); len(found) < 4 {
		t.Errorf("a variable is only in %v", found)
	}
}
