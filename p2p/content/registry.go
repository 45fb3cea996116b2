package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Times for a registry.
const (
	registryAnswer = 30 * time.Second // for the head of an answer
	registryStall  = 60 * time.Second // without a byte of a blob
)

var manifestTypes = []string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerManifestList, dockerManifest,
}

// registry is a blobs over one repository of a registry. Credentials are the
// user's own, as `docker login` keeps them; they go to that registry alone and
// only over TLS or to this machine.
type registry struct {
	repo   name.Repository
	ref    string // what was asked for, for errors
	client *http.Client
	scheme string
	top    *manifestBlob // read already
}

type manifestBlob struct {
	digest key
	media  string
	data   []byte
}

// loadRegistry imports from a registry.
func (l *loader) loadRegistry(r imageRef) (Image, error) {
	plain := r.form == formPlainHTTP
	ref, err := parseRegistryRef(r.path, plain)
	if err != nil {
		return Image{}, err
	}
	reg, err := l.openRegistry(ref, plain)
	if err != nil {
		return Image{}, err
	}
	defer reg.client.CloseIdleConnections()
	d, err := reg.resolve(l.ctx, ref)
	if err != nil {
		return Image{}, err
	}
	if l.o.Name == "" {
		l.o.Name = nameOf(r.path, ref)
	}
	return l.loadIndex(reg, ocispec.Index{Manifests: []ocispec.Descriptor{d}}, "")
}

func parseRegistryRef(ref string, plain bool) (name.Reference, error) {
	var opts []name.Option
	if plain {
		opts = append(opts, name.Insecure)
	}
	parsed, err := name.ParseReference(ref, opts...)
	if err != nil {
		return nil, loadErr(CodeBadRef, "write it like docker://debian:12 or docker://registry.example.com/team/app@sha256:…", "%w: %w", ErrNoImage, err)
	}
	return parsed, nil
}

// nameOf is what an image of a registry is called: as the user wrote it, with
// the tag that is meant when there is none.
func nameOf(written string, ref name.Reference) string {
	if tag, ok := ref.(name.Tag); ok && !strings.HasSuffix(written, ":"+tag.TagStr()) {
		return written + ":" + tag.TagStr()
	}
	return written
}

// openRegistry shakes hands with the registry of ref.
func (l *loader) openRegistry(ref name.Reference, plain bool) (*registry, error) {
	repo := ref.Context()
	r := &registry{repo: repo, ref: ref.String(), scheme: "https"}
	local := isLocalHost(hostOf(repo.RegistryStr()))
	auth := authn.Anonymous
	if local || !plain {
		keys := l.o.keys
		if keys == nil {
			keys = authn.DefaultKeychain
		}
		var err error
		if auth, err = authn.Resolve(l.ctx, keys, repo); err != nil {
			return nil, loadErr(CodeDenied, "repair it, or log in again with: docker login "+repo.RegistryStr(),
				"the credentials for the registry %s cannot be read: %w", repo.RegistryStr(), err)
		}
	}
	guard := &registryGuard{next: newTransport(), plain: plain}
	rt, err := transport.NewWithContext(l.ctx, repo.Registry, auth, guard, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		guard.next.CloseIdleConnections()
		return nil, r.explain(err)
	}
	r.client = &http.Client{Transport: idleCloser{rt, guard.next}, CheckRedirect: checkRedirect}
	return r, nil
}

func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   layersAtOnce,
		IdleConnTimeout:       30 * time.Second,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: registryAnswer,
		DisableCompression:    true, // blobs are what their digest says
	}
}

// idleCloser lets the client of a wrapped transport close its connections.
type idleCloser struct {
	http.RoundTripper
	base *http.Transport
}

// CloseIdleConnections is what http.Client looks for.
func (c idleCloser) CloseIdleConnections() { c.base.CloseIdleConnections() }

const maxRedirects = 5

func checkRedirect(_ *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	return nil
}

// registryGuard stands under all that speaks to a registry: without TLS it
// reaches this machine only, unless the user asked for it, and answers other
// than blobs end at maxMeta.
type registryGuard struct {
	next  *http.Transport
	plain bool
}

var errPlainHTTP = errors.New("it speaks plain HTTP")

// RoundTrip implements http.RoundTripper.
func (g *registryGuard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.plain && !isLocalHost(req.URL.Hostname()) {
		return nil, errPlainHTTP
	}
	resp, err := g.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if req.Context().Value(wholeBody{}) == nil || resp.StatusCode >= http.StatusMultipleChoices {
		resp.Body = limitedBody{io.LimitReader(resp.Body, maxMeta+1), resp.Body}
	}
	return resp, nil
}

// wholeBody marks the context of a request whose answer may be of any length.
type wholeBody struct{}

type limitedBody struct {
	io.Reader
	io.Closer
}

func hostOf(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		return h
	}
	return strings.Trim(hostport, "[]")
}

func isLocalHost(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (r *registry) get(ctx context.Context, kind, id string, header http.Header) (*http.Response, error) {
	u := fmt.Sprintf("%s://%s/v2/%s/%s/%s", r.scheme, r.repo.RegistryStr(), r.repo.RepositoryStr(), kind, id)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	return r.client.Do(req)
}

// resolve reads the manifest or index that ref names.
func (r *registry) resolve(ctx context.Context, ref name.Reference) (ocispec.Descriptor, error) {
	m, err := r.manifest(ctx, ref.Identifier())
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if d, ok := ref.(name.Digest); ok && d.DigestStr() != m.digest.digest() {
		return ocispec.Descriptor{}, loadErr(CodeDenied, "do not use this registry, or ask its operator",
			"registry %s answered for %s with the bytes of %s: %w", r.repo.RegistryStr(), r.ref, m.digest.digest(), ErrMismatch)
	}
	r.top = m
	return ocispec.Descriptor{MediaType: m.media, Digest: digestOf(m.digest), Size: int64(len(m.data))}, nil
}

// manifest reads a manifest by tag or digest.
func (r *registry) manifest(ctx context.Context, id string) (*manifestBlob, error) {
	ctx, cancel := context.WithTimeout(ctx, registryStall)
	defer cancel()
	resp, err := r.get(ctx, "manifests", id, http.Header{"Accept": {strings.Join(manifestTypes, ", ")}})
	if err != nil {
		return nil, r.explain(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		return nil, r.explain(err)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxMeta+1))
	if err != nil {
		return nil, r.explain(err)
	}
	if len(data) > maxMeta {
		return nil, fmt.Errorf("manifest of %s: %w: over %d bytes", r.ref, ErrTooLarge, maxMeta)
	}
	media, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return &manifestBlob{digest: rawRef(data).key, media: manifestMedia(media, data), data: data}, nil
}

// manifestMedia believes the manifest before the header, which some registries
// get wrong.
func manifestMedia(header string, data []byte) string {
	var m struct {
		SchemaVersion int    `json:"schemaVersion"`
		MediaType     string `json:"mediaType"`
		Manifests     []any  `json:"manifests"`
	}
	if err := decodeManifest(data, &m); err != nil {
		return header
	}
	switch {
	case m.SchemaVersion == 1:
		return dockerSchema1
	case m.MediaType != "":
		return m.MediaType
	case m.Manifests != nil:
		return ocispec.MediaTypeImageIndex
	}
	return ocispec.MediaTypeImageManifest
}

func (r *registry) open(ctx context.Context, p part) (io.ReadCloser, int64, error) {
	if p.digest == nil {
		return nil, 0, fmt.Errorf("%w: %s is named by no digest", ErrMalformed, p.name)
	}
	if !p.manifest {
		b := &blobReader{r: r, ctx: ctx, digest: *p.digest, size: p.size}
		return b, p.size, b.connect()
	}
	m := r.top
	if m == nil || m.digest != *p.digest {
		var err error
		if m, err = r.manifest(ctx, p.digest.digest()); err != nil {
			return nil, 0, err
		}
	}
	return io.NopCloser(bytes.NewReader(m.data)), int64(len(m.data)), nil
}

// explain says what a failure of the registry means and what to do about it.
// The causes' own words are kept short: they hold addresses with keys in them.
func (r *registry) explain(err error) error {
	var told *transport.Error
	host := r.repo.RegistryStr()
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, ErrMismatch), errors.Is(err, ErrMalformed):
		return err
	case errors.Is(err, errPlainHTTP):
		return loadErr(CodeUnreachable, "give it TLS, or write docker+http:// to go on without it and without credentials",
			"registry %s: %w and is not on this machine", host, errPlainHTTP)
	case !errors.As(err, &told):
		return &LoadError{
			Code: CodeUnreachable, Retryable: true, Remedy: "check the network and the name, then load it again: what has arrived stays",
			Err: fmt.Errorf("registry %s could not be asked for %s: %w", host, r.ref, withoutURL(err)),
		}
	case told.StatusCode == http.StatusUnauthorized || told.StatusCode == http.StatusForbidden:
		return loadErr(CodeDenied, "check the name, and log in on this machine with: docker login "+host,
			"registry %s denies access to %s (%s)", host, r.ref, diagnosis(told))
	case told.StatusCode == http.StatusNotFound:
		return loadErr(CodeNoImage, "check the name and the tag at the registry; private images need: docker login "+host,
			"%w: registry %s has no %s (%s)", ErrNoImage, host, r.ref, diagnosis(told))
	case told.StatusCode == http.StatusTooManyRequests:
		return &LoadError{
			Code: CodeUnreachable, Retryable: true, Remedy: "wait, or log in for a higher limit: docker login " + host,
			Err: fmt.Errorf("registry %s limits requests from here (%s)", host, diagnosis(told)),
		}
	}
	return &LoadError{
		Code: CodeUnreachable, Retryable: told.StatusCode >= http.StatusInternalServerError, Remedy: "load it again later: what has arrived stays",
		Err: fmt.Errorf("registry %s failed to give %s (%s)", host, r.ref, diagnosis(told)),
	}
}

// diagnosis is what a registry answered, in short.
func diagnosis(e *transport.Error) string {
	out := fmt.Sprintf("status %d", e.StatusCode)
	if len(e.Errors) > 0 {
		out += fmt.Sprintf(", %.40s: %.200s", e.Errors[0].Code, e.Errors[0].Message)
	}
	return strings.ToValidUTF8(out, "?")
}
