package content

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// loadDaemon imports from Docker's own store, or that of anything that speaks
// its API, such as Podman: it has the daemon write a docker-archive.
func (l *loader) loadDaemon(name string) (Image, error) {
	socket, err := dockerSocket()
	if err != nil {
		return Image{}, err
	}
	d := dockerDaemon{socket: socket, client: dockerClient(socket)}
	defer d.client.CloseIdleConnections()
	size, err := d.inspect(l.ctx, name)
	if err != nil {
		return Image{}, err
	}
	if size > l.o.MaxBytes {
		return Image{}, errOverBudget()
	}
	f, err := tempFile(l.s.dir)
	if err != nil {
		return Image{}, err
	}
	l.begin("out of Docker", size)
	if err := d.save(l.ctx, name, f, l.o.MaxBytes, l.tick); err != nil {
		return Image{}, errors.Join(err, (&archive{f: f, remove: f.Name()}).close())
	}
	if l.o.Name == "" && !strings.HasPrefix(name, "sha256:") {
		l.o.Name = name
	}
	return l.loadArchive(f, true, imageRef{form: formDaemon, path: name})
}

// dockerSocket is where the daemon listens: what DOCKER_HOST says, or the first
// of the usual places.
func dockerSocket() (string, error) {
	const remedy = "start Docker, or save the image and load the file: docker save -o image.tar NAME"
	if host := os.Getenv("DOCKER_HOST"); host != "" {
		path, ok := strings.CutPrefix(host, "unix://")
		if !ok {
			return "", loadErr(CodeNoStore, "save the image there and load the file: docker save -o image.tar NAME",
				"%w: DOCKER_HOST is %.200q, and only unix:// sockets are spoken to", ErrNoImage, host)
		}
		return path, nil
	}
	places := []string{"/var/run/docker.sock"}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		places = append(places, filepath.Join(dir, "docker.sock"), filepath.Join(dir, "podman", "podman.sock"))
	}
	places = append(places, "/run/podman/podman.sock")
	for _, p := range places {
		if fi, err := os.Stat(p); err == nil && fi.Mode()&fs.ModeSocket != 0 {
			return p, nil
		}
	}
	return "", loadErr(CodeNoStore, remedy, "%w: no Docker runs here: there is no socket at %s", ErrNoImage, strings.Join(places, ", "))
}

func dockerClient(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
	}}
}

type dockerDaemon struct {
	socket string
	client *http.Client
}

func (d dockerDaemon) get(ctx context.Context, path, name string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask Docker: %w", err)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		remedy := "see that Docker runs: docker info"
		if errors.Is(err, fs.ErrPermission) {
			remedy = "run the node as somebody who may use Docker, or save the image and load the file: docker save -o image.tar NAME"
		}
		return nil, loadErr(CodeNoStore, remedy, "Docker at %s cannot be asked: %w", d.socket, withoutURL(err))
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusNotFound {
		return nil, loadErr(CodeNoImage, "`docker image ls` lists those there are; pull it first with: docker pull "+name,
			"%w: Docker at %s has no image %s", ErrNoImage, d.socket, name)
	}
	var told struct {
		Message string `json:"message"`
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err == nil {
		err = json.Unmarshal(raw, &told)
	}
	if err != nil {
		told.Message = "no reason given"
	}
	return nil, loadErr(CodeNoStore, "see Docker's own log", "Docker at %s fails to give %s: status %d: %.200s", d.socket, name, resp.StatusCode, told.Message)
}

// inspect says how large an image is.
func (d dockerDaemon) inspect(ctx context.Context, name string) (uint64, error) {
	resp, err := d.get(ctx, "/images/"+url.PathEscape(name)+"/json", name)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	var im struct{ Size uint64 }
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxMeta)).Decode(&im); err != nil {
		return 0, fmt.Errorf("what Docker at %s says of %s: %w: %w", d.socket, name, ErrMalformed, err)
	}
	return im.Size, nil
}

// save writes the docker-archive of an image to f.
func (d dockerDaemon) save(ctx context.Context, name string, f *os.File, limit uint64, tick func(int)) error {
	resp, err := d.get(ctx, "/images/"+url.PathEscape(name)+"/get", name)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	most := int64(min(limit, 1<<60) + maxMeta*16) //nolint:gosec // bounded; layers and what describes them
	n, err := io.Copy(f, io.LimitReader(tickedReader{resp.Body, tick}, most+1))
	if err == nil && n > most {
		err = errOverBudget()
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("save %s out of Docker at %s: %w", name, d.socket, err)
	}
	return nil
}

// tickedReader tells of what passes through.
type tickedReader struct {
	r    io.Reader
	tick func(int)
}

func (t tickedReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.tick(n)
	return n, err
}
