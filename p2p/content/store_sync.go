package content

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Sync makes every put that returned before it durable: the packs first, then
// the index, so that the index never names bytes that are not on disk. Puts and
// gets go on meanwhile. After an error it can be called again.
func (s *Store) Sync() error {
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	return s.syncLocked()
}

// due is what one Sync has to make durable.
type due struct {
	recs     []record
	packs    []*pack
	names    bool
	unsynced uint64
}

func (s *Store) syncLocked() error {
	if s.failed != nil {
		return s.failed
	}
	d, err := s.takeDue()
	if err != nil {
		return err
	}
	var perr error
	for _, p := range d.packs { // one that fails is broken from here on
		perr = errors.Join(perr, s.syncPack(p))
	}
	if d.names {
		err = s.fs.syncDir(s.dir)
	}
	good, stuck := s.splitStuck(d.recs)
	if err == nil {
		err = s.index.add(good)
	}
	if err != nil {
		s.putBack(d, d.recs)
		return s.errFull(errors.Join(err, perr), uint64(len(d.recs))*recordSize)
	}
	if len(stuck) == 0 {
		return nil
	}
	s.log.Error("blocks that could not be synced are written anew", "blocks", len(stuck), "err", perr)
	if err := s.rescue(stuck); err != nil {
		s.putBack(due{unsynced: d.unsynced}, stuck)
		return s.errFull(errors.Join(err, perr), d.unsynced)
	}
	return nil
}

// syncPack makes a pack's writes durable and releases it. One that fails takes
// no more blocks.
func (s *Store) syncPack(p *pack) error {
	err := p.sync()
	if err != nil {
		s.mu.Lock()
		if s.cur == p {
			s.cur = nil
		}
		s.mu.Unlock()
	}
	return errors.Join(err, p.release())
}

func (s *Store) takeDue() (due, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return due{}, ErrClosed
	}
	d := due{recs: s.pending, names: s.newNames, unsynced: s.unsynced}
	s.pending, s.newNames, s.unsynced, s.syncAt = nil, false, 0, s.sizes.sync
	for p := range s.dirty {
		p.acquire()
		d.packs = append(d.packs, p)
	}
	clear(s.dirty)
	return d, nil
}

// putBack returns what could not be made durable to the next Sync. The packs
// are fsynced, or broken.
func (s *Store) putBack(d due, recs []record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(recs, s.pending...)
	s.newNames = s.newNames || d.names
	s.unsynced += d.unsynced
	s.syncAt = s.unsynced + s.sizes.sync // the background does not try again at once
}

// splitStuck parts the records whose bytes are durable from the puts into
// broken packs. Puts that have been dropped since are left out, those into
// packs that are gone among them: their bytes need not be on the disk, where a
// crash may leave the put in the log without the drop behind it.
func (s *Store) splitStuck(recs []record) (good, stuck []record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lasting := func(r record) bool {
		p := s.packs[r.at.pack]
		return r.kind != recPut || p != nil && p.broken == nil
	}
	at := slices.IndexFunc(recs, func(r record) bool { return !lasting(r) })
	if at < 0 {
		return recs, nil
	}
	good = append(good, recs[:at]...)
	for _, r := range recs[at:] {
		if lasting(r) {
			good = append(good, r)
		} else if e, ok := s.blocks[r.key]; ok && e.at == r.at {
			stuck = append(stuck, r)
		}
	}
	return good, stuck
}

// rescue writes blocks in broken packs anew, from what the kernel still has of
// them. One that reads wrong is gone, and whoever put it must hear of it: the
// store then makes nothing durable until it is opened anew.
func (s *Store) rescue(stuck []record) error {
	s.mu.Lock()
	keys := map[*pack][]key{}
	for _, r := range stuck {
		if p := s.packs[r.at.pack]; p != nil {
			keys[p] = append(keys[p], r.key)
		}
	}
	s.mu.Unlock()
	for p, ks := range keys {
		ms, lost, err := s.copyBlocks(context.Background(), ks, p)
		if lost > 0 {
			s.failed = fmt.Errorf("block store %s: %d blocks put lately could not be written to the disk and are lost; check the disk, start the node again and repeat what failed", s.dir, lost)
			return s.failed
		}
		if err == nil {
			err = s.settle(ms)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// startBehind starts the background if it has something to do. The caller
// holds mu.
func (s *Store) startBehind() {
	if s.behind || s.closed || s.early < s.sizes.writeback && s.unsynced < s.syncAt {
		return
	}
	s.behind = true
	s.wg.Go(s.work)
}

// work begins to write what was put to the disk, and syncs now and then, until
// there is nothing to do.
func (s *Store) work() {
	for {
		ranges, syncs, more := s.nextWork()
		for _, r := range ranges {
			r.p.f.writeback(int64(r.off), int64(r.n))
			_ = r.p.release()
		}
		if !more {
			return
		}
		if !syncs {
			continue
		}
		if err := s.Sync(); err != nil && !errors.Is(err, ErrClosed) {
			s.log.Error("blocks are not durable yet", "err", err)
		}
	}
}

// nextWork returns ranges to write back, with their packs acquired, and whether
// to sync.
func (s *Store) nextWork() (ranges []run, syncs, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	syncs = s.unsynced >= s.syncAt
	if s.closed || s.early < s.sizes.writeback && !syncs {
		s.behind = false
		return nil, false, false
	}
	s.early = 0
	for p := range s.dirty {
		end := p.size
		if p == s.cur {
			end &^= 1<<20 - 1 // the rest will be written to again soon
		}
		if end > p.flushed {
			p.acquire()
			ranges = append(ranges, run{p: p, off: p.flushed, n: end - p.flushed})
			p.flushed = end
		}
	}
	return ranges, syncs, true
}

// moved is a block written a second time.
type moved struct {
	key      key
	from, to place
}

// copyBlocks writes blocks of p again elsewhere. Nobody reads the copies, and
// they are not durable, before settle. lost counts blocks whose bytes read
// wrong: they are dropped.
func (s *Store) copyBlocks(ctx context.Context, keys []key, p *pack) (ms []moved, lost int, err error) {
	s.mu.Lock()
	if s.cur == p {
		s.cur = nil
	}
	s.mu.Unlock()
	c := copier{s: s, from: p}
	for _, k := range keys {
		if err := ctx.Err(); err != nil {
			return nil, c.lost, err
		}
		if err := c.add(k); err != nil {
			return nil, c.lost, err
		}
	}
	err = c.flush()
	return c.out, c.lost, err
}

// copyPiece is how many bytes are copied by one write.
const copyPiece = 4 << 20

// copier collects blocks to be written by one write.
type copier struct {
	s     *Store
	from  *pack
	buf   []byte
	batch []moved
	out   []moved
	lost  int
}

func (c *copier) add(k key) error {
	e, p, err := c.s.find(ref{key: k}, false)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if e.at.pack != c.from.id {
		return p.release()
	}
	n := len(c.buf)
	c.buf = slices.Grow(c.buf, int(e.at.length))
	got, err := c.s.readAt(ref{key: k}, e, p, c.buf[n:n:cap(c.buf)], true)
	if errors.Is(err, ErrNotFound) {
		c.lost++
		return nil
	}
	if err != nil {
		return err
	}
	c.buf = c.buf[:n+len(got)]
	c.batch = append(c.batch, moved{key: k, from: e.at})
	if len(c.buf) >= copyPiece {
		return c.flush()
	}
	return nil
}

// flush writes what was collected.
func (c *copier) flush() error {
	if len(c.batch) == 0 {
		return nil
	}
	items := make([]putItem, len(c.batch))
	at := 0
	for i, m := range c.batch {
		items[i] = putItem{m.key, c.buf[at : at+int(m.from.length)]}
		at += int(m.from.length)
	}
	s := c.s
	s.mu.Lock()
	runs, err := s.allot(items)
	if err != nil {
		s.giveBack(runs)
	}
	s.mu.Unlock()
	if err != nil {
		return s.errFull(err, uint64(at))
	}
	for i := range runs {
		if err = runs[i].write(); err != nil {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.giveBack(runs)
		return s.errFull(err, uint64(at))
	}
	for _, r := range runs {
		off := r.off
		for _, it := range r.items {
			c.batch[0].to = placeAt(r.p.id, off, len(it.data))
			off += uint64(len(it.data))
			c.out = append(c.out, c.batch[0])
			c.batch = c.batch[1:]
		}
		s.early += r.n
		s.dirty[r.p] = struct{}{}
		r.p.writers--
		err = errors.Join(err, r.p.release())
	}
	c.buf, c.batch = c.buf[:0], nil
	s.startBehind()
	return err
}

// settle makes copies durable and then has everybody read them instead of the
// originals. The caller holds syncMu, and has added to the index what was
// pending of the blocks.
func (s *Store) settle(ms []moved) error {
	s.mu.Lock()
	var recs []record
	targets := map[*pack]struct{}{}
	for _, m := range ms {
		if e, ok := s.blocks[m.key]; ok && e.at == m.from {
			recs = append(recs, record{kind: recPut, key: m.key, at: m.to, time: int64(e.used)})
			targets[s.packs[m.to.pack]] = struct{}{}
		}
	}
	for p := range targets {
		p.acquire()
	}
	s.mu.Unlock()
	var err error
	for p := range targets {
		err = errors.Join(err, s.syncPack(p))
	}
	if err == nil {
		err = s.fs.syncDir(s.dir)
	}
	if err == nil {
		err = s.index.add(recs)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range ms {
		e, ok := s.blocks[m.key]
		if !ok || e.at != m.from { // dropped, or put anew, while it was settled
			continue
		}
		s.packs[m.from.pack].lose(m.from.length)
		s.packs[m.to.pack].gain(m.to.length)
		e.at = m.to
		s.blocks[m.key] = e
	}
	return nil
}

// tidyIndex rewrites the log when most of it is history. It is called with
// syncMu held or before the store is shared. What the log says is durable, so
// the new one is too; what is pending comes after either.
func (s *Store) tidyIndex() error {
	s.mu.Lock()
	known := len(s.blocks)
	s.mu.Unlock()
	if s.index.records < 2*known+s.sizes.tidy {
		return nil
	}
	n, err := s.index.rewrite(s.current)
	if err != nil {
		return err
	}
	if err := n.replace(); err != nil {
		_ = n.close()
		_ = s.fs.remove(n.path + ".new")
		return err
	}
	old := s.index
	s.index = n
	s.mu.Lock()
	s.newNames = true // until the folder is synced a crash may bring back the old log
	s.mu.Unlock()
	err = old.close()
	if serr := s.fs.syncDir(s.dir); serr != nil {
		return errors.Join(err, fmt.Errorf("rewrite index: %w", serr))
	}
	return err
}

// current keeps the records that say where a known block is, with its use.
func (s *Store) current(recs []record) []record {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := recs[:0]
	for _, r := range recs {
		if e, ok := s.blocks[r.key]; ok && r.kind == recPut && e.at == r.at {
			r.time = int64(e.used)
			kept = append(kept, r)
		}
	}
	return kept
}
