package sandbox

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func tick() func() time.Time {
	n := int64(0)
	return func() time.Time { n++; return time.Unix(1_700_000_000, n) }
}

func readerOf(data []byte) *frameReader { return newFrameReader(bytes.NewReader(data)) }

func TestLogBoundAndMarker(t *testing.T) {
	var file bytes.Buffer
	told := 0
	l := newLogWriter(&file, 200, tick(), func() { told++ })
	l.write(Stdout, bytes.Repeat([]byte("a"), 100)) // 124 of 200
	l.write(Stderr, bytes.Repeat([]byte("b"), 100)) // 52 fit
	l.write(Stdout, bytes.Repeat([]byte("c"), 10))
	dropped, err := l.close()
	if err != nil || dropped != 58 || told != 4 {
		t.Errorf("dropped %d, told %d, %v", dropped, told, err)
	}
	recs, err := readerOf(file.Bytes()).read(0, 1<<20)
	if err != nil || len(recs) != 4 {
		t.Fatalf("%v %v", recs, err)
	}
	want := []string{strings.Repeat("a", 100), strings.Repeat("b", 52), "log limit of 200 B reached: what follows is dropped\n", "58 B of output were dropped\n"}
	for i, r := range recs {
		if string(r.Data) != want[i] || r.Seq != uint64(i+1) || r.Time.UnixNano() != 1_700_000_000_000_000_000+int64(i+1) {
			t.Errorf("record %d: %+v %q", i, r, r.Data)
		}
	}
	if recs[1].Stream != Stderr || recs[2].Stream != Notice || recs[3].Stream != Notice {
		t.Errorf("streams: %v", recs)
	}
}

func TestLogBoundOfTinyWrites(t *testing.T) {
	var file bytes.Buffer
	l := newLogWriter(&file, 10<<10, tick(), func() {})
	for range 100_000 {
		l.write(Stdout, []byte("x"))
	}
	if _, err := l.close(); err != nil || file.Len() > 10<<10+200 {
		t.Errorf("%d bytes, %v", file.Len(), err)
	}
}

// full fails after room bytes, as a full disk does.
type full struct {
	bytes.Buffer
	room int
}

var errFull = errors.New("disk full")

func (f *full) Write(p []byte) (int, error) {
	n, _ := f.Buffer.Write(p[:min(len(p), f.room-f.Len())])
	if n < len(p) {
		return n, errFull
	}
	return n, nil
}

func TestLogOnFullDisk(t *testing.T) {
	f := &full{room: 70}
	l := newLogWriter(f, 1<<20, tick(), func() {})
	l.write(Stdout, []byte("first"))
	l.write(Stdout, bytes.Repeat([]byte("x"), 100))
	l.write(Stdout, []byte("third"))
	dropped, err := l.close()
	if dropped != 105 || !errors.Is(err, errFull) {
		t.Errorf("%d %v", dropped, err)
	}
	recs, err := readerOf(f.Bytes()).read(0, 1<<20)
	if err != nil || len(recs) != 1 || string(recs[0].Data) != "first" {
		t.Errorf("%v %v", recs, err)
	}
}

// What is written is read, from any record on, in any portions, also while the
// end of the file is cut anywhere.
func TestLogProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var file bytes.Buffer
		l := newLogWriter(&file, 1<<20, tick(), func() {})
		var ends []int
		chunks := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 1, 50), 1, 20).Draw(rt, "chunks")
		for i, c := range chunks {
			l.write(uint8(1+i%2), c)
			ends = append(ends, file.Len())
		}
		cut := rapid.IntRange(0, file.Len()).Draw(rt, "cut")
		whole := 0
		for whole < len(ends) && ends[whole] <= cut {
			whole++
		}
		r := readerOf(file.Bytes()[:cut])
		for range 3 {
			from := rapid.IntRange(0, whole+1).Draw(rt, "from")
			portion := rapid.IntRange(1, 200).Draw(rt, "portion")
			next := max(from, 1)
			for {
				recs, err := r.read(uint64(next), portion)
				if err != nil {
					rt.Fatal(err)
				}
				if len(recs) == 0 {
					break
				}
				for _, rec := range recs {
					if rec.Seq != uint64(next) || !bytes.Equal(rec.Data, chunks[next-1]) {
						rt.Fatalf("record %d: %+v", next, rec)
					}
					next++
				}
			}
			if next != max(from, whole+1) && next != whole+1 {
				rt.Fatalf("read to %d of %d", next, whole)
			}
		}
	})
}

func FuzzFrames(f *testing.F) {
	var file bytes.Buffer
	l := newLogWriter(&file, 100, tick(), func() {})
	l.write(Stdout, []byte("hello"))
	l.write(Stderr, bytes.Repeat([]byte("y"), 200))
	f.Add(file.Bytes())
	f.Add(file.Bytes()[:30])
	f.Add([]byte{255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		recs, err := readerOf(data).read(0, 1<<20)
		total := 0
		for i, r := range recs {
			if r.Seq != uint64(i+1) || r.Stream < Stdout || r.Stream > Notice {
				t.Errorf("%+v", r)
			}
			total += frameHeader + len(r.Data)
		}
		if total > len(data) || err != nil && !errors.Is(err, errFrame) && !errors.Is(err, io.EOF) {
			t.Errorf("%d of %d bytes, %v", total, len(data), err)
		}
	})
}
