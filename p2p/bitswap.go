package p2p

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	bsmsg "github.com/ipfs/boxo/bitswap/message"
	bsnetwork "github.com/ipfs/boxo/bitswap/network"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	bsserver "github.com/ipfs/boxo/bitswap/server"
	"github.com/ipfs/boxo/blockstore"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	lprotocol "github.com/libp2p/go-libp2p/core/protocol"

	"github.com/lumbung-net/lumbung/protocol"
)

// Bounds of what IPFS nodes are answered. Bitswap is there so that any IPFS
// node can fetch from this one, not to be fast: nodes of this network have the
// content exchange for that.
const (
	maxForeign = 64 // IPFS nodes connected at one time

	bitswapSenders  = 16        // messages being sent
	bitswapEngine   = 4         // messages being made
	bitswapReaders  = 8         // blocks being read
	bitswapMessage  = 256 << 10 // bytes a message is filled up to; a block may go beyond
	bitswapPeerOut  = 1 << 20   // bytes on their way to one peer
	bitswapWants    = 1024      // blocks one peer may want at a time
	bitswapMaxCID   = 128       // bytes of a CID asked for
	bitswapPeerRate = 64 << 20  // bytes a second sent to one peer, by default

	bitswapAsked   = 4 << 20   // bytes of a message from a peer that was asked for blocks
	bitswapUnasked = 256 << 10 // bytes of a message from any other: a full list of wants takes a quarter
	bitswapIdle    = 5 * time.Minute
	bitswapLongest = bitswapMessage + 4<<20 // no message is longer
)

// bitswapMessages is how many messages are taken from one peer that was not
// asked for blocks: a client sends one for each change of what it wants.
var bitswapMessages = Rate{PerSecond: 50, Burst: 200}

// bitswapStreams are the limits of bitswap's streams.
var bitswapStreams = Route{Name: "bitswap", PeerRate: Rate{PerSecond: 50, Burst: 200}, Concurrent: 256, PerPeer: 16, Relayed: true}

// bitswapIDs are the protocols of an IPFS node that has or wants blocks.
var bitswapIDs = []lprotocol.ID{bsnet.ProtocolBitswap, bsnet.ProtocolBitswapOneOne, bsnet.ProtocolBitswapOneZero, bsnet.ProtocolBitswapNoVers}

// BitswapOptions configures ServeBitswap. Zero fields take the defaults.
type BitswapOptions struct {
	// PeerRate bounds what one peer is sent, in bytes a second.
	PeerRate int
	// Spend, if set, waits until a message with blocks, of n bytes in all, may
	// be sent: what else this node uploads counts too.
	Spend func(ctx context.Context, n int) error
}

// Bitswap answers IPFS nodes, and asks them. It is closed with its host.
type Bitswap struct {
	h        *Host
	ctx      context.Context // ends when the host closes
	net      bsnetwork.BitSwapNetwork
	server   *bsserver.Server
	blocks   blockstore.Blockstore
	streams  *admission
	messages *buckets[peer.ID]
	sent     *buckets[peer.ID]
	spend    func(ctx context.Context, n int) error
	most     int // IPFS nodes connected at one time

	mu      sync.Mutex
	asks    map[*Ask]struct{}
	foreign map[peer.ID]struct{}
	invited map[peer.ID]int // being connected to, by how many asks
}

// ServeBitswap answers what IPFS nodes ask of blocks, from now until the host is
// closed, and lets them stay connected, a bounded number at a time. It is called
// once, before Run.
func (h *Host) ServeBitswap(blocks blockstore.Blockstore, o BitswapOptions) (*Bitswap, error) {
	if o.PeerRate <= 0 {
		o.PeerRate = bitswapPeerRate
	}
	b := &Bitswap{
		h: h, ctx: h.life, blocks: blocks, most: maxForeign, spend: o.Spend,
		asks: map[*Ask]struct{}{}, foreign: map[peer.ID]struct{}{}, invited: map[peer.ID]int{},
	}
	var err [3]error
	b.streams, err[0] = newAdmission(bitswapStreams.withDefaults())
	b.messages, err[1] = newBuckets[peer.ID](bitswapMessages, limitedKeys)
	b.sent, err[2] = newBuckets[peer.ID](Rate{PerSecond: float64(o.PeerRate), Burst: max(o.PeerRate, bitswapLongest)}, limitedKeys)
	if err := errors.Join(err[:]...); err != nil {
		return nil, fmt.Errorf("serve bitswap: %w", err)
	}
	b.net = pacedNetwork{bsnet.NewFromIpfsHost(boundedHost{h.host, b}), b}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing || h.running || h.bitswap != nil {
		return nil, errors.New("serve bitswap: the host runs, is closing or serves it already")
	}
	h.bitswap = b
	b.server = bsserver.New(h.life, b.net, blocks,
		bsserver.TaskWorkerCount(bitswapSenders), bsserver.EngineTaskWorkerCount(bitswapEngine), bsserver.EngineBlockstoreWorkerCount(bitswapReaders),
		bsserver.WithTargetMessageSize(bitswapMessage), bsserver.MaxOutstandingBytesPerPeer(bitswapPeerOut),
		bsserver.MaxQueuedWantlistEntriesPerPeer(bitswapWants), bsserver.MaxCidSize(bitswapMaxCID))
	b.net.Start(b)
	return b, nil
}

// serving is the host's bitswap, nil where it has none.
func (h *Host) serving() *Bitswap {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.bitswap
}

// close ends what ServeBitswap began; the host's streams are gone by then, so
// that nothing waits for a peer.
func (b *Bitswap) close() {
	b.net.Stop()
	b.server.Close()
}

// adopt says whether a peer that is of no network of ours may stay: it is an
// IPFS node that has or wants blocks. One too many is let go without a grudge.
func (h *Host) adopt(e event.EvtPeerIdentificationCompleted) bool {
	b := h.serving()
	if b == nil || strings.HasPrefix(e.ProtocolVersion, versionPrefix) || !speaksBitswap(e.Protocols) {
		return false
	}
	if b.welcome(e.Peer) {
		h.cfg.Log.Debug("an IPFS node is connected", "peer", e.Peer)
		return true
	}
	h.cfg.Log.Debug("too many IPFS nodes are connected", "peer", e.Peer, "most", b.most)
	// This connection alone: by now the peer may have been asked for, over another.
	if err := e.Conn.Close(); err != nil {
		h.cfg.Log.Debug("close the peer's connection", "peer", e.Peer, "err", err)
	}
	return true
}

func speaksBitswap(ids []lprotocol.ID) bool {
	for _, id := range ids {
		for _, ours := range bitswapIDs {
			if id == ours {
				return true
			}
		}
	}
	return false
}

// welcome notes an IPFS node, unless there are too many.
func (b *Bitswap) welcome(id peer.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p := range b.foreign {
		if b.h.host.Network().Connectedness(p) == network.NotConnected {
			delete(b.foreign, p)
		}
	}
	// A peer identifies itself on each of its connections.
	if _, known := b.foreign[id]; !known && len(b.foreign) >= b.most && b.invited[id] == 0 {
		return false
	}
	b.foreign[id] = struct{}{}
	return true
}

// invite lets a peer connect however many others are, as long as it is more
// often invited than not.
func (b *Bitswap) invite(id peer.ID, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.invited[id] += n; b.invited[id] == 0 {
		delete(b.invited, id)
	}
}

// asksOf are the asks that a peer is part of.
func (b *Bitswap) asksOf(id peer.ID) []*Ask {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*Ask
	for a := range b.asks {
		if a.peers[id] {
			out = append(out, a)
		}
	}
	return out
}

// ReceiveMessage implements boxo's network.Receiver. While it waits, the stream
// of the message is not read.
func (b *Bitswap) ReceiveMessage(ctx context.Context, from peer.ID, m bsmsg.BitSwapMessage) {
	asks := b.asksOf(from)
	if len(asks) == 0 && b.messages.wait(b.ctx, from, 1) != nil {
		return // the host is closing
	}
	b.h.metrics.bytes.WithLabelValues(bitswapStreams.Name, "in").Add(float64(m.Size()))
	b.server.ReceiveMessage(ctx, from, m)
	for _, a := range asks {
		a.receive(ctx, from, m)
	}
}

// ReceiveError implements boxo's network.Receiver.
func (b *Bitswap) ReceiveError(err error) { b.h.cfg.Log.Debug("bitswap", "err", err) }

// PeerConnected implements boxo's network.Receiver.
func (b *Bitswap) PeerConnected(id peer.ID) {
	b.server.PeerConnected(id)
	for _, a := range b.asksOf(id) {
		a.connected(id)
	}
}

// PeerDisconnected implements boxo's network.Receiver.
func (b *Bitswap) PeerDisconnected(id peer.ID) {
	b.server.PeerDisconnected(id)
	for _, a := range b.asksOf(id) {
		a.disconnected(id)
	}
}

// pacedNetwork holds what is sent to each peer, and blocks to all, to the rates.
type pacedNetwork struct {
	bsnetwork.BitSwapNetwork
	b *Bitswap
}

// SendMessage implements boxo's BitSwapNetwork.
func (n pacedNetwork) SendMessage(ctx context.Context, to peer.ID, m bsmsg.BitSwapMessage) error {
	size := m.Size()
	if err := n.b.sent.wait(ctx, to, min(size, bitswapLongest)); err != nil {
		return err
	}
	if n.b.spend != nil && len(m.Blocks()) > 0 {
		if err := n.b.spend(ctx, size); err != nil {
			return err
		}
	}
	n.b.h.metrics.bytes.WithLabelValues(bitswapStreams.Name, "out").Add(float64(size))
	return n.BitSwapNetwork.SendMessage(ctx, to, m)
}

// boundedHost is the host as bitswap sees it: its streams keep to the limits.
type boundedHost struct {
	host.Host
	b *Bitswap
}

// SetStreamHandler implements host.Host.
func (h boundedHost) SetStreamHandler(id lprotocol.ID, fn network.StreamHandler) {
	h.Host.SetStreamHandler(id, func(st network.Stream) { h.b.handle(st, fn) })
}

// handle serves one stream within the limits.
func (b *Bitswap) handle(st network.Stream, fn network.StreamHandler) {
	_, done, ok := b.h.begin()
	if !ok {
		_ = st.ResetWithError(network.StreamShutdown)
		return
	}
	defer done()
	from := st.Conn().RemotePeer()
	if b.h.blame.refused(from) {
		_ = st.ResetWithError(network.StreamGated)
		return
	}
	if err := b.streams.enter(st.Conn(), b.h.cfg.Now()); err != nil {
		b.h.metrics.requests.WithLabelValues(bitswapStreams.Name, "refused").Inc()
		b.h.judge(bitswapStreams, from, err)
		_ = st.ResetWithError(codeOf(err))
		return
	}
	defer b.streams.leave(from)
	b.h.metrics.requests.WithLabelValues(bitswapStreams.Name, "ok").Inc()
	fn(&boundedStream{Stream: st, limit: func() uint64 {
		if len(b.asksOf(from)) > 0 {
			return bitswapAsked
		}
		return bitswapUnasked
	}})
}

// boundedStream follows the frames of a stream, each a length as a varint and
// so many bytes, so that a long one is refused before there is room made for
// it, and gives each read its deadline.
type boundedStream struct {
	network.Stream
	limit func() uint64

	left  uint64 // bytes of the frame to come
	head  uint64 // of the length, what was read
	shift uint
}

// Read implements io.Reader.
func (s *boundedStream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.SetReadDeadline(time.Now().Add(bitswapIdle)); err != nil {
		return 0, err
	}
	if s.left > 0 {
		n, err := s.Stream.Read(p[:min(uint64(len(p)), s.left)])
		s.left -= uint64(n) //nolint:gosec // what was read
		return n, err
	}
	n, err := s.Stream.Read(p[:1])
	if n == 1 {
		if long := s.length(p[0]); long != nil {
			return 0, long
		}
	}
	return n, err
}

// length takes in one byte of a frame's length.
func (s *boundedStream) length(c byte) error {
	if s.shift > 28 {
		return fmt.Errorf("length of a bitswap message: %w", protocol.ErrInvalid)
	}
	s.head |= uint64(c&0x7f) << s.shift
	s.shift += 7
	if c >= 0x80 {
		return nil
	}
	if limit := s.limit(); s.head > limit {
		return fmt.Errorf("bitswap message of %d bytes, %d are taken: %w", s.head, limit, protocol.ErrTooLarge)
	}
	s.left, s.head, s.shift = s.head, 0, 0
	return nil
}
