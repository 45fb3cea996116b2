package content

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
)

// sizes are the byte counts that steer a store; tests take small ones.
type sizes struct {
	// pack is where a pack file is full. A pack is what compaction rewrites
	// at once, so it bounds the room that needs.
	pack uint64
	// sync bounds what a crash can lose: beyond it the background syncs. At
	// four times as much puts wait for the disk.
	sync uint64
	// writeback is how much is put before the kernel is told to begin writing
	// it, so that a sync finds little left to write.
	writeback uint64
	// tidy is how many records of history the index log always has room for.
	tidy int
}

func usualSizes() sizes {
	return sizes{pack: packSize, sync: 128 << 20, writeback: 8 << 20, tidy: 4096}
}

// Put stores data under c after checking that c names it. A block already
// there is left as it is and counts as used. ErrFull says that the quota or
// the disk is used up; nothing that was kept is lost then.
func (s *Store) Put(ctx context.Context, c cid.Cid, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := refOf(c)
	if err != nil {
		return err
	}
	if len(data) > MaxBlockHard {
		return fmt.Errorf("block %s of %d bytes: %w: the limit is %d", c, len(data), ErrTooLarge, MaxBlockHard)
	}
	if sha256.Sum256(data) != r.key {
		return fmt.Errorf("block %s: %w", c, ErrMismatch)
	}
	return s.put(r.key, data)
}

// put stores data whose digest the caller has computed.
func (s *Store) put(k key, data []byte) error {
	_, err := s.putBatch([]putItem{{k, data}})
	return err
}

// putItem is a block to be stored. The caller has computed the digest of data,
// or checked it, and has checked that data is at most MaxBlockHard bytes.
type putItem struct {
	key  key
	data []byte
}

// putBatch stores blocks that their caller has verified, all of them or, with
// an error, none that is then known. It is the fast way in:
//
//   - Blocks that are here already, or twice in items, are skipped and count
//     as used. added is the bytes that were new.
//   - What is new is written behind one another by one system call (one more
//     where a pack gets full), straight from the slices in items: nothing is
//     copied, and nothing of items is kept when it returns, so buffers can be
//     used again. Batches of 1 to 8 MiB, or of up to 1,024 small blocks, cost
//     least. Memory beside items is a few dozen bytes a block.
//   - The store's lock is taken twice a batch, never while writing. Batches
//     of several goroutines are written at the same time.
//   - It never waits for an fsync: writing to the disk is begun in the
//     background every 8 MiB and made durable there every 128 MiB. Only when
//     512 MiB are not durable yet it waits for the disk to catch up.
//   - Once it returns the blocks can be read by everybody. They are durable
//     when a Sync that began afterwards returns nil; Sync may run at any time
//     beside puts and is cheap when little is left to do.
//   - ErrFull says that the quota or the disk is used up. Blocks put before
//     are unharmed, and the same batch can be put again when there is room.
func (s *Store) putBatch(items []putItem) (added uint64, err error) {
	runs, wait, err := s.reserve(items)
	if err != nil {
		return 0, err
	}
	for i := range runs {
		if err = runs[i].write(); err != nil {
			break
		}
	}
	added, cerr := s.commit(runs, err == nil)
	if err = errors.Join(s.errFull(err, runsBytes(runs)), cerr); err != nil {
		return 0, err
	}
	if wait {
		return added, s.Sync()
	}
	return added, nil
}

// run is a range of a pack that new blocks of a batch are written to.
type run struct {
	p     *pack
	off   uint64
	n     uint64
	items []putItem
}

func (r *run) write() error {
	bufs := make([][]byte, 0, len(r.items))
	for i := range r.items {
		if len(r.items[i].data) > 0 {
			bufs = append(bufs, r.items[i].data)
		}
	}
	if len(bufs) == 0 {
		return nil
	}
	if err := r.p.f.writeVec(bufs, int64(r.off)); err != nil {
		return fmt.Errorf("write blocks to %s: %w", r.p.path, err)
	}
	return nil
}

func runsBytes(runs []run) (n uint64) {
	for i := range runs {
		n += runs[i].n
	}
	return n
}

// reserve finds room for the items that are not here. wait says that the disk
// is far behind.
func (s *Store) reserve(items []putItem) (runs []run, wait bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false, ErrClosed
	}
	fresh, n := s.missing(items)
	if len(fresh) == 0 {
		return nil, false, nil
	}
	if s.max > 0 && s.disk+n > s.max {
		return nil, false, fmt.Errorf("%w: %d of the quota of %d bytes are used, and %d more are needed; give back room with `lumbung gc`, or raise the quota",
			ErrFull, s.disk, s.max, n)
	}
	if runs, err = s.allot(fresh); err != nil {
		s.giveBack(runs)
		return nil, false, s.errFull(err, n)
	}
	return runs, s.unsynced+n > 4*s.sizes.sync, nil
}

// missing returns the items that are not here, each once, and their bytes.
// Those here count as used and put. The caller holds mu.
func (s *Store) missing(items []putItem) (fresh []putItem, n uint64) {
	var once map[key]struct{}
	if len(items) > 1 {
		once = make(map[key]struct{}, len(items))
	}
	fresh, whole := items, true // a copy is made when one is left out
	for i := range items {
		k := items[i].key
		e, here := s.blocks[k]
		_, twice := once[k]
		if here {
			e.gen = s.gen
			s.blocks[k] = s.touch(k, e)
		}
		if here || twice {
			if whole {
				fresh, whole = append([]putItem(nil), items[:i]...), false
			}
			continue
		}
		if once != nil {
			once[k] = struct{}{}
		}
		if !whole {
			fresh = append(fresh, items[i])
		}
		n += uint64(len(items[i].data))
	}
	return fresh, n
}

// allot gives items places, in runs that end where a pack is full. The caller
// holds mu.
func (s *Store) allot(items []putItem) (runs []run, err error) {
	for len(items) > 0 {
		if s.cur == nil || s.cur.size+uint64(len(items[0].data)) > s.sizes.pack {
			if err := s.newPack(); err != nil {
				return runs, err
			}
		}
		r := run{p: s.cur, off: s.cur.size}
		i := 0
		for ; i < len(items) && r.off+r.n+uint64(len(items[i].data)) <= s.sizes.pack; i++ {
			r.n += uint64(len(items[i].data))
		}
		r.items, items = items[:i], items[i:]
		s.cur.size += r.n
		s.disk += r.n
		s.cur.writers++
		s.cur.acquire()
		runs = append(runs, r)
	}
	return runs, nil
}

// giveBack returns runs that were not written, or not whole. The caller holds mu.
func (s *Store) giveBack(runs []run) {
	for _, r := range runs {
		r.p.writers--
		s.reclaim(r)
		_ = r.p.release() // it is in the store, or doomed by who removed it
	}
}

// reclaim gives the room of a run back if it is the last of its pack; elsewhere
// compaction does. The caller holds mu.
func (s *Store) reclaim(r run) {
	if r.p.writers > 0 || r.p.size != r.off+r.n {
		return
	}
	if err := r.p.f.Truncate(int64(r.off)); err != nil {
		return
	}
	r.p.size = r.off
	r.p.flushed = min(r.p.flushed, r.off)
	s.disk -= r.n
}

func (s *Store) newPack() error {
	s.nextPack++
	p, err := openPack(s.fs, s.dir, s.nextPack)
	if err != nil {
		return err
	}
	s.packs[p.id], s.cur, s.newNames = p, p, true
	return nil
}

// commit makes the blocks of written runs known.
func (s *Store) commit(runs []run, ok bool) (added uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		ok, err = false, ErrClosed
	}
	if !ok {
		s.giveBack(runs)
		return 0, err
	}
	now := seconds(s.now().Unix())
	for _, r := range runs {
		r.p.writers--
		off := r.off
		for i := range r.items {
			at := placeAt(r.p.id, off, len(r.items[i].data))
			off += uint64(at.length)
			added += s.learn(r.items[i].key, entry{at: at, used: now, verified: now, gen: s.gen})
		}
		s.dirty[r.p] = struct{}{}
		s.unsynced += r.n
		s.early += r.n
		err = errors.Join(err, r.p.release())
	}
	s.startBehind()
	return added, err
}

// learn adds a block unless it came another way meanwhile, and returns its
// bytes if it did not. The caller holds mu.
func (s *Store) learn(k key, e entry) uint64 {
	if _, there := s.blocks[k]; there {
		return 0
	}
	n := uint64(e.at.length)
	s.blocks[k] = e
	s.bytes += n
	s.packs[e.at.pack].gain(e.at.length)
	s.pending = append(s.pending, record{kind: recPut, key: k, at: e.at, time: int64(e.used)})
	return n
}

// touch returns e as used now. The caller holds mu.
func (s *Store) touch(k key, e entry) entry {
	if now := seconds(s.now().Unix()); now > e.used && now-e.used >= uint32(useGrain.Seconds()) {
		e.used = now
		s.pending = append(s.pending, record{kind: recUse, key: k, time: int64(now)})
	}
	return e
}
