package content

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"
)

// Memory keeps what the files of a folder became, so that those which have not
// changed are not read again. It may forget at any time, and what it gives back
// is checked: an entry counts only while its file's device, inode, size and
// times of change are what they were and all of its blocks are in the store.
type Memory interface {
	// Recall returns what was remembered under a folder's name, nil for nothing.
	Recall(ctx context.Context, folder string) ([]byte, error)
	// Remember keeps listings under their folders' names, in place of others.
	Remember(ctx context.Context, listings map[string][]byte) error
}

// ShortMemory is a Memory that lasts as long as it is referred to. It is safe
// for use by many goroutines.
type ShortMemory struct {
	mu   sync.Mutex
	list map[string][]byte
}

// Recall implements Memory.
func (m *ShortMemory) Recall(_ context.Context, folder string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list[folder], nil
}

// Remember implements Memory.
func (m *ShortMemory) Remember(_ context.Context, listings map[string][]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.list == nil {
		m.list = map[string][]byte{}
	}
	for folder, l := range listings {
		m.list[folder] = l
	}
	return nil
}

// stamp is what tells a file that has changed from one that has not. The time of
// the last change of its inode is the system's own, nobody sets it back.
type stamp struct {
	dev, inode, size uint64
	mtime, ctime     int64 // Unix nanoseconds
}

// A file that is changed twice within its file system's grain of time has the
// same stamp both times. Linux stamps by the clock's tick, of up to 10 ms; a time
// without a part of a second is of a file system that keeps no smaller ones.
const (
	fineGrain   = 50 * time.Millisecond
	coarseGrain = 2 * time.Second
)

// settled says whether a file looked at then would have another stamp had it
// changed since (git's "racily clean" entries are those that would not).
func (st stamp) settled(looked time.Time) bool {
	grain := fineGrain
	if st.ctime%int64(time.Second) == 0 {
		grain = coarseGrain
	}
	return st.ctime < looked.Add(-grain).UnixNano()
}

// remembered is a file in a listing.
type remembered struct {
	stamp stamp
	made  made
}

// listing is what is remembered of a folder's files, by name.
type listing map[string]remembered

// A listing begins with its version and what the CIDs depend on.
const (
	listingVersion  = 1
	listingModTime  = 1
	maxListing      = 200_000 // files; a larger folder is not remembered
	rememberedFixed = 5*8 + 1 + 32
	rememberEvery   = 8 << 20 // bytes of listings gathered
)

func (a *adder) listingHead() [2]byte {
	head := [2]byte{listingVersion}
	if a.o.ModTime {
		head[1] = listingModTime
	}
	return head
}

// recall reads a folder's listing; one that cannot be read is none.
func (a *adder) recall(folder string) listing {
	raw, err := a.o.Memory.Recall(a.ctx, folder)
	if err != nil {
		a.s.log.Debug("recall what was added", "folder", folder, "err", err)
		return nil
	}
	if len(raw) == 0 {
		return nil
	}
	l, err := decodeListing(raw, a.listingHead())
	if err != nil {
		a.s.log.Debug("recall what was added", "folder", folder, "err", err)
	}
	return l
}

// keep gathers a folder's listing for the memory, if there is news.
func (a *adder) keep(f *addFolder) {
	if f.recall == "" || len(f.entries) > maxListing {
		return
	}
	marked := 0
	for i := range f.entries {
		if f.entries[i].marked {
			marked++
		}
	}
	if marked == len(f.known) && !f.changed.Load() {
		return
	}
	raw := encodeListing(f.entries, a.listingHead())
	a.mu.Lock()
	a.fresh[f.recall] = raw
	a.freshBytes += len(raw)
	full := a.freshBytes > rememberEvery
	a.mu.Unlock()
	if full {
		a.remember(a.ctx)
	}
}

// remember hands what was gathered to the memory. That it can forget is why a
// failure is no more than noted.
func (a *adder) remember(ctx context.Context) {
	a.mu.Lock()
	fresh := a.fresh
	a.fresh, a.freshBytes = map[string][]byte{}, 0
	a.mu.Unlock()
	if len(fresh) == 0 {
		return
	}
	if err := a.o.Memory.Remember(ctx, fresh); err != nil {
		a.s.log.Warn("remember what was added", "err", err)
	}
}

// unchanged finds a file in the memory.
func (w *addWorker) unchanged(f *addFolder, e *addChild, fi fs.FileInfo) (made, bool) {
	r, ok := f.known[e.name]
	if !ok || !fi.Mode().IsRegular() {
		return made{}, false
	}
	if st, ok := stampOf(fi); !ok || st != r.stamp {
		return made{}, false
	}
	if whole, err := w.a.s.again(r.made.ref, 0); err != nil || !whole {
		return made{}, false
	}
	e.stamp, e.marked = r.stamp, true
	return r.made, true
}

// mark lets a file be remembered that did not change while it was read, nor can
// have changed unseen since it was looked at.
func (w *addWorker) mark(f *addFolder, e *addChild, file *os.File, before fs.FileInfo, looked time.Time) {
	after, err := file.Stat()
	if err != nil {
		return
	}
	was, ok1 := stampOf(before)
	is, ok2 := stampOf(after)
	if !ok1 || !ok2 || was != is || !is.settled(looked) {
		return
	}
	e.stamp, e.marked = is, true
	f.changed.Store(true)
}

// again counts the blocks under r as put now, and says whether all are here.
func (s *Store) again(r ref, depth int) (bool, error) {
	if depth > maxFileDepth || !s.putAgain(r.key) {
		return false, nil
	}
	if r.codec == codecRaw {
		return true, nil
	}
	data, err := s.get(r, nil)
	if errors.Is(err, ErrNotFound) {
		return false, nil // damaged: dropped just now
	}
	if err != nil {
		return false, err
	}
	links, err := linksOf(r, data)
	if err != nil {
		return false, err
	}
	for _, l := range links {
		if whole, err := s.again(l.ref, depth+1); err != nil || !whole {
			return false, err
		}
	}
	return true, nil
}

func encodeListing(entries []addChild, head [2]byte) []byte {
	out := append(make([]byte, 0, len(entries)*(rememberedFixed+32)), head[:]...)
	for i := range entries {
		e := &entries[i]
		if !e.marked {
			continue
		}
		out = binary.AppendUvarint(out, uint64(len(e.name)))
		out = append(out, e.name...)
		for _, v := range []uint64{e.stamp.dev, e.stamp.inode, e.stamp.size, uint64(e.stamp.mtime), uint64(e.stamp.ctime)} { //nolint:gosec // bits are kept
			out = binary.LittleEndian.AppendUint64(out, v)
		}
		out = append(out, byte(e.made.ref.codec))
		out = append(out, e.made.ref.key[:]...)
		out = binary.AppendUvarint(out, e.made.size)
	}
	return out
}

var errListing = errors.New("a listing that cannot be read")

func decodeListing(raw []byte, head [2]byte) (listing, error) {
	if len(raw) < 2 || !slices.Equal(raw[:2], head[:]) {
		return nil, fmt.Errorf("%w: it is of another kind", errListing)
	}
	l := make(listing, len(raw)/(rememberedFixed+16))
	for raw = raw[2:]; len(raw) > 0; {
		n, used := binary.Uvarint(raw)
		if used <= 0 || n == 0 || n > 255 || uint64(len(raw)-used) < n+rememberedFixed {
			return nil, fmt.Errorf("%w: an entry is cut off", errListing)
		}
		name := string(raw[used : used+int(n)])
		raw = raw[used+int(n):]
		var v [5]uint64
		for i := range v {
			v[i] = binary.LittleEndian.Uint64(raw[8*i:])
		}
		var r remembered
		r.stamp = stamp{v[0], v[1], v[2], int64(v[3]), int64(v[4])} //nolint:gosec // bits are kept
		r.made.ref.codec = codec(raw[40])
		copy(r.made.ref.key[:], raw[41:])
		if r.made.ref.codec != codecRaw && r.made.ref.codec != codecPB {
			return nil, fmt.Errorf("%w: %q is no file", errListing, name)
		}
		raw = raw[rememberedFixed:]
		if r.made.size, used = binary.Uvarint(raw); used <= 0 {
			return nil, fmt.Errorf("%w: an entry is cut off", errListing)
		}
		raw = raw[used:]
		l[name] = r
		if len(l) > maxListing {
			return nil, fmt.Errorf("%w: more than %d files", errListing, maxListing)
		}
	}
	return l, nil
}

// putAgain counts a block as put now, if it is here.
func (s *Store) putAgain(k key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.blocks[k]
	if ok {
		e.gen = s.gen
		s.blocks[k] = s.touch(k, e)
	}
	return ok
}
