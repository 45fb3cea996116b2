package content

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"
)

// Sizes of what is sent, in bytes.
const (
	groupBytes = 1 << 20 // of the blocks of one group
	firstGroup = 64 << 10
	writePiece = 256 << 10 // written under one deadline
)

// maxDAGAnswer bounds the bytes of blocks with links, and maxDAGLinks the
// links, that one dag/1 answer works through; maxDAGLeaves the bytes of leaves.
const (
	maxDAGAnswer = 64 << 20
	maxDAGLeaves = 64 << 20
	maxDAGLinks  = 1 << 18
)

// ServeStream answers one incoming stream until the peer closes it, breaks the
// protocol, idles or ctx ends, and closes it. protocol may be the whole id. An
// error says why the stream ended early; io.EOF and a refused slot do not.
func (e *Exchange) ServeStream(ctx context.Context, from string, protocol string, st Stream) error {
	stop := context.AfterFunc(ctx, func() { _ = st.Reset() })
	defer stop()
	idle := strings.HasSuffix(protocol, ProtocolHave)
	c, ok := e.admit(from, idle)
	if !ok {
		return errors.Join(refuse(st, e.o.Stall), st.Close())
	}
	defer e.dismiss(from, c, idle)
	w := &server{ctx: ctx, e: e, c: c, st: st}
	br := bufio.NewReaderSize(&deadlineReader{st: st, wait: e.o.Idle}, 16<<10)
	var err error
	switch {
	case strings.HasSuffix(protocol, ProtocolGet):
		err = w.serveGet(br)
	case strings.HasSuffix(protocol, ProtocolDAG):
		err = w.serveDAG(br)
	case strings.HasSuffix(protocol, ProtocolHave):
		err = w.serveHave(br)
	default:
		err = fmt.Errorf("%w: protocol %q", ErrProtocol, protocol)
	}
	if err != nil && ctx.Err() == nil { // perhaps because a block was wrong, which the asker cannot say
		e.s.doubt(w.last)
	}
	if errors.Is(err, errLeft) {
		_ = st.Reset()
		return ctx.Err()
	}
	if err != nil {
		_ = st.Reset()
		if cerr := ctx.Err(); cerr != nil {
			err = cerr
		}
		return fmt.Errorf("serve %s: %w", from, err)
	}
	return st.Close()
}

// refuse tells the peer to come again.
func refuse(st Stream, wait time.Duration) error {
	if err := st.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	_, err := st.Write([]byte{groupBusy})
	return err
}

// deadlineReader gives reads their deadline, moved on only when an eighth of
// its time is over, for that costs more than reading does.
type deadlineReader struct {
	st   Stream
	wait time.Duration
	set  time.Time
}

func (r *deadlineReader) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(r.set) > r.wait/8 {
		r.set = now
		if err := r.st.SetDeadline(now.Add(r.wait)); err != nil {
			return 0, err
		}
	}
	return r.st.Read(p)
}

// server is one stream being served.
type server struct {
	ctx   context.Context
	e     *Exchange
	c     *client
	st    Stream
	turn  *turn  // that a group is being written in
	buf   []byte // room for a group's head, then its blocks
	lens  []int32
	heads []uint32
	zip   []byte // a packed group
	packs packing
	last  []key // of the blocks sent last, as a ring
	sent  int   // blocks sent in all
}

// sentLast bounds the blocks that are remembered of a stream. An asker of get/1
// reads no further behind than two of its lists, and of dag/1 no more than what
// is in the buffers between.
const sentLast = 4096

// remember notes blocks that are sent.
func (w *server) remember(refs []ref) {
	for i, r := range refs {
		switch {
		case w.lens[i] < 0:
			continue
		case len(w.last) < sentLast:
			w.last = append(w.last, r.key)
		default:
			w.last[w.sent%sentLast] = r.key
		}
		w.sent++
	}
}

// write sends p in pieces, each within its own deadline.
func (w *server) write(p []byte) error {
	for len(p) > 0 {
		piece := p[:min(len(p), writePiece)]
		if err := w.st.SetDeadline(time.Now().Add(w.e.o.Stall)); err != nil {
			return err
		}
		n, err := w.writePiece(piece)
		w.c.sent.Add(uint64(n))
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// blockedAfter is how long a peer may take nothing before its turn is not
// counted.
const blockedAfter = 200 * time.Millisecond

func (w *server) writePiece(p []byte) (int, error) {
	turn := w.turn
	if turn == nil {
		return w.st.Write(p)
	}
	set := make(chan struct{})
	t := time.AfterFunc(blockedAfter, func() {
		turn.blocked(true)
		close(set)
	})
	n, err := w.st.Write(p)
	if !t.Stop() {
		<-set
		turn.blocked(false)
	}
	return n, err
}

// errLeft says that a peer broke a stream on which it wanted nothing: that is
// how one ends that has all it needs.
var errLeft = errors.New("the peer left")

// awaitAsk waits for a request to begin; io.EOF says that none will come.
func awaitAsk(br *bufio.Reader) error {
	_, err := br.Peek(1)
	var slow net.Error
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return err
	case errors.As(err, &slow) && slow.Timeout():
		return fmt.Errorf("request: %w", err)
	}
	return errLeft
}

func (w *server) serveGet(br *bufio.Reader) error {
	var refs []ref
	for {
		err := awaitAsk(br)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			refs, err = readAsk(br, refs)
		}
		if err != nil {
			return err
		}
		for rest := refs; len(rest) > 0; {
			n, _, err := w.load(rest, w.e.group)
			if err != nil {
				return err
			}
			if err := w.sendGroup(rest[:n]); err != nil {
				return err
			}
			rest = rest[n:]
		}
	}
}

// load reads the first of the blocks into buf, as many as make up limit bytes
// and one at least. It returns how many those are, and their bytes.
func (w *server) load(refs []ref, limit int) (n, size int, err error) {
	refs = refs[:min(len(refs), maxAsk)]
	w.lens = w.e.s.lengths(refs, w.lens[:0])
	for n < len(refs) && (n == 0 || size+int(max(w.lens[n], 0)) <= limit) {
		size += int(max(w.lens[n], 0))
		n++
	}
	if need := headRoom + size; cap(w.buf) < need {
		w.buf = make([]byte, max(need, headRoom+min(groupBytes, 4*size)))
	}
	w.buf = w.buf[:headRoom+size]
	w.lens = w.lens[:n]
	size, err = w.e.s.readRun(refs[:n], w.lens, w.buf[headRoom:])
	w.buf = w.buf[:headRoom+size]
	return n, size, err
}

// sendGroup sends what load read, as soon as it is this stream's turn.
func (w *server) sendGroup(refs []ref) error {
	w.heads = w.heads[:0]
	for _, n := range w.lens[:len(refs)] {
		if n < 0 {
			w.heads = append(w.heads, headMissing)
		} else {
			w.heads = append(w.heads, headBlock+uint32(n))
		}
	}
	w.remember(refs)
	return w.sendHeads()
}

// sendHeads sends the group of w.heads and the blocks in buf.
func (w *server) sendHeads() error {
	var room [headRoom]byte
	head := appendGroup(room[:0], w.heads)
	start := headRoom - len(head)
	copy(w.buf[start:], head)
	out := w.pack(w.buf[start:], len(head))
	if w.c.limit != nil {
		if err := w.c.limit.WaitN(w.ctx, len(out)); err != nil {
			return err
		}
	}
	alive := func() error { return w.write([]byte{groupWait}) }
	turn, err := w.e.turns.take(w.ctx, w.c.first.Load(), len(out), w.e.o.Stall/4, alive)
	if err != nil {
		return err
	}
	defer turn.give()
	w.turn = turn
	defer func() { w.turn = nil }()
	w.c.link.began(time.Now())
	err = w.write(out)
	w.c.link.ended(len(out), time.Now())
	return err
}

func (w *server) serveDAG(br *bufio.Reader) error {
	root, leaves, err := readDAGAsk(br)
	if err != nil {
		return err
	}
	w.e.asksFor(w.c, root)
	walk := newBreadth(root)
	walk.walks = &w.e.walks
	defer walk.close()
	d := dagAnswer{w: w, walk: walk, leaves: min(leaves, maxDAGLeaves), nodes: maxDAGAnswer, limit: firstGroup}
	for d.walk.nodes > 0 || d.leaves > 0 {
		more, err := d.group()
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	if err := w.write([]byte{groupEnd}); err != nil {
		return err
	}
	if err := awaitAsk(br); !errors.Is(err, io.EOF) { // only now it has read all, and found it right
		return err
	}
	return nil
}

// dagAnswer is a dag/1 answer being given.
type dagAnswer struct {
	w      *server
	walk   *breadth
	leaves uint64 // bytes of leaves still wanted
	nodes  uint64 // bytes of other blocks that still may be sent
	limit  int    // bytes of the next group
	refs   []ref
}

// group sends the next blocks of the walk. Blocks with links are looked into
// as they are sent, so a group ends where the walk's queue does.
func (d *dagAnswer) group() (more bool, err error) {
	d.refs = d.walk.peek(d.refs[:0], maxAsk)
	if len(d.refs) == 0 {
		return false, nil
	}
	if d.leaves == 0 && d.refs[0].codec == codecRaw {
		n := 0
		for n < len(d.refs) && d.refs[n].codec == codecRaw {
			n++
		}
		return true, d.leaveOut(n)
	}
	for i, r := range d.refs { // one kind of block in a group: their budgets differ
		if (r.codec == codecRaw) != (d.refs[0].codec == codecRaw) {
			d.refs = d.refs[:i]
			break
		}
	}
	budget, limit := &d.nodes, d.limit
	if d.refs[0].codec == codecRaw { // no block more than makes up what is wanted
		budget, limit = &d.leaves, min(limit, int(d.leaves))
	}
	n, size, err := d.w.load(d.refs, limit)
	if err != nil {
		return false, err
	}
	spent := *budget <= uint64(size)
	*budget -= min(*budget, uint64(size))
	d.follow(d.refs[:n])
	if err := d.w.sendGroup(d.refs[:n]); err != nil {
		return false, err
	}
	d.limit = d.w.e.group
	return !d.walk.cut && (!spent || budget == &d.leaves), nil
}

// leaveOut passes over n leaves.
func (d *dagAnswer) leaveOut(n int) error {
	d.walk.skip(n)
	d.w.heads = d.w.heads[:0]
	for range n {
		d.w.heads = append(d.w.heads, headLeftOut)
	}
	if cap(d.w.buf) < headRoom {
		d.w.buf = make([]byte, headRoom)
	}
	d.w.buf = d.w.buf[:headRoom]
	return d.w.sendHeads()
}

// follow takes blocks that were read out of the walk, and their links in.
func (d *dagAnswer) follow(refs []ref) {
	d.walk.skip(len(refs))
	data := d.w.buf[headRoom:]
	for i, r := range refs {
		n := d.w.lens[i]
		if n < 0 {
			continue
		}
		if r.codec != codecRaw {
			links, err := linksOf(r, data[:n])
			if err == nil { // on both sides alike
				d.walk.add(links)
			}
		}
		data = data[n:]
	}
}

// breadth walks a DAG breadth first, each different block once. Asker and
// server walk alike, so answers need no names. A block whose links cannot be
// read has none here; so do links beyond the bound.
type breadth struct {
	queue []ref
	nodes int // of the queue, those that may have links
	seen  map[key]struct{}
	walks *walks // if set, bounds it along with others
	room  int    // blocks it may have by that
	cut   bool   // it does not have all, for lack of room
}

// maxWalks bounds the blocks in the walks of all dag/1 answers under way, of
// about 100 bytes each.
const (
	maxWalks = 2 * maxDAGLinks
	walkStep = 1024
)

// walks is what the walks of answers may take up.
type walks struct{ used atomic.Int64 }

func (w *walks) grow() bool {
	if w.used.Add(walkStep) > maxWalks {
		w.used.Add(-walkStep)
		return false
	}
	return true
}

// close gives back the room that a walk took.
func (b *breadth) close() { b.walks.used.Add(-int64(b.room)) }

func newBreadth(root ref) *breadth {
	b := &breadth{seen: map[key]struct{}{}}
	b.add([]link{{ref: root}})
	return b
}

// peek appends the next refs, n at most, and leaves them in the walk.
func (b *breadth) peek(into []ref, n int) []ref {
	return append(into, b.queue[:min(n, len(b.queue))]...)
}

// skip takes the next n out of the walk.
func (b *breadth) skip(n int) {
	for _, r := range b.queue[:n] {
		if r.codec != codecRaw {
			b.nodes--
		}
	}
	b.queue = b.queue[n:]
}

func (b *breadth) add(links []link) {
	for _, l := range links {
		if len(b.seen) >= maxDAGLinks {
			return
		}
		if _, ok := b.seen[l.ref.key]; ok {
			continue
		}
		if b.walks != nil && len(b.seen) >= b.room {
			if !b.walks.grow() {
				b.cut = true // the answer ends early: the asker goes on by get/1
				return
			}
			b.room += walkStep
		}
		b.seen[l.ref.key] = struct{}{}
		b.queue = append(b.queue, l.ref)
		if l.ref.codec != codecRaw {
			b.nodes++
		}
	}
}
