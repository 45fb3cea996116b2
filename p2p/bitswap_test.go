package p2p

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"testing"
	"testing/iotest"
	"time"

	"github.com/ipfs/boxo/bitswap"
	bsmsg "github.com/ipfs/boxo/bitswap/message"
	bspb "github.com/ipfs/boxo/bitswap/message/pb"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/lumbung-net/lumbung/protocol"
)

func memoryBlocks() blockstore.Blockstore {
	return blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
}

func plainHost(t *testing.T) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// ipfsPeer is an IPFS node that has the blocks it is given.
func ipfsPeer(t *testing.T, has ...blocks.Block) (host.Host, *bitswap.Bitswap) {
	t.Helper()
	h, kept := plainHost(t), memoryBlocks()
	if err := kept.PutMany(t.Context(), has); err != nil {
		t.Fatal(err)
	}
	swap := bitswap.New(context.WithoutCancel(t.Context()), bsnet.NewFromIpfsHost(h), nil, kept)
	t.Cleanup(func() { _ = swap.Close() })
	tellsOfBitswap(t, h)
	return h, swap
}

// tellsOfBitswap waits until a host tells those it meets that it speaks bitswap.
// That follows its handlers after a moment, in which it would be taken for one
// that does not.
func tellsOfBitswap(t *testing.T, h host.Host) {
	t.Helper()
	probe := plainHost(t)
	if err := probe.Connect(limited(t), infoOf(h)); err != nil {
		t.Fatal(err)
	}
	for ctx := limited(t); ; runtime.Gosched() {
		got, err := probe.Peerstore().SupportsProtocols(h.ID(), bitswapIDs...)
		if err != nil || ctx.Err() != nil {
			t.Fatal("a host does not tell that it speaks bitswap", err)
		}
		if len(got) == len(bitswapIDs) {
			break
		}
	}
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
}

func infoOf(h host.Host) peer.AddrInfo { return peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} }

// servesBitswap is a host of ours with some blocks.
func servesBitswap(t *testing.T, has ...blocks.Block) (*Host, *Bitswap) {
	t.Helper()
	h, kept := newHost(t), memoryBlocks()
	if err := kept.PutMany(t.Context(), has); err != nil {
		t.Fatal(err)
	}
	b, err := h.ServeBitswap(kept, BitswapOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return h, b
}

func TestBitswapBothWays(t *testing.T) {
	ours, theirs := blocks.NewBlock([]byte("ours")), blocks.NewBlock([]byte("theirs"))
	h, b := servesBitswap(t, ours)
	ipfs, swap := ipfsPeer(t, theirs)
	if err := ipfs.Connect(limited(t), peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}); err != nil {
		t.Fatal(err)
	}
	got, err := swap.GetBlock(limited(t), ours.Cid())
	if err != nil || !bytes.Equal(got.RawData(), ours.RawData()) {
		t.Fatalf("an IPFS node got %v, %v", got, err)
	}
	for ctx := limited(t); len(b.Connected()) == 0; { // it may have the block before we know what it is
		if ctx.Err() != nil {
			t.Fatal("an IPFS node is not known as connected")
		}
		runtime.Gosched()
	}
	if list := b.Connected(); len(list) != 1 || list[0].ID != ipfs.ID() {
		t.Errorf("connected are %v", list)
	}
	if len(h.company()) != 0 {
		t.Error("an IPFS node counts as company")
	}
	ask, err := b.Ask(limited(t), theirs.Cid(), []peer.AddrInfo{infoOf(ipfs)})
	if err != nil {
		t.Fatal(err)
	}
	got, err = ask.GetBlock(limited(t), theirs.Cid())
	if err != nil || !bytes.Equal(got.RawData(), theirs.RawData()) || ask.Err() != nil {
		t.Errorf("we got %v, %v, %v", got, err, ask.Err())
	}
	if err := ask.Close(); err != nil || ask.Err() == nil {
		t.Errorf("close: %v, %v", err, ask.Err())
	}
}

// Blocks are sent only when they may be.
func TestBitswapSpends(t *testing.T) {
	h, kept, ours := newHost(t), memoryBlocks(), blocks.NewBlock(bytes.Repeat([]byte("ours"), 1000))
	if err := kept.Put(t.Context(), ours); err != nil {
		t.Fatal(err)
	}
	asked, spent := make(chan int, 1), make(chan struct{})
	_, err := h.ServeBitswap(kept, BitswapOptions{Spend: func(ctx context.Context, n int) error {
		asked <- n
		select {
		case <-spent:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ipfs, swap := ipfsPeer(t)
	if err := ipfs.Connect(limited(t), peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := swap.GetBlock(limited(t), ours.Cid())
		got <- err
	}()
	select {
	case n := <-asked:
		if n < len(ours.RawData()) {
			t.Errorf("%d bytes to be spent on a block of %d", n, len(ours.RawData()))
		}
	case err := <-got:
		t.Fatalf("it came without leave: %v", err)
	}
	select {
	case err := <-got:
		t.Fatalf("it came without leave: %v", err)
	default:
	}
	close(spent)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

// over waits until a search is.
func over(t *testing.T, a *Ask) error {
	t.Helper()
	select {
	case <-a.ctx.Done():
	case <-limited(t).Done():
		t.Fatal("the search goes on")
	}
	return errors.Join(a.Err(), a.Close())
}

func TestAskEndsWithItsPeers(t *testing.T) {
	_, b := servesBitswap(t)
	absent := blocks.NewBlock([]byte("nobody has this")).Cid()
	one, _ := ipfsPeer(t)
	two, _ := ipfsPeer(t)
	ask, err := b.Ask(limited(t), absent, []peer.AddrInfo{infoOf(one), infoOf(two)})
	if err != nil {
		t.Fatal(err)
	}
	if err := over(t, ask); !errors.Is(err, ErrNotThere) {
		t.Errorf("all said no: %v", err)
	}

	// A peer that says nothing, and goes.
	mute := plainHost(t)
	for _, id := range bitswapIDs {
		mute.SetStreamHandler(id, func(st network.Stream) { _, _ = io.Copy(io.Discard, st) })
	}
	tellsOfBitswap(t, mute)
	if ask, err = b.Ask(limited(t), absent, []peer.AddrInfo{infoOf(mute)}); err != nil {
		t.Fatal(err)
	}
	if err := mute.Close(); err != nil {
		t.Fatal(err)
	}
	if err := over(t, ask); !errors.Is(err, ErrUnreachable) {
		t.Errorf("all are gone: %v", err)
	}
	if len(b.asks) != 0 || len(b.invited) != 0 {
		t.Errorf("left behind: %v %v", b.asks, b.invited)
	}
}

func TestAskRefuses(t *testing.T) {
	h, b := servesBitswap(t)
	c := blocks.NewBlock([]byte("x")).Cid()
	deaf := plainHost(t)
	gone := plainHost(t)
	info := infoOf(gone)
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	for name, list := range map[string][]peer.AddrInfo{
		"nobody": nil, "itself": {{ID: h.ID(), Addrs: h.Addrs()}}, "no bitswap": {infoOf(deaf)}, "not there": {info},
	} {
		if a, err := b.Ask(limited(t), c, list); err == nil {
			t.Errorf("%s: %v", name, a.Close())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Ask(ctx, c, []peer.AddrInfo{infoOf(deaf)}); err == nil {
		t.Error("asked although the time was over")
	}
	if _, err := h.ServeBitswap(memoryBlocks(), BitswapOptions{}); err == nil {
		t.Error("bitswap is served twice")
	}
}

// TestWhoMayStay is about peers that are of no network of ours.
func TestWhoMayStay(t *testing.T) {
	h, b := servesBitswap(t)
	swap := bitswapIDs[:1]
	id := func() event.EvtPeerIdentificationCompleted {
		p, err := peer.IDFromPrivateKey(testKey(t))
		if err != nil {
			t.Fatal(err)
		}
		return event.EvtPeerIdentificationCompleted{Peer: p, ProtocolVersion: "ipfs/0.1.0", Protocols: swap}
	}
	mute, other := id(), id()
	mute.Protocols = nil
	other.ProtocolVersion = protocolVersion("other")
	if h.adopt(mute) || h.adopt(other) {
		t.Error("a peer may stay that speaks no bitswap, or is of another network of ours")
	}
	if without := newHost(t); without.adopt(id()) {
		t.Error("a host without bitswap keeps IPFS nodes")
	}
	ipfs, _ := ipfsPeer(t)
	if err := h.Connect(limited(t), infoOf(ipfs)); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	for i := range maxForeign { // none of them is connected any more
		b.foreign[peer.ID(rune(i))] = struct{}{}
	}
	b.mu.Unlock()
	e := id()
	e.Peer = ipfs.ID()
	if !h.adopt(e) || len(b.Connected()) != 1 {
		t.Error("those that are gone keep others out")
	}
	// One too many is let go without a grudge, unless it was asked for.
	b.mu.Lock()
	b.most = 1
	b.mu.Unlock()
	second, _ := ipfsPeer(t)
	if err := h.Connect(limited(t), infoOf(second)); err != nil {
		t.Fatal(err)
	}
	for ctx := limited(t); h.host.Network().Connectedness(second.ID()) != network.NotConnected; {
		if ctx.Err() != nil {
			t.Fatal("one too many stays connected")
		}
		runtime.Gosched()
	}
	if h.blame.refused(second.ID()) || len(b.Connected()) != 1 {
		t.Error("an IPFS node too many is refused, or kept")
	}
	ask, err := b.Ask(limited(t), blocks.NewBlock([]byte("x")).Cid(), []peer.AddrInfo{infoOf(second)})
	if err != nil {
		t.Fatal(err)
	}
	if err := ask.Close(); err != nil {
		t.Error(err)
	}
}

func TestBitswapFramesAreBounded(t *testing.T) {
	frame := func(n int) []byte { return append(binary.AppendUvarint(nil, uint64(n)), make([]byte, n)...) }
	short := append(append(frame(300), frame(0)...), frame(1000)...)
	read := func(raw []byte, limit uint64) (int, error) {
		s := &boundedStream{Stream: fakeStream{r: iotest.HalfReader(bytes.NewReader(raw))}, limit: func() uint64 { return limit }}
		n, err := io.Copy(io.Discard, s)
		return int(n), err
	}
	if n, err := read(short, 1000); n != len(short) || err != nil {
		t.Errorf("read %d of %d, %v", n, len(short), err)
	}
	before := 2 + 300 + 1 + 1 // two frames, and the first byte of the length of the third
	if n, err := read(short, 999); n != before || !errors.Is(err, protocol.ErrTooLarge) {
		t.Errorf("a long frame: read %d, want %d, %v", n, before, err)
	}
	if _, err := read(bytes.Repeat([]byte{0xff}, 20), 1<<40); !errors.Is(err, protocol.ErrInvalid) {
		t.Errorf("an endless length: %v", err)
	}
}

type fakeStream struct {
	network.Stream
	r io.Reader
}

func (f fakeStream) Read(p []byte) (int, error)      { return f.r.Read(p) }
func (f fakeStream) SetReadDeadline(time.Time) error { return nil }

// TestBitswapRefusesLongMessages sends a message that no list of wants needs.
func TestBitswapRefusesLongMessages(t *testing.T) {
	h, _ := servesBitswap(t)
	other := plainHost(t)
	for _, id := range bitswapIDs {
		other.SetStreamHandler(id, func(st network.Stream) { _ = st.Reset() })
	}
	tellsOfBitswap(t, other)
	if err := other.Connect(limited(t), peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}); err != nil {
		t.Fatal(err)
	}
	st, err := other.NewStream(limited(t), h.ID(), bitswapIDs...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	if _, err := st.Write(binary.AppendUvarint(nil, bitswapUnasked+1)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(st); err == nil {
		t.Error("the stream was not reset")
	}
}

// TestBitswapWantsAreBounded asks for more at a time than one peer may.
func TestBitswapWantsAreBounded(t *testing.T) {
	h, b := servesBitswap(t)
	other := plainHost(t)
	net := bsnet.NewFromIpfsHost(other)
	heard := make(chan bsmsg.BitSwapMessage, 64)
	net.Start(hearing{heard})
	t.Cleanup(net.Stop)
	tellsOfBitswap(t, other)
	if err := other.Connect(limited(t), peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}); err != nil {
		t.Fatal(err)
	}
	m := bsmsg.New(true)
	for i := range 2 * bitswapWants {
		c := blocks.NewBlock(binary.AppendUvarint([]byte("want"), uint64(i))).Cid()
		m.AddEntry(cid.NewCidV1(cid.Raw, c.Hash()), 1, bspb.Message_Wantlist_Block, true)
	}
	if err := net.SendMessage(limited(t), h.ID(), m); err != nil {
		t.Fatal(err)
	}
	select {
	case <-heard: // an answer: the list was taken in
	case <-limited(t).Done():
		t.Fatal("no answer")
	}
	if n := len(b.server.WantlistForPeer(other.ID())); n == 0 || n > bitswapWants {
		t.Errorf("%d wants are kept, at most %d may be", n, bitswapWants)
	}
}

// hearing is a receiver that keeps what it hears.
type hearing struct{ heard chan bsmsg.BitSwapMessage }

func (h hearing) ReceiveMessage(_ context.Context, _ peer.ID, m bsmsg.BitSwapMessage) {
	select {
	case h.heard <- m:
	default:
	}
}
func (h hearing) ReceiveError(error)       {}
func (h hearing) PeerConnected(peer.ID)    {}
func (h hearing) PeerDisconnected(peer.ID) {}
