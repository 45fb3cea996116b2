package content

import (
	"context"
	"fmt"
	"math/bits"
	"strconv"

	"github.com/ipfs/boxo/ipld/unixfs"
	format "github.com/ipfs/go-ipld-format"
	"github.com/spaolacci/murmur3"
)

// Bounds on folders and files from a stranger. A few blocks that name each
// other over and over unfold to more than any disk holds, so what unfolds is
// counted, not what is stored.
const (
	maxShardFanout = 1024
	shardHashBits  = 64        // of the murmur3 hash a sharded folder goes by
	maxShardBytes  = 512 << 20 // of the nodes of one sharded folder
	maxDescribed   = 1 << 16   // entries remembered while one folder is listed

	freeNodes    = 1 << 18   // nodes of one file that are read whatever they give
	bytesPerNode = 256       // of a file, that pay for one more node
	freeReads    = 256 << 20 // bytes of nodes that are read whatever they give
)

// eachLink calls f for each entry's link of a folder, sharded or not.
func (d dagService) eachLink(ctx context.Context, n node, f func(*format.Link) error) error {
	if n.fsn.Type() != unixfs.THAMTShard {
		for _, l := range n.proto.Links() {
			if err := f(l); err != nil {
				return err
			}
		}
		return ctx.Err()
	}
	w := shardWalk{d: d, ctx: ctx, f: f, fanout: n.fsn.Fanout()}
	if w.fanout < 8 || w.fanout > maxShardFanout || bits.OnesCount64(w.fanout) != 1 {
		return fmt.Errorf("%w: sharded folder with a fanout of %d; a power of 2 from 8 to %d is understood", ErrMalformed, w.fanout, maxShardFanout)
	}
	w.prefix = len(fmt.Sprintf("%X", w.fanout-1))
	w.bits = bits.TrailingZeros64(w.fanout)
	return w.shard(n, 1, 0)
}

// shardWalk goes through a sharded folder (HAMT, UnixFS spec: "HAMTDirectory")
// in the order of its links, one node in memory for each level. boxo's own walk
// keeps every node and has no bound. Every entry must stand where the hash of
// its name belongs, so parts cannot be named over and over.
type shardWalk struct {
	d      dagService
	ctx    context.Context
	f      func(*format.Link) error
	fanout uint64
	prefix int // hexadecimal digits before a name
	bits   int // of the hash, for each level
	bytes  int // of nodes read
}

// shard walks a node. above are the bits of the hash that lead to it.
func (w *shardWalk) shard(n node, level int, above uint64) error {
	if level*w.bits > shardHashBits {
		return fmt.Errorf("%w: sharded folder more than %d levels deep", ErrMalformed, level-1)
	}
	last := -1
	for _, l := range n.proto.Links() {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		at, err := w.place(l.Name)
		if err != nil || int(at) <= last {
			return fmt.Errorf("%w: sharded folder with a link %.100q out of place", ErrMalformed, l.Name)
		}
		last = int(at)
		at |= above << w.bits
		if len(l.Name) == w.prefix {
			err = w.sub(l, level, at)
		} else {
			err = w.entry(l, level, at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// place reads the digits before a name.
func (w *shardWalk) place(name string) (uint64, error) {
	if len(name) < w.prefix {
		return 0, ErrMalformed
	}
	at, err := strconv.ParseUint(name[:w.prefix], 16, 64)
	if err == nil && at >= w.fanout {
		err = ErrMalformed
	}
	return at, err
}

func (w *shardWalk) entry(l *format.Link, level int, at uint64) error {
	name := l.Name[w.prefix:]
	if murmur3.Sum64([]byte(name))>>(shardHashBits-level*w.bits) != at {
		return fmt.Errorf("%w: sharded folder with entry %.100q where its name does not belong", ErrMalformed, name)
	}
	return w.f(&format.Link{Name: name, Size: l.Size, Cid: l.Cid})
}

func (w *shardWalk) sub(l *format.Link, level int, at uint64) error {
	r, err := refOf(l.Cid)
	if err != nil {
		return err
	}
	c, err := w.d.node(r)
	if err != nil {
		return err
	}
	if c.fsn == nil || c.fsn.Type() != unixfs.THAMTShard || c.fsn.Fanout() != w.fanout || len(c.proto.Links()) == 0 {
		return fmt.Errorf("%w: %s is no part of a sharded folder with a fanout of %d", ErrMalformed, r, w.fanout)
	}
	if w.bytes += len(c.proto.RawData()); w.bytes > maxShardBytes {
		return fmt.Errorf("%w: sharded folder of more than %d MiB", ErrTooLarge, maxShardBytes>>20)
	}
	return w.shard(c, level+1, at)
}

// describer describes entries, each different one once.
type describer struct {
	d    dagService
	seen map[ref]Entry
}

func (s *describer) entry(l *format.Link) (Entry, error) {
	r, err := refOf(l.Cid)
	if err != nil {
		return Entry{}, err
	}
	if e, ok := s.seen[r]; ok {
		e.Name = l.Name
		return e, nil
	}
	e, err := s.d.describe(l)
	if err == nil && r.codec != codecRaw && e.Kind != EntryUnknown && len(s.seen) < maxDescribed {
		s.seen[r] = e
	}
	return e, err
}

// reads bounds the nodes read for one file by the bytes they gave so far: a
// size that a file only claims pays for nothing.
type reads struct{ nodes, bytes, gave uint64 }

// take counts one node.
func (r *reads) take(n node) error {
	r.nodes++
	r.bytes += uint64(len(n.leaf))
	if n.proto != nil {
		r.bytes += uint64(len(n.proto.RawData()))
	}
	if r.nodes > freeNodes+r.gave/bytesPerNode || r.bytes > freeReads+4*r.gave {
		return fmt.Errorf("%s: %w: the file is cut into far more nodes than its %d bytes so far need", n.ref, ErrTooLarge, r.gave)
	}
	r.gave += uint64(len(n.leaf))
	return nil
}

// weight is what a folder or file unfolds to on disk.
type weight struct{ entries, bytes uint64 }

func (w weight) plus(o weight) weight {
	return weight{addCapped(w.entries, o.entries), addCapped(w.bytes, o.bytes)}
}

// weigher adds up what a folder unfolds to, looking at each different node
// once.
type weigher struct {
	d     dagService
	ctx   context.Context
	known map[ref]weight
	limit Limits
}

// weigh refuses what unfolds to more than limit, before any of it is written.
func (d dagService) weigh(ctx context.Context, n node, limit Limits) (weight, error) {
	w := weigher{d: d, ctx: ctx, known: map[ref]weight{}, limit: limit}
	sum, err := w.node(n, 0)
	if err != nil {
		return sum, err
	}
	if sum.entries > limit.Entries || sum.bytes > limit.Bytes {
		return sum, fmt.Errorf("%w: it unfolds to %d files, folders and links with %d bytes; %d with %d bytes are allowed",
			ErrTooLarge, sum.entries, sum.bytes, limit.Entries, limit.Bytes)
	}
	return sum, nil
}

func (w *weigher) node(n node, depth int) (weight, error) {
	if n.kind != EntryFolder {
		return weight{1, n.size()}, nil
	}
	if depth > maxAddDepth {
		return weight{}, fmt.Errorf("%w: folders more than %d deep", ErrTooLarge, maxAddDepth)
	}
	if sum, ok := w.known[n.ref]; ok {
		return sum, nil
	}
	sum := weight{entries: 1}
	err := w.d.eachEntry(w.ctx, n, func(l *format.Link) error {
		one, err := w.link(l, depth)
		sum = sum.plus(one)
		return err
	})
	return sum, w.remember(n.ref, sum, err)
}

func (w *weigher) link(l *format.Link, depth int) (weight, error) {
	r, err := refOf(l.Cid)
	if err != nil {
		return weight{}, err
	}
	if r.codec == codecRaw {
		n, _ := w.d.s.size(r.key) // that it is missing is said where it is read
		return weight{1, uint64(n)}, nil
	}
	if sum, ok := w.known[r]; ok {
		return sum, nil
	}
	c, err := w.d.node(r)
	if err != nil {
		return weight{}, err
	}
	sum, err := w.node(c, depth+1)
	if err == nil && c.kind != EntryFolder {
		err = w.remember(r, sum, nil)
	}
	return sum, err
}

// remember bounds what it takes to weigh by what may be written.
func (w *weigher) remember(r ref, sum weight, err error) error {
	if err != nil {
		return err
	}
	if uint64(len(w.known)) > w.limit.Entries {
		return fmt.Errorf("%w: more than %d files, folders and links", ErrTooLarge, w.limit.Entries)
	}
	w.known[r] = sum
	return nil
}
