package content

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
)

// script is a store's life, step by step, and what must be in it. Every step
// may fail; the script goes on, as a node does.
type script struct {
	t    *testing.T
	z    *sizes
	m    *memFS
	s    *Store
	sure map[int]bool // blocks synced, and not given to collection since
	here map[int]bool // blocks put, and not given to collection since
	errs []error
}

// tiny makes everything happen within a few kilobytes.
func tiny() *sizes { return &sizes{pack: 4 << 10, sync: 1 << 30, writeback: 1 << 30, tidy: 8} }

// eager has the background write back and sync after every few blocks, too.
func eager() *sizes { return &sizes{pack: 4 << 10, sync: 3 << 10, writeback: 1 << 10, tidy: 8} }

func newScript(t *testing.T, z *sizes) *script {
	return &script{t: t, z: z, m: newMemFS(), sure: map[int]bool{}, here: map[int]bool{}}
}

func scriptBlock(i int) []byte { return noise(uint64(i)+1, i*97%1500) }

func (c *script) note(err error) bool {
	if err != nil {
		c.errs = append(c.errs, err)
	}
	return err == nil
}

// open opens the store. Without faults it must open whatever came before.
func (c *script) open() bool {
	if c.s != nil {
		return true
	}
	s, err := Open("store", Options{fs: c.m, sizes: c.z})
	if !c.note(err) {
		if c.m.fault == nil {
			c.t.Fatalf("the store does not open: %v", err)
		}
		return false
	}
	c.s = s
	return true
}

func (c *script) put(from, to int) {
	if !c.open() {
		return
	}
	var items []putItem
	for i := from; i < to; i++ {
		items = append(items, putItem{rawRef(scriptBlock(i)).key, scriptBlock(i)})
	}
	for n := 1; len(items) > 0; n = n%5 + 1 { // batches of all sizes
		n = min(n, len(items))
		if _, err := c.s.putBatch(items[:n]); c.note(err) {
			for i := from; i < from+n; i++ {
				c.here[i] = true
			}
		}
		c.behind()
		items, from = items[n:], from+n
	}
}

// behind waits for what the background does, so that each life has the same
// operations in the same order. What it says it has made durable must be.
func (c *script) behind() {
	c.s.wg.Wait()
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.unsynced == 0 && len(c.s.pending) == 0 && !c.s.newNames && c.s.failed == nil {
		c.sure = clone(c.here)
	}
}

func (c *script) sync() {
	if c.open() && c.note(c.s.Sync()) {
		c.sure = clone(c.here)
	}
}

// collect keeps every mod-th block.
func (c *script) collect(mod int, o GCOptions) {
	if !c.open() {
		return
	}
	var roots rootList
	for i := range c.here {
		if i%mod == 0 {
			roots = append(roots, rawRef(scriptBlock(i)).cid())
		} else {
			delete(c.here, i)
			delete(c.sure, i)
		}
	}
	if _, err := c.s.GC(c.t.Context(), roots, o); c.note(err) {
		c.sure = clone(c.here)
	}
}

func (c *script) close() {
	if c.s == nil {
		return
	}
	if c.note(c.s.Close()) {
		c.sure = clone(c.here)
	}
	c.here = clone(c.sure)
	c.s = nil
}

// life is the scripted workload.
func (c *script) life() {
	c.put(0, 12)
	c.sync()
	c.put(12, 20)
	c.collect(3, GCOptions{})
	c.put(20, 30)
	c.sync()
	c.close()
	c.put(30, 33)
	c.collect(2, GCOptions{})
	c.collect(2, GCOptions{Target: 1})
	c.put(0, 8)
	c.sync()
	c.put(40, 44)
	c.close()
	c.put(44, 46)
	c.sync()
}

// check looks at everything: what is there is right, what must be there is.
func (c *script) check(when string, must map[int]bool) {
	c.t.Helper()
	if !c.open() {
		return
	}
	for i := range 50 {
		r := rawRef(scriptBlock(i))
		_, there := c.s.size(r.key)
		if _, err := c.s.Get(c.t.Context(), r.cid()); there && err != nil {
			c.t.Fatalf("%s: block %d is there and wrong: %v", when, i, err)
		}
		if must[i] && !there {
			c.t.Fatalf("%s: block %d is lost, after %v", when, i, c.errs)
		}
	}
	var live, disk uint64
	for _, p := range c.s.packs {
		live, disk = live+p.live, disk+p.size
	}
	if st := c.s.Stats(); st.Bytes != live || st.DiskBytes != disk || disk < live {
		c.t.Fatalf("%s: miscounted: %+v, %d live, %d on disk", when, st, live, disk)
	}
}

// after restarts a killed store and looks at it, twice, with a life between.
func (c *script) after(crash bool, rng *rand.Rand) {
	c.t.Helper()
	c.s = nil // its process is gone
	c.here = clone(c.sure)
	c.m.restart(crash, rng)
	c.check("after the crash", c.sure)
	c.put(10, 40)
	c.sync()
	c.s = nil
	c.m.restart(true, rng)
	c.check("after a second crash", c.sure)
	c.close()
}

// atEvery runs a life with faults from the n-th operation on, for every n.
func atEvery(t *testing.T, inject func(n int) func(int, string) fault, then func(c *script, rng *rand.Rand)) {
	t.Helper()
	for _, z := range []*sizes{tiny(), eager()} {
		atEveryOf(t, z, inject, then)
	}
}

func atEveryOf(t *testing.T, z *sizes, inject func(n int) func(int, string) fault, then func(c *script, rng *rand.Rand)) {
	t.Helper()
	for n := 1; ; n++ {
		c := newScript(t, z)
		hit := false
		f := inject(n)
		c.m.fault = func(at int, op string) fault {
			got := f(at, op)
			hit = hit || got != noFault
			return got
		}
		c.life()
		if !hit {
			c.close()
			if n < 50 {
				t.Fatalf("the life has %d operations: too few to mean anything", n)
			}
			return
		}
		then(c, rand.New(rand.NewPCG(uint64(n), 7)))
	}
}

func once(f fault) func(int) func(int, string) fault {
	return func(n int) func(int, string) fault {
		return func(at int, _ string) fault {
			if at == n {
				return f
			}
			return noFault
		}
	}
}

// A process killed at any operation loses nothing that was synced, whether the
// machine goes on or crashes with it, and whatever part of the unsynced the
// crash keeps.
func TestKilledAtEveryOperation(t *testing.T) {
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprintf("crash=%v", crash), func(t *testing.T) {
			for round := range uint64(3) {
				atEvery(t, once(killed), func(c *script, rng *rand.Rand) {
					c.after(crash, rand.New(rand.NewPCG(rng.Uint64(), round)))
				})
			}
		})
	}
}

// Recovery killed at any operation recovers the next time.
func TestKilledWhileRecovering(t *testing.T) {
	atEvery(t, once(killed), func(c *script, rng *rand.Rand) {
		seed := rng.Uint64()
		for n := 1; n < 40; n++ {
			c.s = nil
			c.here = clone(c.sure)
			c.m.restart(n > 1 || seed%2 == 0, rng)
			c.m.fault = once(killed)(n)
			if !c.open() {
				continue
			}
			c.m.fault = nil
			break
		}
		c.after(true, rng)
	})
}

// One failure of any operation is an error to whoever asked, loses nothing
// that was synced or put, and is over with it. A failed fsync may have made the
// kernel forget the bytes.
func TestFailedAtEveryOperation(t *testing.T) {
	for name, f := range map[string]fault{"nothing done": failed, "half done": failedHalf, "fsync forgets": syncGate} {
		t.Run(name, func(t *testing.T) {
			for round := range uint64(2) {
				atEvery(t, once(f), func(c *script, rng *rand.Rand) {
					c.m.fault = nil
					c.check("after an error", c.here)
					c.sync()
					for _, err := range c.errs {
						if !errors.Is(err, syscall.EIO) {
							t.Fatalf("an error that hides its cause: %v", err)
						}
					}
					if len(c.sure) != len(c.here) {
						t.Fatalf("sync does not work again: %v", c.errs)
					}
					c.after(true, rand.New(rand.NewPCG(rng.Uint64(), round)))
				})
			}
		})
	}
}

// A disk that is full from any operation on is a clear error, loses nothing,
// and is no hindrance any more when there is room.
func TestFullAtEveryOperation(t *testing.T) {
	full := func(n int) func(int, string) fault {
		return func(at int, op string) fault {
			if at >= n && (op == "write" || op == "make" || op == "rename") {
				return noRoom
			}
			return noFault
		}
	}
	atEvery(t, full, func(c *script, rng *rand.Rand) {
		for _, err := range c.errs {
			if !errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("no clear error: %v", err)
			}
			for _, word := range []string{"store", "12345 are free", "lumbung gc"} {
				if !strings.Contains(err.Error(), word) {
					t.Fatalf("%q is not said: %v", word, err)
				}
			}
		}
		c.check("while the disk is full", c.here)
		c.m.fault = nil
		c.put(0, 50)
		c.sync()
		if len(c.sure) < 50 {
			t.Fatalf("only %d blocks after there was room: %v", len(c.sure), c.errs)
		}
		c.after(true, rng)
	})
}

// What the kernel forgot of blocks that nobody can read any more is said by
// every later Sync, and does not come back as durable.
func TestFailedSyncThatLosesBlocks(t *testing.T) {
	c := newScript(t, tiny())
	c.put(1, 4)
	c.sync()
	c.put(4, 8)
	c.m.fault = func(_ int, op string) fault {
		if op == "sync" {
			return syncGate
		}
		return noFault
	}
	for name, in := range c.m.names { // and the page cache too
		if strings.HasSuffix(name, ".pack") {
			in.data = resize(in.data, int64(len(in.onDisk)))
		}
	}
	for range 2 {
		if err := c.s.Sync(); err == nil {
			t.Fatal("synced what is lost")
		}
		c.m.fault = nil
	}
	c.after(true, rand.New(rand.NewPCG(1, 1)))
}

// Many lives in a row, of random steps with random faults, kills and crashes.
func TestTorture(t *testing.T) {
	for seed := range uint64(600) {
		rng := rand.New(rand.NewPCG(seed, 11))
		c := newScript(t, []*sizes{tiny(), eager()}[seed%2])
		for range 4 {
			c.torture(rng, 6+rng.IntN(60))
		}
		c.after(true, rng)
	}
}

// torture does random steps until one is interrupted.
func (c *script) torture(rng *rand.Rand, every int) {
	c.t.Helper()
	kinds := []fault{failed, failedHalf, noRoom, syncGate, killed}
	// A kernel that forgot what it could not write goes on showing it. Who sees
	// the error takes it back; no other process can tell, so here a process that
	// has no chance to takes the machine with it.
	forgot := false
	c.m.fault = func(_ int, op string) fault {
		if rng.IntN(every) > 0 || forgot && op == "truncate" {
			return noFault
		}
		f := kinds[rng.IntN(len(kinds))]
		forgot = forgot || f == syncGate && op == "sync"
		return f
	}
	for range 25 {
		from := rng.IntN(45)
		switch rng.IntN(10) {
		case 0, 1, 2, 3:
			c.put(from, from+1+rng.IntN(5))
		case 4, 5, 6:
			c.sync()
		case 7:
			c.collect(2+rng.IntN(3), GCOptions{})
		case 8:
			c.collect(1+rng.IntN(3), GCOptions{Target: 1})
		default:
			c.close()
		}
		if c.m.dead {
			break
		}
		c.errs = nil
	}
	if c.m.dead || rng.IntN(4) > 0 {
		c.s, c.here = nil, clone(c.sure)
		c.m.restart(forgot || rng.IntN(2) == 0, rng)
	}
	c.m.fault = nil
	c.check("after torture", c.sure)
	c.errs = nil
}

// A block that is put while its pack is being emptied is not lost when the
// index says of it first that it was put and then that it was moved.
func TestCompactionOfUnsyncedBlocks(t *testing.T) {
	c := newScript(t, tiny())
	c.put(1, 3)
	c.sync()
	c.s.mu.Lock()
	c.s.forget(rawRef(scriptBlock(1)).key)
	c.s.mu.Unlock()
	c.put(3, 4)
	noErr(t, c.s.compact(t.Context(), true))
	c.s = nil
	c.m.restart(true, rand.New(rand.NewPCG(1, 1)))
	c.check("after the crash", map[int]bool{2: true, 3: true})
	c.close()
}

// A crash that brings back the index of before it was made smaller takes
// nothing along, whether the process was killed before it had made the new name
// durable or could not.
func TestIndexIsReplacedDurably(t *testing.T) {
	for _, f := range []fault{killed, failed} {
		for seed := range uint64(20) {
			c := newScript(t, tiny())
			c.put(1, 4)
			c.sync()
			for range 10 { // history
				c.s.mu.Lock()
				for i := 1; i < 4; i++ {
					c.s.pending = append(c.s.pending, record{kind: recUse, key: rawRef(scriptBlock(i)).key, time: 5})
				}
				c.s.mu.Unlock()
				c.sync()
			}
			renamed := false
			c.m.fault = func(_ int, op string) fault {
				if op == "syncdir" && renamed {
					return f
				}
				renamed = renamed || op == "rename"
				return noFault
			}
			if err := c.s.compact(t.Context(), false); err == nil || !renamed {
				t.Fatalf("the index was not replaced, or that did not fail: %v", err)
			}
			rng := rand.New(rand.NewPCG(seed, 3))
			if c.m.fault = nil; f == killed {
				c.s = nil
				c.m.restart(false, rng)
			}
			c.put(4, 6) // into the pack there is: the folder is as it was
			c.sync()
			c.s = nil
			c.m.restart(true, rng)
			c.check("after the crash", map[int]bool{1: true, 2: true, 3: true, 4: true, 5: true})
			c.close()
		}
	}
}
