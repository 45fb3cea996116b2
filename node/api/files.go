package api

import (
	"context"
	"io"

	"github.com/lumbung-net/lumbung/node/client"
)

// FilesBackend is files and folders in DAGs, and the folders that jobs keep.
type FilesBackend interface {
	// AddStream adds a file's bytes as they come.
	AddStream(ctx context.Context, r io.Reader, progress func(client.Progress)) (client.Added, error)
	// List lists a folder; path is a CID, with a path below it or without.
	List(ctx context.Context, path string) ([]client.DirEntry, error)
	// GetPath writes what a path leads to to the disk.
	GetPath(ctx context.Context, r client.GetRequest, progress func(client.Progress)) (client.Got, error)
	// Caches lists what the provider keeps for jobs.
	Caches(ctx context.Context) ([]client.Cache, error)
	// DropCache removes a cache that is not in use.
	DropCache(ctx context.Context, id string) error
}

const putPath = "/v1/blocks/put"

// files registers what works on files and folders in DAGs.
func (g registrar) files() {
	b := g.s.opt.Backend
	const tag = "content"
	type pathInput struct {
		Path string `query:"path" required:"true" maxLength:"4096" doc:"A CID, with a path below it or without"`
	}
	lists(g, route{"GET", "/v1/blocks/ls", "list", "The entries of a folder, fetched if they are not here", tag, 0},
		func(ctx context.Context, r *pathInput) ([]client.DirEntry, error) { return b.List(ctx, r.Path) })
	works(g, route{"POST", "/v1/blocks/get", "getPath", "Write a file or folder to this machine's disk, fetching what is missing", tag, 0},
		func(ctx context.Context, r *in[client.GetRequest], progress func(client.Progress)) (client.Got, error) {
			if err := needed("path", r.Body.Path, 4096); err != nil {
				return client.Got{}, err
			}
			if err := absolute("dest", r.Body.Dest); err != nil {
				return client.Got{}, err
			}
			return b.GetPath(ctx, r.Body, progress)
		})
	takes(g, route{"POST", putPath, "addStream", "Make blocks of a file that is sent, and pin it", tag, 0}, "the file", "adding", b.AddStream)
	lists(g, route{"GET", "/v1/provider/caches", "caches", "The folders that jobs keep on this provider", "provider", 0},
		func(ctx context.Context, _ *nothing) ([]client.Cache, error) { return b.Caches(ctx) })
	type cacheInput struct {
		ID string `path:"id" minLength:"4" maxLength:"64" doc:"The cache's id, or the beginning of it"`
	}
	does(g, route{"DELETE", "/v1/provider/caches/{id}", "dropCache", "Remove a cache that is not in use", "provider", 0},
		func(ctx context.Context, r *cacheInput) error { return b.DropCache(ctx, r.ID) })
}
