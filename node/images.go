package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/node/store"
	"github.com/lumbung-net/lumbung/p2p/content"
)

// images keeps the names of images and, for containers, the read-only folders
// that they are unpacked into: one for each image, shared by all that run it.
type images struct {
	blocks *content.Store
	db     *store.DB
	dir    string
	log    *slog.Logger

	mu    sync.Mutex
	trees map[cid.Cid]*tree
	uses  map[string]cid.Cid // by owner
}

// tree is one unpacked image. Its lock is held while it is being made.
type tree struct {
	mu    sync.Mutex
	users int // guarded by images.mu
	last  time.Time
}

// keepTrees is how many unpacked images stay although nothing runs them.
const keepTrees = 8

// newImages takes up the trees of earlier lives and removes what else lies
// there, such as a tree that was being unpacked when the node was killed.
func newImages(blocks *content.Store, db *store.DB, dir string, log *slog.Logger) (*images, error) {
	s := &images{blocks: blocks, db: db, dir: dir, log: log, trees: map[cid.Cid]*tree{}, uses: map[string]cid.Cid{}}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("look for unpacked images: %w", err)
	}
	for _, e := range entries {
		if root, err := cid.Decode(e.Name()); err == nil && root.String() == e.Name() && e.IsDir() {
			s.trees[root] = &tree{} // last used before any of this life
			continue
		}
		if isArrival(e.Name()) {
			continue
		}
		if err := sandbox.RemoveTree(filepath.Join(dir, e.Name())); err != nil {
			log.Error("remove what is no unpacked image", "path", filepath.Join(dir, e.Name()), "err", err)
		}
	}
	return s, nil
}

// load imports an image and gives it a name.
func (s *images) load(ctx context.Context, ref string, o content.LoadOptions, progress func(job.Progress)) (content.Image, error) {
	o.Progress = passOn(progress)
	return s.add(ctx, func() (content.Image, error) {
		im, err := content.LoadImage(ctx, s.blocks, ref, o)
		if err == nil && im.Name == "" {
			im.Name = strings.TrimSuffix(filepath.Base(ref), filepath.Ext(ref))
		}
		return im, err
	})
}

// add names an image that build makes. Blocks put for it are held until the name
// keeps them.
func (s *images) add(ctx context.Context, build func() (content.Image, error)) (content.Image, error) {
	defer s.blocks.HoldPuts()()
	im, err := build()
	if err != nil {
		return im, err
	}
	defer s.blocks.Hold(im.Root)() // a collection under way does not see the name
	err = s.db.PutImage(ctx, store.Image{ImageInfo: infoOf(im), Layers: len(im.Layers), Created: time.Now()})
	if err != nil {
		return im, fmt.Errorf("name the image %s: %w", im.Name, err)
	}
	return im, nil
}

func (s *images) byRoot(ctx context.Context, root cid.Cid, name string) (job.ImageInfo, error) {
	im, err := content.ReadImage(ctx, s.blocks, root)
	if err != nil {
		return job.ImageInfo{}, fmt.Errorf("read the image %s: %w", name, err)
	}
	im.Name = name
	return infoOf(im), nil
}

// rootfs is the folder of an image, made when it is not there yet. It is in use
// by owner until release, also when this fails: a container may be running on
// it whose image can no longer be read.
func (s *images) rootfs(ctx context.Context, root cid.Cid, owner string) (string, job.ImageInfo, error) {
	t := s.use(root, owner)
	info, err := s.byRoot(ctx, root, "")
	if err != nil {
		return "", info, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	dir := s.folder(root)
	if _, err := os.Stat(dir); err == nil {
		return dir, info, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", info, err
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return "", info, err
	}
	return dir, info, content.Unpack(ctx, s.blocks, root, dir)
}

// folder is where an image's files are once they are all there.
func (s *images) folder(root cid.Cid) string { return filepath.Join(s.dir, root.String()) }

func (s *images) use(root cid.Cid, owner string) *tree {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.trees[root]
	if t == nil {
		t = &tree{}
		s.trees[root] = t
	}
	if _, again := s.uses[owner]; !again {
		s.uses[owner] = root
		t.users++
	}
	t.last = time.Now()
	return t
}

// release ends an owner's use; unpacked images beyond keepTrees that nothing
// uses are removed, the longest unused first.
func (s *images) release(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	root, ok := s.uses[owner]
	if !ok {
		return
	}
	delete(s.uses, owner)
	t := s.trees[root]
	t.users--
	t.last = time.Now()
	s.trim()
}

func (s *images) trim() {
	var idle []cid.Cid
	for root, t := range s.trees {
		if t.users == 0 {
			idle = append(idle, root)
		}
	}
	if len(idle) <= keepTrees {
		return
	}
	slices.SortFunc(idle, func(a, b cid.Cid) int { return s.trees[a].last.Compare(s.trees[b].last) })
	for _, root := range idle[:len(idle)-keepTrees] {
		delete(s.trees, root)
		if err := sandbox.RemoveTree(s.folder(root)); err != nil {
			s.log.Error("remove an unpacked image", "image", root, "err", err)
		}
	}
}
