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
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/p2p/content"
)

// gate is a network that is cut after so many bytes, until it is opened.
type gate struct {
	content.Network
	mu   sync.Mutex
	left int
	cut  bool
}

var errCut = errors.New("the link is cut")

func (g *gate) take(n int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.left -= n; g.cut && g.left <= 0 {
		return errCut
	}
	return nil
}

// limit lets n bytes through from now on.
func (g *gate) limit(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left, g.cut = n, true
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cut = false
}

func (g *gate) OpenContent(ctx context.Context, to, name string) (content.Stream, error) {
	if err := g.take(0); err != nil {
		return nil, err
	}
	st, err := g.Network.OpenContent(ctx, to, name)
	if err != nil {
		return nil, err
	}
	return gatedStream{st, g}, nil
}

type gatedStream struct {
	content.Stream
	g *gate
}

func (s gatedStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if cut := s.g.take(n); cut != nil {
		return 0, errors.Join(cut, s.Reset())
	}
	return n, err
}

// told passes on what is logged.
type told struct {
	slog.Handler
	lines chan string
}

func (told) Enabled(context.Context, slog.Level) bool { return true }

func (l told) Handle(_ context.Context, r slog.Record) error {
	select {
	case l.lines <- r.Message:
	default: // nobody looks
	}
	return nil
}

func (l told) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l told) WithGroup(string) slog.Handler      { return l }

// lazyWorld is a renter that has images and a provider to which they are a long
// way.
type lazyWorld struct {
	t        *testing.T
	from, to *running
	gate     *gate
	lines    chan string
}

func newLazyWorld(t *testing.T) *lazyWorld {
	w := &lazyWorld{t: t, from: start(t, nil), gate: &gate{}, lines: make(chan string, 1<<12)}
	w.to = start(t, func(c *Config) {
		c.Roles, c.Runsc, c.Bootstrap = []string{RoleProvider}, "/nonexistent/runsc", w.from.Addrs()[:1]
	}, func(n *Node) {
		o := n.exchangeOptions()
		o.Patience, o.RetryAfter = 2*time.Second, 50*time.Millisecond
		w.gate.Network = contentNetwork{n.host}
		n.exchange = content.NewExchange(n.blocks, w.gate, o)
		n.provider.Sandbox = copier{}
		n.arrivals.memory = memoryFolder(n.images.dir)
		n.log = slog.New(told{slog.DiscardHandler, w.lines})
	})
	if err := w.to.host.WaitBootstrapped(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

// lazyParts is how many files an image of a lazyWorld has, of 256 KiB each.
const lazyParts = 32

func (w *lazyWorld) image(name string) cid.Cid {
	w.t.Helper()
	dir := filepath.Join(w.t.TempDir(), "rootfs")
	must(w.t, os.MkdirAll(filepath.Join(dir, "data"), 0o755))
	for i := range lazyParts {
		data := make([]byte, 256<<10)
		_, _ = rand.Read(data) // never fails
		must(w.t, os.WriteFile(filepath.Join(dir, part(i)), data, 0o600))
	}
	im, err := w.from.images.load(w.t.Context(), dir, content.LoadOptions{Name: name}, func(job.Progress) {})
	must(w.t, err)
	return im.Root
}

func part(i int) string { return fmt.Sprintf("data/%03d", i) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *lazyWorld) plan() arrivalPlan {
	return arrivalPlan{Origins: []string{w.from.PeerID()}, MaxBytes: 1 << 30}
}

// begin lets an image arrive for a lease whose fetch may take so long.
func (w *lazyWorld) begin(root cid.Cid, plan arrivalPlan, limit time.Duration) (bool, error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), limit)
	defer cancel()
	w.to.link.mu.Lock()
	w.to.link.seen = 1 // byte a second
	w.to.link.mu.Unlock()
	return w.to.arrivals.begin(ctx, root, lazyParts<<18, plan, func(job.Progress) {})
}

// run has a container of owner run on an image that arrives.
func (w *lazyWorld) run(root cid.Cid, owner string) *arrival {
	w.t.Helper()
	early, err := w.begin(root, w.plan(), time.Minute)
	if err != nil || !early {
		w.t.Fatalf("%v %v", early, err)
	}
	if _, arriving := w.to.arrivals.rootfs(root, owner); !arriving {
		w.t.Fatal("it does not arrive")
	}
	w.to.arrivals.running(owner)
	return w.of(owner)
}

func (w *lazyWorld) of(owner string) *arrival {
	s := w.to.arrivals
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.uses[owner]
}

// ends waits for an arrival's end.
func (w *lazyWorld) ends(a *arrival) error {
	w.t.Helper()
	select {
	case <-a.over:
	case <-time.After(time.Minute):
		w.t.Fatal("it goes on and on")
	}
	s := w.to.arrivals
	s.mu.Lock()
	defer s.mu.Unlock()
	return a.err
}

// logged waits for a line of the provider's log.
func (w *lazyWorld) logged(line string) {
	w.t.Helper()
	for limit := time.After(time.Minute); ; {
		select {
		case got := <-w.lines:
			if got == line {
				return
			}
		case <-limit:
			w.t.Fatalf("nothing says %q", line)
		}
	}
}

const fetchedAgain = "an image is fetched again soon"

// Who has the image is away for longer than a fetch has patience: the container
// on it waits, and goes on when it is back.
func TestArrivalOutlivesItsSource(t *testing.T) {
	w := newLazyWorld(t)
	root := w.image("image")
	w.gate.limit(2 << 20)
	a := w.run(root, "container")
	w.logged(fetchedAgain)
	filled := make(chan error, 1)
	go func() { // a program that reads all of it, most of which is not here
		var err error
		for i := range lazyParts {
			err = errors.Join(err, w.to.arrivals.fill(t.Context(), a, "/"+part(i)))
		}
		filled <- err
	}()
	w.logged(fetchedAgain)
	w.logged(fetchedAgain)
	select {
	case err := <-filled:
		t.Fatalf("files that nobody can give are here: %v", err)
	default:
	}
	w.gate.open()
	if err := <-filled; err != nil {
		t.Fatal(err)
	}
	if err := w.ends(a); err != nil {
		t.Fatal(err)
	}
	if got := w.to.link.rate(); got != 1 {
		t.Errorf("the link is taken to bring %d bytes a second, of a fetch that was broken off", got)
	}
	a.mu.Lock()
	if len(a.progress) > 0 || a.told.Done < lazyParts<<18 {
		t.Errorf("told %+v, and %d more would be", a.told, len(a.progress))
	}
	a.mu.Unlock()
	w.to.arrivals.release("container")
	want := filepath.Join(t.TempDir(), "want")
	must(t, content.Unpack(t.Context(), w.from.blocks, root, want))
	for i := range lazyParts {
		x, err := os.ReadFile(filepath.Join(want, part(i)))
		must(t, err)
		if y, err := os.ReadFile(filepath.Join(w.to.images.folder(root), part(i))); err != nil || string(x) != string(y) {
			t.Errorf("%s differs: %v", part(i), err)
		}
	}
	w.noneArrives(root)
}

// noneArrives looks that nothing is left of an arrival.
func (w *lazyWorld) noneArrives(root cid.Cid) {
	w.t.Helper()
	s := w.to.arrivals
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := s.images.folder(root)
	for _, path := range []string{dir + lazyEnd, dir + lazyPlan, s.inMemory(root)} {
		if _, err := os.Lstat(path); path != "" && !os.IsNotExist(err) {
			w.t.Errorf("%s is left: %v", path, err)
		}
	}
	if len(s.open)+len(s.uses)+len(s.runs)+int(s.held) != 0 {
		w.t.Errorf("%d open, %d used, %d run, %d bytes held", len(s.open), len(s.uses), len(s.runs), s.held)
	}
}

// While nothing runs yet, an image is tried for as long as the lease may fetch;
// then the arrival is over.
func TestArrivalEndsWithItsLease(t *testing.T) {
	w := newLazyWorld(t)
	root := w.image("image")
	w.gate.limit(0)
	early, err := w.begin(root, w.plan(), 8*time.Second) // several times the exchange's patience
	if early || err == nil {
		t.Errorf("%v %v", early, err)
	}
	w.logged(fetchedAgain)
	w.logged("an image does not arrive")
	w.noneArrives(root)
}

// A container that ends takes the arrival that only it waited for with it, when
// the image cannot be had.
func TestArrivalEndsWithItsContainer(t *testing.T) {
	w := newLazyWorld(t)
	root := w.image("image")
	w.gate.limit(2 << 20)
	early, err := w.begin(root, w.plan(), 10*time.Minute)
	if err != nil || !early {
		t.Fatalf("%v %v", early, err)
	}
	w.to.arrivals.rootfs(root, "container")
	w.to.arrivals.running("container")
	a := w.of("container")
	w.logged(fetchedAgain)
	w.to.arrivals.mu.Lock()
	a.asked = time.Now().Add(-againMost) // long ago
	w.to.arrivals.mu.Unlock()
	w.to.arrivals.release("container")
	if err := w.ends(a); !errors.Is(err, content.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	w.logged("an image does not arrive")
	w.noneArrives(root)
}

// What no other try can mend ends the containers at once, and the next job
// fetches the image for itself.
func TestArrivalThatFailsForGood(t *testing.T) {
	w := newLazyWorld(t)
	root := w.image("image")
	plan := w.plan()
	plan.MaxBytes = lazyParts << 17
	w.gate.limit(1 << 20) // before it is over that
	early, err := w.begin(root, plan, time.Minute)
	if err != nil || !early {
		t.Fatalf("%v %v", early, err)
	}
	w.to.arrivals.rootfs(root, "container")
	w.to.arrivals.running("container")
	a := w.of("container")
	w.gate.open()
	if err := w.ends(a); !errors.Is(err, content.ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if err := w.to.arrivals.fill(t.Context(), a, "/"+part(lazyParts-1)); !errors.Is(err, content.ErrTooLarge) {
		t.Errorf("a file of it: %v", err)
	}
	if root, whole := w.to.arrivals.folders("container"); root == "" || whole == "" {
		t.Error("the container's folders are gone")
	}
	if early, err := w.begin(root, w.plan(), time.Minute); early || err != nil {
		t.Errorf("the next job is to use what failed: %v %v", early, err)
	}
	if _, arriving := w.to.arrivals.rootfs(root, "next"); arriving {
		t.Error("the next job uses what failed")
	}
	w.to.arrivals.release("container")
	w.noneArrives(root)
}

// Two jobs share an arrival: it asks whom either knows, and goes on for the second when the first has ended; also when no job is left,
// until the image is whole and verified.
func TestTwoJobsOnOneArrival(t *testing.T) {
	w := newLazyWorld(t)
	root := w.image("image")
	w.gate.limit(2 << 20)
	a := w.run(root, "first")
	other := w.plan()
	other.Peers = []string{"somebody"}
	if early, err := w.begin(root, other, time.Minute); !early || err != nil {
		t.Fatalf("%v %v", early, err)
	}
	if got := w.to.arrivals.plan(a); !slices.Equal(got.Peers, other.Peers) || len(got.Origins) != 1 {
		t.Errorf("it comes from %+v", got)
	}
	dir1, _ := w.to.arrivals.folders("first")
	dir2, arriving := w.to.arrivals.rootfs(root, "second")
	if !arriving || dir1 != dir2 || w.of("second") != a {
		t.Errorf("%s and %s", dir1, dir2)
	}
	w.to.arrivals.running("second")
	w.to.arrivals.release("first")
	w.gate.open()
	must(t, w.to.arrivals.fill(t.Context(), a, "/"+part(3)))
	w.to.arrivals.release("second")
	must(t, w.ends(a))
	if here([]string{w.to.images.folder(root)}) != 1 {
		t.Error("the image is not whole")
	}
	w.noneArrives(root)
}

// Where names find no room in memory they are on disk.
func TestArrivalWithoutRoomInMemory(t *testing.T) {
	w := newLazyWorld(t)
	for name, spoil := range map[string]func(s *arrivals){
		"no file system":   func(s *arrivals) { s.memory = filepath.Join(t.TempDir(), "nowhere") },
		"taken by others":  func(s *arrivals) { s.held = maxShapes },
		"none of the kind": func(s *arrivals) { s.memory = "" },
	} {
		root, s := w.image(name), w.to.arrivals
		s.mu.Lock()
		memory := s.memory
		spoil(s)
		before := s.held
		s.mu.Unlock()
		a := w.run(root, name)
		dir, _ := s.folders(name)
		if want, _ := content.LazyFolders(s.images.folder(root) + lazyEnd); dir != want {
			t.Errorf("%s: the names are in %s, want %s", name, dir, want)
		}
		must(t, w.ends(a))
		s.release(name)
		s.mu.Lock()
		if s.held != before {
			t.Errorf("%s: %d bytes are held, and were %d", name, s.held, before)
		}
		s.memory, s.held = memory, 0
		s.mu.Unlock()
		w.noneArrives(root)
	}
	if w.to.arrivals.memory == "" {
		return // not on this system
	}
	root := w.image("in memory")
	a := w.run(root, "in memory")
	if dir, _ := w.to.arrivals.folders("in memory"); dir != w.to.arrivals.inMemory(root) {
		t.Errorf("the names are in %s", dir)
	}
	must(t, w.ends(a))
	w.to.arrivals.mu.Lock()
	if held := w.to.arrivals.held; held < lazyParts<<10 || held > 1<<20 {
		t.Errorf("%d bytes are held", held)
	}
	w.to.arrivals.mu.Unlock()
	w.to.arrivals.release("in memory")
	w.noneArrives(root)
}

// So many images arrive at one time, and the next is fetched whole.
func TestArrivalsAreBounded(t *testing.T) {
	w := newLazyWorld(t)
	w.gate.limit(0)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	roots := make([]cid.Cid, maxArriving+1)
	for i := range roots {
		roots[i] = smallImage(t, w.from.Node, fmt.Sprint(i))
	}
	for _, root := range roots[:maxArriving] {
		a, err := w.to.arrivals.join(ctx, root, w.plan(), true)
		if a == nil || err != nil {
			t.Fatalf("%v %v", a, err)
		}
	}
	if early, err := w.begin(roots[maxArriving], w.plan(), time.Minute); early || err != nil {
		t.Errorf("one more: %v %v", early, err)
	}
}

// What lies there of arrivals when a node starts is removed, unless a container
// runs on it.
func TestLeftoversOfArrivals(t *testing.T) {
	r := start(t, nil)
	s := r.arrivals
	var used []string
	var kept, gone []string
	memory := memoryFolder(s.images.dir)
	for i := range 4 {
		root := smallImage(t, r.Node, fmt.Sprint(i))
		dir := s.images.folder(root)
		_, whole := content.LazyFolders(dir + lazyEnd)
		must(t, os.MkdirAll(filepath.Join(whole, "shut"), 0o755))
		must(t, os.Chmod(filepath.Join(whole, "shut"), 0o500)) //nolint:gosec // a folder
		must(t, os.WriteFile(dir+lazyPlan, []byte("{}"), 0o600))
		must(t, writeFirst(dir+firstEnd, []string{"/first"}))
		paths := []string{dir + lazyEnd, dir + lazyPlan}
		if memory != "" {
			must(t, os.MkdirAll(filepath.Join(memory, root.String(), "names"), 0o755))
			paths = append(paths, filepath.Join(memory, root.String()))
		}
		kept = append(kept, dir+firstEnd)
		if i%2 == 0 {
			used, kept = append(used, whole), append(kept, paths...)
		} else {
			gone = append(gone, paths...)
		}
	}
	s.keep(used)
	if here(kept) != len(kept) || here(gone) != 0 {
		t.Errorf("%d of %d are kept, %d are left of what nobody uses", here(kept), len(kept), here(gone))
	}
	s.keep(nil)
	if memory != "" {
		must(t, os.Remove(memory))
	}
}

// What a container opened comes first the next time that the image arrives, also
// when its unpacked tree and its blocks are gone.
func TestWhatWasReadComesFirst(t *testing.T) {
	w := newLazyWorld(t)
	root := w.image("image")
	read := []string{part(30), part(7), part(19)}
	for round, opened := range [][]string{{read[1], read[2]}, {read[0], read[1]}} {
		a := w.run(root, "container")
		for _, name := range opened {
			a.note("/" + name)
		}
		must(t, w.ends(a))
		w.to.images.use(root, "container")
		w.to.arrivals.release("container")
		w.to.images.release("container")
		for i := range keepTrees {
			other := smallImage(t, w.to.Node, fmt.Sprintf("other%d", i))
			if _, _, err := w.to.images.rootfs(t.Context(), other, "passing"); err != nil {
				t.Fatal(err)
			}
			w.to.images.release("passing")
		}
		if here([]string{w.to.images.folder(root)}) != 0 {
			t.Fatalf("round %d: the tree was not trimmed", round)
		}
		if collect(t, w.to.Node); w.to.blocks.Has(root) {
			t.Fatalf("round %d: the image was not collected", round)
		}
	}
	w.gate.limit(2 << 20)
	a := w.run(root, "again")
	w.to.arrivals.mu.Lock()
	got := a.lazy.Wanted()
	w.to.arrivals.mu.Unlock()
	if len(got) < len(read) || !slices.Equal(got[:len(read)], read) {
		t.Errorf("first come %q, want %q", got, read)
	}
	w.gate.open()
	must(t, w.ends(a))
	w.to.arrivals.release("again")
}

// Lists of what was read first are bounded, each and together, the newest stay.
func TestFirstListsAreBounded(t *testing.T) {
	dir := t.TempDir()
	var names []string
	for i := range 2 * sandbox.MaxOpened {
		names = append(names, fmt.Sprintf("/%s/%d", strings.Repeat("n", 50), i))
	}
	old := time.Now().Add(-time.Hour)
	for i := range maxFirstLists + 3 {
		file := filepath.Join(dir, fmt.Sprintf("%03d%s", i, firstEnd))
		must(t, keepFirst(file, names[i:i+2]))
		must(t, os.Chtimes(file, old, old.Add(time.Duration(i)*time.Second)))
	}
	lists, err := filepath.Glob(filepath.Join(dir, "*"))
	must(t, err)
	if len(lists) != maxFirstLists || filepath.Base(lists[0]) != "003"+firstEnd {
		t.Errorf("%d lists, the first %s", len(lists), lists[0])
	}
	must(t, keepFirst(lists[5], []string{names[9], "/a\nb", names[0]}))
	if got := readFirst(lists[5]); !slices.Equal(got, []string{names[9], names[0], names[8]}) {
		t.Errorf("%q", got)
	}
	must(t, keepFirst(lists[5], names))
	fi, err := os.Stat(lists[5])
	if got := readFirst(lists[5]); err != nil || len(got) > sandbox.MaxOpened || fi.Size() > maxFirstBytes || got[0] != names[0] {
		t.Errorf("%d names in %d bytes, %v", len(got), fi.Size(), err)
	}
}
