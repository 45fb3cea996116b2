package client

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/lumbung-net/lumbung/job"
)

// DirEntry is one entry of a folder in a DAG, or the one file a path leads to.
type DirEntry struct {
	Name string `json:"name"`
	CID  string `json:"cid"`
	Kind string `json:"kind"` // file, folder or symlink; unknown where its block cannot be had
	Size uint64 `json:"size"` // bytes of a file
	Mode uint32 `json:"mode"` // permissions
}

// GetRequest asks for what a path leads to, a CID with a path below it or
// without, to be written to Dest, an absolute path.
type GetRequest struct {
	Path string `json:"path"`
	Dest string `json:"dest"`
}

// Got is what was written to the disk.
type Got struct {
	CID     string   `json:"cid"`
	Path    string   `json:"path"`
	Bytes   uint64   `json:"bytes"`
	Files   uint64   `json:"files"`
	Skipped []string `json:"skipped,omitempty"` // links left out because they lead outside; the first 100
}

// Cache is a folder that a provider keeps for jobs to come.
type Cache = job.CacheInfo

// AddedType is the media type of a file that is sent to be added.
const AddedType = "application/octet-stream"

// AddStream makes content-addressed blocks of a file's bytes as they come.
func (c *Client) AddStream(ctx context.Context, r io.Reader, progress func(Progress)) (Added, error) {
	return upload[Added](ctx, c, "/v1/blocks/put", AddedType, r, progress)
}

// List lists a folder; path is a CID, with a path below it or without.
func (c *Client) List(ctx context.Context, path string) ([]DirEntry, error) {
	return get[[]DirEntry](ctx, c, "/v1/blocks/ls", url.Values{"path": {path}})
}

// GetPath writes a file or folder to the disk, fetching what is not here.
func (c *Client) GetPath(ctx context.Context, r GetRequest, progress func(Progress)) (Got, error) {
	return stream[Got](ctx, c, http.MethodPost, "/v1/blocks/get", r, progress)
}

// Caches lists what a provider keeps for jobs, the latest used first.
func (c *Client) Caches(ctx context.Context) ([]Cache, error) {
	return get[[]Cache](ctx, c, "/v1/provider/caches", nil)
}

// DropCache removes a cache that is not in use, by its id or the beginning of it.
func (c *Client) DropCache(ctx context.Context, id string) error {
	s, err := segment(id)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodDelete, "/v1/provider/caches/"+s, nil, nil, nil)
}
