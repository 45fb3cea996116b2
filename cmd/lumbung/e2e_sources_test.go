//go:build e2e

package main

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	ocilayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/lumbung-net/lumbung/node/client"
)

// An image from a registry, and one made of a program, are run by providers
// that have never seen either.
func TestE2EImageSources(t *testing.T) {
	w := sharedNet.get(t)
	dir := t.TempDir()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/some/job:v1"
	to, err := name.ParseReference(ref)
	must(t, err)
	index, err := ocilayout.ImageIndexFromPath(e2e.image)
	must(t, err)
	list, err := index.IndexManifest()
	must(t, err)
	im, err := index.Image(list.Manifests[0].Digest)
	must(t, err)
	must(t, remote.Write(to, im, remote.WithContext(t.Context())))

	loaded := decode[client.Image](t, w.renter.ok(t, "image", "load", "-o", "json", "--name", "pulled", "docker://"+ref))
	config, err := im.ConfigName()
	must(t, err)
	if loaded.ID != config.String() {
		t.Errorf("the id is %s, the registry's image has the config %s", loaded.ID, config)
	}
	made := decode[client.Image](t, w.renter.ok(t, "image", "from", e2e.program, "--name", "made", "-o", "json"))
	again := decode[client.Image](t, w.renter.ok(t, "image", "from", e2e.program, "--name", "made", "-o", "json"))
	if made.ID != again.ID || made.CID != again.CID {
		t.Errorf("one program makes two images: %+v %+v", made, again)
	}
	for image, command := range map[string][]string{"pulled": {"/job", "say", "hello"}, "made": {"say", "hello"}} {
		args := append([]string{"run", "-y", "--memory", "256MB", "--disk", "256MB", image}, command...)
		if r := w.renter.cli(t, dir, "", args...); r.code != 0 || r.out != "hello\n" {
			t.Errorf("run %s: %v", image, r)
		}
	}
	r := w.renter.cli(t, dir, "", "image", "load", "docker://"+strings.TrimSuffix(ref, "v1")+"v2")
	if r.code == 0 || !strings.Contains(r.err, "v2") || !strings.Contains(r.err, "try:") {
		t.Errorf("a tag that is not there: %v", r)
	}
	w.renter.ok(t, "image", "rm", "pulled", "made")
}

// A DAG goes from one node to another in a file.
func TestE2ECARs(t *testing.T) {
	w := sharedNet.get(t)
	dir := t.TempDir()
	data := noise(1 << 20)
	must(t, os.MkdirAll(filepath.Join(dir, "tree"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "tree", "large"), data, 0o644))
	root := strings.TrimSpace(w.renter.ok(t, "add", "-q", filepath.Join(dir, "tree")))
	car := filepath.Join(dir, "tree.car")
	w.renter.ok(t, "dag", "export", root, car)
	w.providers[1].ok(t, "dag", "import", car)
	if got := w.providers[1].ok(t, "cat", root+"/large"); got != string(data) {
		t.Errorf("%d bytes came, of %d", len(got), len(data))
	}
	if pins := w.providers[1].ok(t, "pin", "ls"); !strings.Contains(pins, root) {
		t.Errorf("what was imported is not pinned:\n%s", pins)
	}
	raw, err := os.ReadFile(car)
	must(t, err)
	raw[len(raw)-1] ^= 1
	must(t, os.WriteFile(car, raw, 0o600))
	if r := w.providers[0].cli(t, dir, "", "dag", "import", car); r.code == 0 || !strings.Contains(r.err, "block") {
		t.Errorf("a CAR with a flipped bit: %v", r)
	}
	if r := w.providers[0].cli(t, dir, "", "pin", "--from", "/ip4/127.0.0.1/tcp/1/p2p/"+strings.TrimSpace(decode[client.Identity](t, w.renter.ok(t, "id", "-o", "json")).PeerID), root); r.code == 0 || !strings.Contains(r.err, "--ipfs") {
		t.Errorf("an IPFS node where none may be asked: %v", r)
	}
	w.providers[1].ok(t, "pin", "--rm", root)
	w.renter.ok(t, "pin", "--rm", root)
}
