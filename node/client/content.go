package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
)

// ProblemTrailer is the HTTP trailer that tells of a problem which arose after
// raw content had begun to flow.
const ProblemTrailer = "Lumbung-Problem"

// LoadImage brings an image into the node's store.
func (c *Client) LoadImage(ctx context.Context, r PathRequest, progress func(Progress)) (Image, error) {
	return stream[Image](ctx, c, http.MethodPost, "/v1/images", r, progress)
}

// ImageFrom makes an image of one static program.
func (c *Client) ImageFrom(ctx context.Context, r FromRequest, progress func(Progress)) (Image, error) {
	return stream[Image](ctx, c, http.MethodPost, "/v1/images/from", r, progress)
}

// Images lists the images of the node's store.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	return get[[]Image](ctx, c, "/v1/images", nil)
}

// RemoveImage forgets an image, by name or id; its blocks go with the next
// collection.
func (c *Client) RemoveImage(ctx context.Context, ref string) error {
	s, err := segment(ref)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodDelete, "/v1/images/"+s, nil, nil, nil)
}

// Add makes content-addressed blocks of a local file or folder.
func (c *Client) Add(ctx context.Context, r PathRequest, progress func(Progress)) (Added, error) {
	return stream[Added](ctx, c, http.MethodPost, "/v1/blocks/add", r, progress)
}

// Cat writes a file out; path is a CID, with a path below it or without.
func (c *Client) Cat(ctx context.Context, path string, w io.Writer) error {
	return c.download(ctx, "cat", "/v1/blocks/cat", url.Values{"path": {path}}, path, w)
}

// Pin keeps a DAG, fetching what of it is not here.
func (c *Client) Pin(ctx context.Context, r PinRequest, progress func(Progress)) (Added, error) {
	return stream[Added](ctx, c, http.MethodPost, "/v1/pins", r, progress)
}

// Unpin lets a DAG go with the next collection.
func (c *Client) Unpin(ctx context.Context, cid string) error {
	s, err := segment(cid)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodDelete, "/v1/pins/"+s, nil, nil, nil)
}

// Pins lists what is kept by hand.
func (c *Client) Pins(ctx context.Context) ([]Pin, error) {
	return get[[]Pin](ctx, c, "/v1/pins", nil)
}

// GC gives back the room of blocks that nothing needs.
func (c *Client) GC(ctx context.Context) (Collected, error) {
	return post[Collected](ctx, c, "/v1/gc", nil)
}
