package p2p

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sync/errgroup"
)

// Host is a node's presence in one network.
type Host struct {
	cfg      Config
	id       peer.ID
	host     host.Host
	dht      *dht.IpfsDHT
	dhtSwch  *dhtSwitch
	gate     *gater
	blame    *blameTable
	metrics  *metrics
	gossip   *Gossip
	advert   *advert
	holdings *holdings
	bitswap  *Bitswap // nil where it is not served
	boot     []peer.AddrInfo
	book     *book
	view     view

	life     context.Context // ends when Close begins
	end      context.CancelFunc
	handlers sync.WaitGroup
	mu       sync.Mutex
	closing  bool
	running  bool
	watchers map[peer.ID]chan struct{}
	lonely   chan struct{}
	started  chan struct{} // closed when all parts are in place
	ready    chan struct{}
	readied  sync.Once
	closed   sync.Once
	closeErr error
}

// New makes a host that listens and answers, but does not yet look for others:
// that is Run's. Close gives everything back, also when Run was never called.
func New(cfg Config) (*Host, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	id, err := peer.IDFromPrivateKey(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("network: peer id of the key: %w", err)
	}
	listen, err := parseAddrs("listen address", cfg.Listen)
	if err != nil {
		return nil, err
	}
	announce, err := parseAddrs("announced address", cfg.Announce)
	if err != nil {
		return nil, err
	}
	boot, err := parsePeers(cfg.Bootstrap)
	if err != nil {
		return nil, err
	}
	h := &Host{
		cfg: cfg, id: id, boot: withoutPeer(boot, id),
		watchers: make(map[peer.ID]chan struct{}), lonely: make(chan struct{}, 1),
		started: make(chan struct{}), ready: make(chan struct{}),
	}
	h.life, h.end = context.WithCancel(context.Background())
	if h.blame, err = newBlameTable(cfg.Now, cfg.refuseAfter, cfg.refuseFor); err != nil {
		return nil, err
	}
	h.gate = newGater(cfg, listen, announce, h.boot, h.blame)
	h.book = newBook(cfg.PeersFile)
	if err := h.start(listen, announce); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// start acquires what Close gives back.
func (h *Host) start(listen, announce []multiaddr.Multiaddr) error {
	var err error
	for _, a := range listen {
		if err := h.portFree(a); err != nil {
			return fmt.Errorf("listen on %s: another program, perhaps another node, uses the port: %w", a, err)
		}
	}
	if h.metrics, err = newMetrics(h.cfg.Registerer, h.countPeers); err != nil {
		return err
	}
	opts, undo, err := h.options(listen, announce)
	if err != nil {
		return err
	}
	// It listens only after every handler is in place, so that whoever connects
	// first already sees the whole node.
	if h.host, err = libp2p.New(append(opts, libp2p.NoListenAddrs, libp2p.EnableRelay())...); err != nil {
		return errors.Join(fmt.Errorf("start libp2p: %w", err), undo())
	}
	if h.dhtSwch, h.dht, err = newDHT(h); err != nil {
		return err
	}
	h.advert = newAdvert()
	h.holdings = newHoldings()
	if h.gossip, err = newGossip(h); err != nil {
		return err
	}
	if err := h.watchNetwork(); err != nil {
		return err
	}
	close(h.started)
	if err := h.host.Network().Listen(listen...); err != nil {
		return fmt.Errorf("listen on %v: %w", h.cfg.Listen, err)
	}
	return nil
}

// portFree reports whether a TCP port is taken. libp2p shares its ports so as
// to dial from them, and would share one with another node without a word.
func (h *Host) portFree(a multiaddr.Multiaddr) error {
	network, hostport, err := manet.DialArgs(a)
	if err != nil || !strings.HasPrefix(network, "tcp") {
		return nil // not TCP: libp2p itself will say
	}
	var lc net.ListenConfig
	l, err := lc.Listen(h.life, network, hostport)
	if errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	if err != nil {
		return nil // such as no IPv6 here: fatal only when nothing else works
	}
	return l.Close()
}

// Run looks for the network and stays in it: it dials bootstrap nodes and peers
// met before, publishes the adverts and remembers peers. It returns when ctx
// ends, after everything it started has ended.
func (h *Host) Run(ctx context.Context) error {
	h.mu.Lock()
	if h.running || h.closing {
		h.mu.Unlock()
		return errors.New("network: Run was called before or after Close")
	}
	h.running = true
	h.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(h.life, cancel)
	defer stop()

	g, ctx := errgroup.WithContext(ctx)
	if err := h.book.load(); err != nil {
		h.cfg.Log.Warn("the peers met before are forgotten", "err", err)
	}
	for _, p := range h.boot {
		g.Go(func() error { h.keepConnected(ctx, p); return nil })
	}
	g.Go(func() error { h.keepCompany(ctx); return nil })
	g.Go(func() error { h.remember(ctx); return nil })
	g.Go(func() error { h.advertise(ctx); return nil })
	g.Go(func() error { h.announce(ctx); return nil })
	return g.Wait()
}

// Close ends the host: no new request is taken, those being served are told to
// end and waited for, then the parts are closed.
func (h *Host) Close() error {
	h.closed.Do(func() {
		h.mu.Lock()
		h.closing = true
		h.mu.Unlock()
		h.end()
		var errs []error
		if h.host != nil {
			errs = append(errs, h.saveBook())
		}
		if h.gossip != nil {
			h.gossip.close()
		}
		if h.dht != nil {
			errs = append(errs, h.dht.Close())
		}
		if h.host != nil {
			errs = append(errs, h.host.Close())
		}
		if h.bitswap != nil {
			h.bitswap.close()
		}
		h.handlers.Wait()
		if h.metrics != nil {
			h.metrics.unregister(h.cfg.Registerer)
		}
		h.closeErr = errors.Join(errs...)
	})
	return h.closeErr
}

// begin counts work in that Close waits for; its context ends with the host.
func (h *Host) begin() (context.Context, func(), bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return nil, nil, false
	}
	h.handlers.Add(1)
	return h.life, h.handlers.Done, true
}

func (h *Host) countPeers() float64 {
	select {
	case <-h.started:
		return float64(len(h.host.Network().Peers()))
	default:
		return 0
	}
}

// ID is the node's peer id.
func (h *Host) ID() peer.ID { return h.id }

// Key is the node's private key.
func (h *Host) Key() crypto.PrivKey { return h.cfg.Key }

// Network is the network's name.
func (h *Host) Network() string { return h.cfg.Network }

// Host is the libp2p host below, for package p2p/content and tests.
func (h *Host) Host() host.Host { return h.host }

// Offers is the gossip of offers.
func (h *Host) Offers() *Gossip { return h.gossip }

// Addrs are the addresses at which others may reach this node.
func (h *Host) Addrs() []multiaddr.Multiaddr { return h.host.Addrs() }

// FullAddrs are Addrs with /p2p/<id> at the end, as --bootstrap takes them.
func (h *Host) FullAddrs() []string {
	var out []string
	for _, a := range h.host.Addrs() {
		out = append(out, a.String()+"/p2p/"+h.id.String())
	}
	return out
}

// Connect connects to a peer, at the given addresses and those known; it
// reports what was tried when none answered.
func (h *Host) Connect(ctx context.Context, info peer.AddrInfo) error {
	start := time.Now()
	info.Addrs = h.gate.filter(info.Addrs)
	err := h.host.Connect(network.WithAllowLimitedConn(ctx, "connect"), info)
	if err == nil {
		return nil
	}
	took := time.Since(start).Round(time.Millisecond)
	if ctx.Err() != nil {
		return fmt.Errorf("connect to peer %s: no connection after %s: %w", info.ID, took, errors.Join(ErrUnreachable, ctx.Err()))
	}
	if h.blame.refused(info.ID) {
		return fmt.Errorf("connect to peer %s: it is refused for a while, it sent wrong things: %w", info.ID, ErrUnreachable)
	}
	return fmt.Errorf("connect to peer %s (failed after %s): %w", info.ID, took, errors.Join(ErrUnreachable, err))
}

// watchNetwork follows the host's events until Close.
func (h *Host) watchNetwork() error {
	sub, err := h.host.EventBus().Subscribe([]any{
		new(event.EvtPeerConnectednessChanged),
		new(event.EvtPeerIdentificationCompleted),
		new(event.EvtHostReachableAddrsChanged),
		new(event.EvtNATDeviceTypeChanged),
		new(event.EvtLocalAddressesUpdated),
		new(event.EvtLocalReachabilityChanged),
	}, eventbus.BufSize(256), eventbus.Name("lumbung"))
	if err != nil {
		return fmt.Errorf("follow the host's events: %w", err)
	}
	ctx, done, ok := h.begin()
	if !ok {
		return errors.Join(errors.New("the host is closing"), sub.Close())
	}
	go func() {
		defer done()
		defer func() { _ = sub.Close() }()
		for {
			select {
			case <-ctx.Done():
				return
			case e, open := <-sub.Out():
				if !open {
					return
				}
				h.onEvent(e)
			}
		}
	}()
	return nil
}

func (h *Host) onEvent(e any) {
	switch e := e.(type) {
	case event.EvtPeerConnectednessChanged:
		h.wake(e.Peer)
	case event.EvtPeerIdentificationCompleted:
		h.onIdentified(e)
	case event.EvtHostReachableAddrsChanged:
		h.view.reachable(e)
		h.dhtSwch.serve(h.answersDHT(len(e.Reachable) > 0))
	case event.EvtNATDeviceTypeChanged:
		h.view.natDevice(e)
	case event.EvtLocalReachabilityChanged:
		h.view.verdict(e.Reachability)
	case event.EvtLocalAddressesUpdated:
		h.advert.poke()
	}
}

// onIdentified lets go of peers of other networks.
func (h *Host) onIdentified(e event.EvtPeerIdentificationCompleted) {
	if e.ProtocolVersion == protocolVersion(h.cfg.Network) {
		h.wake(e.Peer)
		return
	}
	if h.adopt(e) {
		return
	}
	h.cfg.Log.Debug("a peer belongs to another network", "peer", e.Peer, "network", plain(e.ProtocolVersion, 64))
	h.blame.refuse(e.Peer)
	if err := h.host.Network().ClosePeer(e.Peer); err != nil {
		h.cfg.Log.Debug("close the peer's connections", "peer", e.Peer, "err", err)
	}
}

// protocolVersion names the network in the identify protocol.
func protocolVersion(network string) string { return versionPrefix + network + "/1" }

const versionPrefix = "lumbung/"

// ours says whether a peer has said that it is of this network.
func (h *Host) ours(id peer.ID) bool {
	v, err := h.host.Peerstore().Get(id, "ProtocolVersion")
	return err == nil && v == protocolVersion(h.cfg.Network)
}

// company are the connected peers, without those that are known to be of
// another kind: they lead to nobody of this network.
func (h *Host) company() []peer.ID {
	b := h.serving()
	if b == nil {
		return h.host.Network().Peers()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(h.host.Network().Peers(), func(id peer.ID) bool {
		_, foreign := b.foreign[id]
		return foreign
	})
}

// protect keeps a peer's connection when others are trimmed.
func (h *Host) protect(id peer.ID, addrs []multiaddr.Multiaddr) {
	h.host.ConnManager().Protect(id, "lumbung-bootstrap")
	h.host.Peerstore().AddAddrs(id, addrs, peerstore.PermanentAddrTTL)
}

func withoutPeer(list []peer.AddrInfo, id peer.ID) []peer.AddrInfo {
	var out []peer.AddrInfo
	for _, p := range list {
		if p.ID != id {
			out = append(out, p)
		}
	}
	return out
}
