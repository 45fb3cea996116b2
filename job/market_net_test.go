package job

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

// call is one request on its way; n counts those of its name from 1.
type call struct {
	name     string
	from, to *shop
	n        int
}

// fate is what becomes of a call. What is lost is noticed by the caller's own
// deadline alone.
type fate struct {
	lose       bool          // the request
	loseAnswer bool          // the answer: the work is done
	reset      bool          // with loseAnswer: the caller sees it at once
	repeat     bool          // the request arrives twice, at once
	delay      time.Duration // of the request
}

// rules sets what becomes of calls from now on; nil is a network without fault.
func (w *town) rules(rule func(call) fate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rule = rule
}

// cutOff parts a shop from all others, until rules are set anew.
func (w *town) cutOff(s *shop) {
	w.rules(func(c call) fate { return fate{lose: c.from == s || c.to == s} })
}

func (w *town) fate(name string, from, to *shop) fate {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count[name]++
	if w.rule == nil {
		return fate{}
	}
	return w.rule(call{name: name, from: from, to: to, n: w.count[name]})
}

func (w *town) calls(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count[name]
}

func (w *town) shopOf(id protocol.PeerID) *shop {
	for _, s := range append([]*shop{w.renter}, w.shops...) {
		if s.id() == id {
			return s
		}
	}
	return nil
}

// wire is a process's hold on the network. Messages really are sealed and
// opened, and an error travels as its status alone, as on streams.
type wire struct {
	w    *town
	s    *shop
	life *life
}

type handler[Req, Resp protocol.Message] func(context.Context, protocol.PeerID, protocol.Signed[Req]) (protocol.Signed[Resp], error)

// longest is how long a stream stays open.
const longest = 30 * time.Second

// exchange is one request and its answer. The handler runs by itself, so that
// it goes on when its caller gave up.
func exchange[Req, Resp protocol.Message](ctx context.Context, n *wire, to protocol.PeerID, name string, req protocol.Signed[Req], find func(*shop) handler[Req, Resp]) (protocol.Signed[Resp], error) {
	var none protocol.Signed[Resp]
	target := n.w.shopOf(to)
	fail := func(err error) (protocol.Signed[Resp], error) {
		return none, fmt.Errorf("%s with %s: %w", name, target.name, err)
	}
	if n.life.dead.Load() {
		return fail(errDead)
	}
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	f := n.w.fate(name, n.s, target)
	if f.delay > 0 {
		select {
		case <-time.After(f.delay):
		case <-ctx.Done():
			return fail(ctx.Err())
		}
	}
	if f.lose {
		<-ctx.Done()
		return fail(ctx.Err())
	}
	type result struct {
		resp protocol.Signed[Resp]
		err  error
	}
	answers := make(chan result, 2)
	serve := func() {
		resp, err := arrive(n, target, req, find)
		answers <- result{resp, err}
	}
	if f.repeat {
		n.w.group.Go(serve)
	}
	n.w.group.Go(serve)
	select {
	case <-ctx.Done():
		return fail(ctx.Err())
	case a := <-answers:
		if f.loseAnswer && f.reset {
			return fail(errReset)
		}
		if f.loseAnswer {
			<-ctx.Done()
			return fail(ctx.Err())
		}
		if a.err != nil {
			return fail(a.err)
		}
		resp, err := protocol.Open[Resp](testNet, a.resp.Raw, time.Now())
		if err != nil {
			return fail(err)
		}
		if resp.From != to {
			return fail(errors.New("the answer is signed by another"))
		}
		return resp, nil
	}
}

var (
	errRefused = errors.New("connection refused")
	errReset   = errors.New("connection reset")
)

// arrive hands a request to the process that is there when it comes.
func arrive[Req, Resp protocol.Message](n *wire, target *shop, req protocol.Signed[Req], find func(*shop) handler[Req, Resp]) (protocol.Signed[Resp], error) {
	var none protocol.Signed[Resp]
	l, _, _ := target.now()
	if l.ctx.Err() != nil || l.dead.Load() {
		return none, errRefused
	}
	ctx, cancel := context.WithTimeout(l.ctx, longest)
	defer cancel()
	in, err := protocol.Open[Req](testNet, slices.Clone(req.Raw), time.Now())
	if err != nil {
		return none, fmt.Errorf("%w: %w", protocol.ErrBlame, err)
	}
	resp, err := find(target)(ctx, n.s.id(), in)
	switch {
	case l.dead.Load():
		return none, errReset
	case err != nil:
		return none, fmt.Errorf("%w (%s)", protocol.StatusOf(err).Err(), err.Error())
	}
	return resp, nil
}

func (n *wire) Addrs() [][]byte                     { return nil }
func (n *wire) RTT(protocol.PeerID) time.Duration   { return time.Millisecond }
func (n *wire) Learn(protocol.PeerID, [][]byte)     {}
func providerOf(s *shop) *Provider                  { _, p, _ := s.now(); return p }
func renterOf(s *shop) *Renter                      { _, _, r := s.now(); return r }
func (n *wire) reachable(s *shop, name string) bool { return !n.w.fate(name, n.s, s).lose }

// PublishOffer gossips: each provider hears the offer by itself.
func (n *wire) PublishOffer(_ context.Context, offer protocol.Signed[*protocol.Offer]) error {
	for _, s := range n.w.shops {
		l, p, _ := s.now()
		if l.ctx.Err() != nil || !n.reachable(s, "gossip") {
			continue
		}
		in, err := protocol.Open[*protocol.Offer](testNet, offer.Raw, time.Now())
		if err != nil {
			return err
		}
		n.w.group.Go(func() {
			ctx, cancel := context.WithTimeout(l.ctx, longest)
			defer cancel()
			if err := p.HandleOffer(ctx, in); err != nil {
				n.w.log.Debug("offer not answered", "node", s.name, "err", err)
			}
		})
	}
	return nil
}

// Providers are those that the DHT knows: all, down or not.
func (n *wire) Providers(_ context.Context, _ []string, limit int) (ids []protocol.PeerID, err error) {
	for _, s := range n.w.shops {
		if n.reachable(s, "dht") && len(ids) < limit {
			ids = append(ids, s.id())
		}
	}
	return ids, nil
}

func (n *wire) Quote(ctx context.Context, to protocol.PeerID, m protocol.Signed[*protocol.Offer]) (protocol.Signed[*protocol.Answer], error) {
	return exchange(ctx, n, to, "quote", m, func(s *shop) handler[*protocol.Offer, *protocol.Answer] { return providerOf(s).HandleQuote })
}

func (n *wire) Propose(ctx context.Context, to protocol.PeerID, m protocol.Signed[*protocol.Lease]) (protocol.Signed[*protocol.Decision], error) {
	return exchange(ctx, n, to, "lease", m, func(s *shop) handler[*protocol.Lease, *protocol.Decision] { return providerOf(s).HandleLease })
}

func (n *wire) Cancel(ctx context.Context, to protocol.PeerID, m protocol.Signed[*protocol.Cancel]) (protocol.Signed[*protocol.LeaseStatus], error) {
	return exchange(ctx, n, to, "cancel", m, func(s *shop) handler[*protocol.Cancel, *protocol.LeaseStatus] { return providerOf(s).HandleCancel })
}

func (n *wire) LeaseStatus(ctx context.Context, to protocol.PeerID, m protocol.Signed[*protocol.LeaseQuery]) (protocol.Signed[*protocol.LeaseStatus], error) {
	return exchange(ctx, n, to, "status", m, func(s *shop) handler[*protocol.LeaseQuery, *protocol.LeaseStatus] {
		return providerOf(s).HandleLeaseQuery
	})
}

func (n *wire) Answer(ctx context.Context, to protocol.PeerID, _ [][]byte, m protocol.Signed[*protocol.Answer]) error {
	_, err := exchange(ctx, n, to, "answer", m, func(s *shop) handler[*protocol.Answer, *protocol.Ack] { return renterOf(s).HandleAnswer })
	return err
}

func (n *wire) Heartbeat(ctx context.Context, to protocol.PeerID, m protocol.Signed[*protocol.Heartbeat]) (protocol.Signed[*protocol.Verdict], error) {
	return exchange(ctx, n, to, "heartbeat", m, func(s *shop) handler[*protocol.Heartbeat, *protocol.Verdict] { return renterOf(s).HandleHeartbeat })
}

func (n *wire) Logs(ctx context.Context, to protocol.PeerID, m protocol.Signed[*protocol.LogChunk]) (protocol.Signed[*protocol.Verdict], error) {
	return exchange(ctx, n, to, "logs", m, func(s *shop) handler[*protocol.LogChunk, *protocol.Verdict] { return renterOf(s).HandleLogs })
}

func (n *wire) Result(ctx context.Context, to protocol.PeerID, m protocol.Signed[*protocol.Result]) (protocol.Signed[*protocol.Receipt], error) {
	return exchange(ctx, n, to, "result", m, func(s *shop) handler[*protocol.Result, *protocol.Receipt] { return renterOf(s).HandleResult })
}

// depot is a provider's content store: it takes a while to fetch, or until the
// test opens its gate.
type depot struct {
	w    *town
	mu   sync.Mutex
	took time.Duration
	gate chan struct{} // nil is open
	save chan struct{} // nil is open
	fail error
	here map[string]bool
	held map[string]bool

	snapshots int
}

func newDepot(w *town) *depot {
	return &depot{w: w, here: map[string]bool{}, held: map[string]bool{}}
}

func (d *depot) set(change func(*depot)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(d)
}

func (d *depot) owners() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return sortedKeys(d.held)
}

// of is a new process's hold: who used which image was in the old one's memory.
func (d *depot) of(l *life) *shelf {
	d.set(func(d *depot) { clear(d.held) })
	return &shelf{d, l}
}

// shelf is a process's hold on its depot.
type shelf struct {
	*depot
	life *life
}

const imageSize = 1 << 20

func (s *shelf) CachedImage(_ context.Context, root []byte) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.here[string(root)] {
		return imageSize
	}
	return 0
}

func (s *shelf) FetchImage(ctx context.Context, im *protocol.Image, _ []protocol.PeerID, progress func(Progress)) error {
	return s.fetch(ctx, im.GetRoot(), progress)
}

func (s *shelf) FetchDAG(ctx context.Context, root []byte, _ []protocol.PeerID, _ uint64, progress func(Progress)) error {
	return s.fetch(ctx, root, progress)
}

func (s *shelf) fetch(ctx context.Context, root []byte, progress func(Progress)) error {
	s.mu.Lock()
	took, gate, fail := s.took, s.gate, s.fail
	if s.here[string(root)] {
		took = 0
	}
	s.mu.Unlock()
	if fail != nil {
		return fail
	}
	progress(Progress{Phase: "fetch", Done: 1, Total: imageSize})
	if gate == nil {
		gate = make(chan struct{})
		close(gate)
	}
	for _, ready := range []<-chan struct{}{gate, after(ctx, took)} {
		select {
		case <-ready:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if s.life.dead.Load() {
		return errDead
	}
	s.mu.Lock()
	s.here[string(root)] = true
	s.mu.Unlock()
	progress(Progress{Phase: "fetch", Done: imageSize, Total: imageSize})
	return nil
}

// after is closed after a while, or when ctx is over.
func after(ctx context.Context, d time.Duration) <-chan struct{} {
	out := make(chan struct{})
	t, cancel := context.WithTimeout(ctx, d)
	context.AfterFunc(t, func() {
		cancel()
		close(out)
	})
	return out
}

func (s *shelf) Rootfs(_ context.Context, _ []byte, owner string) (string, ImageInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.dead.Load() {
		return "", ImageInfo{}, errDead
	}
	s.held[owner] = true
	return "/rootfs", toolImage(), nil
}

func (s *shelf) ReleaseRootfs(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.life.dead.Load() {
		delete(s.held, owner)
	}
}

// Materialize writes over what is there, as the real one does.
func (s *shelf) Materialize(_ context.Context, root []byte, dest string) error {
	if s.life.dead.Load() {
		return errDead
	}
	if err := os.MkdirAll(dest, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dest, "root"), root, 0o600)
}

func (s *shelf) MaterializeMax(ctx context.Context, root []byte, dest string, _ uint64) error {
	return s.Materialize(ctx, root, dest)
}

// Snapshot is a root of the files that are in the folders.
func (s *shelf) Snapshot(_ context.Context, dir string, names []string) ([]byte, uint64, error) {
	if s.life.dead.Load() {
		return nil, 0, errDead
	}
	text := "snapshot"
	for _, name := range names {
		files, err := os.ReadDir(filepath.Join(dir, name))
		if err != nil {
			return nil, 0, err
		}
		for _, f := range files {
			text += " " + name + "/" + f.Name()
		}
	}
	s.mu.Lock()
	s.snapshots++
	s.mu.Unlock()
	root := rootOf(text)
	s.w.mu.Lock()
	s.w.made[string(root)] = true
	s.w.mu.Unlock()
	return root, uint64(len(text)), nil
}

func (s *shelf) EndSnapshots(string) {}

func (s *shelf) Save(ctx context.Context, dir string) ([]byte, uint64, error) {
	s.mu.Lock()
	gate := s.save
	s.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
	if err := s.w.unsafe; err != nil {
		return nil, 0, err
	}
	if s.life.dead.Load() {
		return nil, 0, errDead
	}
	if _, err := os.ReadDir(dir); err != nil {
		return nil, 0, err
	}
	root := rootOf("outputs of " + dir)
	s.w.mu.Lock()
	s.w.made[string(root)] = true
	s.w.mu.Unlock()
	return root, 10, nil
}

// library is the renter's content store. fetches lets the first ones of outputs
// fail.
type library struct{ w *town }

var toolID = "sha256:" + hex.EncodeToString(make([]byte, 32))

func toolImage() ImageInfo {
	return ImageInfo{
		ImageRef: ImageRef{Name: "tool", ID: toolID, Root: rootOf("tool"), Size: imageSize, Platform: "linux/amd64"},
	}
}

var errNoImage = errors.New("no such image")

func (l library) ResolveImage(_ context.Context, ref, _ string, _ func(Progress)) (ImageInfo, error) {
	im := toolImage()
	if ref == "cuda" || ref == "odd" {
		im.Env = []string{"NVIDIA_REQUIRE_CUDA=cuda>=12.4 brand=tesla,driver>=535,driver<536"}
		if ref == "odd" {
			im.Env = []string{"NVIDIA_REQUIRE_CUDA=cuda is fine"}
		}
		return im, nil
	}
	if ref != im.Name && ref != "arm" {
		return ImageInfo{}, errNoImage
	}
	if ref == "arm" {
		im.Platform = "linux/arm64"
	}
	return im, nil
}

func (l library) AddInput(_ context.Context, from, _ string, _ func(Progress)) (Root, error) {
	return Root{CID: rootOf(from), Size: 10}, nil
}

// FetchDAG finds what a provider has saved, unless the network loses it.
func (l library) FetchDAG(ctx context.Context, root []byte, from []protocol.PeerID, _ uint64, progress func(Progress)) error {
	s := l.w.shopOf(from[0])
	f := l.w.fate("outputs", l.w.renter, s)
	for done := uint64(1); f.delay > 0; done++ {
		if l.w.moving.Load() {
			progress(Progress{Done: done})
		}
		step := min(f.delay, testBeat)
		f.delay -= step
		select {
		case <-time.After(step):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if f.lose {
		return fmt.Errorf("fetch from %s: %w", s.name, errRefused)
	}
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if !l.w.made[string(root)] {
		return errors.New("nobody has these blocks")
	}
	return nil
}
