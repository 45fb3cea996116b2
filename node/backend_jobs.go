package node

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/node/api"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/protocol"
)

// meter turns the market's progress into the API's, which has a rate.
func meter(progress func(client.Progress)) func(job.Progress) {
	var mu sync.Mutex
	var phase string
	var begun time.Time
	return func(p job.Progress) {
		mu.Lock()
		defer mu.Unlock()
		if p.Phase != phase {
			phase, begun = p.Phase, time.Now()
		}
		out := client.Progress{Phase: p.Phase, Done: p.Done, Total: p.Total}
		// The first moments say nothing about a rate.
		if s := time.Since(begun).Seconds(); s > 0.25 {
			out.Rate = float64(p.Done) / s
		}
		progress(out)
	}
}

// Submit implements api.Backend. A key that was used before names the job that
// it made.
func (b backend) Submit(ctx context.Context, r client.SubmitRequest, progress func(client.Progress)) (client.Job, error) {
	id := job.NewJobID()
	if r.Key != "" {
		sum := sha256.Sum256([]byte(r.Key))
		id = "j" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:12])
		if j, err := b.n.findJob(ctx, id); err == nil {
			return *j, nil
		} else if !errors.Is(err, job.ErrNotFound) {
			return client.Job{}, err
		}
	}
	ctx, release := b.n.holding(ctx)
	defer release()
	j, err := b.n.renter.Submit(ctx, id, r.Spec, r.Dir, r.Secrets, meter(progress))
	if err != nil {
		return client.Job{}, err
	}
	return *j, nil
}

// Quote implements api.Backend.
func (b backend) Quote(ctx context.Context, r client.SubmitRequest, progress func(client.Progress)) (client.Quote, error) {
	ctx, release := b.n.holding(ctx)
	defer release()
	q, err := b.n.renter.Quote(ctx, r.Spec, r.Dir, meter(progress))
	if err != nil {
		return client.Quote{}, err
	}
	out := client.Quote{
		Reasons: q.Auction.Reasons(), Heard: q.Auction.Heard(), Tasks: r.Spec.Tasks(),
		ImageBytes: q.Job.Image.Size, MostPerTask: ledger.Units(job.Asset, 0),
	}
	for _, in := range q.Job.Inputs {
		out.InputBytes += in.Size
	}
	if c := q.Auction.Cheapest(); c > 0 {
		out.Cheapest = ledger.Units(job.Asset, c)
	}
	for i, c := range q.Bids {
		bid := c.Bid.Msg
		if i == 0 {
			out.MostPerTask = ledger.Charge(job.Asset, bid.GetPricePerHour(), q.Job.Spec.Limits.Run.Milliseconds())
		}
		out.Bids = append(out.Bids, client.QuotedBid{
			Peer: c.Peer.String(), Price: ledger.Units(bid.GetAsset(), bid.GetPricePerHour()), Slots: c.Slots,
			StartIn: time.Duration(bid.GetStartInMs()) * time.Millisecond, Cached: min(bid.GetImageBytesCached(), q.Job.Image.Size),
			RTT: c.RTT, ToFetch: q.Job.Image.Size - min(bid.GetImageBytesCached(), q.Job.Image.Size) + out.InputBytes,
			ValidFor: time.UnixMilli(bid.GetValidUntilMs()).Sub(b.n.now()),
		})
	}
	return out, nil
}

// Jobs implements api.Backend.
func (b backend) Jobs(ctx context.Context, all bool) ([]client.Job, error) {
	out := []client.Job{}
	err := b.n.db.View(ctx, func(tx job.Tx) error {
		jobs, err := tx.Jobs(all, 0)
		for _, j := range jobs {
			out = append(out, *j)
		}
		return err
	})
	return out, err
}

// Job implements api.Backend.
func (b backend) Job(ctx context.Context, ref string) (client.JobDetail, error) {
	j, err := b.n.findJob(ctx, ref)
	if err != nil {
		return client.JobDetail{}, err
	}
	d := client.JobDetail{Tasks: []client.Task{}, Contracts: []client.Contract{}}
	err = b.n.db.View(ctx, func(tx job.Tx) error {
		if j, err = tx.Job(j.ID); err != nil {
			return err
		}
		d.Job = *j
		tasks, err := tx.Tasks(j.ID)
		if err != nil {
			return err
		}
		for _, t := range tasks {
			d.Tasks = append(d.Tasks, *t)
		}
		contracts, err := tx.Contracts(job.ContractFilter{Side: job.SideRenter, Job: j.ID})
		for _, c := range contracts {
			d.Contracts = append(d.Contracts, *c)
		}
		d.Times = job.TimesOf(j, tasks, contracts, b.n.now())
		return err
	})
	return d, err
}

// StopJob implements api.Backend.
func (b backend) StopJob(ctx context.Context, ref string, grace time.Duration) (client.Job, error) {
	j, err := b.n.findJob(ctx, ref)
	if err != nil || j.Over() {
		return deref(j), err
	}
	if err := b.n.renter.Stop(ctx, j.ID, "stopped by its owner", grace); err != nil {
		return client.Job{}, err
	}
	j, err = b.n.findJob(ctx, j.ID)
	return deref(j), err
}

func deref(j *job.Job) client.Job {
	if j == nil {
		return client.Job{}
	}
	return *j
}

// maxFollowed is how many tasks' logs are followed at a time.
const maxFollowed = 256

// Logs implements api.Backend: each attempt of each task, in the order of the
// attempts; several tasks are followed side by side.
func (b backend) Logs(ctx context.Context, ref string, q client.LogQuery, fn func(task int, rec client.LogRecord) error) error {
	d, err := b.Job(ctx, ref)
	if err != nil {
		return err
	}
	if q.Task >= len(d.Tasks) {
		return fmt.Errorf("task %d of job %s: %w", q.Task, d.Job.ID, job.ErrNotFound)
	}
	var mu sync.Mutex
	emit := func(task int, rec client.LogRecord) error {
		if rec.Time.Before(q.Since) {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		return fn(task, rec)
	}
	if !q.Follow {
		for _, t := range d.Tasks {
			if q.Task >= 0 && t.Index != q.Task {
				continue
			}
			if err := b.n.taskLog(ctx, d.Job.ID, t.Index, q.From, false, emit); err != nil {
				return err
			}
		}
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxFollowed)
	for _, t := range d.Tasks {
		if q.Task >= 0 && t.Index != q.Task {
			continue
		}
		group.Go(func() error { return b.n.taskLog(ctx, d.Job.ID, t.Index, q.From, true, emit) })
	}
	return group.Wait()
}

// logBytes is how much of a log is read at a time.
const logBytes = 256 << 10

// taskLog reads the logs of a task's attempts, one after the other; following,
// it waits for more until the task is over.
func (n *Node) taskLog(ctx context.Context, id string, task int, from uint64, follow bool, emit func(int, client.LogRecord) error) error {
	for attempt := 0; ; attempt++ {
		lease, ok, err := n.attempt(ctx, id, task, attempt, follow)
		if err != nil || !ok {
			return err
		}
		if err := n.leaseLog(ctx, lease, task, from, follow, emit); err != nil {
			return err
		}
	}
}

// attempt finds the lease of a task's nth attempt; following, it waits for it
// while the task may still get one.
func (n *Node) attempt(ctx context.Context, id string, task, attempt int, follow bool) (protocol.MsgID, bool, error) {
	var lease protocol.MsgID
	look := func() (found, over bool, err error) {
		err = n.db.View(ctx, func(tx job.Tx) error {
			t, err := tx.Task(id, task)
			if err != nil {
				return err
			}
			contracts, err := tx.Contracts(job.ContractFilter{Side: job.SideRenter, Job: id, Task: task, TaskSet: true})
			for _, c := range contracts {
				if c.Attempt == attempt {
					lease, found = c.ID, true
				}
			}
			over = t.Over()
			return err
		})
		return found, over, err
	}
	_, since, err := n.db.EventBounds(ctx)
	if err != nil {
		return lease, false, err
	}
	found, over, err := look()
	if err != nil || found || over || !follow {
		return lease, found, err
	}
	errFound := errors.New("found")
	err = n.db.Watch(ctx, since, func(e job.Event) error {
		if e.Job != id || e.Task != task && e.Type == job.EventTask {
			return nil
		}
		if found, over, err = look(); err != nil {
			return err
		}
		if found || over {
			return errFound
		}
		return nil
	})
	if errors.Is(err, errFound) {
		err = nil
	}
	return lease, found, err
}

func (n *Node) leaseLog(ctx context.Context, lease protocol.MsgID, task int, from uint64, follow bool, emit func(int, client.LogRecord) error) error {
	next := max(from, 1)
	for {
		records, over, err := n.readLog(ctx, lease, next, follow)
		if err != nil {
			return err
		}
		for _, rec := range records {
			if err := emit(task, rec); err != nil {
				return err
			}
			next = rec.Seq + 1
		}
		if over && len(records) == 0 {
			return nil
		}
	}
}

// readLog reads what there is; following, it waits for it. over says that
// nothing comes after an empty answer.
func (n *Node) readLog(ctx context.Context, lease protocol.MsgID, from uint64, follow bool) (records []job.LogRecord, over bool, err error) {
	if follow {
		return n.db.WaitLog(ctx, lease, from, logBytes)
	}
	err = n.db.View(ctx, func(tx job.Tx) error {
		records, err = tx.Log(lease, from, logBytes)
		return err
	})
	return records, true, err
}

// GetOutputs implements api.Backend. Without a dest each output goes to where
// its job wants it, or below the job's folder; with one, below that.
func (b backend) GetOutputs(ctx context.Context, ref, dest string, task int, progress func(client.Progress)) (client.Fetched, error) {
	d, err := b.Job(ctx, ref)
	if err != nil {
		return client.Fetched{}, err
	}
	out := client.Fetched{Tasks: []client.FetchedTask{}}
	for i, t := range d.Tasks {
		if task >= 0 && t.Index != task {
			continue
		}
		progress(client.Progress{Phase: "writing outputs", Done: uint64(i), Total: uint64(len(d.Tasks))})
		f := client.FetchedTask{Task: t.Index, State: t.State}
		switch {
		case len(t.Outputs) == 0 && len(t.Streamed) > 0:
			f.Partial = true
			if f.Paths, err = b.n.writeStreamed(ctx, &t, func(i int) string { return b.n.streamPlace(&d.Job, i, dest) }); err != nil {
				return out, err
			}
		case len(t.Outputs) > 0:
			if f.Paths, err = b.n.writeOutputs(ctx, &d.Job, &t, dest); err != nil {
				return out, err
			}
		}
		out.Tasks = append(out.Tasks, f)
	}
	return out, nil
}

func (n *Node) writeOutputs(ctx context.Context, j *job.Job, t *job.TaskRecord, dest string) ([]string, error) {
	var paths []string
	if j.Spec.Private {
		for i, o := range j.Spec.Outputs {
			paths = append(paths, n.outputPlace(j, i, o, dest))
		}
		return paths, n.openOutputs(ctx, j, t, paths)
	}
	for i, o := range j.Spec.Outputs {
		to := n.outputPlace(j, i, o, dest)
		if err := n.exportOutput(ctx, t, i, to); err != nil {
			return paths, err
		}
		paths = append(paths, to)
	}
	return paths, nil
}

func (n *Node) outputPlace(j *job.Job, i int, o job.OutputSpec, dest string) string {
	switch {
	case dest != "" && len(j.Spec.Outputs) == 1:
		return dest
	case dest != "":
		return filepath.Join(dest, strconv.Itoa(i)+"-"+filepath.Base(o.From))
	case o.To != "" && filepath.IsAbs(o.To):
		return o.To
	case o.To != "":
		return filepath.Join(j.Dir, o.To)
	}
	return filepath.Join(j.Dir, j.ID, filepath.Base(o.From))
}

// Exec implements api.Backend.
func (b backend) Exec(ctx context.Context, ref string, r client.ExecRequest, tty api.ExecIO) (int, error) {
	j, err := b.n.findJob(ctx, ref)
	if err != nil {
		return 0, err
	}
	c, ok := b.n.renter.LeaseOf(j.ID, r.Task) // whether it runs its provider knows best
	if !ok {
		return 0, notRunning(j.ID, r.Task)
	}
	to, err := peer.Decode(c.Provider)
	if err != nil {
		return 0, err
	}
	return b.n.exec(ctx, to, c.ID, r, tty)
}
