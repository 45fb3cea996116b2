package content

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	ocireg "github.com/google/go-containerregistry/pkg/registry"
)

// testRegistry is a registry in this process, with what stands before it.
type testRegistry struct {
	host  string
	cut   atomic.Int64 // blobs are torn after so many bytes, while it is over 0
	tears atomic.Int64 // how often one was
	gets  atomic.Int64 // of blobs
	auth  string       // "user:password", or empty
	plain bool         // answers no range requests
	lie   atomic.Bool  // flips a byte of each blob over 1 KiB
}

func (r *testRegistry) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if r.auth != "" && req.Header.Get("Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte(r.auth)) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}`, http.StatusUnauthorized)
			return
		}
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			r.gets.Add(1)
			if r.plain {
				req.Header.Del("Range")
			}
			w = &tearing{ResponseWriter: w, r: r}
		}
		next.ServeHTTP(w, req)
	})
}

// tearing breaks the connection in the middle of a body.
type tearing struct {
	http.ResponseWriter
	r    *testRegistry
	sent int64
}

func (t *tearing) Write(p []byte) (int, error) {
	if cut := t.r.cut.Load(); cut > 0 && t.sent+int64(len(p)) > cut {
		t.r.tears.Add(1)
		if _, err := t.ResponseWriter.Write(p[:max(0, cut-t.sent)]); err != nil {
			return 0, err
		}
		if err := http.NewResponseController(t.ResponseWriter).Flush(); err != nil {
			return 0, err
		}
		panic(http.ErrAbortHandler)
	}
	if t.r.lie.Load() && t.sent == 0 && len(p) > 1<<10 {
		p = append([]byte{p[0] ^ 1}, p[1:]...)
	}
	n, err := t.ResponseWriter.Write(p)
	t.sent += int64(n)
	return n, err
}

func startRegistry(t testing.TB, r *testRegistry) *testRegistry {
	t.Helper()
	srv := httptest.NewServer(r.wrap(ocireg.New(ocireg.Logger(log.New(io.Discard, "", 0)))))
	t.Cleanup(srv.Close)
	r.host = strings.TrimPrefix(srv.URL, "http://")
	return r
}

func (r *testRegistry) put(t testing.TB, path, media string, body []byte) {
	t.Helper()
	method := http.MethodPut
	url := "http://" + r.host + path
	if strings.Contains(path, "/blobs/") {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	noErr(t, err)
	req.Header.Set("Content-Type", media)
	if r.auth != "" {
		req.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(r.auth)))
	}
	resp, err := http.DefaultClient.Do(req)
	noErr(t, err)
	defer http.DefaultClient.CloseIdleConnections()
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusCreated {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s: %s", method, path, resp.Status, b)
	}
}

// push puts what an OCI layout of ociLayout holds under repo:tag.
func (r *testRegistry) push(t testing.TB, dir, repo, tag string) {
	t.Helper()
	blobs, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
	noErr(t, err)
	for pass := range 2 { // blobs, then the manifests, which name them
		for _, b := range blobs {
			data, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", b.Name()))
			noErr(t, err)
			isManifest := bytes.Contains(data, []byte(`"schemaVersion":2`)) && len(data) < 10<<10
			switch {
			case pass == 0:
				r.put(t, "/v2/"+repo+"/blobs/uploads/?digest=sha256:"+b.Name(), "application/octet-stream", data)
			case isManifest && !bytes.Contains(data, []byte(`"manifests"`)):
				r.put(t, "/v2/"+repo+"/manifests/sha256:"+b.Name(), manifestTypes[1], data)
			}
		}
	}
	idx, err := os.ReadFile(filepath.Join(dir, "index.json"))
	noErr(t, err)
	r.put(t, "/v2/"+repo+"/manifests/"+tag, manifestTypes[0], idx)
}

// login writes credentials where Docker keeps them.
func login(t *testing.T, host, auth string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("HOME", dir)
	t.Setenv("REGISTRY_AUTH_FILE", "")
	t.Setenv("XDG_RUNTIME_DIR", dir)
	text := "{}"
	if auth != "" {
		text = fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte(auth)))
	}
	noErr(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600))
}

// appLayout is an image for two platforms.
func appLayout(t testing.TB) (dir string, config, layer []byte) {
	layer = bigLayer(t)
	l2 := makeTar(t, file("etc/motd", "hello"))
	config = testConfig(t, "amd64", layer, l2)
	return ociLayout(t, false,
		ociImage{"amd64", config, [][]byte{gz(t, layer), zst(t, l2)}},
		ociImage{"arm64", testConfig(t, "arm64", l2), [][]byte{l2}}), config, layer
}

func TestRegistry(t *testing.T) {
	dir, config, _ := appLayout(t)
	idx, err := os.ReadFile(filepath.Join(dir, "index.json"))
	noErr(t, err)
	want, err := LoadImage(t.Context(), testStore(t), dir, LoadOptions{})
	noErr(t, err)
	const secret = "hunter2-in-no-message"
	for _, tc := range []struct {
		name       string
		reg        *testRegistry
		login, ref string
		o          LoadOptions
		cut        int64
		err        error
		text       []string // in the error and its remedy
		code       string
	}{
		{name: "by tag", reg: &testRegistry{}, ref: "docker://HOST/team/app:1"},
		{name: "by digest", reg: &testRegistry{}, ref: "docker://HOST/team/app@sha256:" + sha(idx)},
		{name: "plain http asked for", reg: &testRegistry{}, ref: "docker+http://HOST/team/app:1"},
		{name: "with credentials", reg: &testRegistry{auth: "me:" + secret}, login: "me:" + secret, ref: "docker://HOST/team/app:1"},
		{name: "torn, resumed", reg: &testRegistry{}, cut: 700 << 10, ref: "docker://HOST/team/app:1"},
		{
			name: "wrong password", reg: &testRegistry{auth: "me:" + secret}, login: "me:wrong-" + secret, ref: "docker://HOST/team/app:1",
			code: CodeDenied, text: []string{"HOST", "team/app:1", "docker login HOST"},
		},
		{
			name: "no credentials", reg: &testRegistry{auth: "me:" + secret}, ref: "docker://HOST/team/app:1",
			code: CodeDenied, text: []string{"HOST", "team/app:1", "docker login HOST"},
		},
		{
			name: "no such tag", reg: &testRegistry{}, ref: "docker://HOST/team/app:2", err: ErrNoImage,
			code: CodeNoImage, text: []string{"HOST", "team/app:2", "check the name and the tag"},
		},
		{
			name: "no such repository", reg: &testRegistry{}, ref: "docker://HOST/team/nothing", err: ErrNoImage,
			code: CodeNoImage, text: []string{"HOST", "team/nothing", "check the name and the tag"},
		},
		{
			name: "no such platform", reg: &testRegistry{}, ref: "docker://HOST/team/app:1", o: LoadOptions{Platform: "linux/s390x"}, err: ErrNoImage,
			code: CodeNoPlatform, text: []string{"linux/s390x", "linux/amd64, linux/arm64", "--platform"},
		},
		{name: "no reference", reg: &testRegistry{}, ref: "docker://HOST/Team/App", err: ErrNoImage, code: CodeBadRef, text: []string{"write it like"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := startRegistry(t, tc.reg)
			login(t, r.host, tc.login)
			r.push(t, dir, "team/app", "1")
			r.cut.Store(tc.cut)
			var last Progress
			tc.o.Progress = func(p Progress) { last = p }
			img, err := LoadImage(t.Context(), testStore(t), strings.ReplaceAll(tc.ref, "HOST", r.host), tc.o)
			if tc.code == "" {
				noErr(t, err)
				if img.Root != want.Root || img.ID != "sha256:"+sha(config) || last.Done != want.Bytes || !strings.Contains(img.Name, r.host+"/team/app") {
					t.Errorf("%+v, progress %+v", img, last)
				}
				if tc.cut > 0 && r.tears.Load() == 0 {
					t.Error("nothing was torn")
				}
				return
			}
			wantLoadError(t, err, tc.code, tc.err, strings.Split(strings.ReplaceAll(strings.Join(tc.text, "\n"), "HOST", r.host), "\n"))
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the password is in %q", err)
			}
		})
	}
}

func wantLoadError(t *testing.T, err error, code string, is error, text []string) {
	t.Helper()
	var told *LoadError
	if !errors.As(err, &told) {
		t.Fatalf("%v, want an error with a remedy", err)
	}
	if told.Code != code || is != nil && !errors.Is(err, is) {
		t.Errorf("%s %v, want %s %v", told.Code, err, code, is)
	}
	for _, s := range text {
		if !strings.Contains(err.Error()+"\n"+told.Remedy, s) {
			t.Errorf("%q is not in %q, remedy %q", s, err, told.Remedy)
		}
	}
}

// A registry that knows no ranges gives a torn blob from its beginning again;
// one that tears always at the same place gives up in the end.
func TestRegistryTorn(t *testing.T) {
	dir, _, _ := appLayout(t)
	login(t, "", "")
	r := startRegistry(t, &testRegistry{plain: true})
	r.push(t, dir, "app", "1")
	r.cut.Store(700 << 10)
	_, err := LoadImage(t.Context(), testStore(t), "docker://"+r.host+"/app:1", LoadOptions{})
	wantLoadError(t, err, CodeUnreachable, nil, []string{r.host, "app:1", "what has arrived stays"})
	if n := r.gets.Load(); n < blobTries || n > 4*blobTries {
		t.Errorf("asked %d times", n)
	}
	healed := startRegistry(t, &testRegistry{plain: true})
	healed.push(t, dir, "app", "1")
	healed.cut.Store(700 << 10)
	_, err = LoadImage(t.Context(), testStore(t), "docker://"+healed.host+"/app:1", LoadOptions{Progress: func(Progress) {
		if healed.tears.Load() > 0 {
			healed.cut.Store(0)
		}
	}})
	if healed.tears.Load() == 0 || err != nil {
		t.Errorf("torn %d times: %v", healed.tears.Load(), err)
	}
}

// A layer that is here is not asked for again, and one whose bytes are wrong is
// refused.
func TestRegistryKnownLayers(t *testing.T) {
	dir, _, _ := appLayout(t)
	login(t, "", "")
	r := startRegistry(t, &testRegistry{})
	r.push(t, dir, "app", "1")
	s := testStore(t)
	ref := "docker://" + r.host + "/app:1"
	first, err := LoadImage(t.Context(), s, ref, LoadOptions{})
	noErr(t, err)
	all := r.gets.Load()
	second, err := LoadImage(t.Context(), s, ref, LoadOptions{})
	noErr(t, err)
	if again := r.gets.Load() - all; again != all-2 || second.Root != first.Root {
		t.Errorf("%d blobs, then %d", all, again)
	}
	r.lie.Store(true)
	if _, err = LoadImage(t.Context(), s, ref, LoadOptions{}); err != nil {
		t.Errorf("a known layer: %v", err)
	}
	if _, err = LoadImage(t.Context(), testStore(t), ref, LoadOptions{}); err == nil {
		t.Error("took flipped bytes")
	}
}

// Without TLS nothing but this machine is spoken to, and never with a password,
// unless that is asked for.
func TestRegistryPlainHTTP(t *testing.T) {
	guard := &registryGuard{next: newTransport()}
	for _, tc := range []struct {
		url    string
		plain  bool
		denied bool
	}{
		{"http://registry.invalid/v2/", false, true},
		{"http://10.1.2.3:5000/v2/", false, true},
		{"http://registry.local/v2/", false, true},
		{"http://127.0.0.1:1/v2/", false, false},
		{"http://localhost:1/v2/", false, false},
		{"http://[::1]:1/v2/", false, false},
		{"https://registry.invalid/v2/", false, false},
		{"http://registry.invalid/v2/", true, false},
	} {
		guard.plain = tc.plain
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // nothing is to be dialled
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, tc.url, nil)
		noErr(t, err)
		resp, err := guard.RoundTrip(req)
		if resp != nil {
			noErr(t, resp.Body.Close())
		}
		if errors.Is(err, errPlainHTTP) != tc.denied {
			t.Errorf("%s: %v", tc.url, err)
		}
	}
}
