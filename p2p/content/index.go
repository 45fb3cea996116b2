package content

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The index log is a file of fixed records after an 8-byte magic:
//
//	 0  kind      1 byte: put, use, drop
//	 1  zero      3 bytes
//	 4  crc32c    4 bytes, little endian, over the record without this field
//	 8  digest   32 bytes, sha2-256 of the block
//	40  pack      4 bytes, number of the pack file
//	44  length    4 bytes of the block
//	48  offset    8 bytes into the pack file
//	56  time      8 bytes, last use in Unix seconds
//
// A put makes a block known, a use moves its time, a drop forgets it. Fixed
// records let a damaged one be skipped without losing those behind it.
const (
	indexMagic = "lbindex1"
	recordSize = 64
)

const (
	recPut  = 1
	recUse  = 2
	recDrop = 3
)

var (
	castagnoli   = crc32.MakeTable(crc32.Castagnoli)
	errBadRecord = errors.New("damaged index record")
)

// record is one line of the index log.
type record struct {
	kind byte
	key  key
	at   place
	time int64
}

// end is the offset behind the block.
func (p place) end() uint64 { return uint64(p.offset) + uint64(p.length) }

// placeAt is where a block of n bytes written at off lies. One without bytes
// lies at the beginning, since nothing makes the file longer for it.
func placeAt(pack uint32, off uint64, n int) place {
	if n == 0 {
		off = 0
	}
	return place{pack: pack, length: uint32(n), offset: uint32(off)}
}

// place is where a block lies.
type place struct {
	pack   uint32
	length uint32
	offset uint32 // a pack is smaller than 4 GiB
}

func (r *record) encode(b *[recordSize]byte) {
	clear(b[:])
	b[0] = r.kind
	copy(b[8:40], r.key[:])
	binary.LittleEndian.PutUint32(b[40:], r.at.pack)
	binary.LittleEndian.PutUint32(b[44:], r.at.length)
	binary.LittleEndian.PutUint64(b[48:], uint64(r.at.offset))
	binary.LittleEndian.PutUint64(b[56:], uint64(r.time))
	binary.LittleEndian.PutUint32(b[4:], recordSum(b))
}

func decodeRecord(b *[recordSize]byte) (record, error) {
	if binary.LittleEndian.Uint32(b[4:]) != recordSum(b) {
		return record{}, errBadRecord
	}
	r := record{
		kind: b[0],
		key:  key(b[8:40]),
		at: place{
			pack:   binary.LittleEndian.Uint32(b[40:]),
			length: binary.LittleEndian.Uint32(b[44:]),
			offset: binary.LittleEndian.Uint32(b[48:]),
		},
		time: int64(binary.LittleEndian.Uint64(b[56:])),
	}
	if r.kind < recPut || r.kind > recDrop || b[1]|b[2]|b[3] != 0 || r.at.length > MaxBlockHard ||
		binary.LittleEndian.Uint32(b[52:]) != 0 {
		return record{}, errBadRecord
	}
	return r, nil
}

func recordSum(b *[recordSize]byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:4], castagnoli), castagnoli, b[8:])
}

// indexPiece is how many bytes of the log are read or written at once.
const indexPiece = 16384 * recordSize

// indexLog is the append-only file behind the in-memory index.
type indexLog struct {
	fs      fileSystem
	path    string
	f       diskFile
	size    int64 // bytes that are whole records, durable
	records int   // records in the file, live or not
	unclean bool  // there may be bytes of a failed add behind size
}

// replayed counts what reading an index log found.
type replayed struct {
	records int
	damaged int   // records that fail their checksum, with good ones behind them
	torn    int64 // bytes at the end that were not written whole
}

// openIndex opens or creates the log at path and hands every good record to
// apply, in order, after telling expect how many there are at most. What is
// not whole at the end is cut off, and what is there is made durable: a killed
// process may have left it in the kernel's memory alone.
func openIndex(fs fileSystem, path string, expect func(records int), apply func(record)) (*indexLog, replayed, error) {
	var st replayed
	f, err := fs.open(path)
	if err != nil {
		return nil, st, fmt.Errorf("open index: %w", err)
	}
	l := &indexLog{fs: fs, path: path, f: f}
	err = l.replay(expect, apply, &st)
	if err == nil {
		if err = f.Sync(); err != nil && l.records == 0 {
			// The next process must not take for durable what the kernel may
			// have given up.
			err = errors.Join(err, f.Truncate(0))
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, st, fmt.Errorf("read index %s: %w", path, err)
	}
	return l, st, nil
}

func (l *indexLog) replay(expect func(int), apply func(record), st *replayed) error {
	size, err := l.f.size()
	if err != nil {
		return err
	}
	if fresh, err := l.begin(size); fresh || err != nil {
		return err
	}
	expect(int((size - l.size) / recordSize))
	good, bad := l.size, 0 // up to the last good record, and bad ones since
	err = l.scan(size, func(b *[recordSize]byte) {
		r, err := decodeRecord(b)
		if err != nil {
			bad++
			return
		}
		l.records += bad + 1
		st.damaged += bad
		st.records++
		good += int64(bad+1) * recordSize
		bad = 0
		apply(r)
	})
	if err != nil {
		return err
	}
	l.size = good
	if st.torn = size - good; st.torn > 0 {
		return l.f.Truncate(good)
	}
	return nil
}

// begin checks the magic, or writes it if the log is new or its making was
// interrupted.
func (l *indexLog) begin(size int64) (fresh bool, err error) {
	magic := make([]byte, len(indexMagic))
	l.size = int64(len(indexMagic))
	if size >= l.size {
		if _, err := l.f.ReadAt(magic, 0); err != nil {
			return false, err
		}
		if string(magic) == indexMagic {
			return false, nil
		}
		// A crash may keep a file's length without its bytes.
		if size > l.size || string(magic) != string(make([]byte, len(indexMagic))) {
			return false, fmt.Errorf("%w: it does not begin with %q; move the store's folder away to begin a new one", ErrMalformed, indexMagic)
		}
	}
	if err := l.f.Truncate(0); err != nil {
		return false, err
	}
	_, err = l.f.WriteAt([]byte(indexMagic), 0)
	return true, err
}

// scan hands the records between l.size and end to visit.
func (l *indexLog) scan(end int64, visit func(*[recordSize]byte)) error {
	end -= (end - l.size) % recordSize
	return scanRecords(l.f, l.size, end, visit)
}

func scanRecords(f diskFile, at, end int64, visit func(*[recordSize]byte)) error {
	buf := make([]byte, min(indexPiece, max(0, end-at)))
	for ; at < end; at += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), end-at)]
		if _, err := f.ReadAt(buf, at); err != nil {
			return err
		}
		for b := buf; len(b) > 0; b = b[recordSize:] {
			visit((*[recordSize]byte)(b))
		}
	}
	return nil
}

// add appends records and makes them durable. After an error the log's tail is
// where it was, so that the same records can be added again.
func (l *indexLog) add(recs []record) error {
	if err := l.clean(); err != nil {
		return err
	}
	if len(recs) == 0 {
		return nil
	}
	l.unclean = true
	if err := l.append(recs); err != nil {
		// What was written needs room, and must not be taken for durable by
		// the next process: the kernel may have given it up.
		err = errors.Join(err, l.f.Truncate(l.size))
		return fmt.Errorf("write index %s: %w", l.path, err)
	}
	return nil
}

func (l *indexLog) append(recs []record) error {
	end := l.size
	buf := make([]byte, 0, min(len(recs)*recordSize, indexPiece))
	for i := range recs {
		buf = buf[:len(buf)+recordSize]
		recs[i].encode((*[recordSize]byte)(buf[len(buf)-recordSize:]))
		if len(buf) < indexPiece && i < len(recs)-1 {
			continue
		}
		if _, err := l.f.WriteAt(buf, end); err != nil {
			return err
		}
		end += int64(len(buf))
		buf = buf[:0]
	}
	if err := l.f.Sync(); err != nil {
		return err
	}
	l.records += len(recs)
	l.size = end
	l.unclean = false
	return nil
}

// clean takes back for good what a failed add may have left.
func (l *indexLog) clean() error {
	if !l.unclean {
		return nil
	}
	err := l.f.Truncate(l.size)
	if err == nil {
		err = l.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("repair index %s: %w", l.path, err)
	}
	l.unclean = false
	return nil
}

// rewrite makes a log beside l of those of its records that still say
// something, durable but not yet in l's place. keep changes records to what is
// to be written of them, in place, and returns how many are.
func (l *indexLog) rewrite(keep func([]record) []record) (*indexLog, error) {
	tmp := l.path + ".new"
	f, err := l.fs.create(tmp)
	if err != nil {
		return nil, fmt.Errorf("new index: %w", err)
	}
	n := &indexLog{fs: l.fs, path: l.path, f: f, size: int64(len(indexMagic))}
	if err := l.copyTo(n, keep); err != nil {
		_ = f.Close()
		_ = l.fs.remove(tmp)
		return nil, fmt.Errorf("rewrite index %s: %w", l.path, err)
	}
	return n, nil
}

func (l *indexLog) copyTo(n *indexLog, keep func([]record) []record) error {
	if _, err := n.f.WriteAt([]byte(indexMagic), 0); err != nil {
		return err
	}
	const piece = indexPiece / recordSize
	recs := make([]record, 0, piece)
	at := n.size
	flush := func() error {
		kept := keep(recs)
		if recs = recs[:0]; len(kept) == 0 {
			return nil
		}
		buf := make([]byte, len(kept)*recordSize)
		for i := range kept {
			kept[i].encode((*[recordSize]byte)(buf[i*recordSize:]))
		}
		if _, err := n.f.WriteAt(buf, at); err != nil {
			return err
		}
		at += int64(len(buf))
		n.records += len(kept)
		return nil
	}
	var ferr error
	err := scanRecords(l.f, int64(len(indexMagic)), l.size, func(b *[recordSize]byte) {
		if r, err := decodeRecord(b); err == nil && ferr == nil {
			if recs = append(recs, r); len(recs) == piece {
				ferr = flush()
			}
		}
	})
	if err = errors.Join(err, ferr); err != nil {
		return err
	}
	if err := flush(); err != nil {
		return err
	}
	n.size = at
	return n.f.Sync()
}

// replace puts n in the place of the log it was made of. The new name is not
// durable before the folder is synced.
func (n *indexLog) replace() error {
	if err := n.fs.rename(n.path+".new", n.path); err != nil {
		return fmt.Errorf("rewrite index %s: %w", n.path, err)
	}
	return nil
}

func (l *indexLog) close() error { return l.f.Close() }
