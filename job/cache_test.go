package job

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const testDAG = "cid:bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"

// larder is caches with a clock of the test's own.
type larder struct {
	*Caches
	t   *testing.T
	now time.Time
}

func newLarder(t *testing.T, dir string, most, each uint64) *larder {
	t.Helper()
	l := &larder{t: t, now: time.Unix(1_700_000_000, 0)}
	c, err := OpenCaches(CacheConfig{Dir: dir, Max: most, MaxPerRenter: each, Now: func() time.Time { return l.now }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l.Caches = c
	return l
}

// use takes a cache, puts a sparse file of so many bytes there, and gives it back.
func (l *larder) use(renter, key string, bytes int64) {
	l.t.Helper()
	dir, _, err := l.Take(renter, key, "use")
	if err != nil {
		l.t.Fatal(err)
	}
	fill(l.t, filepath.Join(dir, "f"), bytes)
	l.now = l.now.Add(time.Minute)
	l.Release("use")
}

func fill(t *testing.T, name string, bytes int64) {
	t.Helper()
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, bytes); err != nil {
		t.Fatal(err)
	}
}

func (l *larder) keys() string {
	var out []string
	for _, c := range l.List() {
		out = append(out, c.Renter+"/"+c.Key)
	}
	return strings.Join(out, " ")
}

func TestCacheBelongsToItsRenter(t *testing.T) {
	l := newLarder(t, t.TempDir(), 10<<30, 4<<30)
	a, limit, err := l.Take("a", "weights", "c1")
	if err != nil || limit != 4<<30 {
		t.Fatal(limit, err)
	}
	same, _, err := l.Take("a", "weights", "c2")
	if err != nil || same != a {
		t.Errorf("a renter's jobs: %s and %s, %v", a, same, err)
	}
	other, _, err := l.Take("b", "weights", "c3")
	if err != nil || other == a {
		t.Errorf("two renters: %s and %s, %v", a, other, err)
	}
	if _, _, err := l.Take("a", testDAG, "c4"); err == nil {
		t.Error("a DAG to write to")
	}
	if _, err := l.TakeShared(t.Context(), "weights", "c4", nil); err == nil {
		t.Error("a name as a DAG")
	}
	for _, c := range l.List() {
		if err := l.Drop(c.ID); !errors.Is(err, ErrInUse) {
			t.Errorf("dropped in use: %v", err)
		}
	}
	for _, owner := range []string{"c1", "c2", "c3", "c3"} {
		l.Release(owner)
	}
	for _, c := range l.List() {
		if err := l.Drop(c.ID); err != nil || c.InUse != 0 {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := l.Drop("none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(l.Dir); err != nil || len(left) != 0 {
		t.Errorf("left %v %v", left, err)
	}
}

func TestCachesSurvive(t *testing.T) {
	dir := t.TempDir()
	l := newLarder(t, dir, 10<<30, 4<<30)
	l.use("a", "kept", 1<<20)
	// In use when the machine died, and one half-made, and what is none at all.
	at, _, err := l.Take("a", "torn", "c1")
	if err != nil {
		t.Fatal(err)
	}
	fill(t, filepath.Join(at, "f"), 3<<20)
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "junk"), 0o700), os.Mkdir(filepath.Join(dir, cacheID("", testDAG)), 0o700)); err != nil {
		t.Fatal(err)
	}
	forged := filepath.Join(dir, cacheID("b", "theirs"))
	if err := errors.Join(os.MkdirAll(filepath.Join(forged, cacheData), 0o700), os.WriteFile(filepath.Join(forged, cacheFile), []byte(`{"id":"`+filepath.Base(forged)+`","renter":"a","key":"theirs"}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	again := newLarder(t, dir, 10<<30, 4<<30)
	if again.keys() != "a/torn a/kept" && again.keys() != "a/kept a/torn" {
		t.Errorf("found %s", again.keys())
	}
	for _, c := range again.List() {
		want := map[string]uint64{"kept": 1<<20 + cacheEntryCost, "torn": 3<<20 + cacheEntryCost}[c.Key]
		if c.Bytes != want || c.InUse != 0 {
			t.Errorf("%+v, want %d bytes", c, want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("%v %v", left, err)
	}
	if back, _, err := again.Take("a", "torn", "c2"); err != nil || back != at {
		t.Errorf("%s %v", back, err)
	}
}

func TestCacheEviction(t *testing.T) {
	const gb = 1 << 30
	l := newLarder(t, t.TempDir(), 10*gb, 4*gb)
	for i := range 4 {
		l.use(fmt.Sprint("r", i), "k", 2*gb)
	}
	l.use("r0", "k", 2*gb) // the latest used, by now
	// r9 may grow to 4 GB; of the others 6 GB stay, the longest unused go.
	if _, limit, err := l.Take("r9", "k", "c9"); err != nil || limit != 4*gb-0 {
		t.Errorf("limit %d %v", limit, err)
	}
	if got := l.keys(); got != "r9/k r0/k r3/k" && got != "r9/k r0/k r3/k r2/k" {
		t.Errorf("left: %s", got)
	}
	// What is in use never goes.
	if _, _, err := l.Take("r0", "k", "c0"); err != nil {
		t.Fatal(err)
	}
	_, _, err := l.Take("r3", "k", "c3")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Take("r7", "k", "c7"); !errors.Is(err, ErrCacheFull) {
		t.Errorf("a fourth that wants room: %v", err)
	}
	// Within a renter the oldest go for the newest.
	one := newLarder(t, t.TempDir(), 10*gb, 2*gb)
	one.use("a", "old", gb)
	one.use("b", "else", gb)
	one.use("a", "mid", gb-cacheEntryCost*4)
	if _, limit, err := one.Take("a", "new", "c"); err != nil || limit < minCacheRoom || limit > gb+gb/2 {
		t.Errorf("limit %d %v", limit, err)
	}
	if got := one.keys(); got != "a/new a/mid b/else" {
		t.Errorf("left: %s", got)
	}
	if _, _, err := newLarder(t, t.TempDir(), 1<<20, 1<<20).Take("a", "k", "c"); !errors.Is(err, ErrCacheFull) {
		t.Errorf("no room at all: %v", err)
	}
}

func TestSharedCache(t *testing.T) {
	l := newLarder(t, t.TempDir(), 1<<30, 1<<20)
	var fills int
	var mu sync.Mutex
	lay := func(_ context.Context, dest string, most uint64) error {
		mu.Lock()
		defer mu.Unlock()
		if fills++; most != 1<<30 {
			t.Errorf("most %d", most)
		}
		return os.WriteFile(dest, []byte("weights"), 0o600)
	}
	var group sync.WaitGroup
	dirs := make([]string, 8)
	for i := range dirs {
		group.Go(func() {
			var err error
			if dirs[i], err = l.TakeShared(t.Context(), testDAG, fmt.Sprint("c", i), lay); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, d := range dirs {
		if raw, err := os.ReadFile(d); err != nil || string(raw) != "weights" {
			t.Errorf("%s: %q %v", d, raw, err)
		}
	}
	if fills != 1 {
		t.Errorf("laid out %d times", fills)
	}
	for i := range dirs {
		l.Release(fmt.Sprint("c", i))
	}
	again := newLarder(t, l.Dir, 1<<30, 1<<20)
	if _, err := again.TakeShared(t.Context(), testDAG, "c", lay); err != nil || fills != 1 {
		t.Errorf("after a restart: laid out %d times, %v", fills, err)
	}
	again.Release("c")
	if err := again.Drop(again.List()[0].ID); err != nil {
		t.Fatal(err)
	}
	// One that fails leaves nothing, and the next may try.
	if _, err := again.TakeShared(t.Context(), testDAG, "c", func(_ context.Context, dest string, _ uint64) error {
		return errors.Join(os.WriteFile(dest, nil, 0o600), errRefused)
	}); !errors.Is(err, errRefused) {
		t.Errorf("%v", err)
	}
	if _, err := again.TakeShared(t.Context(), testDAG, "c", func(_ context.Context, dest string, _ uint64) error {
		fill(t, dest, 2<<30)
		return nil
	}); !errors.Is(err, ErrCacheFull) {
		t.Errorf("larger than all: %v", err)
	}
	if left, err := os.ReadDir(again.Dir); err != nil || len(left) != 0 || len(again.List()) != 0 {
		t.Errorf("left %v %v %v", left, again.List(), err)
	}
	if _, err := again.TakeShared(t.Context(), testDAG, "c", lay); err != nil || fills != 2 {
		t.Errorf("%v, %d fills", err, fills)
	}
}

// Links that a job left behind lead neither measuring nor removing anywhere.
func TestCacheOfLinks(t *testing.T) {
	outside := t.TempDir()
	fill(t, filepath.Join(outside, "theirs"), 1<<30)
	l := newLarder(t, t.TempDir(), 10<<30, 4<<30)
	dir, _, err := l.Take("a", "k", "c")
	if err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"abs": outside, "up": "../../..", "file": filepath.Join(outside, "theirs"), "self": "self"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "locked"), 0o700), os.WriteFile(filepath.Join(dir, "locked", "f"), nil, 0o600), os.Chmod(filepath.Join(dir, "locked"), 0)); err != nil {
		t.Fatal(err)
	}
	l.Release("c")
	info := l.List()[0]
	if info.Bytes > 6*cacheEntryCost {
		t.Errorf("%+v", info)
	}
	if err := l.Drop(info.ID); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(outside, "theirs")); err != nil {
		t.Error(err)
	}
}

// cached builds a town whose providers keep caches.
func cached(t *testing.T, prices ...uint64) plan {
	dir := t.TempDir()
	return plan{prices: prices, change: func(i int, cfg *ProviderConfig) {
		caches, err := OpenCaches(CacheConfig{Dir: filepath.Join(dir, fmt.Sprint(i)), Max: 10 << 30, MaxPerRenter: 4 << 30, Now: cfg.Now, Log: cfg.Log})
		if err != nil {
			t.Error(err)
		}
		cfg.Caches = caches
	}}
}

func (s *shop) caches() string {
	_, p, _ := s.now()
	var out []string
	for _, c := range p.Caches.List() {
		out = append(out, fmt.Sprintf("%s:%d", c.Key, c.InUse))
	}
	return strings.Join(out, " ")
}

func TestJobsUseCaches(t *testing.T) {
	inTown(t, cached(t, testPrice), func(t *testing.T, w *town) {
		p := w.shops[0]
		spec := oneTask("gate")
		spec.Caches = []CacheSpec{{Key: "weights", To: "/w"}, {Key: testDAG, To: "/dag"}}
		w.submit("j1", spec)
		w.await("the job to run", func() bool { return p.machine.running() == 1 })
		p.produce("/w", "model")
		p.machine.mu.Lock()
		for _, c := range p.machine.containers {
			for _, m := range c.spec.Mounts {
				if named := m.Dest == "/w"; named == m.ReadOnly || named != (m.MaxBytes > 0) {
					t.Errorf("%+v", m)
				}
			}
		}
		p.machine.mu.Unlock()
		// A restart keeps them in use while their container runs.
		p.kill()
		p.reopen()
		if got := p.caches(); !strings.Contains(got, "weights:1") || !strings.Contains(got, testDAG+":1") {
			t.Errorf("after a restart: %s", got)
		}
		p.machine.open()
		w.over("j1")
		w.await("the end of the lease", w.quiet)
		if got := p.caches(); !strings.Contains(got, "weights:0") || !strings.Contains(got, testDAG+":0") {
			t.Errorf("afterwards: %s", got)
		}
		w.submit("j2", spec)
		w.over("j2")
		_, prov, _ := p.now()
		for _, c := range prov.Caches.List() {
			if c.Key != "weights" {
				continue
			}
			if raw, err := os.ReadFile(filepath.Join(prov.Caches.Dir, c.ID, cacheData, "model")); err != nil || string(raw) != "model" {
				t.Errorf("%q %v", raw, err)
			}
		}
	})
}

// A provider that keeps no caches is no place for a job that wants one, and one
// that failed to give it is not its job's fault.
func TestJobWithoutItsCacheGoesElsewhere(t *testing.T) {
	p := cached(t, testPrice/2, testPrice)
	with := p.change
	p.change = func(i int, cfg *ProviderConfig) {
		if i == 1 {
			with(i, cfg)
		}
	}
	inTown(t, p, func(t *testing.T, w *town) {
		spec := oneTask("sleep=1s")
		spec.Caches = []CacheSpec{{Key: "weights", To: "/w"}}
		w.submit("j1", spec)
		if j := w.over("j1"); j.State != JobDone || w.task("j1").Provider != w.shops[1].id().String() {
			t.Errorf("job %s, %+v", j.State, w.task("j1"))
		}
	})
}

// At an equal price a job goes to where its cache was last.
func TestJobGoesToItsCache(t *testing.T) {
	inTown(t, cached(t, testPrice, testPrice, testPrice), func(t *testing.T, w *town) {
		spec := oneTask("sleep=1s")
		spec.Caches = []CacheSpec{{Key: "weights", To: "/w"}}
		spec.On = w.shops[1].id().String()
		w.submit("j0", spec)
		w.over("j0")
		spec.On = ""
		for i := range 4 {
			id := fmt.Sprint("j", i+1)
			w.submit(id, spec)
			if w.over(id); w.task(id).Provider != w.shops[1].id().String() {
				t.Errorf("%s went elsewhere", id)
			}
		}
	})
}
