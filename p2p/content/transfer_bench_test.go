//go:build unix

package content_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/lumbung-net/lumbung/p2p/content"
)

func noiseOf(seed byte, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

func dagBytes(b *testing.B, s *content.Store, root cid.Cid) uint64 {
	b.Helper()
	size, err := content.DAGSize(b.Context(), s, root)
	ok(b, err)
	return size.Bytes
}

// coldNode has nothing, and knows others over links that are made for them.
func coldNode(b *testing.B, over func() *link, from ...*node) *node {
	b.Helper()
	to := newNode(b, openAt(b, b.TempDir()), content.ExchangeOptions{})
	for _, n := range from {
		if over == nil {
			to.knows(n, nil)
		} else {
			to.knows(n, over())
		}
	}
	return to
}

// ways is the costs of moving one DAG by each way.
type ways struct{ ours, bare, tls, disk, bitswap cost }

// race moves a DAG by each way in turn; ofBare and faster are the bounds beside
// the bare stream and bitswap.
func race(b *testing.B, s *content.Store, root cid.Cid, ofBare, faster string) {
	size := dagBytes(b, s, root)
	conf := selfSigned(b)
	var w ways
	for b.Loop() {
		from := newNode(b, s, content.ExchangeOptions{})
		to := coldNode(b, nil, from)
		w.bare.add(func() { byStream(b, from, to, int64(size)) })
		warm(b, int64(size))
		w.ours.add(func() { to.fetch(root, content.FetchOptions{Peers: []string{from.id()}}) })
		w.tls.add(func() { byTCP(b, int64(size), conf, nil) })
		warm(b, int64(size))
		w.disk.add(func() { toDisk(b, int64(size)) })
		other := coldNode(b, nil, from)
		warm(b, int64(size))
		w.bitswap.add(func() { byBitswap(b, other, root, from) })
	}
	b.ReportMetric(0, "ns/op")
	w.ours.report(b, "ours", size)
	w.bare.report(b, "bare", size)
	w.tls.report(b, "tls", size)
	w.disk.report(b, "disk", size)
	w.bitswap.report(b, "bitswap", size)
	ours := w.ours.wall.Seconds()
	b.ReportMetric(w.bare.wall.Seconds()/ours, "of-bare"+ofBare)
	b.ReportMetric(w.tls.wall.Seconds()/ours, "of-tls")
	b.ReportMetric(max(w.bare.wall, w.disk.wall).Seconds()/ours, "of-slower-of-bare-and-disk")
	b.ReportMetric(w.bitswap.wall.Seconds()/ours, "x-bitswap"+faster)
	b.ReportMetric(w.ours.cpu.Seconds()/w.bitswap.cpu.Seconds(), "of-bitswap-cpu(<=0.36)")
}

// BenchmarkTransferBig moves one file of a GiB.
func BenchmarkTransferBig(b *testing.B) {
	s, root := bigFile(b, content.BenchBytes(b, 1))
	ofBare := "(>=0.68)"
	if runtime.NumCPU() >= 4 { // hashing and writing need not share with the stream
		ofBare = "(>=0.9)"
	}
	race(b, s, root, ofBare, "(>=3.5)")
}

// BenchmarkTransferSmall moves a folder of 20,000 files of 4 KiB.
func BenchmarkTransferSmall(b *testing.B) {
	s, root := manyFiles(b, int(content.BenchBytes(b, 1)>>20)*20000/1024, 4096)
	race(b, s, root, "", "(>=60)")
}

// BenchmarkTransferOurs is the exchange alone, for profiles.
func BenchmarkTransferOurs(b *testing.B) {
	s, root := bigFile(b, content.BenchBytes(b, 1))
	size := dagBytes(b, s, root)
	var ours cost
	for b.Loop() {
		from := newNode(b, s, content.ExchangeOptions{})
		to := coldNode(b, nil, from)
		warm(b, int64(size))
		ours.add(func() { to.fetch(root, content.FetchOptions{Peers: []string{from.id()}}) })
	}
	b.ReportMetric(0, "ns/op")
	ours.report(b, "ours", size)
}

// BenchmarkTransferFar moves a file over 50 ms of round trip at 100 MiB/s. It is
// an eighth as large for bitswap, which would take minutes.
func BenchmarkTransferFar(b *testing.B) {
	s, root := bigFile(b, content.BenchBytes(b, 1))
	size := dagBytes(b, s, root)
	less, lessRoot := bigFile(b, content.BenchBytes(b, 8))
	lessSize := dagBytes(b, less, lessRoot)
	far := func() *link { return &link{rtt: 50 * time.Millisecond, rate: 100 << 20} }
	conf := selfSigned(b)
	var ours, raw, tls, bare, bitswap cost
	for b.Loop() {
		raw.add(func() { byTCP(b, int64(size), nil, far()) })
		from := newNode(b, s, content.ExchangeOptions{})
		to := coldNode(b, far, from)
		warm(b, int64(size))
		ours.add(func() { to.fetch(root, content.FetchOptions{Peers: []string{from.id()}}) })
		bare.add(func() { byStream(b, from, to, int64(size)) })
		tls.add(func() { byTCP(b, int64(size), conf, far()) })
		from = newNode(b, less, content.ExchangeOptions{})
		to = coldNode(b, far, from)
		bitswap.add(func() { byBitswap(b, to, lessRoot, from) })
	}
	b.ReportMetric(0, "ns/op")
	ours.report(b, "ours", size)
	raw.report(b, "raw", size)
	tls.report(b, "tls", size)
	bare.report(b, "bare", size)
	bitswap.report(b, "bitswap", lessSize)
	b.ReportMetric(raw.wall.Seconds()/ours.wall.Seconds(), "of-raw-tcp(>=0.97)")
	b.ReportMetric(bitswap.wall.Seconds()*float64(size)/float64(lessSize)/ours.wall.Seconds(), "x-bitswap")
}

// BenchmarkTransferSenders fetches from several senders, each behind a line of
// its own that carries so much and no more. It is a quarter as large for
// bitswap.
func BenchmarkTransferSenders(b *testing.B) {
	s, root := bigFile(b, content.BenchBytes(b, 1))
	size := dagBytes(b, s, root)
	less, lessRoot := bigFile(b, content.BenchBytes(b, 4))
	lessSize := dagBytes(b, less, lessRoot)
	for _, tc := range []struct {
		name  string
		rates []float64 // MiB/s
		bound string
	}{
		{"1x40", []float64{40}, "(>=0.95)"},
		{"2x40", []float64{40, 40}, "(>=0.95)"},
		{"4x40", []float64{40, 40, 40, 40}, "(>=0.95)"},
		{"80+8", []float64{80, 8}, "(>=0.93)"},
	} {
		b.Run(tc.name, func(b *testing.B) {
			var ours, bitswap cost
			var wasted, sum float64
			for _, r := range tc.rates {
				sum += r
			}
			behind := func(s *content.Store) (to *node, from []*node, peers []string) {
				to = coldNode(b, nil)
				for _, r := range tc.rates {
					n := newNode(b, s, content.ExchangeOptions{})
					to.knows(n, &link{rate: r * (1 << 20)})
					from, peers = append(from, n), append(peers, n.id())
				}
				return to, from, peers
			}
			for b.Loop() {
				to, _, peers := behind(s)
				warm(b, int64(size))
				ours.add(func() { wasted += float64(to.fetch(root, content.FetchOptions{Peers: peers}).Wasted) })
				to, from, _ := behind(less)
				bitswap.add(func() { byBitswap(b, to, lessRoot, from...) })
			}
			b.ReportMetric(0, "ns/op")
			ours.report(b, "ours", size)
			bitswap.report(b, "bitswap", lessSize)
			b.ReportMetric(float64(size)*float64(b.N)/(1<<20)/ours.wall.Seconds()/sum, "of-sum"+tc.bound)
			b.ReportMetric(100*wasted/float64(b.N)/float64(size), "wasted-%")
		})
	}
}

// BenchmarkTransferSwarm has one provider with all, the renter as origin, and
// fetchers that begin together; everybody uploads 32 MiB/s.
func BenchmarkTransferSwarm(b *testing.B) {
	s, root := bigFile(b, content.BenchBytes(b, 8))
	size := dagBytes(b, s, root)
	o := content.ExchangeOptions{UploadRate: 32 << 20}
	for _, count := range []int{1, 4, 8} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			var ours cost
			var renter, provider float64
			for b.Loop() {
				origin, holder := newNode(b, s, o), newNode(b, s, o)
				fetchers := make([]*node, count)
				for i := range fetchers {
					fetchers[i] = newNode(b, openAt(b, b.TempDir()), o)
					for _, n := range append([]*node{origin, holder}, fetchers[:i]...) {
						fetchers[i].knows(n, nil)
					}
				}
				ours.add(func() { together(b, fetchers, root, origin, holder) })
				renter += float64(origin.sent.Load())
				provider += float64(holder.sent.Load())
			}
			copies := float64(b.N) * float64(size)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ours.wall.Seconds()/float64(b.N), "ours-s")
			b.ReportMetric(ours.cpu.Seconds()/float64(b.N), "ours-cpu-s")
			b.ReportMetric(ours.wall.Seconds()/float64(b.N)/(float64(size)/(32<<20)), "x-one-upload")
			b.ReportMetric(renter/copies, "renter-copies(<=1.3)")
			b.ReportMetric(provider/copies, "provider-copies")
		})
	}
}

// together has all fetch at once, each knowing all others.
func together(b *testing.B, fetchers []*node, root cid.Cid, origin, holder *node) {
	var wg sync.WaitGroup
	for _, f := range fetchers {
		wg.Go(func() {
			peers := []string{holder.id()}
			for _, o := range fetchers {
				if o != f {
					peers = append(peers, o.id())
				}
			}
			if err := f.e.Fetch(b.Context(), root, content.FetchOptions{Peers: peers, Origins: []string{origin.id()}}); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
}

// BenchmarkTransferUpdate moves an image of which one package of seven is new to
// who has the last one, over a line of 100 Mbit/s and 40 ms, and counts what the
// line carries. Bytes are held against the gzip layer that a registry would send.
// A sender packs what it sends when it knows the line to be slow: it finds out
// by itself, or its operator has said so (--upload-rate).
func BenchmarkTransferUpdate(b *testing.B) {
	const rate = 12_500_000
	mib := uint64(content.BenchBytes(b, 1)>>20) * 140 / 1024
	s := openAt(b, b.TempDir())
	root, packed := content.BenchImage(b, s, mib, 2)
	size := dagBytes(b, s, root)
	for _, tc := range []struct {
		name string
		o    content.ExchangeOptions
	}{{"found-slow", content.ExchangeOptions{}}, {"said-slow", content.ExchangeOptions{UploadRate: rate}}} {
		b.Run(tc.name, func(b *testing.B) {
			var ours cost
			var raw, wire float64
			for b.Loop() {
				store := openAt(b, b.TempDir())
				content.BenchImage(b, store, mib, 1)
				from, to := newNode(b, s, tc.o), newNode(b, store, content.ExchangeOptions{})
				line := &link{rtt: 40 * time.Millisecond, rate: rate}
				to.knows(from, line)
				before := line.bytes()
				ours.add(func() {
					raw += float64(to.fetch(root, content.FetchOptions{Kind: content.KindImage, Peers: []string{from.id()}}).Received)
				})
				wire += float64(line.bytes() - before)
			}
			n := float64(b.N) * float64(packed)
			b.ReportMetric(0, "ns/op")
			ours.report(b, "ours", size)
			b.ReportMetric(raw/n, "raw-of-gzip")
			b.ReportMetric(wire/n, "wire-of-gzip(<=0.125)")
		})
	}
}

// lying flips one bit of what is written to all streams together.
func lying(at int64) func(network.Stream) network.Stream {
	var sent atomic.Int64
	return func(st network.Stream) network.Stream { return liar{st, at, &sent} }
}

type liar struct {
	network.Stream
	at   int64
	sent *atomic.Int64
}

func (l liar) Write(p []byte) (int, error) {
	end := l.sent.Add(int64(len(p)))
	if i := l.at - (end - int64(len(p))); i >= 0 && i < int64(len(p)) {
		p = bytes.Clone(p)
		p[i] ^= 1
	}
	return l.Stream.Write(p)
}

// BenchmarkTransferLiar fetches from two, of whom one sends a wrong bit, and
// tells what that cost.
func BenchmarkTransferLiar(b *testing.B) {
	s, root := bigFile(b, content.BenchBytes(b, 4))
	size := dagBytes(b, s, root)
	var ours cost
	var wasted, banned, bad float64
	for b.Loop() {
		// The honest one is slow, so that the other is asked for sure.
		const lie = 1<<20 + 1<<19
		honest := newNode(b, s, content.ExchangeOptions{UploadRate: 16 << 20})
		wrong := newNodeThat(b, s, content.ExchangeOptions{}, lying(lie))
		// Blocks asked for twice at the tail would count as wasted too.
		to := newNode(b, openAt(b, b.TempDir()), content.ExchangeOptions{TailAfter: time.Minute})
		to.knows(honest, nil)
		to.knows(wrong, nil)
		ours.add(func() {
			wasted += float64(to.fetch(root, content.FetchOptions{Peers: []string{honest.id(), wrong.id()}}).Wasted)
		})
		if wrong.sent.Load() <= lie {
			b.Fatal("the liar was not asked for enough to lie")
		}
		if to.e.Banned(wrong.id()) {
			banned++
		}
		found, err := to.s.Check(b.Context(), nil, nil)
		ok(b, err)
		bad += float64(found.Damaged)
	}
	n := float64(b.N)
	b.ReportMetric(0, "ns/op")
	ours.report(b, "ours", size)
	b.ReportMetric(banned/n, "liars-banned(>=1)")
	b.ReportMetric(wasted/n/content.MaxBlock, "wasted-blocks(<=1)")
	b.ReportMetric(bad/n, "bad-blocks-stored(<=0)")
}
