package job

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
)

// CacheConfig is what a provider's caches are made of.
type CacheConfig struct {
	Dir string
	// Max bounds all caches together and MaxPerRenter those of one renter, in
	// bytes; a file or folder counts a little beside its data.
	Max, MaxPerRenter uint64
	Now               func() time.Time
	Log               *slog.Logger
}

// ErrCacheFull says that a provider has no room for a cache.
var ErrCacheFull = errors.New("no room for the cache")

// Caches are a provider's folders that outlive the jobs which use them: those a
// renter has named, which nobody else ever sees, and DAGs that are the same for
// everybody. They lie in
//
//	DIR/ID/data          what the container sees
//	DIR/ID/cache.json    whose it is, its size, when it was last used
//
// where ID is of the renter and the key. Idle ones go, the longest unused first,
// when room is wanted.
type Caches struct {
	CacheConfig

	mu     sync.Mutex
	caches map[string]*cacheDir // by id
	taken  map[string][]string  // ids, by owner
}

// CacheInfo is what there is to know of a cache.
type CacheInfo struct {
	ID      string    `json:"id"`
	Key     string    `json:"key"`
	Renter  string    `json:"renter,omitempty"` // empty for a DAG, which is everybody's
	Bytes   uint64    `json:"bytes"`
	Created time.Time `json:"created"`
	Used    time.Time `json:"used"`
	InUse   int       `json:"in_use"` // containers
}

// cacheDir is one cache. Busy is kept on disk while it is in use: the size of
// one that was in use when the machine died is not known.
type cacheDir struct {
	CacheInfo
	Busy bool `json:"busy,omitempty"`

	limit uint64     // bytes it may grow to while it is in use
	fill  sync.Mutex // held while a DAG is being laid out
	full  bool       // it has been
}

const (
	cacheData = "data"
	cacheFile = "cache.json"
	// minCacheRoom is the least that a named cache gets to grow by: one that
	// cannot take anything is of no use.
	minCacheRoom = 64 << 20
)

// cacheID names the cache of a renter, or of nobody, and a key.
func cacheID(renter, key string) string {
	sum := sha256.Sum256([]byte(renter + "\x00" + key))
	return hex.EncodeToString(sum[:16])
}

// OpenCaches finds the caches of earlier lives and removes what is none.
func OpenCaches(cfg CacheConfig) (*Caches, error) {
	c := &Caches{CacheConfig: cfg, caches: map[string]*cacheDir{}, taken: map[string][]string{}}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("caches: %w", err)
	}
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("caches: %w", err)
	}
	for _, e := range entries {
		d, err := c.load(e.Name())
		if err != nil {
			c.Log.Warn("what is no cache is removed", "path", filepath.Join(c.Dir, e.Name()), "err", err)
			if err := sandbox.RemoveTree(filepath.Join(c.Dir, e.Name())); err != nil {
				return nil, fmt.Errorf("caches: %w", err)
			}
			continue
		}
		c.caches[d.ID] = d
	}
	return c, nil
}

func (c *Caches) path(id, name string) string { return filepath.Join(c.Dir, id, name) }

func (c *Caches) load(id string) (*cacheDir, error) {
	raw, err := os.ReadFile(c.path(id, cacheFile))
	if err != nil {
		return nil, err
	}
	d := &cacheDir{}
	if err := json.Unmarshal(raw, d); err != nil {
		return nil, err
	}
	if d.ID != id || cacheID(d.Renter, d.Key) != id {
		return nil, errors.New("it is the cache of another name")
	}
	if _, err := os.Lstat(c.path(id, cacheData)); err != nil {
		return nil, err
	}
	if d.Busy {
		if d.Bytes, err = treeSize(c.path(id, cacheData)); err != nil {
			return nil, err
		}
		d.Busy = false
	}
	d.InUse, d.full = 0, true
	return d, nil
}

// note writes a cache's record beside it, whole or not at all.
func (c *Caches) note(d *cacheDir) error {
	raw, err := json.Marshal(d)
	if err != nil {
		return err
	}
	tmp := c.path(d.ID, cacheFile+".new")
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, c.path(d.ID, cacheFile))
}

// Take gives owner, a container, a renter's folder of a name to read and write,
// and how many bytes may be in it while it is in use. The renter's containers
// share it.
func (c *Caches) Take(renter, key, owner string) (dir string, limit uint64, err error) {
	d, err := c.named(renter, key, owner, c.giveRoom)
	if err != nil {
		return "", 0, err
	}
	return c.path(d.ID, cacheData), d.limit, nil
}

// Keep is Take for a container that runs already, which has its room.
func (c *Caches) Keep(renter, key, owner string) error {
	_, err := c.named(renter, key, owner, func(d *cacheDir) error {
		if err := c.giveRoom(d); err != nil {
			d.limit = d.Bytes + minCacheRoom
		}
		return nil
	})
	return err
}

func (c *Caches) named(renter, key, owner string, room func(*cacheDir) error) (*cacheDir, error) {
	if renter == "" || strings.HasPrefix(key, "cid:") {
		return nil, fmt.Errorf("cache %q of %q is no renter's own", key, renter)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	id := cacheID(renter, key)
	d := c.caches[id]
	if d == nil {
		d = &cacheDir{CacheInfo: CacheInfo{ID: id, Key: key, Renter: renter, Created: c.Now()}, full: true}
	}
	if slices.Contains(c.taken[owner], id) {
		return d, nil
	}
	if d.InUse == 0 {
		if err := room(d); err != nil {
			return nil, fmt.Errorf("cache %s: %w", key, err)
		}
	}
	if err := c.begin(d, true); err != nil {
		return nil, fmt.Errorf("cache %s: %w", key, err)
	}
	c.take(d, owner)
	return d, nil
}

// begin makes a cache's folder if there is none and notes that it is in use. The
// lock is held.
func (c *Caches) begin(d *cacheDir, folder bool) error {
	data := c.path(d.ID, cacheData)
	if err := os.MkdirAll(filepath.Dir(data), 0o700); err != nil {
		return err
	}
	if folder {
		if err := os.Mkdir(data, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		// The task's user may be any; the folder lies in a private one.
		if err := os.Chmod(data, 0o777); err != nil { //nolint:gosec // only the renter's own folder
			return err
		}
	}
	d.Busy = d.Renter != "" // a DAG does not change
	return c.note(d)
}

func (c *Caches) take(d *cacheDir, owner string) {
	c.caches[d.ID] = d
	d.InUse++
	d.Used = c.Now()
	c.taken[owner] = append(c.taken[owner], d.ID)
}

// giveRoom sets what a named cache may grow to. The lock is held.
func (c *Caches) giveRoom(d *cacheDir) error {
	mine, all := c.claimed(d)
	if mine+d.Bytes+minCacheRoom > c.MaxPerRenter {
		c.evict(c.MaxPerRenter, d.Bytes+minCacheRoom, func(o *cacheDir) bool { return o.Renter == d.Renter }, d)
		mine, all = c.claimed(d)
	}
	want := d.Bytes + minCacheRoom
	if mine < c.MaxPerRenter {
		want = max(want, c.MaxPerRenter-mine)
	}
	if all+want > c.Max {
		c.evict(c.Max, want, func(*cacheDir) bool { return true }, d)
		mine, all = c.claimed(d)
	}
	room := min(c.Max-min(c.Max, all), c.MaxPerRenter-min(c.MaxPerRenter, mine))
	if room < d.Bytes+minCacheRoom {
		return fmt.Errorf("%w: %d bytes are free for it on this provider, it has %d and wants %d more", ErrCacheFull, room, d.Bytes, uint64(minCacheRoom))
	}
	d.limit = room
	return nil
}

// claim is what a cache counts: what it may grow to while it is in use.
func (d *cacheDir) claim() uint64 {
	if d.InUse > 0 {
		return max(d.limit, d.Bytes)
	}
	return d.Bytes
}

// claimed sums up what the other caches count, those of the same renter and all.
func (c *Caches) claimed(but *cacheDir) (mine, all uint64) {
	for _, o := range c.caches {
		if o == but {
			continue
		}
		all += o.claim()
		if o.Renter == but.Renter {
			mine += o.claim()
		}
	}
	return mine, all
}

// evict removes idle caches, the longest unused first, until want more fit into
// most. The lock is held.
func (c *Caches) evict(most, want uint64, of func(*cacheDir) bool, but *cacheDir) {
	var idle []*cacheDir
	var sum uint64
	for _, o := range c.caches {
		if o == but || !of(o) {
			continue
		}
		sum += o.claim()
		if o.InUse == 0 {
			idle = append(idle, o)
		}
	}
	slices.SortFunc(idle, func(a, b *cacheDir) int { return cmp.Or(a.Used.Compare(b.Used), cmp.Compare(a.ID, b.ID)) })
	for _, o := range idle {
		if sum+want <= most {
			return
		}
		if err := c.remove(o); err != nil {
			c.Log.Error("remove a cache", "cache", o.ID, "err", err)
			continue
		}
		sum -= o.Bytes
		c.Log.Info("cache removed for others", "cache", o.ID, "bytes", o.Bytes, "used", o.Used)
	}
}

// remove forgets a cache first on disk, by its record, then all of it. The lock
// is held.
func (c *Caches) remove(d *cacheDir) error {
	if err := os.Remove(c.path(d.ID, cacheFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	delete(c.caches, d.ID)
	return sandbox.RemoveTree(filepath.Join(c.Dir, d.ID))
}

// TakeShared gives owner a DAG's file or folder to read. The first who wants it
// has fill lay it out, at most so many bytes, and others wait for that.
func (c *Caches) TakeShared(ctx context.Context, key, owner string, fill func(ctx context.Context, dest string, most uint64) error) (string, error) {
	if !strings.HasPrefix(key, "cid:") {
		return "", fmt.Errorf("cache %q is no DAG's", key)
	}
	d := c.shared(key, owner)
	d.fill.Lock()
	defer d.fill.Unlock()
	data := c.path(d.ID, cacheData)
	if d.full {
		return data, nil
	}
	if err := c.layOut(ctx, d, fill); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.leave(d, owner)
		return "", fmt.Errorf("cache %s: %w", key, errors.Join(err, sandbox.RemoveTree(filepath.Join(c.Dir, d.ID))))
	}
	return data, nil
}

func (c *Caches) shared(key, owner string) *cacheDir {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := cacheID("", key)
	d := c.caches[id]
	if d == nil {
		d = &cacheDir{CacheInfo: CacheInfo{ID: id, Key: key, Created: c.Now()}}
	}
	if !slices.Contains(c.taken[owner], id) {
		c.take(d, owner)
	}
	return d
}

// layOut has a DAG laid out beside its place, counts it, makes room and moves it
// there.
func (c *Caches) layOut(ctx context.Context, d *cacheDir, fill func(context.Context, string, uint64) error) error {
	dir := filepath.Join(c.Dir, d.ID)
	if err := errors.Join(sandbox.RemoveTree(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return err
	}
	part := filepath.Join(dir, "part")
	if err := fill(ctx, part, c.most(d)); err != nil {
		return err
	}
	size, err := treeSize(part)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, all := c.claimed(d); all+size > c.Max {
		c.evict(c.Max, size, func(*cacheDir) bool { return true }, d)
	}
	if _, all := c.claimed(d); all+size > c.Max {
		return fmt.Errorf("%w: it has %d bytes, %d of %d are in use", ErrCacheFull, size, all, c.Max)
	}
	if err := os.Rename(part, filepath.Join(dir, cacheData)); err != nil {
		return err
	}
	d.Bytes, d.limit = size, size
	if err := c.begin(d, false); err != nil {
		return err
	}
	d.full = true
	return nil
}

// most is what a DAG may have: all that caches in use leave.
func (c *Caches) most(d *cacheDir) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	most := c.Max
	for _, o := range c.caches {
		if o != d && o.InUse > 0 {
			most -= min(most, o.claim())
		}
	}
	return most
}

// leave takes one use back; a DAG that nobody laid out is none. The lock is held.
func (c *Caches) leave(d *cacheDir, owner string) {
	c.taken[owner] = slices.DeleteFunc(c.taken[owner], func(id string) bool { return id == d.ID })
	if len(c.taken[owner]) == 0 {
		delete(c.taken, owner)
	}
	if d.InUse--; d.InUse == 0 && !d.full {
		delete(c.caches, d.ID)
	}
}

// Release ends an owner's uses. What the last one leaves behind is measured.
func (c *Caches) Release(owner string) {
	c.mu.Lock()
	ids := slices.Clone(c.taken[owner])
	c.mu.Unlock()
	for _, id := range ids {
		size, err := treeSize(c.path(id, cacheData))
		c.mu.Lock()
		if d := c.caches[id]; d != nil {
			if err == nil {
				d.Bytes = size
			}
			d.Used = c.Now()
			c.leave(d, owner)
			if d.InUse == 0 && d.full {
				d.Busy = err != nil
				err = errors.Join(err, c.note(d))
			}
		}
		c.mu.Unlock()
		if err != nil {
			c.Log.Error("note the use of a cache", "cache", id, "err", err)
		}
	}
}

// List tells of all caches, the latest used first.
func (c *Caches) List() []CacheInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]CacheInfo, 0, len(c.caches))
	for _, d := range c.caches {
		out = append(out, d.CacheInfo)
	}
	slices.SortFunc(out, func(a, b CacheInfo) int { return cmp.Or(b.Used.Compare(a.Used), cmp.Compare(a.ID, b.ID)) })
	return out
}

// ErrInUse says that a cache is in use.
var ErrInUse = errors.New("in use")

// Drop removes an idle cache.
func (c *Caches) Drop(id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.caches[id]
	switch {
	case d == nil:
		return fmt.Errorf("cache %s: %w", id, ErrNotFound)
	case d.InUse > 0:
		return fmt.Errorf("cache %s: %w by %d containers", id, ErrInUse, d.InUse)
	}
	return c.remove(d)
}
