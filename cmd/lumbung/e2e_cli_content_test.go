//go:build e2e

package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/node/client"
)

func num(n uint64) string { return strconv.FormatUint(n, 10) }

// tarOf packs a folder's files, with their paths below it.
func tarOf(t testing.TB, name, dir string) {
	t.Helper()
	f, err := os.Create(name)
	must(t, err)
	w := tar.NewWriter(f)
	must(t, w.AddFS(os.DirFS(dir)))
	must(t, w.Close())
	must(t, f.Close())
}

// dockerArchive is what `docker save` makes: a config, a plain layer and a
// manifest.json.
func dockerArchive(t testing.TB, name, tag string) {
	t.Helper()
	raw, err := os.ReadFile(e2e.program)
	must(t, err)
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "job", Mode: 0o755, Size: int64(len(raw))}))
	_, err = w.Write(raw)
	must(t, err)
	must(t, w.Close())
	config := fmt.Appendf(nil, `{"architecture":%q,"os":"linux","config":{"Cmd":["/job","say","docker"]},"rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`,
		runtime.GOARCH, sha256.Sum256(layer.Bytes()))
	configName := fmt.Sprintf("%x.json", sha256.Sum256(config))
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{tag}, "Layers": []string{"abc/layer.tar"}}})
	must(t, err)
	f, err := os.Create(name)
	must(t, err)
	w = tar.NewWriter(f)
	for _, part := range []struct {
		name string
		data []byte
	}{{configName, config}, {"abc/layer.tar", layer.Bytes()}, {"manifest.json", manifest}} {
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: part.name, Mode: 0o644, Size: int64(len(part.data))}))
		_, err = w.Write(part.data)
		must(t, err)
	}
	must(t, w.Close())
	must(t, f.Close())
}

// Every form of an image can be loaded, listed, run by its name, and forgotten.
func TestE2EImages(t *testing.T) {
	w := sharedNet.get(t)
	dir := t.TempDir()
	ociTar, docker, root := filepath.Join(dir, "layout.tar"), filepath.Join(dir, "saved.tar"), filepath.Join(dir, "root")
	tarOf(t, ociTar, e2e.image)
	dockerArchive(t, docker, "saved:v1")
	must(t, os.MkdirAll(root, 0o755))
	raw, err := os.ReadFile(e2e.program)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "job"), raw, 0o755))
	for name, path := range map[string]string{"as-dir": e2e.image, "as-tar": ociTar, "as-docker": docker, "as-root": root} {
		im := decode[client.Image](t, w.renter.ok(t, "image", "load", "-o", "json", "--name", name, path))
		if im.Name != name || !strings.HasPrefix(im.ID, "sha256:") || im.CID == "" || im.Size == 0 {
			t.Errorf("%s: %+v", name, im)
		}
		if ls := w.renter.ok(t, "image", "ls"); !strings.Contains(ls, name) || !strings.Contains(ls, im.CID) {
			t.Errorf("image ls without %s:\n%s", name, ls)
		}
		r := w.renter.cli(t, dir, "", "run", "-y", "--memory", "256MB", "--disk", "256MB", name, "/job", "say", "from", name)
		if r.code != 0 || r.out != "from "+name+"\n" {
			t.Errorf("run %s: %v", name, r)
		}
	}
	// The image's own command, and its own name.
	if name := strings.Fields(w.renter.ok(t, "image", "load", docker))[0]; name != "saved:v1" {
		t.Errorf("the archive's own name is saved:v1, loaded as %q", name)
	}
	if r := w.renter.cli(t, dir, "", "run", "-y", "--memory", "256MB", "--disk", "256MB", "saved:v1"); r.code != 0 || r.out != "docker\n" {
		t.Errorf("the image's own command: %v", r)
	}
	w.renter.ok(t, "image", "rm", "as-dir", "as-tar", "as-docker", "as-root")
	if ls := w.renter.ok(t, "image", "ls"); strings.Contains(ls, "as-dir") || !strings.Contains(ls, "saved:v1") {
		t.Errorf("after rm:\n%s", ls)
	}
	if r := w.renter.cli(t, dir, "", "image", "rm", "as-dir"); r.code == 0 {
		t.Errorf("forgotten twice: %v", r)
	}
	must(t, os.WriteFile(docker, []byte("no tar at all"), 0o600))
	if r := w.renter.cli(t, dir, "", "image", "load", docker); r.code == 0 || !strings.Contains(r.err, "saved.tar") {
		t.Errorf("a broken file: %v", r)
	}
}

// Blocks by hand, on one node and fetched by another.
func TestE2EContentByHand(t *testing.T) {
	w := sharedNet.get(t)
	dir := t.TempDir()
	data := noiseOf(3, 3<<20) // which no other test keeps
	must(t, os.MkdirAll(filepath.Join(dir, "tree", "deep"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "tree", "deep", "large"), data, 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "tree", "hello"), []byte("hello world\n"), 0o644))

	root := strings.TrimSpace(w.renter.ok(t, "add", filepath.Join(dir, "tree")))
	if got := w.renter.ok(t, "cat", root+"/hello"); got != "hello world\n" {
		t.Errorf("cat: %q", got)
	}
	if got := w.renter.ok(t, "cat", root+"/deep/large"); got != string(data) {
		t.Errorf("cat of a large file: %d bytes of %d", len(got), len(data))
	}
	// The well-known CID of these bytes as a raw leaf.
	hello := strings.TrimSpace(w.renter.ok(t, "add", filepath.Join(dir, "tree", "hello")))
	if want := "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"; sha256Of("hello world\n") == "a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447" && hello != want {
		t.Errorf("add hello: %s, other tools say %s", hello, want)
	}
	// Pinned elsewhere: fetched from whoever has it. The peer must know of it, so
	// it asks those that it is connected to.
	if r := w.providers[0].cli(t, w.dir, "", "pin", root); r.code == 0 {
		if got := w.providers[0].ok(t, "cat", root+"/hello"); got != "hello world\n" {
			t.Errorf("cat of what was pinned: %q", got)
		}
		if pins := w.providers[0].ok(t, "pin"); !strings.Contains(pins, root) {
			t.Errorf("pins:\n%s", pins)
		}
		w.providers[0].ok(t, "pin", "--rm", root)
	} else {
		t.Errorf("pin of what another node has: %v", r)
	}
	// What is pinned survives a collection, what is not does not.
	w.renter.ok(t, "pin", root)
	w.renter.ok(t, "gc")
	if got := w.renter.ok(t, "cat", root+"/hello"); got != "hello world\n" {
		t.Errorf("gc took what was pinned: %q", got)
	}
	w.renter.ok(t, "pin", "--rm", root)
	got := decode[client.Collected](t, w.renter.ok(t, "gc", "-o", "json"))
	if got.Bytes < uint64(len(data)) {
		t.Errorf("gc gave back %+v", got)
	}
	// Nor has the one that had pinned it, so that it cannot be fetched again.
	w.providers[0].ok(t, "gc")
	if r := w.renter.cli(t, w.dir, "", "cat", root+"/hello"); r.code == 0 || r.out != "" {
		t.Errorf("cat of what is gone: %v", r)
	}
	if r := w.renter.cli(t, w.dir, "", "cat", "nonsense"); r.code == 0 {
		t.Errorf("cat of no CID: %v", r)
	}
}

func sha256Of(s string) string {
	h := sha256.New()
	_, _ = io.WriteString(h, s)
	return fmt.Sprintf("%x", h.Sum(nil))
}
