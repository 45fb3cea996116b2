package content

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/ipfs/boxo/ipld/unixfs"
	"google.golang.org/protobuf/encoding/protowire"
)

// made is a node that was made: its id, and the bytes of all blocks under it.
type made struct {
	ref  ref
	size uint64
}

// attributes are what a node says of a file or folder beside its content; zero
// says nothing.
type attributes struct {
	mode  fs.FileMode
	mtime time.Time
}

func (at attributes) none() bool { return at.mode == 0 && at.mtime.IsZero() }

// attributesOf returns what is to be written down; permissions as in plain are
// not.
func (a *adder) attributesOf(fi fs.FileInfo, plain fs.FileMode) attributes {
	at := attributes{mode: fi.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)}
	if at.mode == plain {
		at.mode = 0
	}
	if a.o.ModTime {
		at.mtime = fi.ModTime()
	}
	return at
}

// addWorker reads and hashes; its blocks gather in a batch before they are put.
type addWorker struct {
	a     *adder
	arena []byte
	items []batched
}

// batched is a block in the arena.
type batched struct {
	key      key
	from, to int
}

// arenaSize bounds a batch; two chunks fit.
const arenaSize = 2 << 20

func (a *adder) worker() *addWorker { return &addWorker{a: a} }

// space returns n bytes of the arena to read into; took says what of them is a
// block.
func (w *addWorker) space(n int) ([]byte, error) {
	if w.arena == nil {
		w.arena = make([]byte, 0, arenaSize)
	}
	if len(w.arena)+n > cap(w.arena) {
		if err := w.flush(); err != nil {
			return nil, err
		}
	}
	return w.arena[len(w.arena) : len(w.arena)+n], nil
}

func (w *addWorker) took(k key, n int) {
	from := len(w.arena)
	w.arena = w.arena[:from+n]
	w.items = append(w.items, batched{k, from, from + n})
}

// put adds a block whose digest is known to the batch.
func (w *addWorker) put(k key, data []byte) error {
	if len(data) > MaxBlockHard {
		return fmt.Errorf("block %s of %d bytes: %w: the limit is %d", ref{key: k}, len(data), ErrTooLarge, MaxBlockHard)
	}
	buf, err := w.space(len(data))
	if err != nil {
		return err
	}
	w.took(k, copy(buf, data))
	return nil
}

func (w *addWorker) flush() error {
	if len(w.items) == 0 {
		return nil
	}
	items := make([]putItem, 0, len(w.items))
	for _, it := range w.items {
		items = append(items, putItem{it.key, w.arena[it.from:it.to]})
	}
	w.items, w.arena = w.items[:0], w.arena[:0]
	_, err := w.a.s.putBatch(items)
	return err
}

// do makes one entry that is no folder.
func (w *addWorker) do(j fileJob) error {
	f, e := j.in, &j.in.entries[j.at]
	var err error
	switch {
	case e.kind&fs.ModeSymlink != 0:
		err = w.link(f, e)
	case e.kind.IsRegular():
		err = w.regular(f, j.at)
	default:
		err = fmt.Errorf("%w: a %v cannot be added; remove it or move it away", ErrUnsafe, e.kind.Type())
	}
	if err != nil && w.a.passOver(err) {
		e.gone, e.marked, err = true, false, nil
	}
	w.a.fileDone(f)
	if err != nil {
		return err
	}
	return w.a.entryDone(w, f)
}

func (w *addWorker) link(f *addFolder, e *addChild) error {
	to, err := f.root.Readlink(e.name)
	if err != nil {
		return err
	}
	data, err := unixfs.SymlinkData(filepath.ToSlash(to))
	if err != nil {
		return err
	}
	e.made, err = w.putNode(encodePB(nil, data), nil)
	w.a.note("files", 0, 1)
	return err
}

// regular makes a file of a folder, without opening it if the memory has one
// with the same stamp whose blocks are all here.
func (w *addWorker) regular(f *addFolder, at int) error {
	e := &f.entries[at]
	if f.recall != "" {
		fi, err := f.root.Lstat(e.name)
		if err != nil {
			return err
		}
		if m, ok := w.unchanged(f, e, fi); ok {
			e.made = m
			w.a.note("files", uint64(fi.Size()), 1) //nolint:gosec // of a regular file
			return nil
		}
		f.changed.Store(true)
	}
	looked := w.a.o.clock()
	w.a.o.opened(e.name)
	// Not waiting for a writer: the entry may have become a pipe.
	file, err := f.root.OpenFile(e.name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	fi, err := file.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%w: it is a %v by now", ErrUnsafe, fi.Mode().Type())
	}
	if e.made, err = w.stream(file, fi.Size(), w.a.attributesOf(fi, plainFile)); err != nil {
		return err
	}
	if f.recall != "" {
		w.mark(f, e, file, fi, looked)
	}
	w.a.note("files", 0, 1)
	return nil
}

// stream makes the file of size bytes that come from r, 0 is all that come.
func (w *addWorker) stream(r io.Reader, size int64, at attributes) (made, error) {
	chunk := int(profile().ChunkSize)
	if size > 0 {
		r = io.LimitReader(r, size)
	} else if w.a.o.Live {
		r = io.LimitReader(r, 0) // a writer could be followed without end
	}
	buf, err := w.space(chunk)
	if err != nil {
		return made{}, err
	}
	if size > 0 && size < int64(chunk) {
		buf = buf[:size]
	}
	n, err := io.ReadFull(r, buf)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return made{}, err
	}
	k := sha256.Sum256(buf[:n])
	w.took(k, n)
	w.a.note("files", uint64(n), 0)
	first := made{ref{key: k}, uint64(n)}
	if n < chunk {
		return w.layout([]made{first}, at)
	}
	rest, err := w.chunks(r)
	if err != nil {
		return made{}, err
	}
	return w.layout(append([]made{first}, rest...), at)
}

// chunks puts what comes from r as leaves; several goroutines hash while one
// reads.
func (w *addWorker) chunks(r io.Reader) ([]made, error) {
	a := w.a
	var group sync.WaitGroup
	var mu sync.Mutex
	var failed error
	var leaves []*made
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		failed = errors.Join(failed, err)
	}
	broken := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return failed != nil
	}
	for !broken() {
		var buf []byte
		select {
		case buf = <-a.buffers:
		case <-a.ctx.Done():
			fail(a.ctx.Err())
			continue
		}
		if buf == nil {
			buf = make([]byte, profile().ChunkSize)
		}
		n, err := io.ReadFull(r, buf)
		if n == 0 || err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			a.buffers <- buf
			if !errors.Is(err, io.EOF) {
				fail(err)
			}
			break
		}
		leaf := &made{size: uint64(n)}
		leaves = append(leaves, leaf)
		group.Go(func() {
			leaf.ref.key = sha256.Sum256(buf[:n])
			if err := a.s.put(leaf.ref.key, buf[:n]); err != nil {
				fail(err)
			}
			a.buffers <- buf
			a.note("files", uint64(n), 0)
		})
	}
	group.Wait()
	out := make([]made, 0, len(leaves))
	for _, l := range leaves {
		out = append(out, *l)
	}
	return out, failed
}

// layout makes the nodes above a file's leaves: balanced, as wide as the
// profile says, all leaves equally deep. A single leaf is the file, unless
// there is more to say than a raw block can.
func (w *addWorker) layout(leaves []made, at attributes) (made, error) {
	level := make([]filePart, 0, len(leaves))
	for _, l := range leaves {
		level = append(level, filePart{l, l.size})
	}
	if len(level) == 1 {
		if at.none() {
			return level[0].made, nil
		}
		if level[0].bytes == 0 {
			level = nil // an empty leaf is not worth a link
		}
	}
	width := profile().FileDAGWidth
	for first := true; first || len(level) > 1; first = false {
		var above []filePart
		for from := 0; from < max(len(level), 1); from += width {
			group := level[from:min(from+width, len(level))]
			own := attributes{}
			if len(level) <= width {
				own = at
			}
			p, err := w.fileNode(group, own)
			if err != nil {
				return made{}, err
			}
			above = append(above, p)
		}
		level = above
	}
	return level[0].made, nil
}

// filePart is a node of a file, with the file's bytes under it.
type filePart struct {
	made
	bytes uint64
}

// fileNode makes the node above some parts of a file.
func (w *addWorker) fileNode(parts []filePart, at attributes) (filePart, error) {
	n := unixfs.NewFSNode(unixfs.TFile)
	links := make([]pbLink, 0, len(parts))
	var bytes uint64
	for _, p := range parts {
		n.AddBlockSize(p.bytes)
		bytes += p.bytes
		links = append(links, pbLink{p.ref, "", p.size})
	}
	if at.mode != 0 {
		n.SetMode(at.mode)
	}
	if !at.mtime.IsZero() {
		n.SetModTime(at.mtime)
	}
	data, err := n.GetBytes()
	if err != nil {
		return filePart{}, err
	}
	m, err := w.putNode(encodePB(links, data), links)
	return filePart{m, bytes}, err
}

// pbLink is a link of a dag-pb node.
type pbLink struct {
	ref  ref
	name string
	size uint64
}

// putNode puts an encoded dag-pb node.
func (w *addWorker) putNode(node []byte, links []pbLink) (made, error) {
	m := made{ref{key: sha256.Sum256(node), codec: codecPB}, uint64(len(node))}
	for _, l := range links {
		m.size = addCapped(m.size, l.size)
	}
	return m, w.put(m.ref.key, node)
}

// encodePB writes a dag-pb node in its one canonical form: links first, which
// must be in the order of their names (https://ipld.io/specs/codecs/dag-pb/spec/).
func encodePB(links []pbLink, data []byte) []byte {
	size := len(data) + 16
	for _, l := range links {
		size += len(l.name) + 64
	}
	out := make([]byte, 0, size)
	var one []byte
	for _, l := range links {
		one = protowire.AppendTag(one[:0], 1, protowire.BytesType)
		one = protowire.AppendBytes(one, l.ref.cid().Bytes())
		one = protowire.AppendTag(one, 2, protowire.BytesType)
		one = protowire.AppendString(one, l.name)
		one = protowire.AppendTag(one, 3, protowire.VarintType)
		one = protowire.AppendVarint(one, l.size)
		out = protowire.AppendTag(out, 2, protowire.BytesType)
		out = protowire.AppendBytes(out, one)
	}
	out = protowire.AppendTag(out, 1, protowire.BytesType)
	return protowire.AppendBytes(out, data)
}
