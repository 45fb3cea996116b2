package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/p2p/content"
)

const (
	// defaultCaches bounds the caches where nothing was configured, and where a
	// tenth of the free disk is not less.
	defaultCaches = 50 << 30
	// renterShare is the part of it that one renter may take: one in so many.
	renterShare = 4
	// minCaches is the least that is worth keeping.
	minCaches = 256 << 20
)

// openCaches opens the folders that outlive jobs. Nil where there is no room.
func (n *Node) openCaches() (*job.Caches, error) {
	most := n.cfg.CacheSize
	if most == 0 {
		free, err := freeDisk(n.cfg.Home)
		if err != nil {
			return nil, fmt.Errorf("look for room in %s: %w", n.cfg.Home, err)
		}
		most = min(defaultCaches, free/10)
	}
	if most < minCaches {
		n.log.Info("no caches are kept: there is too little room", "bytes", most)
		return nil, nil
	}
	return job.OpenCaches(job.CacheConfig{
		Dir: filepath.Join(n.cfg.Home, "caches"), Max: most, MaxPerRenter: max(most/renterShare, minCaches), Now: n.now, Log: n.log,
	})
}

// MaterializeMax writes a DAG out, at most so many bytes of it.
func (c providerContent) MaterializeMax(ctx context.Context, root []byte, dest string, most uint64) error {
	id, err := cid.Cast(root)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dest), 0o755); err != nil {
		return err
	}
	_, err = content.ExportWith(ctx, c.n.blocks, id, dest, content.ExportOptions{KeepOutsideLinks: true, Limits: content.Limits{Bytes: most}})
	return err
}
