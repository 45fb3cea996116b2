package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/node/api"
	"github.com/lumbung-net/lumbung/node/client"
)

// fakeNode answers the real API with what a test has set.
type fakeNode struct {
	api.Backend // what a test does not expect panics

	mu      sync.Mutex
	changed chan struct{} // closed at each change, then new
	quote   client.Quote
	detail  client.JobDetail
	events  []client.Event
	logs    map[int][]client.LogRecord
	request client.SubmitRequest
	quoted  client.SubmitRequest
	stops   int
	gets    int
	began   chan struct{} // closed when somebody watches
	once    sync.Once
	onStop  func()
	status  client.Status
	checked client.Checked

	netcheck client.Netcheck
	getErr   error // of GetOutputs
	file     []byte
	catting  func(w io.Writer) error // of Cat
}

const aPeer = "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"

// newFakeNode serves in the app's home until the test ends.
func newFakeNode(t *testing.T, a *testApp, tasks int) *fakeNode {
	t.Helper()
	n := &fakeNode{changed: make(chan struct{}), began: make(chan struct{}), logs: map[int][]client.LogRecord{}}
	n.quote = client.Quote{Bids: []client.QuotedBid{{Peer: aPeer, Price: ledger.Units("usd", 400_000), Slots: 4}}, Heard: 1, Tasks: tasks, MostPerTask: ledger.Units("usd", 400_000)}
	n.detail.Job = client.Job{ID: "jabc", State: job.JobQueued, Created: time.Now(), Spent: ledger.Units("usd", 0)}
	for i := range tasks {
		n.detail.Tasks = append(n.detail.Tasks, client.Task{Job: "jabc", Index: i, State: job.TaskQueued, Charge: ledger.Units("usd", 0)})
	}
	s, err := api.New(t.Context(), api.Options{Home: a.home(), Backend: n, Gatherer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Grace: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// emit appends an event; the lock is held.
func (n *fakeNode) emit(e client.Event) {
	e.Seq, e.Time = uint64(len(n.events)+1), time.Now()
	n.events = append(n.events, e)
	close(n.changed)
	n.changed = make(chan struct{})
}

// task changes a task and tells of it.
func (n *fakeNode) task(i int, change func(*client.Task)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := &n.detail.Tasks[i]
	t.Provider, t.Attempts = aPeer, max(1, t.Attempts)
	change(t)
	raw, _ := json.Marshal(t)
	n.emit(client.Event{Type: job.EventTask, Job: "jabc", Task: i, State: t.State, Data: raw})
}

func (n *fakeNode) state(i int, state job.State) {
	n.task(i, func(t *client.Task) { t.State = string(state) })
}

func (n *fakeNode) job(change func(*client.Job)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(&n.detail.Job)
	raw, _ := json.Marshal(n.detail.Job)
	n.emit(client.Event{Type: job.EventJob, Job: "jabc", State: n.detail.Job.State, Data: raw})
}

func (n *fakeNode) log(task, stream int, text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.logs[task] = append(n.logs[task], client.LogRecord{Seq: uint64(len(n.logs[task]) + 1), Stream: stream, Time: time.Now(), Data: []byte(text)})
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *fakeNode) CheckBlocks(context.Context, func(client.Progress)) (client.Checked, error) {
	return n.checked, nil
}

func (n *fakeNode) Status(context.Context) (client.Status, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status, nil
}

func (n *fakeNode) Netcheck(context.Context) (client.Netcheck, error) { return n.netcheck, nil }

func (n *fakeNode) List(context.Context, string) ([]client.DirEntry, error) {
	return []client.DirEntry{{Name: "file", CID: "bafkfile", Kind: "file", Size: uint64(len(n.file))}}, nil
}

func (n *fakeNode) Cat(_ context.Context, _ string, w io.Writer) error { return n.catting(w) }

func (n *fakeNode) Quote(_ context.Context, r client.SubmitRequest, _ func(client.Progress)) (client.Quote, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.quoted = r
	return n.quote, nil
}

func (n *fakeNode) Submit(_ context.Context, r client.SubmitRequest, _ func(client.Progress)) (client.Job, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.request, n.detail.Job.Spec = r, r.Spec
	return n.detail.Job, nil
}

func (n *fakeNode) Jobs(context.Context, bool) ([]client.Job, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return []client.Job{n.detail.Job}, nil
}

func (n *fakeNode) Job(_ context.Context, ref string) (client.JobDetail, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ref != "jabc" {
		return client.JobDetail{}, job.ErrNotFound
	}
	d := n.detail
	d.Tasks = append([]client.Task(nil), d.Tasks...)
	return d, nil
}

func (n *fakeNode) StopJob(context.Context, string, time.Duration) (client.Job, error) {
	n.mu.Lock()
	n.stops++
	j, then := n.detail.Job, n.onStop
	n.mu.Unlock()
	if then != nil {
		then()
	}
	return j, nil
}

func (n *fakeNode) stopped() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stops
}

func (n *fakeNode) GetOutputs(context.Context, string, string, int, func(client.Progress)) (client.Fetched, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gets++
	if n.getErr != nil {
		return client.Fetched{}, n.getErr
	}
	return client.Fetched{Tasks: []client.FetchedTask{{Paths: []string{"/home/x/frames"}, Bytes: 10, State: "done"}}}, nil
}

func (n *fakeNode) LastEvent(context.Context) (uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return uint64(len(n.events)), nil
}

func (n *fakeNode) Watch(ctx context.Context, since uint64, fn func(client.Event) error) error {
	n.once.Do(func() { close(n.began) })
	for {
		n.mu.Lock()
		var next []client.Event
		if since < uint64(len(n.events)) {
			next = n.events[since:]
		}
		changed := n.changed
		n.mu.Unlock()
		for _, e := range next {
			if err := fn(e); err != nil {
				return err
			}
			since = e.Seq
		}
		if len(next) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (n *fakeNode) Logs(ctx context.Context, _ string, q client.LogQuery, fn func(int, client.LogRecord) error) error {
	sent := map[int]int{}
	for {
		n.mu.Lock()
		type rec struct {
			task int
			r    client.LogRecord
		}
		var next []rec
		for task, list := range n.logs {
			for _, r := range list[sent[task]:] {
				next = append(next, rec{task, r})
			}
			sent[task] = len(list)
		}
		over, changed := n.detail.Job.Over(), n.changed
		n.mu.Unlock()
		for _, r := range next {
			if q.Task == client.AllTasks || q.Task == r.task {
				if err := fn(r.task, r.r); err != nil {
					return err
				}
			}
		}
		switch {
		case len(next) > 0:
		case over || !q.Follow:
			return nil
		default:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			}
		}
	}
}

func (n *fakeNode) Statement(context.Context, time.Time) (client.Statement, error) {
	return client.Statement{PeerID: aPeer, Owed: ledger.Units("usd", 5), Due: ledger.Units("usd", 0), Rows: []client.StatementRow{
		{Side: "renter", Peer: aPeer, Job: "jabc", Usage: 1500, Price: ledger.Units("usd", 400_000), Charge: ledger.Units("usd", 5), State: "done"},
	}}, nil
}
