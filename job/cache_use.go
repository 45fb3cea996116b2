package job

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

// cacheEntryCost is what a file or folder counts beside its data, as in outputs.
const cacheEntryCost = 1 << 10

// treeSize is what a file or folder takes. Links are not followed: jobs have
// written there.
func treeSize(path string) (uint64, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	if !info.IsDir() {
		return fileSize(info), nil
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = root.Close() }()
	var total uint64
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if name == "." {
			return err
		}
		total += cacheEntryCost
		if err != nil {
			if e != nil && e.IsDir() {
				return fs.SkipDir // it may not be entered, so nothing in it counts
			}
			return nil
		}
		if e.Type().IsRegular() {
			if info, err := e.Info(); err == nil {
				total += fileSize(info)
			}
		}
		return nil
	})
	return total, err
}

// fileSize is a file's length in whole pages.
func fileSize(info fs.FileInfo) uint64 {
	const page = 4 << 10
	return (uint64(max(info.Size(), 0)) + page - 1) / page * page
}

// cacheRoot is the DAG that a cache's key names, or none.
func cacheRoot(key string) ([]byte, bool) {
	text, ok := strings.CutPrefix(key, "cid:")
	if !ok {
		return nil, false
	}
	c, err := cid.Decode(text)
	if err != nil {
		return nil, false
	}
	return c.Bytes(), true
}

// mountCaches takes the lease's caches into use and adds them to the container.
func (e *execution) mountCaches(ctx context.Context, spec *sandbox.Spec, from []protocol.PeerID) error {
	wanted := e.lease.Msg.GetSpec().GetCaches()
	if len(wanted) > 0 && e.p.Caches == nil {
		return fault("this provider keeps no caches")
	}
	for _, w := range wanted {
		m := sandbox.Mount{Dest: w.GetTo()}
		var err error
		if root, ok := cacheRoot(w.GetKey()); ok {
			m.ReadOnly = true
			stopped := e.fetching()
			m.Source, err = e.p.Caches.TakeShared(ctx, w.GetKey(), e.containerID(), func(ctx context.Context, dest string, most uint64) error {
				size := w.GetSize()
				if size == 0 || size > most {
					size = most
				}
				if err := e.p.Content.FetchDAG(ctx, root, from, size, e.progress); err != nil {
					return fmt.Errorf("fetch it: %w", err)
				}
				return e.p.Content.MaterializeMax(ctx, root, dest, most)
			})
			stopped()
		} else {
			m.Source, m.MaxBytes, err = e.p.Caches.Take(e.lease.From.String(), w.GetKey(), e.containerID())
		}
		if err != nil {
			return fault("%w", err)
		}
		spec.Mounts = append(spec.Mounts, m)
	}
	return nil
}

// keepCaches takes the caches of a container that was found into use again,
// before any lease can make room for others.
func (p *Provider) keepCaches(lease protocol.Signed[*protocol.Lease], owner string) {
	if p.Caches == nil {
		return
	}
	for _, w := range lease.Msg.GetSpec().GetCaches() {
		var err error
		if _, ok := cacheRoot(w.GetKey()); ok {
			_, err = p.Caches.TakeShared(context.Background(), w.GetKey(), owner, func(context.Context, string, uint64) error {
				return errors.New("it is gone, and its container runs")
			})
		} else {
			err = p.Caches.Keep(lease.From.String(), w.GetKey(), owner)
		}
		if err != nil {
			p.Log.Error("hold the cache of a container", "lease", lease.ID().Short(), "err", err)
		}
	}
}

// releaseCaches ends the use of a lease's caches.
func (e *execution) releaseCaches() {
	if e.p.Caches != nil {
		e.p.Caches.Release(e.containerID())
	}
}

// sharedCaches are the DAGs among a job's caches that this node has whole, to be
// held and given to the providers. The others are found by their providers.
func (r *Renter) sharedCaches(ctx context.Context, spec Spec, dir string) []Root {
	var out []Root
	for _, c := range spec.Caches {
		if _, ok := cacheRoot(c.Key); !ok {
			continue
		}
		root, err := r.Content.AddInput(ctx, c.Key, dir, func(Progress) {})
		if err != nil {
			r.Log.Info("a cache's content is not here; the provider looks for it", "cache", c.Key, "err", err)
			continue
		}
		root.To = c.To
		out = append(out, root)
	}
	return out
}

// wireCaches are a job's caches as a lease tells them.
func wireCaches(j *Job) []*protocol.Cache {
	var out []*protocol.Cache
	for _, c := range j.Spec.Caches {
		w := &protocol.Cache{Key: c.Key, To: c.To}
		if i := slices.IndexFunc(j.Shared, func(r Root) bool { return r.To == c.To }); i >= 0 {
			w.Size = j.Shared[i].Size
		}
		out = append(out, w)
	}
	return out
}
