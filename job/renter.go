package job

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// RenterConfig is what a renter is made of.
type RenterConfig struct {
	Signer    *protocol.Signer
	Keys      *Keys // of private jobs; nil takes none
	Store     Store
	Net       RenterNetwork
	Content   RenterContent
	Heartbeat time.Duration // asked of providers
	Window    time.Duration // how long bids are waited for
	// Export writes the outputs of a task that ended to the places that the job
	// names; nil writes nothing.
	Export func(ctx context.Context, j *Job, t *TaskRecord) error
	// ExportStream writes a running task's streamed outputs so; nil writes nothing.
	ExportStream func(ctx context.Context, j *Job, t *TaskRecord) error
	// Ports listens for jobs' ports; nil for none.
	Ports PortKeeper
	Now   func() time.Time
	Log   *slog.Logger
}

// Renter places jobs and follows them to their end.
type Renter struct {
	RenterConfig

	up      chan struct{} // closed when Run has found the jobs of an earlier life, or could not
	storing sync.RWMutex  // between a job's storing and its being followed; a stop in the store alone excludes that

	mu       sync.Mutex
	ctx      context.Context // of Run; nil before and after
	jobs     map[string]*activeJob
	leases   map[protocol.MsgID]*activeJob
	auctions map[protocol.MsgID]*auctionRun
	known    knownProviders
	cached   cachePlaces
	group    sync.WaitGroup
}

// NewRenter makes a renter; it starts nothing.
func NewRenter(cfg RenterConfig) *Renter {
	return &Renter{
		RenterConfig: cfg, up: make(chan struct{}), jobs: map[string]*activeJob{}, leases: map[protocol.MsgID]*activeJob{},
		auctions: map[protocol.MsgID]*auctionRun{}, known: newKnownProviders(),
	}
}

// Run takes up the jobs of an earlier life and follows all until ctx ends. Jobs
// outlive it.
func (r *Renter) Run(ctx context.Context) error {
	err := r.recover(ctx)
	close(r.up)
	if err != nil {
		if ctx.Err() != nil {
			return nil // stopped before it had begun
		}
		return fmt.Errorf("find the jobs of the last run: %w", err)
	}
	<-ctx.Done()
	r.mu.Lock()
	r.ctx = nil
	r.mu.Unlock()
	r.group.Wait()
	return nil
}

func (r *Renter) recover(ctx context.Context) error {
	var found []*activeJob
	err := r.Store.View(ctx, func(tx Tx) error {
		open, err := tx.Jobs(false, 0)
		if err != nil {
			return err
		}
		for _, j := range open {
			aj, err := r.load(tx, j)
			if err != nil {
				return fmt.Errorf("job %s: %w", j.ID, err)
			}
			found = append(found, aj)
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.ctx = ctx
	r.mu.Unlock()
	for _, aj := range found {
		r.Log.Info("job found again", "job", aj.id, "state", aj.job.State)
		if err := r.openPorts(aj.job); err != nil {
			r.Log.Error("open the ports of a job again", "job", aj.id, "err", err)
		}
		r.follow(aj, true)
	}
	return nil
}

// load makes the job's live form from the store.
func (r *Renter) load(tx Tx, j *Job) (*activeJob, error) {
	tasks, err := tx.Tasks(j.ID)
	if err != nil {
		return nil, err
	}
	contracts, err := tx.Contracts(ContractFilter{Side: SideRenter, Job: j.ID, Open: true})
	if err != nil {
		return nil, err
	}
	secrets, err := loadSecrets(tx, j)
	if err != nil {
		return nil, err
	}
	aj := newActiveJob(r, j, tasks, secrets)
	j.Counts = aj.recount()
	for _, c := range contracts {
		m, err := tx.LastMessage(c.ID, protocol.KindLease)
		if err != nil {
			return nil, fmt.Errorf("lease %s: %w", c.ID.Short(), err)
		}
		lease, err := protocol.Reopen[*protocol.Lease](r.Signer.Network(), m.Raw)
		if err != nil {
			return nil, fmt.Errorf("lease %s: %w", c.ID.Short(), err)
		}
		aj.live[c.ID] = &liveLease{c: *c, lease: lease}
	}
	return aj, nil
}

// awaitUp waits until what an earlier life left is followed: a job stored before
// would be found by nobody, a stop would find no job.
func (r *Renter) awaitUp(ctx context.Context) error {
	select {
	case <-r.up:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the jobs of the last run are still being looked for: %w", ctx.Err())
	}
}

// follow starts a job's loop, and reports false once Run is over: it is the next
// life's then.
func (r *Renter) follow(aj *activeJob, again bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx == nil {
		return false
	}
	r.jobs[aj.id] = aj
	for id := range aj.live {
		r.leases[id] = aj
	}
	aj.ctx = r.ctx
	r.group.Go(func() {
		aj.run(again)
		r.closePorts(aj.id)
		r.mu.Lock()
		delete(r.jobs, aj.id)
		for id, of := range r.leases {
			if of == aj {
				delete(r.leases, id)
			}
		}
		r.mu.Unlock()
	})
	return true
}

func (r *Renter) followed(id string) *activeJob {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.jobs[id]
}

func (r *Renter) ofLease(id protocol.MsgID) *activeJob {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leases[id]
}

// NewJobID is a short name that is unlikely to be given twice.
func NewJobID() string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails
	return "j" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))
}

// Submit imports what the job needs and stores it; from then on it is followed,
// over restarts, to its end. Secrets are the values of those that the spec names.
func (r *Renter) Submit(ctx context.Context, id string, spec Spec, dir string, secrets protocol.Secrets, progress func(Progress)) (*Job, error) {
	spec = spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	kept, err := r.keepSecrets(id, spec, secrets)
	if err != nil {
		return nil, err
	}
	j, err := r.resolve(ctx, id, spec, dir, r.addInput, progress)
	if err != nil {
		return nil, err
	}
	if err := r.rehearse(j, kept); err != nil {
		return nil, err
	}
	tasks := make([]*TaskRecord, spec.Tasks())
	for i := range tasks {
		first, last := spec.Range(i)
		tasks[i] = &TaskRecord{Job: id, Index: i, First: first, Last: last, State: TaskQueued, Charge: ledger.Units(Asset, 0)}
	}
	j.Counts = map[string]int{TaskQueued: len(tasks)}
	if err := r.awaitUp(ctx); err != nil {
		return nil, err
	}
	if err := r.openPorts(j); err != nil {
		return nil, err
	}
	r.storing.RLock()
	defer r.storing.RUnlock()
	if err := r.storeJob(ctx, j, tasks, kept); err != nil {
		r.closePorts(j.ID)
		return nil, err
	}
	r.Log.Info("job submitted", "job", id, "tasks", len(tasks), "image", j.Image.Name)
	stored := *j
	if !r.follow(newActiveJob(r, j, tasks, kept), false) {
		r.closePorts(id)
	}
	return &stored, nil
}

func (r *Renter) storeJob(ctx context.Context, j *Job, tasks []*TaskRecord, secrets []byte) error {
	err := r.Store.Update(ctx, func(tx Tx) error {
		if _, err := tx.Job(j.ID); !errors.Is(err, ErrNotFound) {
			return errors.Join(err, fmt.Errorf("job %s exists already", j.ID))
		}
		if err := errors.Join(tx.PutJob(j), putSecrets(tx, j, secrets)); err != nil {
			return err
		}
		for _, t := range tasks {
			if err := tx.PutTask(t); err != nil {
				return err
			}
		}
		for _, root := range slices.Concat([]Root{{CID: j.Image.Root}}, j.Inputs, j.Shared) {
			if err := tx.HoldBlocks("job:"+j.ID, root.CID, time.Time{}); err != nil {
				return err
			}
		}
		return errors.Join(tx.Emit(jobEvent(j, r.Now())), r.tellPublic(tx, j))
	})
	if err != nil {
		return fmt.Errorf("store job %s: %w", j.ID, err)
	}
	return nil
}

// inputAdder brings an input of a job into the store, or finds its size.
type inputAdder func(ctx context.Context, j *Job, i int, progress func(Progress)) (Root, error)

// resolve turns names and paths into content.
func (r *Renter) resolve(ctx context.Context, id string, spec Spec, dir string, add inputAdder, progress func(Progress)) (*Job, error) {
	im, err := r.Content.ResolveImage(ctx, spec.Image, dir, progress)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", spec.Image, err)
	}
	if len(spec.Command)+len(im.Command)+len(im.Entrypoint) == 0 {
		return nil, specErr("command: the image %s has none of its own, so the job must name one", spec.Image)
	}
	if spec.GPUs.Count > 0 || spec.GPUs.All {
		spec.GPUs.Require = requireOf(im.Env, spec.Env)
		if err := spec.GPUs.validate(); err != nil {
			return nil, fmt.Errorf("image %s: %w", spec.Image, err)
		}
	}
	j := &Job{
		ID: id, Spec: spec, Dir: dir, State: JobQueued, Created: r.Now(), Image: im.ImageRef,
		Spent: ledger.Units(Asset, 0),
	}
	if err := r.keepNonce(j); err != nil {
		return nil, err
	}
	for i, in := range spec.Inputs {
		root, err := add(ctx, j, i, progress)
		if err != nil {
			return nil, fmt.Errorf("input %s: %w", in.From, err)
		}
		root.To = in.To
		j.Inputs = append(j.Inputs, root)
	}
	j.Shared = r.sharedCaches(ctx, spec, dir)
	return j, nil
}

// Stop asks for a job's end: its tasks get grace to stop by themselves. One that
// is over stays as it is.
func (r *Renter) Stop(ctx context.Context, id, reason string, grace time.Duration) error {
	if err := r.awaitUp(ctx); err != nil {
		return err
	}
	if aj := r.followed(id); aj != nil {
		return aj.stop(ctx, reason, grace)
	}
	r.storing.Lock()
	defer r.storing.Unlock()
	if aj := r.followed(id); aj != nil {
		return aj.stop(ctx, reason, grace)
	}
	// Nobody follows it: it is over, or this life is and the next carries it out.
	err := r.Store.Update(ctx, func(tx Tx) error {
		j, err := tx.Job(id)
		if err != nil || j.Over() || !j.StopAsked.IsZero() {
			return err
		}
		j.StopAsked, j.Reason, j.Grace = r.Now(), reason, grace
		return errors.Join(tx.PutJob(j), tx.Emit(jobEvent(j, r.Now())))
	})
	if err != nil {
		return fmt.Errorf("stop job %s: %w", id, err)
	}
	return nil
}

// Active counts jobs and tasks under way.
func (r *Renter) Active() (jobs, tasks int) {
	r.mu.Lock()
	active := make([]*activeJob, 0, len(r.jobs))
	for _, aj := range r.jobs {
		active = append(active, aj)
	}
	r.mu.Unlock()
	for _, aj := range active {
		aj.mu.Lock()
		tasks += len(aj.live)
		aj.mu.Unlock()
	}
	return len(active), tasks
}

// LeaseOf is the live lease of a task, with the provider that runs it.
func (r *Renter) LeaseOf(id string, task int) (Contract, bool) {
	aj := r.followed(id)
	if aj == nil {
		return Contract{}, false
	}
	aj.mu.Lock()
	defer aj.mu.Unlock()
	for _, l := range aj.live {
		if l.c.Task == task && !l.c.State.Terminal() {
			return l.c, true
		}
	}
	return Contract{}, false
}

func jobEvent(j *Job, now time.Time) Event {
	return Event{Time: now, Type: EventJob, Job: j.ID, State: j.State, Text: j.Reason, Data: jsonOf(j)}
}

func taskEvent(t *TaskRecord, now time.Time) Event {
	return Event{
		Time: now, Type: EventTask, Job: t.Job, Task: t.Index, Lease: leaseText(t.Lease), Peer: t.Provider,
		State: t.State, Text: t.Reason, Data: jsonOf(t),
	}
}

func leaseText(id protocol.MsgID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// Quoted is what an auction that awards nothing found.
type Quoted struct {
	Job     *Job // as it would be submitted
	Auction *Auction
	Bids    []Candidate // best first
}

// Quote imports what the job needs and asks the network what it would cost.
func (r *Renter) Quote(ctx context.Context, spec Spec, dir string, progress func(Progress)) (*Quoted, error) {
	spec = spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	j, err := r.resolve(ctx, NewJobID(), spec, dir, r.sizeInput, progress)
	if err != nil {
		return nil, err
	}
	auction, err := r.Auction(ctx, j, round{tasks: spec.Parallel()})
	if err != nil {
		return nil, err
	}
	return &Quoted{Job: j, Auction: auction, Bids: auction.Bids(j.horizon())}, nil
}
