package content

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"
)

// Bounds of what a check tells.
const (
	maxTold      = 1000 // damaged blocks told one by one
	maxRootsTold = 16   // roots told of each

	tellEvery = 8 << 20 // bytes
)

// CheckStats says what a check of all blocks found.
type CheckStats struct {
	Blocks  uint64 // blocks read
	Bytes   uint64 // their bytes
	Damaged uint64 // blocks whose bytes are bad; they are out of the store now
	// Found tells the first thousand of them.
	Found []Damage
}

// Damage is a block that was found damaged.
type Damage struct {
	Block  cid.Cid // as the DAG it is of names it, else as a raw block
	Pack   string  // name of the file
	Offset uint64  // of its first byte there
	Bytes  uint64  // its length
	Reason string
	// Roots are of the roots kept here, some that need the block: fetching one
	// again brings it back, from whoever has it.
	Roots []cid.Cid
}

// Check reads every block and compares it with its digest. Blocks whose bytes
// are bad or cannot be read are dropped at once, durably, so that nobody is
// served them and they can be fetched again. roots says what needs them. Puts
// and gets go on meanwhile; collections wait. progress, if set, is called every few
// megabytes, from several goroutines, one at a time.
func (s *Store) Check(ctx context.Context, roots RootSet, progress func(done, total uint64)) (CheckStats, error) {
	s.gcMu.Lock()
	defer s.gcMu.Unlock()
	keys := map[uint32][]key{}
	total := uint64(0)
	s.eachBlock(func(k key, e entry) {
		keys[e.at.pack] = append(keys[e.at.pack], k)
		total += uint64(e.at.length)
	})
	c := checker{s: s, total: total, progress: progress, bad: map[key]int{}}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(min(4, runtime.GOMAXPROCS(0)))
	for _, ks := range keys {
		g.Go(func() error { return c.pack(gctx, ks) })
	}
	err := g.Wait()
	if c.st.Damaged > 0 {
		err = errors.Join(err, s.Sync()) // what was found stays found
	}
	if err == nil && len(c.bad) > 0 {
		err = c.blame(ctx, roots)
	}
	slices.SortFunc(c.st.Found, func(a, b Damage) int {
		return cmp.Or(cmp.Compare(a.Pack, b.Pack), cmp.Compare(a.Offset, b.Offset))
	})
	if err != nil {
		return c.st, fmt.Errorf("check blocks: %w", err)
	}
	s.log.Info("blocks checked", "blocks", c.st.Blocks, "bytes", c.st.Bytes, "damaged", c.st.Damaged)
	return c.st, nil
}

// checker is one run of Check.
type checker struct {
	s        *Store
	total    uint64
	progress func(done, total uint64)

	mu  sync.Mutex
	st  CheckStats
	bad map[key]int // index into st.Found
}

// pack checks blocks that lie in one pack, in the order they lie there.
func (c *checker) pack(ctx context.Context, keys []key) error {
	c.s.byPlace(keys)
	var buf []byte
	for _, k := range keys {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, p, err := c.s.find(ref{key: k}, false)
		if errors.Is(err, ErrNotFound) {
			continue // dropped meanwhile
		}
		if err != nil {
			return err
		}
		buf = slices.Grow(buf[:0], int(e.at.length))[:e.at.length]
		n, err := p.f.ReadAt(buf, int64(e.at.offset))
		if n == len(buf) && errors.Is(err, io.EOF) {
			err = nil
		}
		reason := ""
		switch {
		case err != nil:
			reason = "it cannot be read: " + err.Error()
		case sha256.Sum256(buf) != k:
			reason = "its bytes are not those it is named by"
		}
		if rerr := p.release(); rerr != nil {
			return rerr
		}
		c.note(k, e, p, reason)
	}
	return nil
}

// note counts a block, and drops it if something is wrong with it.
func (c *checker) note(k key, e entry, p *pack, reason string) {
	if reason == "" {
		c.s.vouch(k, e.at, seconds(c.s.now().Unix()))
	} else if !c.s.quarantine(ref{key: k}, e, p.path) {
		reason = "" // a reader found it first, and it may be here anew
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.st.Blocks++
	before := c.st.Bytes
	c.st.Bytes += uint64(e.at.length)
	if reason != "" {
		c.st.Damaged++
		if len(c.st.Found) < maxTold {
			c.bad[k] = len(c.st.Found)
			c.st.Found = append(c.st.Found, Damage{
				Block: ref{key: k}.cid(), Pack: packName(p.id), Offset: uint64(e.at.offset), Bytes: uint64(e.at.length), Reason: reason,
			})
		}
	}
	if c.progress != nil && (before/tellEvery != c.st.Bytes/tellEvery || c.st.Bytes == c.total) {
		c.progress(c.st.Bytes, c.total)
	}
}

// blame finds the roots that reach damaged blocks.
func (c *checker) blame(ctx context.Context, roots RootSet) error {
	all, err := roots.Roots(ctx)
	if err != nil {
		return fmt.Errorf("read the roots: %w", err)
	}
	for _, root := range all {
		r, err := refOf(root)
		if err != nil {
			return fmt.Errorf("root: %w", err)
		}
		if err := c.reach(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// reach walks what is here under root, and adds root to the damage it meets.
func (c *checker) reach(ctx context.Context, root ref) error {
	seen := map[key]struct{}{root.key: {}}
	for stack := []ref{root}; len(stack) > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		r := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if i, bad := c.bad[r.key]; bad {
			d := &c.st.Found[i]
			d.Block = r.cid()
			if len(d.Roots) < maxRootsTold {
				d.Roots = append(d.Roots, root.cid())
			}
			continue
		}
		_, _, links, err := c.s.look(r)
		if errors.Is(err, ErrClosed) {
			return err
		}
		if err != nil { // what cannot be read as a DAG leads nowhere
			continue
		}
		for _, l := range links {
			if _, ok := seen[l.ref.key]; !ok {
				seen[l.ref.key] = struct{}{}
				stack = append(stack, l.ref)
			}
		}
	}
	return nil
}
