package content

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
)

// packSize is where a pack file is full, in bytes.
const packSize = 256 << 20

// pack is one file of blocks laid end to end, without headers: the index says
// where each begins. refs counts readers plus one for being in the store, so
// that a doomed pack is removed when its last reader is done.
type pack struct {
	id   uint32
	path string
	fs   fileSystem
	f    diskFile
	refs atomic.Int64
	doom atomic.Bool

	// Guarded by Store.mu.
	size    uint64 // end of the last block given out
	live    uint64 // bytes of blocks the index still knows
	count   int    // those blocks: one may have no bytes
	flushed uint64 // up to where writing to the disk was begun early
	writers int    // writes between reserve and commit

	// broken, guarded by Store.syncMu, is why the pack could not be synced.
	// The kernel may have dropped what it could not write, and says so once:
	// a second fsync that succeeds proves nothing. So the pack takes no more
	// blocks, and those in it that are not durable yet are written anew.
	broken error
}

func packName(id uint32) string { return fmt.Sprintf("%08d.pack", id) }

func openPack(fs fileSystem, dir string, id uint32) (*pack, error) {
	path := filepath.Join(dir, packName(id))
	f, err := fs.open(path)
	if err != nil {
		return nil, fmt.Errorf("open pack: %w", err)
	}
	size, err := f.size()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open pack: %w", err)
	}
	p := &pack{id: id, path: path, fs: fs, f: f, size: uint64(size)}
	p.refs.Store(1)
	return p, nil
}

// gain and lose count a block of n bytes that is, or is no more, known in the
// pack. The caller holds Store.mu.
func (p *pack) gain(n uint32) { p.live, p.count = p.live+uint64(n), p.count+1 }

func (p *pack) lose(n uint32) { p.live, p.count = p.live-uint64(n), p.count-1 }

// acquire keeps the pack's file open until release.
func (p *pack) acquire() { p.refs.Add(1) }

func (p *pack) release() error {
	if p.refs.Add(-1) > 0 {
		return nil
	}
	err := p.f.Close()
	if p.doom.Load() {
		err = errors.Join(err, p.fs.remove(p.path))
	}
	return err
}

// sync makes the pack's writes durable. The caller holds Store.syncMu.
func (p *pack) sync() error {
	if p.broken != nil {
		return p.broken
	}
	if err := p.f.Sync(); err != nil {
		p.broken = fmt.Errorf("sync pack %s: %w", p.path, err)
	}
	return p.broken
}

// listPacks returns the numbers of the pack files in dir.
func listPacks(fs fileSystem, dir string) ([]uint32, error) {
	names, err := fs.list(dir)
	if err != nil {
		return nil, fmt.Errorf("list packs: %w", err)
	}
	var ids []uint32
	for _, name := range names {
		num, ok := strings.CutSuffix(name, ".pack")
		if !ok {
			continue
		}
		id, err := strconv.ParseUint(num, 10, 32)
		if err != nil || packName(uint32(id)) != name {
			continue
		}
		ids = append(ids, uint32(id))
	}
	return ids, nil
}
