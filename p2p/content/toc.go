package content

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// A layer's table of contents lists the entries of its tar in their order, so
// that the names of a layer are known before its files are here, and where in
// the tar each lies. It is one or more raw blocks, linked from the layer map.
// A block is
//
//	uvarint start: where in the tar its first entry begins, in units of 512 bytes
//	entries, until the block ends
//
// and an entry, as archive/tar reads its headers,
//
//	uvarint n, bytes: as many bytes of the name as are those of the entry
//	                  before it in the block, and the rest with its length
//	byte type; uvarint mode (12 bits), uid, gid
//	varint  modified: seconds, less those of the entry before it in the block
//	uvarint nanoseconds, size
//	uvarint span: bytes from here to the next entry, in units of 512
//	bytes   target of a link, with its length before it; only of links
//	uvarint n, n times: bytes name, bytes value of an extended attribute, sorted
//
// Names and values come with their lengths before them. What a file may be,
// the tar decides: a reader compares the header that lies in the tar with the
// entry before it believes either.
const (
	tocUnit     = 512
	tocBlock    = 512 << 10 // bytes at which a block is ended
	maxTOC      = 1 << 9    // blocks of one layer
	maxEntries  = 1 << 20   // entries of one layer that has a table
	tocXattrs   = 64        // of one entry
	tocXattrLen = 64 << 10  // as Linux has it
	xattrPrefix = "SCHILY.xattr."
)

// tocEntry is an entry of a layer's tar.
type tocEntry struct {
	name      string
	kind      byte
	mode      uint32
	uid, gid  uint32
	mtime     time.Time
	size      uint64
	link      string
	xattrs    []xattr
	from, len uint64 // of headers, body and padding in the tar
}

type xattr struct{ name, value string }

// errNoTOC says why a layer gets no table; such a layer is fetched whole.
var errNoTOC = errors.New("no table of contents is made of this layer")

// entryOf takes from a header what a table holds.
func entryOf(h *tar.Header) (tocEntry, error) {
	e := tocEntry{
		name: h.Name, kind: h.Typeflag, mode: uint32(h.Mode & 0o7777), //nolint:gosec // 12 bits
		mtime: h.ModTime.UTC(), size: uint64(max(h.Size, 0)), //nolint:gosec // not negative
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return tocEntry{kind: e.kind}, nil
	}
	const maxID = 1<<32 - 2
	if h.Uid < 0 || h.Gid < 0 || uint64(h.Uid) > maxID || uint64(h.Gid) > maxID || h.Size < 0 {
		return e, fmt.Errorf("%w: owner %d:%d or size %d", errNoTOC, h.Uid, h.Gid, h.Size)
	}
	e.uid, e.gid = uint32(h.Uid), uint32(h.Gid) //nolint:gosec // checked
	if h.Typeflag == tar.TypeGNUSparse || isSparse(h.PAXRecords) {
		return e, fmt.Errorf("%w: %.100q is sparse", errNoTOC, h.Name)
	}
	if headerOnly(h.Typeflag) {
		e.size = 0
	}
	if h.Typeflag == tar.TypeLink || h.Typeflag == tar.TypeSymlink {
		e.link = h.Linkname
	}
	for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		if name, ok := strings.CutPrefix(k, xattrPrefix); ok {
			e.xattrs = append(e.xattrs, xattr{name, h.PAXRecords[k]})
		}
	}
	return e, e.check()
}

// check bounds an entry.
func (e *tocEntry) check() error {
	if len(e.name) > maxPathLen || len(e.link) > maxPathLen || len(e.xattrs) > tocXattrs {
		return fmt.Errorf("%w: %w: name, link or attributes of %.100q", errNoTOC, ErrTooLarge, e.name)
	}
	n := 0
	for _, x := range e.xattrs {
		n += len(x.name) + len(x.value)
	}
	if n > tocXattrLen || e.size > maxLayerLen || e.mtime.Unix() > 1<<40 || e.mtime.Unix() < -1<<40 {
		return fmt.Errorf("%w: %w: attributes, size or time of %.100q", errNoTOC, ErrTooLarge, e.name)
	}
	return nil
}

// memory is about what it takes to keep an entry in a tocTree.
func (e *tocEntry) memory() int {
	n := tocEntrySize + len(e.name) + len(e.link)
	for _, x := range e.xattrs {
		n += tocXattrSize + len(x.name) + len(x.value)
	}
	return n
}

// same says whether two entries are of one file, wherever they lie.
func (e *tocEntry) same(o *tocEntry) bool {
	return e.name == o.name && e.kind == o.kind && e.mode == o.mode && e.uid == o.uid && e.gid == o.gid &&
		e.mtime.Equal(o.mtime) && e.size == o.size && e.link == o.link && slices.Equal(e.xattrs, o.xattrs)
}

func isSparse(pax map[string]string) bool {
	for k := range pax {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// headerOnly says whether entries of a kind have no body, whatever size they
// name (archive/tar's isHeaderOnly).
func headerOnly(kind byte) bool {
	switch kind {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return true
	}
	return false
}

// countReader counts what it gives.
type countReader struct {
	r io.Reader
	n uint64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += uint64(n) //nolint:gosec // not negative
	return n, err
}

// eachEntry calls f for the entries of a layer tar, in their order, with their
// places. What follows the end mark is not read.
func eachEntry(r io.Reader, f func(*tocEntry) error) error {
	c := &countReader{r: r}
	tr := tar.NewReader(c)
	var last *tocEntry
	var next uint64 // where the entry after last begins
	flush := func() error {
		if last == nil {
			return nil
		}
		last.len = next - last.from
		return f(last)
	}
	for {
		h, err := tr.Next()
		if ferr := flush(); ferr != nil {
			return ferr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errNoTOC, err)
		}
		e, err := entryOf(h)
		if err != nil {
			return err
		}
		if c.n < next+tocUnit || c.n%tocUnit != 0 && e.kind != tar.TypeXGlobalHeader { // whose records are read as a header
			return fmt.Errorf("%w: headers end at %d", errNoTOC, c.n)
		}
		e.from = next
		next = (c.n + e.size + tocUnit - 1) / tocUnit * tocUnit
		last = &e
	}
}

// tocWriter makes the blocks of a table.
type tocWriter struct {
	put    func([]byte) error
	buf    []byte
	name   string
	mtime  int64
	blocks int
	total  int
}

func (w *tocWriter) add(e *tocEntry) error {
	if w.total++; w.total > maxEntries {
		return fmt.Errorf("%w: more than %d entries", errNoTOC, maxEntries)
	}
	if len(w.buf) >= tocBlock {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if len(w.buf) == 0 {
		w.buf = binary.AppendUvarint(w.buf, e.from/tocUnit)
		w.name, w.mtime = "", 0
	}
	shared := 0
	for shared < min(len(w.name), len(e.name)) && w.name[shared] == e.name[shared] {
		shared++
	}
	b := binary.AppendUvarint(w.buf, uint64(shared)) //nolint:gosec // a length
	b = appendText(b, e.name[shared:])
	b = append(b, e.kind)
	for _, n := range []uint32{e.mode, e.uid, e.gid} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	sec := e.mtime.Unix()
	if e.kind == tar.TypeXGlobalHeader {
		sec = w.mtime
	}
	b = binary.AppendVarint(b, sec-w.mtime)
	b = binary.AppendUvarint(b, uint64(e.mtime.Nanosecond())) //nolint:gosec // not negative
	b = binary.AppendUvarint(b, e.size)
	b = binary.AppendUvarint(b, e.len/tocUnit)
	if e.kind == tar.TypeLink || e.kind == tar.TypeSymlink {
		b = appendText(b, e.link)
	}
	b = binary.AppendUvarint(b, uint64(len(e.xattrs)))
	for _, x := range e.xattrs {
		b = appendText(appendText(b, x.name), x.value)
	}
	w.buf, w.name, w.mtime = b, e.name, sec
	return nil
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func (w *tocWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	if w.blocks++; w.blocks > maxTOC {
		return fmt.Errorf("%w: more than %d blocks", errNoTOC, maxTOC)
	}
	err := w.put(w.buf)
	w.buf = nil
	return err
}

// tocReader reads one block of a table.
type tocReader struct {
	b     []byte
	err   error
	name  string
	mtime int64
	at    uint64
}

// decodeTOC calls f for each entry of a block, which begins where the block
// before it ended, at.
func decodeTOC(data []byte, at uint64, f func(*tocEntry) error) (end uint64, err error) {
	r := &tocReader{b: data}
	if r.num(maxLayerLen/tocUnit) != at/tocUnit && r.err == nil {
		return 0, fmt.Errorf("%w: a table of contents has a gap at %d", ErrMalformed, at)
	}
	r.at = at
	for r.err == nil && len(r.b) > 0 {
		e := r.entry()
		if r.err != nil {
			break
		}
		if err := f(&e); err != nil {
			return 0, err
		}
	}
	if r.err != nil {
		return 0, fmt.Errorf("table of contents: %w", r.err)
	}
	return r.at, nil
}

func (r *tocReader) entry() tocEntry {
	shared := int(r.num(uint64(len(r.name)))) //nolint:gosec // a length
	e := tocEntry{name: r.name[:shared] + r.text(maxPathLen)}
	if len(r.b) > 0 {
		e.kind, r.b = r.b[0], r.b[1:]
	} else {
		r.fail("an entry is cut off")
	}
	e.mode = uint32(r.num(0o7777))   //nolint:gosec // bounded
	e.uid = uint32(r.num(1<<32 - 2)) //nolint:gosec // bounded
	e.gid = uint32(r.num(1<<32 - 2)) //nolint:gosec // bounded
	sec, n := binary.Varint(r.b)
	if n <= 0 || sec > 1<<42 || sec < -1<<42 {
		r.fail("time of an entry")
		return e
	}
	r.b = r.b[n:]
	r.mtime += sec
	nsec := int64(r.num(1e9 - 1)) //nolint:gosec // bounded
	if e.kind != tar.TypeXGlobalHeader {
		e.mtime = time.Unix(r.mtime, nsec).UTC()
	}
	e.size = r.num(maxLayerLen)
	e.from, e.len = r.at, r.num(maxLayerLen/tocUnit)*tocUnit
	if e.kind == tar.TypeLink || e.kind == tar.TypeSymlink {
		e.link = r.text(maxPathLen)
	}
	for range r.num(tocXattrs) {
		e.xattrs = append(e.xattrs, xattr{r.text(tocXattrLen), r.text(tocXattrLen)})
	}
	r.at += e.len
	r.name = e.name
	if r.err != nil {
		return e
	}
	if err := e.check(); err != nil && e.kind != tar.TypeXGlobalHeader {
		r.fail("%v", err)
	}
	if e.len < tocUnit || r.at > maxLayerLen || headerOnly(e.kind) && e.size != 0 || e.size > e.len-tocUnit {
		r.fail("%.100q of %d bytes cannot lie in %d", e.name, e.size, e.len)
	}
	return e
}

func (r *tocReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
}

func (r *tocReader) num(limit uint64) uint64 {
	if r.err != nil {
		return 0
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > limit {
		r.fail("a number is cut off or over %d", limit)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *tocReader) text(limit int) string {
	n := r.num(uint64(limit)) //nolint:gosec // a constant
	if r.err == nil && n > uint64(len(r.b)) {
		r.fail("a text is cut off")
	}
	if r.err != nil {
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}
