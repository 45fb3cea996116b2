package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// blobTries is how often in a row a blob is asked for again without a new byte.
const blobTries = 5

var errStalled = fmt.Errorf("nothing came for %s", registryStall)

// blobReader reads a blob of a registry. When the connection breaks or stalls
// it asks for the rest. Who reads checks the digest.
type blobReader struct {
	r      *registry
	ctx    context.Context
	digest key
	size   int64 // as the manifest says

	body  io.ReadCloser
	stall *time.Timer
	end   context.CancelFunc // of the request
	at    int64
	tries int
}

// connect asks for the blob from where reading stands.
func (b *blobReader) connect() error {
	ctx, end := context.WithCancel(context.WithValue(b.ctx, wholeBody{}, true))
	stall := time.AfterFunc(registryStall, end)
	header := http.Header{}
	if b.at > 0 {
		rest := fmt.Sprintf("bytes=%d-", b.at)
		if b.size >= 0 { // not all registries understand an open end
			rest += strconv.FormatInt(b.size-1, 10)
		}
		header.Set("Range", rest)
	}
	resp, err := b.r.get(ctx, "blobs", b.digest.digest(), header)
	if err == nil {
		err = b.accept(resp)
	}
	if err != nil {
		stall.Stop()
		end()
		if errors.Is(err, context.Canceled) && b.ctx.Err() == nil {
			err = errStalled
		}
		return b.r.explain(err)
	}
	b.stall, b.end = stall, end
	return nil
}

// accept takes an answer as the body to read on from.
func (b *blobReader) accept(resp *http.Response) error {
	err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent)
	start := int64(0)
	if err == nil && resp.StatusCode == http.StatusPartialContent {
		start = b.at
		if got := resp.Header.Get("Content-Range"); !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", b.at)) {
			err = fmt.Errorf("%w: asked for bytes from %d, got %.40q", ErrMalformed, b.at, got)
		}
	}
	if n := resp.ContentLength; err == nil && b.size >= 0 && n >= 0 && n != b.size-start {
		err = fmt.Errorf("%w: %d bytes of %s, the manifest says %d", ErrMismatch, n+start, b.digest.digest(), b.size)
	}
	if err == nil && start < b.at { // the registry knows no ranges
		_, err = io.CopyN(io.Discard, resp.Body, b.at)
	}
	if err != nil {
		return errors.Join(err, resp.Body.Close())
	}
	b.body = resp.Body
	return nil
}

// Read implements io.Reader.
func (b *blobReader) Read(p []byte) (int, error) {
	if b.size >= 0 {
		p = p[:min(int64(len(p)), b.size-b.at+1)] // one more tells of a blob that is too long
	}
	for {
		n, err := b.readOnce(p)
		b.at += int64(n)
		switch {
		case b.size >= 0 && b.at > b.size:
			return 0, fmt.Errorf("%w: %s has more than the %d bytes that the manifest says", ErrMismatch, b.digest.digest(), b.size)
		case errors.Is(err, io.EOF) && (b.size < 0 || b.at == b.size):
			return n, io.EOF
		case n > 0:
			b.tries = 0
			if err != nil {
				b.hangUp()
			}
			return n, nil // the next call asks for the rest, if there was an error
		case err != nil:
			b.hangUp()
			if err := b.wait(err); err != nil {
				return 0, err
			}
		}
	}
}

func (b *blobReader) readOnce(p []byte) (int, error) {
	if b.body == nil {
		if err := b.connect(); err != nil {
			return 0, err
		}
	}
	b.stall.Reset(registryStall)
	return b.body.Read(p)
}

// wait lets some time go by before the next try, or says that there is none.
func (b *blobReader) wait(cause error) error {
	if err := b.ctx.Err(); err != nil {
		return err
	}
	if errors.Is(cause, context.Canceled) { // by the stall timer
		cause = errStalled
	}
	var told *LoadError
	if errors.As(cause, &told) && !told.Retryable || errors.Is(cause, ErrMismatch) || errors.Is(cause, ErrMalformed) {
		return cause
	}
	if b.tries++; b.tries >= blobTries {
		return b.r.explain(fmt.Errorf("its connection broke %d times after %d of %d bytes: %w", b.tries, b.at, b.size, cause))
	}
	t := time.NewTimer(time.Duration(b.tries*b.tries) * 50 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
}

func (b *blobReader) hangUp() {
	if b.body == nil {
		return
	}
	b.stall.Stop()
	b.end()
	_ = b.body.Close()
	b.body = nil
}

// Close implements io.Closer.
func (b *blobReader) Close() error {
	b.hangUp()
	return nil
}

// withoutURL drops the address of a failed request: the one a registry sends
// to for a blob can hold a key.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
