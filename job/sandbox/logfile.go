package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Streams of a log record.
const (
	Stdout = 1
	Stderr = 2
	Notice = 3 // a line of the sandbox itself: output was dropped
)

// Record is one piece of output, as it was read from the container.
type Record struct {
	Seq    uint64 // from 1, without gaps
	Stream uint8
	Time   time.Time
	Data   []byte
}

// The log file is a row of frames: length of the data (uint32), stream (uint8),
// three zero bytes, sequence number (uint64), unix nanoseconds (int64), data;
// all little endian. The last frame may be torn if its writer was killed.
const (
	frameHeader = 24
	maxChunk    = 64 << 10
)

var errFrame = errors.New("damaged log frame")

func putHeader(b []byte, r Record) {
	clear(b[:frameHeader])
	binary.LittleEndian.PutUint32(b, uint32(len(r.Data))) //nolint:gosec // at most maxChunk
	b[4] = r.Stream
	binary.LittleEndian.PutUint64(b[8:], r.Seq)
	binary.LittleEndian.PutUint64(b[16:], uint64(r.Time.UnixNano())) //nolint:gosec // bits are kept
}

// parseHeader gives a record without data, and the length of its data.
func parseHeader(b []byte) (Record, int, error) {
	n := binary.LittleEndian.Uint32(b)
	if n > maxChunk || b[4] < Stdout || b[4] > Notice || b[5]|b[6]|b[7] != 0 {
		return Record{}, 0, errFrame
	}
	nanos := int64(binary.LittleEndian.Uint64(b[16:])) //nolint:gosec // bits are kept
	return Record{
		Stream: b[4],
		Seq:    binary.LittleEndian.Uint64(b[8:]),
		Time:   time.Unix(0, nanos),
	}, int(n), nil
}

// logWriter bounds and numbers the records of one container.
type logWriter struct {
	now    func() time.Time
	notify func() // after each record

	mu      sync.Mutex
	file    io.Writer
	buf     []byte
	seq     uint64
	used    uint64
	limit   uint64
	dropped uint64
	cut     time.Time // when the limit was met
	failed  error
}

func newLogWriter(w io.Writer, limit uint64, now func() time.Time, notify func()) *logWriter {
	return &logWriter{file: w, limit: limit, now: now, notify: notify, buf: make([]byte, frameHeader+maxChunk)}
}

// write takes one chunk of at most maxChunk bytes; what is over the limit is
// counted and dropped.
func (l *logWriter) write(stream uint8, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var room uint64
	if l.used+frameHeader < l.limit && l.dropped == 0 && l.failed == nil {
		room = l.limit - l.used - frameHeader
	}
	keep := int(min(uint64(len(data)), room)) //nolint:gosec // at most len(data)
	if keep > 0 {
		l.put(stream, data[:keep])
	}
	if keep == len(data) {
		return
	}
	first := l.dropped == 0
	l.dropped += uint64(len(data) - keep) //nolint:gosec // positive
	if first && l.failed == nil {
		l.cut = l.put(Notice, fmt.Appendf(nil, "log limit of %s reached: what follows is dropped\n", bytesText(l.limit)))
	}
}

// notice adds a line of the sandbox itself, whatever the limit.
func (l *logWriter) notice(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil {
		l.put(Notice, []byte(text+"\n"))
	}
}

// exceeded names the limit of a log that was cut.
func (l *logWriter) exceeded() *Exceeded {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut.IsZero() {
		return nil
	}
	return &Exceeded{Limit: LimitLog, Max: l.limit, Seen: l.limit + l.dropped, At: l.cut}
}

// close writes the final record of a log that was cut.
func (l *logWriter) close() (dropped uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dropped > 0 && l.failed == nil {
		l.put(Notice, fmt.Appendf(nil, "%s of output were dropped\n", bytesText(l.dropped)))
	}
	return l.dropped, l.failed
}

// put writes a frame with one write call. After a failed write nothing more is
// written: the file ends in one torn frame at most.
func (l *logWriter) put(stream uint8, data []byte) time.Time {
	r := Record{Seq: l.seq + 1, Stream: stream, Time: l.now(), Data: data}
	putHeader(l.buf, r)
	n := copy(l.buf[frameHeader:], data)
	if _, err := l.file.Write(l.buf[:frameHeader+n]); err != nil {
		l.failed = err
		l.dropped += uint64(n) //nolint:gosec // positive
		return r.Time
	}
	l.seq++
	l.used += uint64(frameHeader + n) //nolint:gosec // positive
	l.notify()
	return r.Time
}

// frameReader reads records from a file that may still grow.
type frameReader struct {
	file io.ReaderAt
	seq  uint64 // of the record at off
	off  int64
}

func newFrameReader(f io.ReaderAt) *frameReader { return &frameReader{file: f, seq: 1} }

// read gives whole records from seq on, up to max bytes of data but at least
// one record where there is one. It gives none at the present end.
func (f *frameReader) read(seq uint64, maxBytes int) ([]Record, error) {
	seq = max(seq, 1)
	if seq < f.seq {
		f.seq, f.off = 1, 0
	}
	var out []Record
	total := 0
	for {
		r, n, err := f.header()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if r.Seq >= seq && total > 0 && total+n > maxBytes {
			return out, nil
		}
		whole, err := f.data(&r, n, r.Seq >= seq)
		if err != nil || !whole {
			return out, err
		}
		f.seq, f.off = f.seq+1, f.off+int64(frameHeader+n)
		if r.Seq >= seq {
			out, total = append(out, r), total+n
		}
	}
}

func (f *frameReader) header() (Record, int, error) {
	var b [frameHeader]byte
	if n, err := f.file.ReadAt(b[:], f.off); n < len(b) {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return Record{}, 0, err
	}
	r, n, err := parseHeader(b[:])
	if err != nil || r.Seq != f.seq {
		return Record{}, 0, fmt.Errorf("%w at byte %d", errFrame, f.off)
	}
	return r, n, nil
}

// data fills r where wanted; it says false for a frame not written whole yet.
func (f *frameReader) data(r *Record, n int, want bool) (bool, error) {
	at := f.off + frameHeader
	if !want && n > 0 { // its last byte is enough
		n, at = 1, at+int64(n)-1
	}
	r.Data = make([]byte, n)
	m, err := f.file.ReadAt(r.Data, at)
	if m == len(r.Data) {
		return true, nil
	}
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	return false, err
}
