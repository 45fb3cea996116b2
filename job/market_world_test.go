package job

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

const (
	testBeat   = 500 * time.Millisecond
	testWindow = 2 * time.Second
)

// town is a whole market in one process and in fake time: a renter, providers,
// and the network between them.
type town struct {
	unsafe  error         // of saving outputs
	storing time.Duration // what a provider takes to store a checkpoint
	t       *testing.T
	renter  *shop
	shops   []*shop // the providers
	group   sync.WaitGroup
	log     *slog.Logger
	beat    time.Duration

	mu    sync.Mutex
	rule  func(call) fate
	count map[string]int // calls so far, by name
	bell  chan struct{}  // closed by the next thing that happens
	made  map[string]bool
	vault vault

	moving atomic.Bool // outputs that take their time come bit by bit
	ports  PortKeeper
}

// life is one run of a node's process.
type life struct {
	dead   atomic.Bool
	ctx    context.Context
	cancel context.CancelFunc
	ended  chan struct{}
}

// shop is a node: what outlives its process, and the process.
type shop struct {
	w      *town
	name   string
	signer *protocol.Signer
	keys   *Keys
	store  *memStore

	// A provider's own.
	machine *machine
	depot   *depot
	pool    *Pool
	total   Capacity
	dir     string
	price   uint64
	change  func(*ProviderConfig)

	mu       sync.Mutex
	life     *life
	provider *Provider
	renter   *Renter
	crashAt  int           // the commit after which the process is killed, 0 is none
	stall    chan struct{} // while it is open, what was read from the store comes late; nil is never
}

// plan is how a town is built.
type plan struct {
	prices []uint64 // of a core for an hour, one a provider
	cores  int      // of each provider, 4 unless said
	cards  []gpu.GPU
	change func(i int, cfg *ProviderConfig)
	beat   time.Duration // testBeat unless said
	ports  PortKeeper    // of the renter
	log    io.Writer     // of all nodes, too
	// signers of the first providers, where they are not signerOf's
	signers []*protocol.Signer
}

// inTown builds a town, runs fn in it in fake time, and checks in the end that
// nothing is held, that both sides agree to the unit, and that nothing runs on.
func inTown(t *testing.T, p plan, fn func(t *testing.T, w *town)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		out := io.Discard
		if testing.Verbose() {
			out = t.Output()
		}
		if p.log != nil {
			out = io.MultiWriter(out, p.log)
		}
		w := &town{
			t: t, count: map[string]int{}, bell: make(chan struct{}), made: map[string]bool{},
			log: slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug})),
		}
		w.ports = p.ports
		if w.beat = p.beat; w.beat == 0 {
			w.beat = testBeat
		}
		w.renter = &shop{w: w, name: "renter", signer: signerOf(t, 100), keys: keysOf(t, 100), store: newMemStore()}
		if p.cores == 0 {
			p.cores = 4
		}
		for i, price := range p.prices {
			s := &shop{
				w: w, name: fmt.Sprintf("p%d", i), signer: signerOf(t, i), keys: keysOf(t, i), store: newMemStore(), price: price,
				machine: newMachine(t), depot: newDepot(w), dir: filepath.Join(dir, fmt.Sprint(i)),
				total: Capacity{CPUMillis: uint32(p.cores) * 1000, Memory: 1 << 40, Disk: 1 << 50, GPUs: p.cards},
			}
			if i < len(p.signers) {
				s.signer = p.signers[i]
			}
			if p.change != nil {
				s.change = func(cfg *ProviderConfig) { p.change(i, cfg) }
			}
			w.shops = append(w.shops, s)
			s.open()
		}
		w.renter.reopen()
		defer w.close()
		fn(t, w)
	})
}

// open starts the shop's process; a life before it must be over.
func (s *shop) open() {
	ctx, cancel := context.WithCancel(context.Background())
	l := &life{ctx: ctx, cancel: cancel, ended: make(chan struct{})}
	log := s.w.log.With("node", s.name)
	disk := &disk{memStore: s.store, life: l, s: s}
	wire := &wire{w: s.w, s: s, life: l}
	run := s.make(l, disk, wire, log)
	s.w.group.Go(func() {
		defer close(l.ended)
		if err := run(ctx); err != nil && !l.dead.Load() {
			s.w.t.Errorf("%s: %v", s.name, err)
		}
	})
}

// reopen starts the process again and lets it find what its last life left.
func (s *shop) reopen() {
	s.open()
	synctest.Wait()
}

// make makes the runner of a new life.
func (s *shop) make(l *life, disk *disk, wire *wire, log *slog.Logger) func(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life = l
	if s.machine == nil {
		s.renter = NewRenter(RenterConfig{
			Signer: s.signer, Keys: s.keys, Store: disk, Net: wire, Content: library{w: s.w}, Heartbeat: s.w.beat, Window: testWindow,
			Ports: s.w.ports, Now: time.Now, Log: log,
		})
		return s.renter.Run
	}
	s.pool = NewPool(s.total)
	cfg := ProviderConfig{
		Signer: s.signer, Keys: s.keys, Store: disk, Net: wire, Content: s.depot.of(l), Sandbox: hands{s.machine, l}, Dir: s.dir,
		Pool: s.pool, Prices: Prices{Asset: Asset, CPU: s.price, GPU: 1000}, Platform: "linux/amd64", Now: time.Now, Log: log,
		Portability: &sandbox.Portability{Engine: "test", CPU: []byte{7}},
	}
	if s.change != nil {
		s.change(&cfg)
	}
	s.provider = NewProvider(cfg)
	return s.provider.Run
}

// kill ends the process as SIGKILL does: from one moment on nothing that it
// does has an effect.
func (s *shop) kill() {
	s.mu.Lock()
	l := s.life
	s.mu.Unlock()
	l.dead.Store(true)
	l.cancel()
	<-l.ended
}

// shut ends the process in order.
func (s *shop) shut() {
	s.mu.Lock()
	l := s.life
	s.mu.Unlock()
	l.cancel()
	<-l.ended
}

// killAfter kills the process after so many commits more and starts it again after
// a while; the channel closes when it is up.
func (s *shop) killAfter(commits int, away time.Duration) <-chan struct{} {
	s.mu.Lock()
	s.store.mu.Lock()
	s.crashAt = s.store.commits + commits
	s.store.mu.Unlock()
	l := s.life
	s.mu.Unlock()
	up := make(chan struct{})
	s.w.group.Go(func() {
		defer close(up)
		<-l.ctx.Done()
		<-l.ended
		if l.dead.Load() {
			<-time.After(away)
			s.open()
		}
	})
	return up
}

// disarm takes back a kill that has not come; false when it has.
func (s *shop) disarm() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	armed := s.crashAt > 0
	s.crashAt = 0
	return armed
}

func (s *shop) id() protocol.PeerID { return s.signer.ID() }

func (s *shop) now() (*life, *Provider, *Renter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life, s.provider, s.renter
}

// disk is a process's hold on its node's store.
type disk struct {
	*memStore
	life *life
	s    *shop
}

func (d *disk) Update(ctx context.Context, fn func(Tx) error) error {
	if d.life.dead.Load() {
		return errDead
	}
	err := d.memStore.Update(ctx, fn)
	d.s.w.ring()
	d.mu.Lock()
	commits := d.commits
	d.mu.Unlock()
	d.s.mu.Lock()
	crash := d.s.crashAt > 0 && commits >= d.s.crashAt
	if crash {
		d.s.crashAt = 0
	}
	d.s.mu.Unlock()
	if crash {
		d.life.dead.Store(true)
		d.life.cancel()
		return errDead
	}
	return err
}

func (d *disk) View(ctx context.Context, fn func(Tx) error) error {
	if d.life.dead.Load() {
		return errDead
	}
	err := d.memStore.View(ctx, fn)
	d.s.mu.Lock()
	stall := d.s.stall
	d.s.mu.Unlock()
	if stall != nil {
		<-stall
	}
	return err
}

// ring wakes those who await something.
func (w *town) ring() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.bell)
	w.bell = make(chan struct{})
}

// patience is how long in fake time a test waits before it gives up.
const patience = 10 * time.Minute

// await waits until something is so.
func (w *town) await(what string, so func() bool) {
	w.t.Helper()
	end := time.After(patience)
	for {
		w.mu.Lock()
		bell := w.bell
		w.mu.Unlock()
		synctest.Wait()
		if so() {
			return
		}
		select {
		case <-bell:
		case <-time.After(testBeat / 5): // what rings no bell, such as a container's end
		case <-end:
			w.t.Fatalf("waited in vain for: %s\n%s", what, w.picture())
		}
	}
}

// pass lets fake time pass.
func (w *town) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// picture is all that a person needs to see what went wrong.
func (w *town) picture() string {
	out := ""
	for _, s := range append([]*shop{w.renter}, w.shops...) {
		all := s.store.allContracts()
		for _, c := range all[max(0, len(all)-12):] {
			out += fmt.Sprintf("%-7s lease %s task %d attempt %d: %-9s booked=%v usage=%d charge=%s reason=%q refusal=%s\n",
				s.name, c.ID.Short(), c.Task, c.Attempt, c.State, c.Booked, c.UsageMs, c.Charge, c.Reason, c.Refusal)
		}
	}
	w.renter.store.view(func(t *memTx) {
		jobs, _ := t.Jobs(true, 0)
		for _, j := range jobs {
			out += fmt.Sprintf("job %s: %s %q %v unplaced=%v\n", j.ID, j.State, j.Reason, j.Counts, j.Unplaced)
			tasks, _ := t.Tasks(j.ID)
			for _, r := range tasks {
				out += fmt.Sprintf("  task %d: %s attempts=%d exit=%d %q\n", r.Index, r.State, r.Attempts, r.ExitCode, r.Reason)
			}
		}
	})
	return out
}

// submit gives the renter a job.
func (w *town) submit(id string, s Spec) {
	w.t.Helper()
	if err := w.trySubmit(id, s); err != nil {
		w.t.Fatalf("submit %s: %v", id, err)
	}
}

func (w *town) trySubmit(id string, s Spec) error {
	if s.Image == "" {
		s.Image = "tool"
	}
	_, err := renterOf(w.renter).Submit(w.t.Context(), id, s, "", nil, func(Progress) {})
	return err
}

// over waits for a job's end and returns it.
func (w *town) over(id string) Job {
	w.t.Helper()
	w.await("the end of "+id, func() bool {
		j := w.renter.store.job(id)
		return j.Over()
	})
	return w.renter.store.job(id)
}

// state is the state of one task's newest contract on the renter's side.
func (w *town) state(id string, task int) State {
	for _, c := range slices.Backward(w.renter.store.allContracts()) {
		if c.Job == id && c.Task == task {
			return c.State
		}
	}
	return ""
}

// stop is the owner's wish to end a job.
func (w *town) stop(id string, grace time.Duration) {
	w.t.Helper()
	if err := renterOf(w.renter).Stop(w.t.Context(), id, "stopped by its owner", grace); err != nil {
		w.t.Fatal(err)
	}
}

// close waits until all leases are settled, checks the books and ends all.
func (w *town) close() {
	if !w.t.Failed() {
		w.await("the end of every lease", w.quiet)
		w.check()
	}
	for _, s := range append([]*shop{w.renter}, w.shops...) {
		s.shut()
		if s.machine != nil {
			s.machine.outage()
		}
	}
	w.group.Wait()
}

// quiet reports whether nothing is under way anywhere.
func (w *town) quiet() bool {
	for _, s := range w.shops {
		_, p, _ := s.now()
		if len(p.Leases()) > 0 {
			return false
		}
	}
	_, _, r := w.renter.now()
	jobs, _ := r.Active()
	return jobs == 0
}

// check holds both sides' books against each other, and looks for what was
// left behind.
func (w *town) check() {
	w.t.Helper()
	total := ledger.Units(Asset, 0)
	contracts := map[protocol.MsgID]Contract{}
	for _, c := range w.renter.store.allContracts() {
		contracts[c.ID] = c
		if !c.State.Terminal() || !c.Booked {
			w.t.Errorf("the renter's lease %s is %s, booked %v", c.ID.Short(), c.State, c.Booked)
		}
	}
	mine := w.statement(w.renter)
	for _, s := range w.shops {
		theirs := w.statement(s)
		for _, c := range s.store.allContracts() {
			r, ok := contracts[c.ID]
			if !ok || !c.State.Terminal() || !c.Booked {
				w.t.Errorf("%s's lease %s is %s, booked %v, known to the renter %v", s.name, c.ID.Short(), c.State, c.Booked, ok)
			}
			if r.UsageMs != c.UsageMs || r.Charge != c.Charge || mine[c.ID.String()] != theirs[c.ID.String()] {
				w.t.Errorf("lease %s: the renter has %d ms, %s, booked %v; %s has %d ms, %s, booked %v",
					c.ID.Short(), r.UsageMs, r.Charge, mine[c.ID.String()], s.name, c.UsageMs, c.Charge, theirs[c.ID.String()])
			}
			if r.State != c.State && r.State != Refused {
				w.t.Errorf("lease %s: %s for the renter, %s for %s", c.ID.Short(), r.State, c.State, s.name)
			}
			delete(contracts, c.ID)
			delete(mine, c.ID.String())
			delete(theirs, c.ID.String())
		}
		if len(theirs) > 0 {
			w.t.Errorf("%s has booked leases without a contract: %v", s.name, theirs)
		}
		s.leftovers()
	}
	for id, c := range contracts {
		if c.State != Refused || !c.Charge.IsZero() {
			w.t.Errorf("lease %s of the renter, %s, charge %s, is known to no provider", id.Short(), c.State, c.Charge)
		}
	}
	if len(mine) > 0 {
		w.t.Errorf("the renter has booked what no provider has: %v", mine)
	}
	w.renter.store.view(func(t *memTx) {
		jobs, _ := t.Jobs(true, 0)
		for _, j := range jobs {
			spent := ledger.Units(Asset, 0)
			tasks, _ := t.Tasks(j.ID)
			for _, r := range tasks {
				spent, _ = spent.Add(r.Charge)
			}
			if spent.Cmp(j.Spent) != 0 {
				w.t.Errorf("job %s has spent %s, its tasks %s", j.ID, j.Spent, spent)
			}
			if b := j.Spec.Pay.Budget; !b.IsZero() && j.Spent.Cmp(b) > 0 {
				w.t.Errorf("job %s has spent %s of a budget of %s", j.ID, j.Spent, b)
			}
			total, _ = total.Add(j.Spent)
			if len(t.s.holds["job:"+j.ID]) > 0 && j.Over() {
				w.t.Errorf("job %s is over and still holds blocks", j.ID)
			}
		}
	})
	w.conserved(total)
}

// conserved sums every journal: each by itself is balanced, and what the renter
// owes is what the providers are owed and what the jobs have spent.
func (w *town) conserved(spent ledger.Amount) {
	w.t.Helper()
	net := func(s *shop, account string) ledger.Amount {
		balances, err := ledger.Balances(s.store.journal())
		if err != nil {
			w.t.Errorf("%s: %v", s.name, err)
		}
		debits, credits := ledger.Units(Asset, 0), ledger.Units(Asset, 0)
		for _, b := range balances {
			debits, _ = debits.Add(b.Debits)
			credits, _ = credits.Add(b.Credits)
		}
		if debits != credits {
			w.t.Errorf("%s's journal: %s in, %s out", s.name, debits, credits)
		}
		for _, b := range balances {
			if b.Account == account {
				n, _ := b.Net()
				return n
			}
		}
		return ledger.Units(Asset, 0)
	}
	owed := ledger.Units(Asset, 0)
	for _, s := range w.shops {
		due, debt := net(s, ledger.OwedBy(w.renter.id().String())), net(w.renter, ledger.OwedTo(s.id().String()))
		if due.Cmp(debt) != 0 {
			w.t.Errorf("%s is owed %s, the renter owes it %s", s.name, due, debt)
		}
		owed, _ = owed.Add(debt)
	}
	if owed.Cmp(spent) != 0 {
		w.t.Errorf("jobs have spent %s, the renter owes %s", spent, owed)
	}
}

// statement is a node's charges by lease.
func (w *town) statement(s *shop) map[string]ledger.Amount {
	w.t.Helper()
	st, err := ledger.MakeStatement(s.store.journal(), nil)
	if err != nil {
		w.t.Errorf("%s's statement: %v", s.name, err)
	}
	rows := map[string]ledger.Amount{}
	for _, r := range st.Rows {
		if !r.Charge.IsZero() {
			rows[r.Lease] = r.Charge
		}
	}
	return rows
}

// leftovers looks for what a lease left behind on a provider.
func (s *shop) leftovers() {
	s.w.t.Helper()
	now := time.Now().Add(time.Hour) // bids have lapsed
	if free := s.pool.Free(now, true); free.CPUMillis != s.total.CPUMillis || free.Memory != s.total.Memory || len(free.GPUs) != len(s.total.GPUs) {
		s.w.t.Errorf("%s has %+v free of %+v", s.name, free, s.total)
	}
	if ids := s.machine.left(); len(ids) > 0 {
		s.w.t.Errorf("%s has containers left: %v", s.name, ids)
	}
	if owners := s.depot.owners(); len(owners) > 0 {
		s.w.t.Errorf("%s has images held by %v", s.name, owners)
	}
	left, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.w.t.Error(err)
	}
	for _, l := range left {
		s.w.t.Errorf("%s has the folder %s left", s.name, l.Name())
	}
}

// rootOf is a content id of anything.
func rootOf(text string) []byte {
	sum := sha256.Sum256([]byte(text))
	mh, err := multihash.Encode(sum[:], multihash.SHA2_256)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.Raw, mh).Bytes()
}
