package p2p

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	lprotocol "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/lumbung-net/lumbung/protocol"
)

// recordLife is how long DHT servers keep a record that is not renewed.
const recordLife = protocol.MaxCapLife

// newDHT starts the network's own DHT.
func newDHT(h *Host) (*dhtSwitch, *dht.IpfsDHT, error) {
	sw := &dhtSwitch{Host: h.host, handlers: make(map[lprotocol.ID]network.StreamHandler), on: h.answersDHT(false)}
	opts := []dht.Option{
		dht.ProtocolPrefix(lprotocol.ID(protocol.DHTPrefix(h.cfg.Network))),
		// The mode is the switch's business, see there.
		dht.Mode(dht.ModeServer),
		dht.Validator(record.NamespacedValidator{capacitySpace: &capacityValidator{network: h.cfg.Network, now: h.cfg.Now}}),
		dht.MaxRecordAge(recordLife),
		dht.ValueGCInterval(recordLife / 2),
		dht.ProviderManagerOpts(records.ProvideValidity(recordLife), records.ProviderAddrTTL(recordLife), records.CleanupInterval(recordLife/2)),
		dht.EnableOptimisticProvide(),
		dht.AddressFilter(h.gate.filter),
		dht.RoutingTableRefreshQueryTimeout(10 * time.Second),
		dht.BootstrapPeersFunc(func() []peer.AddrInfo { return h.boot }),
	}
	if !h.private() {
		opts = append(opts, dht.RoutingTablePeerDiversityFilter(dht.NewRTPeerDiversityFilter(h.host, 2, 3)))
	}
	d, err := dht.New(sw, opts...)
	if err != nil {
		return nil, nil, fmt.Errorf("start the DHT: %w", err)
	}
	return sw, d, nil
}

// answersDHT reports whether this node should answer the DHT's queries:
// bootstrap nodes, nodes that others reach, and all nodes of a network that
// lives on loopback or inside one LAN.
func (h *Host) answersDHT(reachable bool) bool {
	switch h.cfg.DHT {
	case DHTServer:
		return true
	case DHTClient:
		return false
	}
	return h.cfg.RelayService || reachable || h.private()
}

// private reports whether the network lives on loopback or in one LAN: this
// node listens on loopback, or all its bootstrap nodes have private addresses.
func (h *Host) private() bool {
	if h.gate.loopback {
		return true
	}
	for _, p := range h.boot {
		for _, a := range p.Addrs {
			if !manet.IsPrivateAddr(a) {
				return false
			}
		}
	}
	return len(h.boot) > 0
}

// dhtSwitch is the host as the DHT sees it. The DHT's automatic mode follows
// AutoNAT's first version, which wavers; so the DHT always believes itself a
// server, and whether its handlers are in place is decided here by the verdict
// of the second.
type dhtSwitch struct {
	host.Host
	mu       sync.Mutex
	on       bool
	handlers map[lprotocol.ID]network.StreamHandler
}

// SetStreamHandler implements host.Host.
func (s *dhtSwitch) SetStreamHandler(id lprotocol.ID, fn network.StreamHandler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[id] = fn
	if s.on {
		s.Host.SetStreamHandler(id, fn)
	}
}

// RemoveStreamHandler implements host.Host.
func (s *dhtSwitch) RemoveStreamHandler(id lprotocol.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.handlers, id)
	s.Host.RemoveStreamHandler(id)
}

func (s *dhtSwitch) serve(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.on == on {
		return
	}
	s.on = on
	for id, fn := range s.handlers {
		if on {
			s.Host.SetStreamHandler(id, fn)
		} else {
			s.Host.RemoveStreamHandler(id)
		}
	}
}

func (s *dhtSwitch) serving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.on
}

// quick bounds each dial of a DHT operation: dead peers would otherwise make
// up most of every lookup's time.
func quick(ctx context.Context) context.Context { return network.WithDialPeerTimeout(ctx, probeTime) }

// FindPeer asks the DHT for a peer's addresses.
func (h *Host) FindPeer(ctx context.Context, id peer.ID) (peer.AddrInfo, error) {
	info, err := h.dht.FindPeer(quick(ctx), id)
	if err != nil {
		return peer.AddrInfo{}, fmt.Errorf("no address of peer %s is known and the DHT has none (is it online?): %w", id, err)
	}
	info.Addrs = h.gate.filter(info.Addrs)
	if len(info.Addrs) == 0 {
		return info, fmt.Errorf("peer %s has only addresses inside other private networks: %w", id, ErrUnreachable)
	}
	return info, nil
}

// capacitySpace is the namespace of capacity records in the DHT.
const capacitySpace = "lumbung"

// capacityKey is the DHT key of a peer's capacity record.
func capacityKey(id peer.ID) string { return "/" + capacitySpace + "/cap/" + id.String() }

// capacityValidator decides which values the DHT stores and returns. It does
// no I/O: a record carries all that is needed to check it.
type capacityValidator struct {
	network string
	now     func() time.Time
}

// Validate implements record.Validator.
func (v *capacityValidator) Validate(key string, value []byte) error {
	_, err := v.open(key, value)
	return err
}

func (v *capacityValidator) open(key string, value []byte) (protocol.Signed[*protocol.Capacity], error) {
	owner, err := peer.Decode(strings.TrimPrefix(key, "/"+capacitySpace+"/cap/"))
	if err != nil || key != capacityKey(owner) {
		return protocol.Signed[*protocol.Capacity]{}, fmt.Errorf("DHT key %.80q names no peer: %w", key, protocol.ErrInvalid)
	}
	return openCapacity(v.network, owner, value, v.now())
}

// openCapacity checks a capacity record that should be owner's.
func openCapacity(network string, owner peer.ID, raw []byte, now time.Time) (protocol.Signed[*protocol.Capacity], error) {
	rec, err := protocol.Open[*protocol.Capacity](network, raw, now)
	if err != nil {
		return rec, err
	}
	return rec, checkCapacity(network, owner, rec, now)
}

func checkCapacity(network string, owner peer.ID, rec protocol.Signed[*protocol.Capacity], now time.Time) error {
	switch {
	case rec.From != owner:
		return fmt.Errorf("capacity record of peer %s is signed by %s: %w", owner, rec.From, protocol.ErrInvalid)
	case rec.Msg.HasFake() && !protocol.AllowsFake(network):
		return fmt.Errorf("capacity record of peer %s lists fake GPUs, which network %s does not take: %w", owner, network, protocol.ErrInvalid)
	case now.UnixMilli() > rec.Msg.GetExpiresMs()+protocol.MaxSkew.Milliseconds():
		return fmt.Errorf("capacity record of peer %s has expired: %w", owner, protocol.ErrStale)
	}
	return nil
}

// Select implements record.Validator: the highest sequence number wins.
func (v *capacityValidator) Select(key string, values [][]byte) (int, error) {
	best, seq := -1, uint64(0)
	for i, raw := range values {
		rec, err := v.open(key, raw)
		if err != nil {
			continue
		}
		if best < 0 || rec.Msg.GetSeq() > seq {
			best, seq = i, rec.Msg.GetSeq()
		}
	}
	if best < 0 {
		return 0, errors.New("none of the records is valid")
	}
	return best, nil
}

// transportOf names an address's transport for people.
func transportOf(a multiaddr.Multiaddr) string {
	switch {
	case has(a, multiaddr.P_QUIC_V1):
		return "quic"
	case has(a, multiaddr.P_TCP):
		return "tcp"
	default:
		return "other"
	}
}
