package node

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/p2p/content"
)

const (
	// lazyWorth is how long a fetch must be expected to take for a container to
	// start before it is over.
	lazyWorth = 2 * time.Second
	// lazyRate is taken for the link's until it was measured: 100 Mbit/s.
	lazyRate = 100_000_000 / 8
	// lazyEnd is the end of the name of a folder that an image arrives in, and
	// lazyPlan of the file that says from whom.
	lazyEnd  = ".lazy"
	lazyPlan = ".lazy.json"
	// maxArriving bounds the images that arrive at one time: the names of each
	// are kept in memory. Others are fetched whole first.
	maxArriving = 8
	// What the names in memory of one image may take, and those of all.
	maxShape  = 200 << 20
	maxShapes = 400 << 20
)

// arrivals brings images to containers that run on them already. One arrival
// serves all containers of its image.
type arrivals struct {
	n      *Node
	images *images
	why    error  // why no container can start early; nil if it can
	memory string // folder in memory to make shapes in; empty if there is none

	mu   sync.Mutex
	ctx  context.Context // of Run; nil outside of it
	wg   sync.WaitGroup
	open map[cid.Cid]*arrival
	uses map[string]*arrival // by owner
	fed  map[string]bool     // owners whose container is supplied
	runs map[string]bool     // and whose container runs
	held uint64              // bytes of memory that shapes take, about
}

// arrival is one image on its way.
type arrival struct {
	root  cid.Cid
	plan  arrivalPlan   // guarded by arrivals.mu
	ready chan struct{} // closed when lazy or err is set
	over  chan struct{} // closed when the image is whole, or err is set
	nudge chan struct{} // says that plan, until or users is another

	// Guarded by arrivals.mu.
	lazy  *content.Lazy // until it is whole
	place string        // where its shape is
	held  uint64        // bytes of memory that takes, about
	err   error
	whole bool
	users int
	until time.Time // when a fetch that fails is not begun again, unless a container runs
	asked time.Time // for, last

	mu       sync.Mutex
	progress []func(job.Progress)
	told     job.Progress
	opened   []string
}

// arrivalPlan is what a later life of the node needs to go on.
type arrivalPlan struct {
	Peers    []string `json:"peers"`
	Origins  []string `json:"origins"` // peers to ask last
	MaxBytes uint64   `json:"max_bytes"`
}

func newArrivals(n *Node, im *images) *arrivals {
	return &arrivals{n: n, images: im, open: map[cid.Cid]*arrival{}, uses: map[string]*arrival{}, fed: map[string]bool{}, runs: map[string]bool{}}
}

// start lets images arrive until ctx ends; run then waits for all of it.
func (s *arrivals) start(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ctx = ctx
}

func (s *arrivals) run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	s.ctx = nil
	s.mu.Unlock()
	s.wg.Wait()
	if s.memory != "" {
		_ = os.Remove(s.memory) // unless containers go on on shapes in it
	}
	return nil
}

// spawn runs f, unless the node is ending. The lock is held.
func (s *arrivals) spawn(f func(ctx context.Context)) error {
	ctx := s.ctx
	if ctx == nil {
		return errors.New("this node is stopping")
	}
	s.wg.Go(func() { f(ctx) })
	return nil
}

// worth says whether waiting for the whole image would take long.
func (s *arrivals) worth(ctx context.Context, root cid.Cid, size uint64) bool {
	if s.why != nil {
		return false
	}
	if _, err := os.Stat(s.images.folder(root)); err == nil {
		return false
	}
	have, total, complete, err := content.Missing(ctx, s.n.blocks, root)
	if err != nil || complete {
		return false
	}
	rate := s.n.link.rate()
	if rate == 0 {
		rate = lazyRate
	}
	missing := max(size, total) - min(have, max(size, total))
	return time.Duration(float64(missing)/float64(rate)*float64(time.Second)) > lazyWorth
}

// begin lets an image arrive, and returns when containers on it can be prepared:
// false says that this one must be fetched whole first.
func (s *arrivals) begin(ctx context.Context, root cid.Cid, size uint64, plan arrivalPlan, progress func(job.Progress)) (bool, error) {
	a, err := s.join(ctx, root, plan, s.worth(ctx, root, size))
	if a == nil || err != nil {
		return false, err
	}
	a.mu.Lock()
	a.progress = append(a.progress, progress)
	a.mu.Unlock()
	select {
	case <-a.ready:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case a.err == nil:
		return true, nil
	case errors.Is(a.err, content.ErrUnavailable) || s.ctx == nil:
		return false, a.err
	}
	return false, nil // who unpacks it whole says where it is wrong, if it is
}

// finish waits until an image that arrives is whole; false says that none does,
// and that this one must be fetched.
func (s *arrivals) finish(ctx context.Context, root cid.Cid, _ uint64, plan arrivalPlan, _ func(job.Progress)) (bool, error) {
	owner := "whole:" + root.String()
	if _, before := s.rootfs(root, owner); before { // one of an earlier life is taken up
		defer s.release(owner)
	}
	a, err := s.join(ctx, root, plan, false)
	if a == nil || err != nil {
		return false, err
	}
	select {
	case <-a.over:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return a.err == nil, nil // who unpacks it whole says where it is wrong, if it is
}

// join returns the arrival of an image, begun if that is worth it and there is
// room; nil if there is none.
func (s *arrivals) join(ctx context.Context, root cid.Cid, plan arrivalPlan, worth bool) (*arrival, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.open[root]
	var err error
	switch {
	case a != nil && a.err != nil: // it failed under containers that have not ended yet
		return nil, nil
	case a != nil:
		a.plan = a.plan.with(plan)
	case !worth || s.arriving() >= maxArriving:
		return nil, nil
	default:
		a, err = s.bringing(root, plan)
	}
	if err != nil {
		return nil, err
	}
	if until, ok := ctx.Deadline(); ok && until.After(a.until) {
		a.until = until
	}
	a.asked = time.Now()
	a.poke()
	return a, nil
}

// arriving is how many images are on their way. The lock is held.
func (s *arrivals) arriving() int {
	n := 0
	for _, a := range s.open {
		if a.err == nil && !a.whole {
			n++
		}
	}
	return n
}

// maxPlanPeers bounds whom an arrival asks that many jobs wait for.
const maxPlanPeers = 64

// with adds the peers that another job knows of.
func (p arrivalPlan) with(o arrivalPlan) arrivalPlan {
	add := func(list, more []string) []string {
		list = slices.Clone(list)
		for _, id := range more {
			if len(list) < maxPlanPeers && !slices.Contains(list, id) {
				list = append(list, id)
			}
		}
		return list
	}
	return arrivalPlan{Peers: add(p.Peers, o.Peers), Origins: add(p.Origins, o.Origins), MaxBytes: max(p.MaxBytes, o.MaxBytes)}
}

// poke has whoever waits to fetch again look whether it may, and should.
func (a *arrival) poke() {
	select {
	case a.nudge <- struct{}{}:
	default:
	}
}

// bringing begins an arrival. The lock is held.
func (s *arrivals) bringing(root cid.Cid, plan arrivalPlan) (*arrival, error) {
	a := &arrival{root: root, plan: plan, ready: make(chan struct{}), over: make(chan struct{}), nudge: make(chan struct{}, 1)}
	if err := s.spawn(func(ctx context.Context) { s.bring(ctx, a) }); err != nil {
		return nil, err
	}
	s.open[root] = a
	return a, nil
}

// rootfs is the folder a container of owner begins on while its image arrives;
// false says that the image does not. An arrival of an earlier life is taken up.
func (s *arrivals) rootfs(root cid.Cid, owner string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := s.images.folder(root)
	a := s.open[root]
	if a == nil {
		plan, err := readPlan(dir + lazyPlan)
		if _, serr := os.Stat(dir); err != nil || serr == nil {
			return "", false
		}
		if a, err = s.bringing(root, plan); err != nil {
			return "", false
		}
	}
	if a.whole || a.err != nil && s.uses[owner] != a {
		return "", false
	}
	if s.uses[owner] == nil {
		s.uses[owner] = a
		a.users++
	}
	return a.shape(dir), true
}

// shapes lists those in memory.
func (s *arrivals) shapes() ([]string, error) {
	if s.memory == "" {
		return nil, nil
	}
	return filepath.Glob(filepath.Join(s.memory, "*"))
}

// shape is the folder that containers begin on. The lock of arrivals is held.
func (a *arrival) shape(dir string) string {
	if a.place != "" {
		return a.place
	}
	shape, _ := content.LazyFolders(dir + lazyEnd)
	return shape
}

// inMemory is where a shape is made that is not on disk.
func (s *arrivals) inMemory(root cid.Cid) string {
	if s.memory == "" {
		return ""
	}
	return filepath.Join(s.memory, root.String())
}

func readPlan(file string) (plan arrivalPlan, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return plan, err
	}
	return plan, json.Unmarshal(data, &plan)
}

// keep removes the folders of arrivals that no container left from an earlier
// life runs on; used are those that some do.
func (s *arrivals) keep(used []string) {
	s.memory = memoryFolder(s.images.dir)
	shapes, err := s.shapes()
	for _, dir := range shapes {
		_, whole := content.LazyFolders(filepath.Join(s.images.dir, filepath.Base(dir)) + lazyEnd)
		if !slices.Contains(used, whole) {
			err = errors.Join(err, sandbox.RemoveTree(dir))
		}
	}
	found, gerr := filepath.Glob(filepath.Join(s.images.dir, "*"+lazyEnd))
	err = errors.Join(err, gerr)
	for _, dir := range found {
		_, whole := content.LazyFolders(dir)
		if !slices.Contains(used, whole) {
			err = errors.Join(err, sandbox.RemoveTree(dir), os.RemoveAll(strings.TrimSuffix(dir, lazyEnd)+lazyPlan))
		}
	}
	if err != nil {
		s.n.log.Error("remove folders that images arrived in", "err", err)
	}
}

// folders are what a container of owner begins on: where its image arrives is
// empty once it is whole, and both are for one whose image never did.
func (s *arrivals) folders(owner string) (root, whole string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.uses[owner]
	switch {
	case a == nil:
		return "", ""
	case a.whole:
		return s.images.folder(a.root), ""
	}
	dir := s.images.folder(a.root)
	_, whole = content.LazyFolders(dir + lazyEnd)
	return a.shape(dir), whole
}

// supply feeds the container of owner, if its image is arriving and nobody does.
func (s *arrivals) supply(rt *sandbox.Runtime, owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.uses[owner]
	if a == nil || s.fed[owner] {
		return
	}
	if s.spawn(func(ctx context.Context) { s.feed(ctx, rt, owner, a) }) == nil {
		s.fed[owner] = true
	}
}

func (s *arrivals) feed(ctx context.Context, rt *sandbox.Runtime, owner string, a *arrival) {
	err := rt.Supply(ctx, owner, sandbox.Supplier{
		Fill:   func(ctx context.Context, name string) error { return s.fill(ctx, a, name) },
		Opened: a.note,
		Whole: func(ctx context.Context) error {
			select {
			case <-a.over:
				return a.err
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	})
	if err != nil && ctx.Err() == nil {
		s.n.log.Error("supply a container with its image", "container", owner, "image", a.root, "err", err)
	}
}

// fill brings a file that a container waits for.
func (s *arrivals) fill(ctx context.Context, a *arrival, name string) error {
	select {
	case <-a.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	l, err := a.lazy, a.err
	s.mu.Unlock()
	if l == nil { // it is over: whole, or not to be had
		return err
	}
	return l.Fill(ctx, name)
}

// note remembers what a container opened.
func (a *arrival) note(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.opened) < sandbox.MaxOpened && !slices.Contains(a.opened, name) {
		a.opened = append(a.opened, name)
	}
}

// release ends an owner's use.
func (s *arrivals) release(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.fed, owner)
	delete(s.runs, owner)
	a := s.uses[owner]
	if a == nil {
		return
	}
	delete(s.uses, owner)
	a.users--
	a.poke()
	a.mu.Lock()
	opened := slices.Clone(a.opened)
	a.mu.Unlock()
	if len(opened) > 0 {
		if err := keepFirst(s.images.folder(a.root)+firstEnd, opened); err != nil {
			s.n.log.Warn("remember what a container read first", "image", a.root, "err", err)
		}
	}
	s.tidy(a)
}

// tidy forgets an arrival that is over, when nothing runs on it any more. The
// lock is held.
func (s *arrivals) tidy(a *arrival) {
	select {
	case <-a.over:
	default:
		return
	}
	if a.users > 0 || s.open[a.root] != a {
		return
	}
	delete(s.open, a.root)
	s.held -= a.held
	a.held = 0
	if a.err != nil && s.ctx == nil {
		return // the next life goes on
	}
	dir := s.images.folder(a.root)
	if err := errors.Join(sandbox.RemoveTree(dir+lazyEnd), os.RemoveAll(dir+lazyPlan), sandbox.RemoveTree(a.shape(dir))); err != nil {
		s.n.log.Error("remove the folder an image arrived in", "path", dir+lazyEnd, "err", err)
	}
}

// isArrival says whether a name beside the unpacked images is of one that
// arrives, or of what was read of one.
func isArrival(name string) bool {
	for _, end := range []string{lazyEnd, lazyPlan, firstEnd} {
		stem, ok := strings.CutSuffix(name, end)
		if root, err := cid.Decode(stem); ok && err == nil && root.String() == stem {
			return true
		}
	}
	return false
}
