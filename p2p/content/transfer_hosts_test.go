//go:build unix

package content_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	lprotocol "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/lumbung-net/lumbung/p2p/content"
)

// The transfer benchmarks move the same bytes by every way in turn, in one run
// and one process, both ends of a transfer together: real libp2p hosts over
// loopback TCP with TLS and yamux, a cold receiver with a store of its own, and
// the clock stops when all is durable. CPU is that of the process, so of both
// ends, and of the link where there is one. What matters are the ratios;
// LUMBUNG_BENCH_MIB=64 makes everything smaller. A metric whose name ends in a
// bound, such as of-bare(>=0.68), is held against it by docs/bench.

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openAt(t testing.TB, dir string) *content.Store {
	t.Helper()
	s, err := content.Open(dir, content.Options{Log: slog.New(slog.DiscardHandler)})
	ok(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// cpu is what the process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// cost is what one way of moving bytes took.
type cost struct{ wall, cpu time.Duration }

func (c *cost) add(f func()) {
	wall, used := time.Now(), cpu()
	f()
	c.wall += time.Since(wall)
	c.cpu += cpu() - used
}

// report tells what one round of so many bytes took.
func (c *cost) report(b *testing.B, name string, size uint64) {
	n := float64(b.N)
	b.ReportMetric(c.wall.Seconds()/n, name+"-s")
	b.ReportMetric(float64(size)*n/(1<<20)/c.wall.Seconds(), name+"-MiB/s")
	b.ReportMetric(c.cpu.Seconds()/n, name+"-cpu-s")
}

// warm has the kernel touch as much memory as a transfer's files will take in
// its page cache, and free it. In a virtual machine the first touch of a page
// costs ten times what writing it does (2.4 s a GiB here, 0.23 s afterwards),
// and free pages go back to the host within seconds: without it, that is what
// would be measured.
func warm(b *testing.B, size int64) {
	b.Helper()
	name := filepath.Join(b.TempDir(), "warm")
	f, err := os.Create(name)
	ok(b, err)
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(zeros{}, size), make([]byte, 1<<20))
	ok(b, err)
	ok(b, f.Close())
	ok(b, os.Remove(name))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// node is a libp2p host with a store, and what serves it.
type node struct {
	t testing.TB
	h host.Host
	s *content.Store
	e *content.Exchange

	sent atomic.Int64 // bytes of answers
}

const benchID = "/lumbung/bench/content/"

// benchHost makes a libp2p host like those of nodes: TCP, TLS and yamux.
func benchHost() (host.Host, error) {
	return libp2p.New(
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(libp2ptls.ID, libp2ptls.New), libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.DisableMetrics(), libp2p.DisableRelay(),
	)
}

// newNode makes a host that serves a store's blocks.
func newNode(t testing.TB, s *content.Store, o content.ExchangeOptions) *node {
	t.Helper()
	return newNodeThat(t, s, o, func(st network.Stream) network.Stream { return st })
}

// newNodeThat makes a host whose streams are spoiled.
func newNodeThat(t testing.TB, s *content.Store, o content.ExchangeOptions, spoil func(network.Stream) network.Stream) *node {
	t.Helper()
	h, err := benchHost()
	ok(t, err)
	n := &node{t: t, h: h, s: s}
	n.e = content.NewExchange(s, n, o)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, name := range n.e.Protocols() {
		h.SetStreamHandler(lprotocol.ID(benchID+name), func(st network.Stream) {
			wg.Add(1)
			defer wg.Done()
			_ = n.e.ServeStream(ctx, st.Conn().RemotePeer().String(), name, counted{spoil(st), &n.sent})
		})
	}
	t.Cleanup(func() {
		cancel()
		_ = h.Close()
		wg.Wait()
	})
	return n
}

// counted counts what is written.
type counted struct {
	network.Stream
	n *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Stream.Write(p)
	c.n.Add(int64(n))
	return n, err
}

func (n *node) id() string { return n.h.ID().String() }

// OpenContent implements content.Network.
func (n *node) OpenContent(ctx context.Context, to, name string) (content.Stream, error) {
	id, err := peer.Decode(to)
	if err != nil {
		return nil, err
	}
	return n.h.NewStream(ctx, id, lprotocol.ID(benchID+name))
}

// knows connects to another host, over a link if there is one.
func (n *node) knows(to *node, over *link) {
	n.t.Helper()
	addrs := to.h.Addrs()
	if over != nil {
		a, err := manet.FromNetAddr(over.listen(n.t, tcpAddr(n.t, to.h)))
		ok(n.t, err)
		addrs = []multiaddr.Multiaddr{a}
	}
	n.h.Peerstore().AddAddrs(to.h.ID(), addrs, peerstore.PermanentAddrTTL)
	ok(n.t, n.h.Connect(n.t.Context(), peer.AddrInfo{ID: to.h.ID(), Addrs: addrs}))
}

func tcpAddr(t testing.TB, h host.Host) string {
	t.Helper()
	for _, a := range h.Addrs() {
		if na, err := manet.ToNetAddr(a); err == nil {
			return na.String()
		}
	}
	t.Fatal("no TCP address")
	return ""
}

// fetch brings a DAG here and returns how it went.
func (n *node) fetch(root cid.Cid, o content.FetchOptions) content.FetchProgress {
	n.t.Helper()
	var last content.FetchProgress
	o.Progress = func(p content.FetchProgress) { last = p }
	ok(n.t, n.e.Fetch(n.t.Context(), root, o))
	return last
}

// bigFile makes a file of noise, and its DAG in a store.
func bigFile(b *testing.B, size int64) (*content.Store, cid.Cid) {
	b.Helper()
	dir := b.TempDir()
	name := filepath.Join(dir, "file")
	f, err := os.Create(name)
	ok(b, err)
	_, err = io.Copy(f, noiseOf(7, size))
	ok(b, err)
	ok(b, f.Close())
	s := openAt(b, filepath.Join(dir, "store"))
	added, err := content.Add(b.Context(), s, name, content.AddOptions{})
	ok(b, err)
	ok(b, os.Remove(name))
	ok(b, s.Sync())
	return s, added.CID
}

// manyFiles makes a folder of small files, and its DAG in a store.
func manyFiles(b *testing.B, count, size int) (*content.Store, cid.Cid) {
	b.Helper()
	dir := b.TempDir()
	in := filepath.Join(dir, "in")
	ok(b, os.Mkdir(in, 0o755))
	r := noiseOf(9, int64(count)*int64(size))
	buf := make([]byte, size)
	for i := range count {
		_, err := io.ReadFull(r, buf)
		ok(b, err)
		ok(b, os.WriteFile(filepath.Join(in, fmt.Sprintf("%06d", i)), buf, 0o600))
	}
	s := openAt(b, filepath.Join(dir, "store"))
	added, err := content.Add(b.Context(), s, in, content.AddOptions{})
	ok(b, err)
	ok(b, os.RemoveAll(in))
	ok(b, s.Sync())
	return s, added.CID
}
