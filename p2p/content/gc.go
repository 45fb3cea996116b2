package content

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"

	"github.com/ipfs/go-cid"
)

// RootSet names what must stay: the roots of jobs, tags, pins and leases.
type RootSet interface {
	Roots(ctx context.Context) ([]cid.Cid, error)
}

// GCOptions says how much to collect. With Target and MaxBytes 0 everything that
// no root reaches goes.
type GCOptions struct {
	// Target is how many bytes of blocks to free, if as many can be.
	Target uint64
	// MaxBytes is how many bytes of blocks may stay.
	MaxBytes uint64
	// Of, where there are some, lets only blocks go that these roots reach.
	Of []cid.Cid
}

// GCStats says what a collection did.
type GCStats struct {
	Blocks    uint64 // blocks removed
	Bytes     uint64 // their bytes
	DiskBytes uint64 // bytes the pack files shrank by
	Kept      uint64 // blocks a root or a hold keeps
	Idle      uint64 // blocks nothing keeps that stayed because there is room
	Young     uint64 // blocks that would have gone, were they not put a moment ago
}

// Hold keeps what root reaches from collection until release is called, in
// memory only. Hold first, then look what is there: what was missing when the
// hold began may have been collected a moment before.
func (s *Store) Hold(root cid.Cid) (release func()) {
	r, err := refOf(root)
	if err != nil { // nothing in the store can be under such a root
		return func() {}
	}
	s.mu.Lock()
	s.holds[r]++
	if s.inGC {
		s.gcHolds = append(s.gcHolds, r)
	}
	s.mu.Unlock()
	return s.once(func() {
		if s.holds[r]--; s.holds[r] == 0 {
			delete(s.holds, r)
		}
	})
}

// HoldPuts keeps every block put from now on from collection until release is
// called. An import uses it: its root is known only at the end.
func (s *Store) HoldPuts() (release func()) {
	s.mu.Lock()
	s.gen++
	gen := s.gen
	s.sessions[gen]++
	s.mu.Unlock()
	return s.once(func() { delete(s.sessions, gen) })
}

// once returns a function that runs f under mu, the first time it is called.
func (s *Store) once(f func()) func() {
	done := false
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !done {
			done = true
			f()
		}
	}
}

// GC removes blocks that nothing keeps, those used longest ago first, and
// gives their room back to the file system. Puts, gets and holds go on.
func (s *Store) GC(ctx context.Context, roots RootSet, o GCOptions) (GCStats, error) {
	s.gcMu.Lock()
	defer s.gcMu.Unlock()
	defer s.HoldPuts()()
	s.mu.Lock()
	s.inGC, s.gcHolds = true, nil
	marks := make([]ref, 0, len(s.holds))
	for r := range s.holds {
		marks = append(marks, r)
	}
	before := s.diskBytes()
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.inGC, s.gcHolds = false, nil
		s.mu.Unlock()
	}()

	cids, err := roots.Roots(ctx)
	if err != nil {
		return GCStats{}, fmt.Errorf("collect blocks: read the roots: %w", err)
	}
	kept, err := refsOf(cids)
	if err != nil {
		return GCStats{}, fmt.Errorf("collect blocks: root: %w", err)
	}
	live := codecSet{}
	if err := s.mark(ctx, append(marks, kept...), live); err != nil {
		return GCStats{}, fmt.Errorf("collect blocks: %w", err)
	}
	of, err := s.markOf(ctx, o.Of)
	if err != nil {
		return GCStats{}, fmt.Errorf("collect blocks: %w", err)
	}
	st, err := s.sweep(ctx, live, of, o)
	if err != nil {
		return st, fmt.Errorf("collect blocks: %w", err)
	}
	err = s.compact(ctx, o.Target > 0 || o.MaxBytes > 0)
	if after := s.Stats().DiskBytes; after < before {
		st.DiskBytes = before - after
	}
	if err != nil {
		return st, fmt.Errorf("compact packs: %w", err)
	}
	s.log.Info("blocks collected", "blocks", st.Blocks, "bytes", st.Bytes, "disk_bytes", st.DiskBytes, "kept", st.Kept)
	return st, nil
}

func refsOf(cids []cid.Cid) ([]ref, error) {
	refs := make([]ref, 0, len(cids))
	for _, c := range cids {
		r, err := refOf(c)
		if err != nil {
			return nil, err
		}
		refs = append(refs, r)
	}
	return refs, nil
}

// markOf is what alone may go; nil is all.
func (s *Store) markOf(ctx context.Context, roots []cid.Cid) (codecSet, error) {
	if len(roots) == 0 {
		return nil, nil //nolint:nilnil // all
	}
	refs, err := refsOf(roots)
	if err != nil {
		return nil, err
	}
	of := codecSet{}
	return of, s.mark(ctx, refs, of)
}

// mark adds everything the store has under roots to live.
func (s *Store) mark(ctx context.Context, roots []ref, live codecSet) error {
	var stack []ref
	meet := func(r ref) {
		// Marked when met, not when looked at: blocks that name each other
		// over and over would fill the stack.
		if _, here := s.size(r.key); here && live.add(r) && r.codec != codecRaw {
			stack = append(stack, r)
		}
	}
	for _, r := range roots {
		meet(r)
	}
	for len(stack) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		r := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		data, err := s.read(r, nil, false)
		if errors.Is(err, ErrNotFound) {
			continue // damaged: dropped just now
		}
		if err != nil {
			return err
		}
		links, err := linksOf(r, data)
		if err != nil { // a root of somebody's that is no DAG keeps itself alone
			s.log.Warn("block without readable links", "block", r.String(), "err", err)
			continue
		}
		for _, l := range links {
			meet(l.ref)
		}
	}
	return nil
}

// idle is a block nothing keeps.
type idle struct {
	key    key
	used   uint32
	length uint32
}

// sweepPiece is how many blocks are looked at or dropped under one hold of mu,
// so that readers never wait long.
const sweepPiece = 4096

// sweep drops idle blocks and makes that durable. Blocks are dropped in pieces:
// roots held meanwhile are marked before each, and the last look at a block and
// its drop are one step under mu, so a hold is either seen or begins after it.
func (s *Store) sweep(ctx context.Context, live, of codecSet, o GCOptions) (GCStats, error) {
	free, young, held := s.candidates(live, of)
	st := GCStats{Young: young}
	slices.SortFunc(free, func(a, b idle) int {
		return cmp.Or(cmp.Compare(a.used, b.used), slices.Compare(a.key[:], b.key[:]))
	})
	want := o.Target
	if o.MaxBytes > 0 && held > o.MaxBytes {
		want = max(want, held-o.MaxBytes)
	}
	if o.Target == 0 && o.MaxBytes == 0 {
		want = math.MaxUint64
	}
	for len(free) > 0 && st.Bytes < want {
		piece := free[:min(sweepPiece, len(free))]
		if err := s.markLate(ctx, live); err != nil {
			s.mu.Unlock()
			return st, err
		}
		seen := s.drop(piece, live, want, &st)
		s.mu.Unlock()
		free = free[seen:]
	}
	s.mu.Lock()
	known := uint64(len(s.blocks))
	s.mu.Unlock()
	st.Idle = min(uint64(len(free)), known)
	st.Kept = known - st.Idle
	// What is dead as a whole goes first: that takes no room for records, and
	// blocks whose pack is gone are forgotten when the store is opened.
	return st, errors.Join(s.cutDead(), s.Sync())
}

// cutDead removes packs without live blocks and cuts the dead ends of others.
// What is cut is not written to again, since the index may still name it.
func (s *Store) cutDead() error {
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	if err := s.index.clean(); err != nil {
		return err
	}
	s.mu.Lock()
	ends := map[*pack]uint64{} // packs that get no block any more
	for _, p := range s.packs {
		if p.writers > 0 || p.size == p.live {
			continue
		}
		if ends[p] = 0; s.cur == p {
			s.cur = nil
		}
	}
	s.mu.Unlock()
	s.eachBlock(func(_ key, e entry) {
		p := s.packs[e.at.pack]
		if end, ok := ends[p]; ok && e.at.end() > end {
			ends[p] = e.at.end()
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	var err error
	for p, end := range ends {
		if p.count == 0 {
			err = errors.Join(err, s.removePack(p))
		} else if end < p.size {
			err = errors.Join(err, s.cutPack(p, end))
		}
	}
	return err
}

// cutPack cuts what lies behind end. The caller holds mu.
func (s *Store) cutPack(p *pack, end uint64) error {
	if err := p.f.Truncate(int64(end)); err != nil {
		return fmt.Errorf("cut pack %s: %w", p.path, err)
	}
	s.disk -= p.size - end
	p.size = end
	p.flushed = min(p.flushed, end)
	return nil
}

// removePack removes a pack, once its last reader is done. The caller holds mu
// and syncMu.
func (s *Store) removePack(p *pack) error {
	if s.cur == p {
		s.cur = nil
	}
	delete(s.packs, p.id)
	delete(s.dirty, p)
	s.disk -= p.size
	p.doom.Store(true)
	return p.release()
}

// markLate marks what was held since the last look, and returns with mu held.
func (s *Store) markLate(ctx context.Context, live codecSet) error {
	for {
		s.mu.Lock()
		late := s.gcHolds
		s.gcHolds = nil
		if len(late) == 0 {
			return nil
		}
		s.mu.Unlock()
		if err := s.mark(ctx, late, live); err != nil {
			s.mu.Lock()
			return err
		}
	}
}

// candidates returns blocks that nothing keeps now, how many more there are that
// were put since somebody holds what is put, and the bytes of all.
func (s *Store) candidates(live, of codecSet) (free []idle, young, held uint64) {
	s.eachBlock(func(k key, e entry) {
		if _, mine := of[k]; of != nil && !mine {
			return
		}
		switch _, ok := live[k]; {
		case ok:
		case e.gen >= s.guard():
			young++
		default:
			free = append(free, idle{k, e.used, e.at.length})
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	return free, young, s.bytes
}

// eachBlock calls visit with mu held for every block that is there all the
// time, and lets others have mu now and then.
func (s *Store) eachBlock(visit func(key, entry)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for k, e := range s.blocks { // entries may come and go while it is ranged over
		visit(k, e)
		if n++; n%sweepPiece == 0 {
			s.mu.Unlock()
			runtime.Gosched()
			s.mu.Lock()
		}
	}
}

// guard is the session from which on puts are kept. The caller holds mu.
func (s *Store) guard() uint32 {
	guard := s.gen
	for g := range s.sessions {
		guard = min(guard, g)
	}
	return guard
}

// drop forgets what is still idle of a piece until want bytes are dropped, and
// returns how many it has looked at. The caller holds mu.
func (s *Store) drop(piece []idle, live codecSet, want uint64, st *GCStats) (seen int) {
	guard := s.guard()
	for _, b := range piece {
		if st.Bytes >= want {
			break
		}
		seen++
		e, ok := s.blocks[b.key]
		if _, marked := live[b.key]; !ok || marked || e.gen >= guard {
			continue
		}
		s.forget(b.key)
		st.Blocks++
		st.Bytes += uint64(b.length)
	}
	return seen
}

// victim is a pack to be emptied, and the blocks in it.
type victim struct {
	p    *pack
	live uint64
	keys []key
}

// compact removes packs without live blocks and rewrites those that are at
// least a quarter dead, or dead at all if hard. Those with little in them come
// first: they give most room for what they need.
func (s *Store) compact(ctx context.Context, hard bool) error {
	s.mu.Lock()
	victims := map[uint32]*victim{}
	for id, p := range s.packs {
		if dead := p.size - p.live; dead > 0 && (hard || dead*4 >= p.size) {
			victims[id] = &victim{p: p, live: p.live}
			if s.cur == p {
				s.cur = nil
			}
		}
	}
	s.mu.Unlock()
	if len(victims) > 0 {
		s.eachBlock(func(k key, e entry) {
			if v := victims[e.at.pack]; v != nil {
				v.keys = append(v.keys, k)
			}
		})
	}
	order := slices.SortedFunc(maps.Values(victims), func(a, b *victim) int {
		return cmp.Or(cmp.Compare(a.live, b.live), cmp.Compare(a.p.id, b.p.id))
	})
	for _, v := range order {
		if err := s.rewritePack(ctx, v); err != nil {
			return err
		}
	}
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return ErrClosed
	}
	return s.errFull(s.tidyIndex(), 0)
}

// rewritePack moves the live blocks of a pack elsewhere and removes it. Only
// when the moved blocks and their index records are durable does it go.
func (s *Store) rewritePack(ctx context.Context, v *victim) error {
	s.byPlace(v.keys)
	ms, _, err := s.copyBlocks(ctx, v.keys, v.p)
	if err != nil {
		return err
	}
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	if err := s.syncLocked(); err != nil { // what is pending of the blocks comes before their moves
		return err
	}
	if err := s.settle(ms); err != nil {
		return s.errFull(err, v.live)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if v.p.count > 0 || v.p.writers > 0 {
		return nil // a put still in flight when cur moved on; the next collection gets it
	}
	return s.removePack(v.p)
}

// byPlace sorts the keys of one pack in the order they lie in it.
func (s *Store) byPlace(keys []key) {
	at := make(map[key]uint32, len(keys))
	s.mu.Lock()
	for _, k := range keys {
		at[k] = s.blocks[k].at.offset
	}
	s.mu.Unlock()
	slices.SortFunc(keys, func(a, b key) int { return cmp.Compare(at[a], at[b]) })
}
