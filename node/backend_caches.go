package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/api"
	"github.com/lumbung-net/lumbung/node/client"
)

var errNoCaches = &api.Error{
	Status: http.StatusConflict, Code: "no_caches", Detail: "this node keeps no caches for jobs",
	Remedy: "start it with --role provider and, where the disk is small, --cache-size",
}

// Caches implements api.Backend.
func (b backend) Caches(context.Context) ([]client.Cache, error) {
	if b.n.provider == nil || b.n.provider.Caches == nil {
		return nil, errNoCaches
	}
	return b.n.provider.Caches.List(), nil
}

// DropCache implements api.Backend: id is that of a cache or its beginning.
func (b backend) DropCache(_ context.Context, id string) error {
	if b.n.provider == nil || b.n.provider.Caches == nil {
		return errNoCaches
	}
	found := ""
	for _, c := range b.n.provider.Caches.List() {
		if !strings.HasPrefix(c.ID, id) {
			continue
		}
		if found != "" {
			return &api.Error{Status: http.StatusConflict, Code: "ambiguous", Detail: fmt.Sprintf("more than one cache begins with %s", id), Remedy: "give more of the id"}
		}
		found = c.ID
	}
	if found == "" {
		return fmt.Errorf("cache %s: %w", id, job.ErrNotFound)
	}
	err := b.n.provider.Caches.Drop(found)
	if errors.Is(err, job.ErrInUse) {
		return &api.Error{Status: http.StatusConflict, Code: "in_use", Err: err, Retryable: true, Remedy: "wait for the jobs that use it; `lumbung ps` on their renter's node shows them"}
	}
	return err
}
