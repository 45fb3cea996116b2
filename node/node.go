package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/api"
	"github.com/lumbung-net/lumbung/node/store"
	"github.com/lumbung-net/lumbung/p2p"
	"github.com/lumbung-net/lumbung/p2p/content"
	"github.com/lumbung-net/lumbung/protocol"
)

// Node is one participant, with all that its roles need.
type Node struct {
	cfg         Config
	log         *slog.Logger
	now         func() time.Time
	started     time.Time
	signer      *protocol.Signer
	metrics     *prometheus.Registry
	db          *store.DB
	blocks      *content.Store
	host        *p2p.Host
	exchange    *content.Exchange
	bitswap     *p2p.Bitswap
	used        *usedRoots
	keys        *job.Keys // of private jobs
	publicRoots publicRoots
	images      *images
	arrivals    *arrivals
	allowNet    bool // a provider's containers may have a network, and can
	link        *link
	api         *api.Server

	renter   *job.Renter
	provider *providerRole  // nil without the role
	senders  sync.WaitGroup // of stdin to execs elsewhere

	stop     context.CancelFunc // ends Run
	stopOnce sync.Once
	stopJobs bool // a shutdown is to leave no container running

	snapshots snapshots // of running jobs' outputs
}

// New opens everything a node has and starts nothing but listening; Close gives
// it back. A home that another node holds is an error that says so.
func New(ctx context.Context, cfg Config, log *slog.Logger) (_ *Node, err error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: log, now: time.Now, started: time.Now(), metrics: prometheus.NewRegistry()}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if err := os.MkdirAll(cfg.Home, 0o700); err != nil {
		return nil, fmt.Errorf("make the node's home: %w", err)
	}
	if n.db, err = store.Open(filepath.Join(cfg.Home, "lumbung.db"), store.Options{Log: log, Now: n.now}); err != nil {
		return nil, err
	}
	if n.blocks, err = content.Open(filepath.Join(cfg.Home, "blocks"), content.Options{Log: log, MaxBytes: cfg.StoreMax, Now: n.now}); err != nil {
		return nil, fmt.Errorf("open the block store: %w", err)
	}
	if err := n.openNetwork(); err != nil {
		return nil, err
	}
	n.exchange = content.NewExchange(n.blocks, contentNetwork{n.host}, n.exchangeOptions())
	n.used = newUsedRoots()
	n.host.AnnounceRoots(n.heldRoots)
	if n.bitswap, err = n.host.ServeBitswap(content.Blockstore(n.blocks), p2p.BitswapOptions{Spend: n.exchange.Spend}); err != nil {
		return nil, err
	}
	if n.images, err = newImages(n.blocks, n.db, filepath.Join(cfg.Home, "rootfs"), log); err != nil {
		return nil, err
	}
	n.arrivals = newArrivals(n, n.images)
	if n.link, err = newLink(ctx, n.db, log); err != nil {
		return nil, err
	}
	n.renter = n.newRenter()
	if cfg.Has(RoleProvider) {
		if n.provider, err = n.newProvider(ctx); err != nil {
			return nil, err
		}
	}
	token, err := n.apiToken()
	if err != nil {
		return nil, err
	}
	n.api, err = api.New(ctx, api.Options{
		Home: cfg.Home, Backend: backend{n}, Gatherer: n.metrics, Log: log, TCPAddr: cfg.API, Token: token,
	})
	if err != nil {
		return nil, err
	}
	n.registerMetrics()
	return n, nil
}

func (n *Node) openNetwork() error {
	key, err := p2p.LoadOrCreateKey(filepath.Join(n.cfg.Home, "identity.key"))
	if err != nil {
		return err
	}
	if n.signer, err = protocol.NewSigner(key, n.cfg.Network); err != nil {
		return err
	}
	if n.keys, err = job.NewKeys(key); err != nil {
		return err
	}
	cfg := p2p.Config{
		Network: n.cfg.Network, Key: key, Listen: n.cfg.Listen, Announce: n.cfg.Public, Bootstrap: n.cfg.Bootstrap,
		PeersFile: filepath.Join(n.cfg.Home, "peers.json"), Agent: "lumbung/" + n.cfg.Version,
		RelayService: n.cfg.Has(RoleBootstrap), Log: n.log, Registerer: n.metrics, Now: n.now,
	}
	if n.cfg.Has(RoleBootstrap) {
		cfg.DHT = p2p.DHTServer
	}
	n.host, err = p2p.New(cfg)
	return err
}

// Run works until ctx ends or a shutdown is asked for, and returns when all that
// it started has ended: bids and awards are refused from that moment, while the
// API ends and the adverts are withdrawn; then the market ends, whose containers
// and jobs are left for the next run unless they were to be stopped.
func (n *Node) Run(ctx context.Context) error {
	ctx, n.stop = context.WithCancel(ctx)
	defer n.stop()
	if err := n.register(); err != nil {
		return err
	}
	hostCtx, stopHost := context.WithCancel(context.WithoutCancel(ctx))
	defer stopHost()
	marketCtx, stopMarket := context.WithCancel(context.WithoutCancel(ctx))
	defer stopMarket()
	hostGroup, hostCtx := errgroup.WithContext(hostCtx)
	hostGroup.Go(func() error { return n.host.Run(hostCtx) })

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.renter.Run(marketCtx) })
	if n.provider != nil {
		group.Go(func() error { return n.provider.run(marketCtx) })
	}
	group.Go(func() error { return n.api.Run(ctx) })
	group.Go(func() error { return n.keepTidy(ctx) })
	group.Go(func() error {
		<-ctx.Done()
		n.wind(marketCtx)
		stopMarket()
		return nil
	})
	n.event(ctx, "started", "node is up")
	n.log.Info("node is up", "peer", n.host.ID(), "network", n.cfg.Network, "roles", n.cfg.Roles)
	err := group.Wait()
	stopHost()
	return errors.Join(err, hostGroup.Wait())
}

// register tells the network what this node answers.
func (n *Node) register() error {
	if err := errors.Join(n.serveContent(), n.serveRenter()); err != nil {
		return fmt.Errorf("register protocols: %w", err)
	}
	if n.provider != nil {
		if err := n.serveProvider(); err != nil {
			return fmt.Errorf("register protocols: %w", err)
		}
	}
	if n.cfg.Has(RoleBootstrap) {
		if err := n.host.Offers().RelayAll(); err != nil {
			return fmt.Errorf("relay offers: %w", err)
		}
	}
	return nil
}

// windTime bounds what a shutdown waits for before it ends the market.
const windTime = 15 * time.Second

// wind takes the node out of the network.
func (n *Node) wind(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, windTime)
	defer cancel()
	n.event(ctx, "stopping", "node is stopping")
	if n.provider == nil {
		return
	}
	if err := n.provider.leave(ctx, n.stopJobs); err != nil {
		n.log.Warn("leave the market", "err", err)
	}
}

// shutdown ends Run; with stopJobs no container is left running.
func (n *Node) shutdown(stopJobs bool) {
	n.stopOnce.Do(func() {
		n.stopJobs = stopJobs
		n.stop()
	})
}

// Close gives back what New opened. It is called after Run.
func (n *Node) Close() error {
	var errs []error
	if n.api != nil {
		errs = append(errs, n.api.Close())
	}
	n.senders.Wait() // the end of the API has ended what they read
	if n.host != nil {
		errs = append(errs, n.host.Close())
	}
	if n.blocks != nil {
		errs = append(errs, n.blocks.Close())
	}
	if n.db != nil {
		errs = append(errs, n.db.Close())
	}
	return errors.Join(errs...)
}

// event leaves a line about the node itself in the event log.
func (n *Node) event(ctx context.Context, state, text string) {
	err := n.db.Update(ctx, func(tx job.Tx) error {
		return tx.Emit(job.Event{Time: n.now(), Type: job.EventNode, Peer: n.host.ID().String(), State: state, Text: text})
	})
	if err != nil {
		n.log.Error("store an event", "err", err)
	}
}

// tidyEvery is how often lapsed holds are dropped, states that nobody needs
// removed and, where the store has a bound, blocks collected.
const tidyEvery = 10 * time.Minute

func (n *Node) keepTidy(ctx context.Context) error {
	t := time.NewTicker(tidyEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if _, err := n.db.ExpireHolds(ctx, n.now()); err != nil {
			n.log.Error("drop lapsed holds", "err", err)
		}
		if err := n.removeDropped(ctx); err != nil {
			n.log.Error("remove states that nobody needs", "err", err)
		}
		if n.cfg.StoreMax == 0 || n.blocks.Stats().Bytes < n.cfg.StoreMax {
			continue
		}
		if _, err := n.blocks.GC(ctx, roots{n}, content.GCOptions{MaxBytes: n.cfg.StoreMax / 10 * 9}); err != nil {
			n.log.Error("collect blocks", "err", err)
		}
	}
}

// removeDropped removes checkpoints that others have taken the place of: each is as
// large as the one before, and no block of one is of use for another.
func (n *Node) removeDropped(ctx context.Context) error {
	dropped, err := n.db.Dropped(ctx)
	if err != nil || len(dropped) == 0 {
		return err
	}
	st, err := n.blocks.GC(ctx, roots{n}, content.GCOptions{Of: dropped})
	if err != nil || st.Young > 0 { // those are looked at again
		return err
	}
	return n.db.ForgetDropped(ctx, slices.DeleteFunc(dropped, n.blocks.Has))
}

// PeerID is the node's id.
func (n *Node) PeerID() string { return n.host.ID().String() }

// Addrs are the node's whole addresses, to give to others.
func (n *Node) Addrs() []string { return n.host.FullAddrs() }

// apiToken is the secret that callers of the API over TCP show, made when the
// API is first asked for there; it lies in the home, for its owner alone.
func (n *Node) apiToken() (string, error) {
	if n.cfg.API == "" {
		return "", nil
	}
	path := filepath.Join(n.cfg.Home, "api.token")
	if raw, err := os.ReadFile(path); err == nil {
		return strings.TrimSpace(string(raw)), nil
	}
	token := rand.Text()
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keep the API's token: %w", err)
	}
	return token, nil
}
