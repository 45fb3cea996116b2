package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// errDisk is what a commit that the test lets fail says.
var errDisk = errors.New("no space left on device")

// errDead is what a node that was killed hears from its own machine.
var errDead = errors.New("this process was killed")

// table is one kind of record, by key, as JSON: so records are copies, and what
// is stored is what would be read from a disk.
type table map[string][]byte

// memStore is a node's store in memory. It outlives the runners on it, as a disk
// outlives a process. An Update is undone as a whole when it fails.
type memStore struct {
	mu        sync.Mutex
	jobs      table
	tasks     table
	contracts table
	secrets   map[string][]byte
	order     map[string]int // of contracts and jobs, as they came
	messages  map[protocol.MsgID][]Message
	logs      map[protocol.MsgID][]LogRecord
	entries   []ledger.Entry
	posted    map[string]bool
	events    []Event
	holds     map[string][]string
	commits   int
	// fail lets the commit of that number fail; nil is none.
	fail func(commit int) bool
}

func newMemStore() *memStore {
	return &memStore{
		jobs: table{}, tasks: table{}, contracts: table{}, secrets: map[string][]byte{}, order: map[string]int{},
		messages: map[protocol.MsgID][]Message{}, logs: map[protocol.MsgID][]LogRecord{},
		posted: map[string]bool{}, holds: map[string][]string{},
	}
}

func (s *memStore) Update(_ context.Context, fn func(Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	tx := &memTx{s: s}
	err := fn(tx)
	s.commits++
	if err == nil && s.fail != nil && s.fail(s.commits) {
		err = errDisk
	}
	if err != nil {
		for _, undo := range slices.Backward(tx.undo) {
			undo()
		}
		return err
	}
	return nil
}

func (s *memStore) View(_ context.Context, fn func(Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fn(&memTx{s: s, readOnly: true})
}

// failWhen sets which commits fail.
func (s *memStore) failWhen(fail func(commit int) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

// memTx is one transaction, with what undoes it.
type memTx struct {
	s        *memStore
	readOnly bool
	undo     []func()
}

func (t *memTx) write(undo func()) {
	if t.readOnly {
		panic("a View writes")
	}
	t.undo = append(t.undo, undo)
}

func (t *memTx) put(in table, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	old, had := in[key]
	t.write(func() {
		if delete(in, key); had {
			in[key] = old
		}
	})
	if _, known := t.s.order[key]; !known {
		t.s.order[key] = len(t.s.order)
	}
	in[key] = b
	return nil
}

func get[V any](in table, what, key string) (*V, error) {
	b, ok := in[key]
	if !ok {
		return nil, fmt.Errorf("%s %s: %w", what, key, ErrNotFound)
	}
	v := new(V)
	if err := json.Unmarshal(b, v); err != nil {
		return nil, fmt.Errorf("%s %s: %w", what, key, err)
	}
	return v, nil
}

// inOrder are a table's records as they first came.
func inOrder[V any](t *memTx, in table, what string) ([]*V, error) {
	var out []*V
	keys := sortedKeys(in)
	slices.SortFunc(keys, func(a, b string) int { return t.s.order[a] - t.s.order[b] })
	for _, key := range keys {
		v, err := get[V](in, what, key)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func (t *memTx) PutJob(j *Job) error              { return t.put(t.s.jobs, j.ID, j) }
func (t *memTx) Job(id string) (*Job, error)      { return get[Job](t.s.jobs, "job", id) }
func (t *memTx) PutTask(r *TaskRecord) error      { return t.put(t.s.tasks, taskKey(r.Job, r.Index), r) }
func (t *memTx) PutContract(c *Contract) error    { return t.put(t.s.contracts, c.ID.String(), c) }
func taskKey(job string, index int) string        { return fmt.Sprintf("%s/%06d", job, index) }
func (t *memTx) ReleaseBlocks(owner string) error { return t.setHolds(owner, nil) }

func (t *memTx) PutSecrets(job string, sealed []byte) error {
	old, had := t.s.secrets[job]
	t.write(func() {
		if delete(t.s.secrets, job); had {
			t.s.secrets[job] = old
		}
	})
	t.s.secrets[job] = slices.Clone(sealed)
	return nil
}

func (t *memTx) Secrets(job string) ([]byte, error) {
	sealed, ok := t.s.secrets[job]
	if !ok {
		return nil, fmt.Errorf("secrets of %s: %w", job, ErrNotFound)
	}
	return slices.Clone(sealed), nil
}

func (t *memTx) DropSecrets(job string) error {
	old, had := t.s.secrets[job]
	if had {
		t.write(func() { t.s.secrets[job] = old })
		delete(t.s.secrets, job)
	}
	return nil
}

func (t *memTx) Task(job string, index int) (*TaskRecord, error) {
	return get[TaskRecord](t.s.tasks, "task", taskKey(job, index))
}

func (t *memTx) Contract(id protocol.MsgID) (*Contract, error) {
	return get[Contract](t.s.contracts, "contract", id.String())
}

func (t *memTx) Jobs(all bool, limit int) ([]*Job, error) {
	jobs, err := inOrder[Job](t, t.s.jobs, "job")
	if err != nil {
		return nil, err
	}
	slices.Reverse(jobs)
	if !all {
		jobs = slices.DeleteFunc(jobs, (*Job).Over)
	}
	if limit > 0 && len(jobs) > limit {
		jobs = jobs[:limit]
	}
	return jobs, nil
}

func (t *memTx) Tasks(job string) ([]*TaskRecord, error) {
	tasks, err := inOrder[TaskRecord](t, t.s.tasks, "task")
	tasks = slices.DeleteFunc(tasks, func(r *TaskRecord) bool { return r.Job != job })
	slices.SortFunc(tasks, func(a, b *TaskRecord) int { return a.Index - b.Index })
	return tasks, err
}

func (t *memTx) Contracts(f ContractFilter) ([]*Contract, error) {
	all, err := inOrder[Contract](t, t.s.contracts, "contract")
	all = slices.DeleteFunc(all, func(c *Contract) bool {
		return f.Side != "" && c.Side != f.Side || f.Open && c.State.Terminal() && c.Booked ||
			f.Job != "" && c.Job != f.Job || f.TaskSet && c.Task != f.Task
	})
	if f.Limit > 0 && len(all) > f.Limit {
		all = all[:f.Limit]
	}
	return all, err
}

func (t *memTx) AppendMessage(lease protocol.MsgID, m Message) error {
	old := t.s.messages[lease]
	if slices.ContainsFunc(old, func(o Message) bool { return string(o.Raw) == string(m.Raw) }) {
		return nil
	}
	t.write(func() { t.s.messages[lease] = old })
	t.s.messages[lease] = append(slices.Clip(old), m)
	return nil
}

func (t *memTx) Messages(lease protocol.MsgID) ([]Message, error) {
	return slices.Clone(t.s.messages[lease]), nil
}

func (t *memTx) LastMessage(lease protocol.MsgID, kind protocol.Kind) (Message, error) {
	for _, m := range slices.Backward(t.s.messages[lease]) {
		if m.Kind == kind {
			return m, nil
		}
	}
	return Message{}, fmt.Errorf("%s of %s: %w", kind, lease.Short(), ErrNotFound)
}

func (t *memTx) AppendLog(lease protocol.MsgID, records []LogRecord) (uint64, error) {
	old := t.s.logs[lease]
	t.write(func() { t.s.logs[lease] = old })
	log := slices.Clip(old)
	for _, r := range records {
		if r.Seq == uint64(len(log))+1 {
			r.Data = slices.Clone(r.Data)
			log = append(log, r)
		}
	}
	t.s.logs[lease] = log
	return uint64(len(log)) + 1, nil
}

func (t *memTx) Log(lease protocol.MsgID, from uint64, _ int) ([]LogRecord, error) {
	log := t.s.logs[lease]
	if from < 1 || from > uint64(len(log)) {
		return nil, nil
	}
	return slices.Clone(log[from-1:]), nil
}

func (t *memTx) Post(e ledger.Entry) error {
	if err := e.Check(); err != nil {
		return err
	}
	key := e.Cause + "\x00" + e.Kind
	if t.s.posted[key] {
		return nil
	}
	old := t.s.entries
	t.write(func() {
		t.s.entries = old
		delete(t.s.posted, key)
	})
	t.s.posted[key] = true
	t.s.entries = append(slices.Clip(old), e)
	return nil
}

func (t *memTx) Emit(e Event) error {
	old := t.s.events
	t.write(func() { t.s.events = old })
	e.Seq = uint64(len(old)) + 1
	t.s.events = append(slices.Clip(old), e)
	return nil
}

func (t *memTx) HoldBlocks(owner string, root []byte, _ time.Time) error {
	return t.setHolds(owner, append(slices.Clone(t.s.holds[owner]), string(root)))
}

func (t *memTx) setHolds(owner string, roots []string) error {
	old := t.s.holds[owner]
	t.write(func() { t.s.holds[owner] = old })
	t.s.holds[owner] = roots
	return nil
}

// What tests read, without an error to look at.

func (s *memStore) view(fn func(*memTx)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(&memTx{s: s, readOnly: true})
}

func (s *memStore) job(id string) (j Job) {
	s.view(func(t *memTx) {
		if p, err := t.Job(id); err == nil {
			j = *p
		}
	})
	return j
}

func (s *memStore) tasksOf(id string) (out []TaskRecord) {
	s.view(func(t *memTx) {
		tasks, _ := t.Tasks(id)
		for _, r := range tasks {
			out = append(out, *r)
		}
	})
	return out
}

func (s *memStore) allContracts() (out []Contract) {
	s.view(func(t *memTx) {
		list, _ := t.Contracts(ContractFilter{})
		for _, c := range list {
			out = append(out, *c)
		}
	})
	return out
}

func (s *memStore) logText(id protocol.MsgID) string {
	var b strings.Builder
	s.view(func(t *memTx) {
		for _, r := range t.s.logs[id] {
			b.Write(r.Data)
		}
	})
	return b.String()
}

func (s *memStore) journal() (out []ledger.Entry) {
	s.view(func(t *memTx) { out = slices.Clone(t.s.entries) })
	return out
}

// jobStates are the states that the job's events tell of.
func (s *memStore) jobStates() (out []string) {
	s.view(func(t *memTx) {
		for _, e := range t.s.events {
			if e.Type == EventJob {
				out = append(out, e.State)
			}
		}
	})
	return out
}

func (s *memStore) eventTexts(kind string) (out []string) {
	s.view(func(t *memTx) {
		for _, e := range t.s.events {
			if e.Type == kind {
				out = append(out, e.Text)
			}
		}
	})
	return out
}
