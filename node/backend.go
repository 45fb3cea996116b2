package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/api"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/node/store"
)

// backend is the node as the local API sees it.
type backend struct{ n *Node }

var _ api.Backend = backend{}

// Status implements api.Backend.
func (b backend) Status(ctx context.Context) (client.Status, error) {
	n := b.n
	report := n.host.Netcheck(quick(ctx))
	stats := n.blocks.Stats()
	jobs, tasks := n.renter.Active()
	spent, earned, err := n.db.Turnover(ctx)
	if err != nil {
		return client.Status{}, err
	}
	s := client.Status{
		PeerID: n.host.ID().String(), Network: n.cfg.Network, Roles: n.cfg.Roles, Version: n.cfg.Version,
		PID: os.Getpid(), Home: n.cfg.Home, Started: n.started, Addrs: n.host.FullAddrs(),
		Peers: len(n.host.Peers()), Reachable: report.Reachability, DHTPeers: report.DHTPeers,
		Store:     client.StoreStatus{Blocks: uint64(stats.Blocks), Bytes: stats.Bytes, Disk: stats.DiskBytes},
		Transfers: b.n.transfers(),
		Renter:    &client.RenterStatus{Open: jobs, Tasks: tasks, Spent: spent}, Memory: residentBytes(),
	}
	if n.provider != nil {
		stats := n.providerStats(earned)
		s.Provider = &stats
		if n.provider.Sandbox == nil {
			s.Warnings = append(s.Warnings, "containers cannot run here: "+n.provider.sandbox)
		}
	}
	if s.Peers == 0 {
		s.Warnings = append(s.Warnings, "no peer is connected; start with `--bootstrap ADDR`, and see `lumbung netcheck`")
	}
	return s, nil
}

// quick is a context in which a network check asks nobody: what is known must
// do.
func quick(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return ctx
}

// Identity implements api.Backend.
func (b backend) Identity(context.Context) (client.Identity, error) {
	return client.Identity{PeerID: b.n.host.ID().String(), Network: b.n.cfg.Network, Addrs: b.n.host.FullAddrs()}, nil
}

// Shutdown implements api.Backend.
func (b backend) Shutdown(_ context.Context, stopJobs bool) error {
	b.n.shutdown(stopJobs)
	return nil
}

// Netcheck implements api.Backend.
func (b backend) Netcheck(ctx context.Context) (client.Netcheck, error) {
	r := b.n.host.Netcheck(ctx)
	out := client.Netcheck{
		Listen: r.Listen, Announced: r.Addrs, Reachability: r.Reachability, DHTMode: r.DHTMode, DHTPeers: r.DHTPeers,
		Connected: r.Peers, Relays: r.Relays,
	}
	for _, c := range r.Bootstrap {
		out.Bootstrap = append(out.Bootstrap, c.ID)
		f := client.Finding{Level: "ok", What: "bootstrap " + c.ID, Detail: fmt.Sprintf("answered in %s, TCP %s, UDP %s", c.RTT.Round(time.Millisecond), c.TCP, c.UDP)}
		if !c.Answered {
			f.Level, f.Detail, f.Remedy = "fail", c.Error, "check the address and that its node is up; `lumbung id` there prints it"
		}
		out.Findings = append(out.Findings, f)
	}
	for _, p := range r.Problems {
		out.Findings = append(out.Findings, client.Finding{Level: "warn", What: "network", Detail: p.What, Remedy: p.Remedy})
	}
	return out, nil
}

// Ping implements api.Backend.
func (b backend) Ping(ctx context.Context, name string) (client.PeerPing, error) {
	to, err := peerNamed(name)
	if err != nil {
		return client.PeerPing{}, &api.Error{
			Status: http.StatusUnprocessableEntity, Code: "bad_peer", Detail: fmt.Sprintf("%q is no peer id and no address with one", name),
			Remedy: "give the id or a whole address that `lumbung id` prints there, or an id of `lumbung offers`", Err: err,
		}
	}
	id := to.ID
	if len(to.Addrs) > 0 {
		b.n.host.Host().Peerstore().AddAddrs(id, to.Addrs, learnedTTL)
	}
	rtt, via, err := b.n.host.Ping(ctx, id)
	if err != nil {
		return client.PeerPing{}, &api.Error{
			Status: http.StatusBadGateway, Code: "unreachable", Detail: err.Error(),
			Remedy: "check that the node is up and that `lumbung netcheck` is content on both sides", Retryable: true, Err: err,
		}
	}
	return client.PeerPing{Peer: id.String(), RTT: rtt, Via: via}, nil
}

// peerNamed is a peer given by its id, or by an address that ends in /p2p/ and
// the id.
func peerNamed(name string) (peer.AddrInfo, error) {
	if !strings.HasPrefix(name, "/") {
		id, err := peer.Decode(name)
		return peer.AddrInfo{ID: id}, err
	}
	info, err := peer.AddrInfoFromString(name)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	return *info, nil
}

// Watch implements api.Backend.
func (b backend) Watch(ctx context.Context, since uint64, fn func(client.Event) error) error {
	return b.n.eventsEnd(ctx, b.n.db.Watch(ctx, since, fn))
}

// eventsEnd says why events end to the one who reads them: nothing where it has
// only to come back by number.
func (n *Node) eventsEnd(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, store.ErrSlow):
		return nil
	case !errors.Is(err, store.ErrGone):
		return err
	}
	gone := &api.Error{Status: http.StatusGone, Code: "events_gone", Err: err, Remedy: "begin again with `lumbung events`, which shows the newest"}
	if oldest, newest, err := n.db.EventBounds(ctx); err == nil {
		gone.Remedy = fmt.Sprintf("begin again with `lumbung events --since %d`, for all that are kept, or after %d for those to come", oldest-1, newest)
	}
	return gone
}

// LastEvent implements api.Backend.
func (b backend) LastEvent(ctx context.Context) (uint64, error) {
	_, newest, err := b.n.db.EventBounds(ctx)
	return newest, err
}

func (n *Node) reachability() string {
	return n.host.Netcheck(quick(context.Background())).Reachability
}

// notProvider is the error of a provider's command to a node that is none.
func notProvider() error {
	return &api.Error{
		Status: http.StatusConflict, Code: "not_a_provider", Detail: "this node is no provider",
		Remedy: "start it with `lumbung up --role provider`",
	}
}

func residentBytes() uint64 {
	raw, err := os.ReadFile("/proc/self/statm")
	var size, resident uint64
	if err == nil {
		if _, err := fmt.Sscan(string(raw), &size, &resident); err == nil {
			return resident * uint64(os.Getpagesize())
		}
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Sys - m.HeapReleased
}

// findJob finds a job by its id, a prefix of it or its name.
func (n *Node) findJob(ctx context.Context, ref string) (*job.Job, error) {
	var found []*job.Job
	err := n.db.View(ctx, func(tx job.Tx) error {
		if j, err := tx.Job(ref); err == nil {
			found = []*job.Job{j}
			return nil
		} else if !errors.Is(err, job.ErrNotFound) {
			return err
		}
		all, err := tx.Jobs(true, 0)
		for _, j := range all {
			if j.Spec.Name == ref || len(ref) >= 2 && strings.HasPrefix(j.ID, ref) {
				found = append(found, j)
			}
		}
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0:
		return nil, fmt.Errorf("job %s: %w", ref, job.ErrNotFound)
	case len(found) > 1 && found[0].Spec.Name != ref:
		return nil, &api.Error{
			Status: http.StatusConflict, Code: "ambiguous", Detail: fmt.Sprintf("%q begins the ids of %d jobs", ref, len(found)),
			Remedy: "give more of the id; `lumbung ps -a` lists them",
		}
	}
	return found[0], nil // of several with one name, the newest
}
