package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"golang.org/x/sync/errgroup"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/node"
	"github.com/lumbung-net/lumbung/node/client"
)

type devnetOptions struct {
	providers int
	fakeGPU   string
	seed      string
	dir       string
	cpus      int
	memory    string
}

// devnet is a network of processes on this machine.
type devnet struct {
	a       *app
	o       devnetOptions
	dir     string
	temp    bool
	network string
	nodes   []*devNode // bootstrap first, renter last
}

// devNode is one of its nodes.
type devNode struct {
	name, home string
	role       string
	proc       *process
	c          *client.Client
	id         client.Identity
}

func (d *devnet) bootstrap() *devNode   { return d.nodes[0] }
func (d *devnet) renter() *devNode      { return d.nodes[len(d.nodes)-1] }
func (d *devnet) providers() []*devNode { return d.nodes[1 : len(d.nodes)-1] }

// devnetWait bounds how long the network may take to come up.
const devnetWait = 90 * time.Second

var seedForm = regexp.MustCompile(`^[a-z0-9]{1,24}$`)

// startDevnet starts the nodes and returns when the renter has found every
// provider in the DHT. What it started it stops where it fails.
func (a *app) startDevnet(ctx context.Context, o devnetOptions) (_ *devnet, err error) {
	if o.providers < 1 || o.providers > 32 {
		return nil, usageErrf("--providers %d: want 1 to 32", o.providers)
	}
	name := o.seed
	if name == "" {
		name = strings.ToLower(rand.Text()[:6])
	} else if !seedForm.MatchString(name) {
		return nil, usageErrf("--seed %s: want 1 to 24 small letters and digits", o.seed)
	}
	d := &devnet{a: a, o: o, network: "devnet-" + name}
	if d.dir, d.temp, err = devnetDir(o.dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.stop()
		}
	}()
	d.plan()
	ctx, cancel := context.WithTimeoutCause(ctx, devnetWait, withRemedy(
		fmt.Errorf("the network was not up within %s", devnetWait), "read the logs in %s", filepath.Join(d.dir, "*", "node.log")))
	defer cancel()
	m := a.newMeter(fmt.Sprintf("starting %d nodes", len(d.nodes)))
	defer m.Done()
	if err := d.launch(ctx, d.bootstrap(), nil); err != nil {
		return nil, err
	}
	group, gctx := errgroup.WithContext(ctx)
	for _, n := range d.nodes[1:] {
		group.Go(func() error { return d.launch(gctx, n, d.bootstrap().id.Addrs) })
	}
	if err := group.Wait(); err != nil {
		if context.Cause(ctx) != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return d, d.allSeen(ctx)
}

func (d *devnet) plan() {
	add := func(name, role string) {
		d.nodes = append(d.nodes, &devNode{name: name, role: role, home: filepath.Join(d.dir, name)})
	}
	add("bootstrap", node.RoleBootstrap)
	for i := range d.o.providers {
		add("provider"+strconv.Itoa(i+1), node.RoleProvider)
	}
	add("renter", node.RoleRenter)
}

// launch starts one node and waits until it answers.
func (d *devnet) launch(ctx context.Context, n *devNode, bootstrap []string) error {
	if err := d.identity(n); err != nil {
		return err
	}
	var err error
	if n.c, err = client.New(n.home); err != nil {
		return err
	}
	n.proc, err = startProcess(ctx, process{
		args: d.args(n, bootstrap), logFile: filepath.Join(n.home, "node.log"), env: plainEnv(), tied: true,
	})
	if err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	if _, err := n.proc.answers(ctx, n.c, devnetWait); err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	if n.id, err = n.c.Identity(ctx); err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	return nil
}

func (d *devnet) args(n *devNode, bootstrap []string) []string {
	args := []string{
		"up", "--home", n.home, "--network", d.network, "--role", n.role, "--with-parent",
		"--log-file", filepath.Join(n.home, "node.log"), "--heartbeat", "1s",
		"--listen", "/ip4/127.0.0.1/tcp/0", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1",
	}
	for _, addr := range bootstrap {
		args = append(args, "--bootstrap", addr)
	}
	if n.role == node.RoleProvider {
		args = append(args, "--cpus", strconv.Itoa(d.o.cpus), "--memory", d.o.memory)
		if d.o.fakeGPU != "" {
			args = append(args, "--fake-gpu", d.o.fakeGPU)
		}
	}
	return args
}

// plainEnv takes the caller's own settings away from the nodes: a network of
// its own does not join the caller's.
func plainEnv() []string {
	var out []string
	for _, s := range settings() {
		if s.name != "runsc" && s.name != "debug" && os.Getenv(s.env()) != "" {
			out = append(out, s.env()+"=")
		}
	}
	return out
}

// identity gives the node a key that follows from the seed, if there is one.
func (d *devnet) identity(n *devNode) error {
	if d.o.seed == "" {
		return nil
	}
	name := filepath.Join(n.home, "identity.key")
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	sum := sha256.Sum256([]byte("lumbung devnet\x00" + d.o.seed + "\x00" + n.name))
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(sum[:]))
	if err != nil {
		return fmt.Errorf("%s: make its key: %w", n.name, err)
	}
	raw, err := crypto.MarshalPrivateKey(key)
	if err == nil {
		err = os.MkdirAll(n.home, 0o700)
	}
	if err == nil {
		err = os.WriteFile(name, raw, 0o600)
	}
	if err != nil {
		return fmt.Errorf("%s: store its key: %w", n.name, err)
	}
	return nil
}

// allSeen waits until the renter has found all providers through the DHT, and
// each is live.
func (d *devnet) allSeen(ctx context.Context) error {
	want := map[string]bool{}
	for _, p := range d.providers() {
		want[p.id.PeerID] = true
	}
	err := poll(ctx, func() (bool, error) {
		offers, err := d.renter().c.Offers(ctx, "")
		if err != nil {
			var p *client.Problem
			if errors.As(err, &p) && p.Retryable || ctx.Err() != nil {
				return false, nil
			}
			return false, fmt.Errorf("look for the providers: %w", err)
		}
		seen := 0
		for _, o := range offers {
			if want[o.Peer] && o.Live {
				seen++
			}
		}
		return seen == len(want), nil
	})
	if err != nil && context.Cause(ctx) != nil {
		return context.Cause(ctx)
	}
	return err
}

// stop ends every node with its jobs, waits until all are gone, and removes a
// temporary folder.
func (d *devnet) stop() {
	var group sync.WaitGroup
	// The bootstrap node goes last: the others say goodbye through it.
	for i := len(d.nodes) - 1; i >= 0; i-- {
		n := d.nodes[i]
		if i == 0 {
			group.Wait()
		}
		group.Go(func() {
			if n.proc != nil {
				n.proc.stop()
			}
			if n.c != nil {
				_ = n.c.Close()
			}
		})
	}
	group.Wait()
	if !d.temp {
		return
	}
	if err := sandbox.RemoveTree(d.dir); err != nil {
		d.a.con.Notef("%s %s is left: %v", d.a.con.yellow("warning:"), d.dir, err)
	}
}
