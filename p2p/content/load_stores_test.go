package content

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
)

// fakeDocker answers on a Unix socket as Docker's API does for one image.
func fakeDocker(t *testing.T, name, archive string) (socket string) {
	t.Helper()
	mux := http.NewServeMux()
	fail := func(w http.ResponseWriter, status int, text string) {
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"message":%q}`, text)
	}
	mux.HandleFunc("GET /images/", func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.EscapedPath()
		kind := path[strings.LastIndex(path, "/")+1:]
		got, err := url.PathUnescape(strings.TrimSuffix(strings.TrimPrefix(path, "/images/"), "/"+kind))
		switch {
		case err != nil || got == "broken":
			fail(w, http.StatusInternalServerError, "the graph driver is on fire")
		case got != name:
			fail(w, http.StatusNotFound, "No such image: "+got)
		case kind == "json":
			_, _ = io.WriteString(w, `{"Id":"sha256:00","Size":4096,"Os":"linux"}`)
		case kind == "get":
			http.ServeFile(w, r, archive)
		}
	})
	dir, err := os.MkdirTemp("", "docker") //nolint:usetesting // a socket's path is short
	noErr(t, err)
	t.Cleanup(func() { noErr(t, os.RemoveAll(dir)) })
	socket = filepath.Join(dir, "s")
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "unix", socket)
	noErr(t, err)
	srv := &http.Server{Handler: mux} //nolint:gosec // a test
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		noErr(t, srv.Close())
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return socket
}

func TestDockerDaemon(t *testing.T) {
	layer := bigLayer(t)
	config := testConfig(t, "amd64", layer)
	archive := dockerArchive(t, config, layer)
	socket := fakeDocker(t, "team/app:1", archive)
	t.Setenv("XDG_RUNTIME_DIR", "")
	t.Setenv("DOCKER_HOST", "unix://"+socket)
	s := testStore(t)
	img, err := LoadImage(t.Context(), s, "docker-daemon:team/app:1", LoadOptions{})
	noErr(t, err)
	if img.ID != "sha256:"+sha(config) || img.Name != "team/app:1" {
		t.Errorf("%+v", img)
	}
	if left, err := filepath.Glob(filepath.Join(s.dir, "*.tmp")); err != nil || len(left) > 0 {
		t.Errorf("left %v %v", left, err)
	}
	_, err = LoadImage(t.Context(), s, "docker-daemon:other", LoadOptions{})
	wantLoadError(t, err, CodeNoImage, ErrNoImage, []string{"other", socket, "docker pull other"})
	_, err = LoadImage(t.Context(), s, "docker-daemon:broken", LoadOptions{})
	wantLoadError(t, err, CodeNoStore, nil, []string{"broken", "on fire"})
	t.Setenv("DOCKER_HOST", "unix://"+socket+".gone")
	_, err = LoadImage(t.Context(), s, "docker-daemon:team/app:1", LoadOptions{})
	wantLoadError(t, err, CodeNoStore, nil, []string{socket + ".gone", "docker info"})
	t.Setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")
	_, err = LoadImage(t.Context(), s, "docker-daemon:team/app:1", LoadOptions{})
	wantLoadError(t, err, CodeNoStore, ErrNoImage, []string{"tcp://10.0.0.1:2375", "docker save"})
}

// containerdStore lays out containerd's folders as its 1.6 and 2.x do, out of an
// OCI layout. The open database is what a running containerd holds.
func containerdStore(t *testing.T, layout string, images map[string]ocispec.Descriptor) (dir string, db *bbolt.DB) {
	t.Helper()
	dir = t.TempDir()
	blobs := filepath.Join(dir, containerdContent)
	noErr(t, os.MkdirAll(blobs, 0o755))
	noErr(t, os.CopyFS(filepath.Join(blobs, "blobs"), os.DirFS(filepath.Join(layout, "blobs"))))
	path := filepath.Join(dir, filepath.FromSlash(containerdMeta))
	noErr(t, os.MkdirAll(filepath.Dir(path), 0o755))
	db, err := bbolt.Open(path, 0o600, nil)
	noErr(t, err)
	t.Cleanup(func() { noErr(t, db.Close()) })
	for name, d := range images {
		namespace, name, _ := strings.Cut(name, "|")
		noErr(t, db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("v1"))
			for _, key := range []string{namespace, "images", name, "target"} {
				if err == nil {
					b, err = b.CreateBucketIfNotExists([]byte(key))
				}
			}
			if err != nil {
				return err
			}
			size := binary.AppendVarint(nil, d.Size)
			for key, v := range map[string][]byte{"digest": []byte(d.Digest), "mediatype": []byte(d.MediaType), "size": size} {
				if err := b.Put([]byte(key), v); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	return dir, db
}

func TestContainerd(t *testing.T) {
	layout, config, _ := appLayout(t)
	raw, err := os.ReadFile(filepath.Join(layout, "index.json"))
	noErr(t, err)
	noErr(t, os.WriteFile(filepath.Join(layout, "blobs", "sha256", sha(raw)), raw, 0o600))
	multi := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digestOf(rawRef(raw).key), Size: int64(len(raw))}
	gone := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digestOf(rawRef([]byte("x")).key), Size: 1}
	dir, _ := containerdStore(t, layout, map[string]ocispec.Descriptor{
		"default|docker.io/library/app:latest": multi, "k8s.io|registry.example.com/app:2": multi,
		"default|docker.io/library/gone:1": gone, "a|docker.io/library/two:1": multi, "b|docker.io/library/two:1": gone,
	})
	s := testStore(t)
	for _, ref := range []string{"app", "docker.io/library/app:latest", "registry.example.com/app:2", "k8s.io/registry.example.com/app:2", "a/docker.io/library/two:1"} {
		img, err := LoadImage(t.Context(), s, "containerd:"+ref, LoadOptions{containerd: dir})
		noErr(t, err)
		if img.ID != "sha256:"+sha(config) || !strings.Contains(img.Name, ":") {
			t.Errorf("%s: %+v", ref, img)
		}
	}
	load := func(ref string) error {
		_, err := LoadImage(t.Context(), s, "containerd:"+ref, LoadOptions{containerd: dir})
		return err
	}
	wantLoadError(t, load("nothing"), CodeNoImage, ErrNoImage, []string{"nothing", "default/docker.io/library/app:latest"})
	wantLoadError(t, load("gone:1"), CodeNoStore, nil, []string{"not kept all", "docker://docker.io/library/gone:1"})
	wantLoadError(t, load("two:1"), CodeNoImage, ErrNoImage, []string{"several namespaces", "containerd:b/docker.io/library/two:1"})
	dir = t.TempDir()
	wantLoadError(t, load("app"), CodeNoStore, ErrNoImage, []string{dir, "docker://app"})
	if left, err := filepath.Glob(filepath.Join(s.dir, "*.tmp")); err != nil || len(left) > 0 {
		t.Errorf("left %v %v", left, err)
	}
}
