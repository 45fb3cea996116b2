package content

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"path/filepath"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
)

// useGrain is how exactly the time of last use is kept over restarts.
const useGrain = time.Hour

// Options configures a Store.
type Options struct {
	// Log receives what was repaired, lost and collected.
	Log *slog.Logger
	// MaxBytes is the quota on the pack files' size; 0 is none.
	MaxBytes uint64
	// Now is the clock behind "least recently used"; nil is time.Now.
	Now func() time.Time

	fs    fileSystem // nil is the system's
	sizes *sizes     // nil is the usual ones
}

// Stats says what a store holds.
type Stats struct {
	Blocks    uint64 // blocks known
	Bytes     uint64 // their bytes
	DiskBytes uint64 // bytes of the pack files, with room not yet reclaimed
	Damaged   uint64 // blocks dropped since opening because their bytes were bad
}

// Store keeps blocks in pack files with an index. It is safe for use by many
// goroutines, and by one process at a time.
type Store struct {
	dir   string
	log   *slog.Logger
	max   uint64
	now   func() time.Time
	fs    fileSystem
	lock  io.Closer
	sizes sizes

	syncMu sync.Mutex // one Sync, relocation or index rewrite at a time
	index  *indexLog  // guarded by syncMu
	failed error      // guarded by syncMu; why nothing can be made durable any more
	wg     sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	blocks   map[key]entry
	bytes    uint64 // of blocks
	disk     uint64 // of the packs
	packs    map[uint32]*pack
	cur      *pack
	nextPack uint32
	damaged  uint64

	// What the next Sync has to do.
	pending  []record           // not yet in the index log
	dirty    map[*pack]struct{} // packs with writes that were not fsynced
	newNames bool               // the folder has names that are not durable
	unsynced uint64             // bytes put since the last sync
	syncAt   uint64             // of unsynced, when the background syncs
	early    uint64             // bytes put since writing back was last begun
	behind   bool               // the background works

	gen      uint32            // counts sessions; see HoldPuts
	sessions map[uint32]int    // open sessions by their gen
	holds    map[ref]int       // roots held in memory
	gcHolds  []ref             // roots held since the running collection began
	inGC     bool              // a collection runs
	gcMu     sync.Mutex        // one collection or check at a time
	unpacks  map[string]string // folders being unpacked
}

// entry is what the index knows of a block, small since there may be millions.
type entry struct {
	at       place
	used     uint32 // Unix seconds of last use
	verified uint32 // Unix seconds when this process last saw its bytes right; 0 is never
	gen      uint32 // session count when last put
}

// seconds is a time as entries keep it.
func seconds(unix int64) uint32 { return uint32(min(max(unix, 0), math.MaxUint32)) }

// Open opens the store in dir, making it if there is none. What a crash left
// unfinished is cut off; blocks that were synced are all there.
func Open(dir string, opt Options) (*Store, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.fs == nil {
		opt.fs = osFS{}
	}
	if opt.sizes == nil {
		usual := usualSizes()
		opt.sizes = &usual
	}
	s := &Store{
		dir: dir, log: opt.Log, max: opt.MaxBytes, now: opt.Now, fs: opt.fs, sizes: *opt.sizes,
		blocks: map[key]entry{}, packs: map[uint32]*pack{}, dirty: map[*pack]struct{}{}, syncAt: opt.sizes.sync,
		sessions: map[uint32]int{}, holds: map[ref]int{}, unpacks: map[string]string{},
	}
	if err := s.fs.mkdir(dir); err != nil {
		return nil, fmt.Errorf("block store: %w", s.errFull(err, 0))
	}
	lock, err := s.fs.lock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("block store: %w", s.errFull(err, 0))
	}
	s.lock = lock
	if err := s.load(); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("block store %s: %w", dir, s.errFull(err, 0))
	}
	return s, nil
}

func (s *Store) indexPath() string { return filepath.Join(s.dir, "index") }

// load reads the index and fits the packs to it.
func (s *Store) load() error {
	expect := func(records int) { s.blocks = make(map[key]entry, records) }
	l, st, err := openIndex(s.fs, s.indexPath(), expect, s.apply)
	if err != nil {
		return err
	}
	s.index = l
	ids, err := listPacks(s.fs, s.dir)
	if err != nil {
		return err
	}
	for _, id := range ids {
		p, err := openPack(s.fs, s.dir, id)
		if err != nil {
			return err
		}
		s.packs[id] = p
		s.nextPack = max(s.nextPack, id)
	}
	lost, ends := s.dropUnreachable()
	if err := s.trimPacks(ends); err != nil {
		return err
	}
	// A killed process may have renamed or made files a moment ago.
	if err := s.fs.syncDir(s.dir); err != nil {
		return err
	}
	// Places are given again only when no record names them.
	if err := s.index.add(s.pending); err == nil {
		s.pending = nil
	} else {
		s.cur = nil
		s.log.Warn("lost blocks are not struck from the index yet", "err", err)
	}
	if st.torn > 0 || st.damaged > 0 || lost > 0 {
		s.log.Warn("block store repaired", "torn_bytes", st.torn, "damaged_records", st.damaged, "lost_blocks", lost)
	}
	if err := s.tidyIndex(); err != nil { // it serves as it is
		s.log.Warn("the index could not be made smaller", "err", err)
	}
	return nil
}

// apply replays one index record.
func (s *Store) apply(r record) {
	s.nextPack = max(s.nextPack, r.at.pack)
	switch r.kind {
	case recDrop:
		delete(s.blocks, r.key)
	case recPut:
		s.blocks[r.key] = entry{at: r.at, used: seconds(r.time)}
	default: // recUse
		if e, ok := s.blocks[r.key]; ok {
			e.used = seconds(r.time)
			s.blocks[r.key] = e
		}
	}
}

// dropUnreachable forgets blocks whose bytes are not on disk and counts the
// rest. It returns where the last block of each pack ends.
func (s *Store) dropUnreachable() (lost int, ends map[uint32]uint64) {
	ends = make(map[uint32]uint64, len(s.packs))
	var p *pack
	for k, e := range s.blocks {
		if p == nil || p.id != e.at.pack {
			p = s.packs[e.at.pack]
		}
		if p == nil || e.at.end() > p.size {
			delete(s.blocks, k)
			s.pending = append(s.pending, record{kind: recDrop, key: k})
			lost++
			continue
		}
		p.gain(e.at.length)
		p.flushed = max(p.flushed, e.at.end()) // reused while loading: the end
		s.bytes += uint64(e.at.length)
	}
	for id, p := range s.packs {
		ends[id] = p.flushed
	}
	return lost, ends
}

// trimPacks cuts what was written but never indexed, and removes empty packs.
func (s *Store) trimPacks(ends map[uint32]uint64) error {
	for id, p := range s.packs {
		if p.count == 0 {
			p.doom.Store(true)
			delete(s.packs, id)
			if err := p.release(); err != nil {
				return err
			}
			continue
		}
		if end := ends[id]; end < p.size {
			if err := p.f.Truncate(int64(end)); err != nil {
				return fmt.Errorf("cut pack %s: %w", p.path, err)
			}
			p.size = end
		}
		s.disk += p.size
		if p.size < s.sizes.pack && (s.cur == nil || id > s.cur.id) {
			s.cur = p
		}
	}
	return nil
}

// Close makes everything durable and closes the files.
func (s *Store) Close() error {
	err := s.Sync()
	if errors.Is(err, ErrClosed) {
		return nil
	}
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if again {
		return nil
	}
	s.wg.Wait()
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeFiles()
	return err
}

func (s *Store) closeFiles() {
	for _, p := range s.packs {
		_ = p.release()
	}
	if s.index != nil {
		_ = s.index.close()
	}
	_ = s.lock.Close()
}

// forget drops a block from the index. The caller holds mu.
func (s *Store) forget(k key) {
	e, ok := s.blocks[k]
	if !ok {
		return
	}
	delete(s.blocks, k)
	s.bytes -= uint64(e.at.length)
	if p := s.packs[e.at.pack]; p != nil {
		p.lose(e.at.length)
	}
	s.pending = append(s.pending, record{kind: recDrop, key: k})
}

// Has says whether the block is in the store.
func (s *Store) Has(c cid.Cid) bool {
	_, ok := s.Size(c)
	return ok
}

// Size returns a block's length in bytes, and false if it is not in the store.
func (s *Store) Size(c cid.Cid) (int, bool) {
	r, err := refOf(c)
	if err != nil {
		return 0, false
	}
	return s.size(r.key)
}

func (s *Store) size(k key) (int, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.blocks[k]
	return int(e.at.length), ok
}

// Stats returns what the store holds now.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Blocks: uint64(len(s.blocks)), Bytes: s.bytes, DiskBytes: s.diskBytes(), Damaged: s.damaged}
}

// diskBytes is the size of the packs. The caller holds mu.
func (s *Store) diskBytes() uint64 { return s.disk }
