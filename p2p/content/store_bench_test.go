package content

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// benchRounds is how often one round of BenchmarkPut writes benchItems: to 512
// MiB.
func benchRounds(b *testing.B) int64 { return max(1, BenchBytes(b, 2)/benchItemBytes) }

const benchItemBytes = 64 << 20

// BenchmarkPut puts 512 MiB of verified blocks and makes them durable, beside a
// bare write and fsync of the same bytes to a file in the same folder, turn and
// turn about. Hashing is not in it: whoever puts a batch has hashed already.
func BenchmarkPut(b *testing.B) {
	for _, size := range []int{4 << 10, 256 << 10, 1 << 20} {
		items := benchItems(size)
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			var put, bare cost
			for range b.N {
				put.add(func() { benchPut(b, items) })
				bare.add(func() { benchBare(b, items) })
			}
			b.ReportMetric(0, "ns/op")
			put.report(b, "ours")
			bare.report(b, "bare")
			b.ReportMetric(bare.wall.Seconds()/put.wall.Seconds(), "of-bare")
		})
	}
}

// benchItems is 64 MiB of blocks; the rounds make new keys of them.
func benchItems(size int) []putItem {
	data := noise(1, benchItemBytes)
	var items []putItem
	for ; len(data) > 0; data = data[size:] {
		items = append(items, putItem{data: data[:size]})
	}
	return items
}

func benchPut(b *testing.B, items []putItem) {
	dir := b.TempDir()
	s, err := Open(dir, Options{Log: slog.New(slog.DiscardHandler)})
	noErr(b, err)
	n := uint64(0)
	per := max(1, min(1024, (4<<20)/len(items[0].data)))
	for range benchRounds(b) {
		for at := 0; at < len(items); at += per {
			batch := items[at:min(at+per, len(items))]
			for i := range batch {
				n++
				binary.LittleEndian.PutUint64(batch[i].key[:], n*0x9e3779b97f4a7c15)
			}
			_, err := s.putBatch(batch)
			noErr(b, err)
		}
	}
	noErr(b, s.Sync())
	noErr(b, s.Close())
	noErr(b, os.RemoveAll(dir))
}

func benchBare(b *testing.B, items []putItem) {
	path := filepath.Join(b.TempDir(), "bare")
	f, err := os.Create(path)
	noErr(b, err)
	data := items[0].data[:cap(items[0].data)]
	for range benchRounds(b) {
		for at := 0; at < len(data); at += 4 << 20 {
			_, err := f.Write(data[at : at+4<<20])
			noErr(b, err)
		}
	}
	noErr(b, f.Sync())
	noErr(b, f.Close())
	noErr(b, os.Remove(path))
}

// cost is the time that rounds of BenchmarkPut took.
type cost struct {
	wall, cpu time.Duration
	rounds    int
}

func (c *cost) add(f func()) {
	cpu, began := processCPU(), time.Now()
	f()
	c.wall += time.Since(began)
	c.cpu += processCPU() - cpu
	c.rounds++
}

func (c *cost) report(b *testing.B, name string) {
	bytes := float64(c.rounds) * float64(benchRounds(b)*benchItemBytes)
	b.ReportMetric(bytes/(1<<20)/c.wall.Seconds(), name+"-MiB/s")
	b.ReportMetric(c.cpu.Seconds()/(bytes/(1<<30)), name+"-cpu-s/GiB")
}

// BenchmarkGet reads blocks at random out of the page cache: verified, as it
// is served when it was verified lately, and bare.
func BenchmarkGet(b *testing.B) {
	for _, size := range []int{4 << 10, 256 << 10, 1 << 20} {
		s := testStore(b)
		var refs []ref
		for i := range (32 << 20) / size {
			data := noise(uint64(i), size)
			putRaw(b, s, data)
			refs = append(refs, rawRef(data))
		}
		noErr(b, s.Sync())
		buf := make([]byte, size)
		f := s.packs[1].f
		for _, way := range []struct {
			name string
			read func(r ref) error
		}{
			{"get", func(r ref) error { _, err := s.get(r, buf); return err }},
			{"served", func(r ref) error { _, err := s.getServed(r, buf); return err }},
			{"bare", func(r ref) error { _, err := f.ReadAt(buf, int64(s.blocks[r.key].at.offset)); return err }},
		} {
			b.Run(fmt.Sprintf("%dKiB/%s", size>>10, way.name), func(b *testing.B) {
				rng := rand.New(rand.NewPCG(1, 2))
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for range b.N {
					noErr(b, way.read(refs[rng.IntN(len(refs))]))
				}
			})
		}
	}
}

// BenchmarkOpenMillion opens a store of a million blocks of 256 KiB.
func BenchmarkOpenMillion(b *testing.B) {
	dir := b.TempDir()
	const blocks, perPack = 1_000_000, packSize / (256 << 10)
	w, err := os.Create(filepath.Join(dir, "index"))
	noErr(b, err)
	_, err = io.WriteString(w, indexMagic)
	noErr(b, err)
	buf := make([]byte, 0, perPack*recordSize)
	for i := 0; i < blocks; {
		pack := uint32(i/perPack + 1)
		buf = buf[:0]
		for ; i < blocks && i/perPack+1 == int(pack); i++ {
			r := record{kind: recPut, at: place{pack, 256 << 10, uint32(i % perPack * (256 << 10))}, time: 1_700_000_000}
			binary.LittleEndian.PutUint64(r.key[:], uint64(i)*0x9e3779b97f4a7c15)
			binary.LittleEndian.PutUint64(r.key[8:], uint64(i)+1)
			buf = buf[:len(buf)+recordSize]
			r.encode((*[recordSize]byte)(buf[len(buf)-recordSize:]))
		}
		_, err = w.Write(buf)
		noErr(b, err)
		f, err := os.Create(filepath.Join(dir, packName(pack)))
		noErr(b, err)
		noErr(b, f.Truncate(int64(len(buf)/recordSize)*(256<<10))) // sparse
		noErr(b, f.Close())
	}
	noErr(b, w.Sync())
	noErr(b, w.Close())
	b.ReportAllocs()
	began := processCPU()
	for b.Loop() {
		s, err := Open(dir, Options{})
		noErr(b, err)
		if n := s.Stats().Blocks; n != blocks {
			b.Fatalf("%d blocks", n)
		}
		noErr(b, s.Close())
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "open-s(<1)")
	b.ReportMetric((processCPU()-began).Seconds()/float64(b.N), "open-cpu-s")
}
