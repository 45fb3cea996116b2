package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// CARType is the media type of a CAR.
const CARType = "application/vnd.ipld.car"

// Imported is what a CAR held. Its roots are pinned.
type Imported struct {
	Roots  []string `json:"roots"`
	Blocks uint64   `json:"blocks"` // those that were here already among them
	Bytes  uint64   `json:"bytes"`  // of those blocks
}

// ExportDAG writes the DAG under a CID out as a CARv1. When it fails, what was
// written is no whole CAR.
func (c *Client) ExportDAG(ctx context.Context, cid string, w io.Writer) error {
	return c.download(ctx, "export", "/v1/dag/export", url.Values{"cid": {cid}}, cid, w)
}

// ImportDAG sends a CAR, verifies and keeps its blocks and pins its roots. The
// blocks before one that is refused are kept all the same.
func (c *Client) ImportDAG(ctx context.Context, car io.Reader, progress func(Progress)) (Imported, error) {
	return upload[Imported](ctx, c, "/v1/dag/import", CARType, car, progress)
}

// upload sends what is read and hears of progress meanwhile, then of the result.
func upload[T any](ctx context.Context, c *Client, path, kind string, from io.Reader, progress func(Progress)) (T, error) {
	var zero T
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, io.NopCloser(from))
	if err != nil {
		return zero, fmt.Errorf("POST %s: %w", path, err)
	}
	req.Header.Set("Content-Type", kind)
	resp, err := c.do(req)
	if err != nil {
		return zero, err
	}
	return result[T](c, req.Method, path, resp, progress)
}

// download writes an answer of raw bytes out; a problem that arose in their
// midst comes as a trailer.
func (c *Client) download(ctx context.Context, verb, route string, query url.Values, what string, w io.Writer) error {
	resp, err := c.send(ctx, http.MethodGet, route, query, nil, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("%s %s: %w", verb, what, err)
	}
	raw := resp.Trailer.Get(ProblemTrailer)
	if raw == "" {
		return nil
	}
	p := &Problem{}
	if err := json.Unmarshal([]byte(raw), p); err != nil {
		return fmt.Errorf("%s %s: the node stopped in the middle, and why cannot be read: %w", verb, what, err)
	}
	return p
}
