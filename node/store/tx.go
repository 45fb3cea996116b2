package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/protocol"
)

// txn is one transaction of job.Store.
type txn struct {
	db    *DB
	c     *conn
	ctx   context.Context
	reads bool
	// broken is SQLite's first error; nothing is done after it.
	broken error
	rung   map[string]struct{} // who is to be woken after the commit
}

var _ job.Tx = (*txn)(nil)

// ErrView says that a View tried to write.
var ErrView = errors.New("a view cannot write")

func (t *txn) exec(query string, args ...any) (sql.Result, error) {
	if t.reads {
		return nil, ErrView
	}
	if t.broken != nil {
		return nil, t.broken
	}
	res, err := t.c.exec(t.ctx, query, args...)
	return res, t.note(err)
}

// note remembers the first error of SQLite. A full disk makes it undo the whole
// transaction, and what ran after that would be committed by itself.
func (t *txn) note(err error) error {
	err = explain(err)
	if t.broken == nil {
		t.broken = err
	}
	return err
}

// get scans the one row of a query, or is job.ErrNotFound.
func (t *txn) get(query string, args []any, into ...any) error {
	if t.broken != nil {
		return t.broken
	}
	s, err := t.c.stmt(t.ctx, query)
	if err != nil {
		return t.note(err)
	}
	err = s.QueryRowContext(t.ctx, args...).Scan(into...)
	if errors.Is(err, sql.ErrNoRows) {
		return job.ErrNotFound
	}
	return t.note(err)
}

// each calls row for every row of a query.
func (t *txn) each(query string, args []any, row func(scan func(...any) error) error) error {
	if t.broken != nil {
		return t.broken
	}
	s, err := t.c.stmt(t.ctx, query)
	if err != nil {
		return t.note(err)
	}
	rows, err := s.QueryContext(t.ctx, args...)
	if err != nil {
		return t.note(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := row(rows.Scan); err != nil {
			return err
		}
	}
	return t.note(rows.Err())
}

// ring wakes those who listen to a key once the transaction is committed.
func (t *txn) ring(key string) {
	if t.rung == nil {
		t.rung = map[string]struct{}{}
	}
	t.rung[key] = struct{}{}
}

// bodies reads the records of a query whose one column is their JSON.
func bodies[T any](t *txn, query string, args ...any) ([]*T, error) {
	var out []*T
	err := t.each(query, args, func(scan func(...any) error) error {
		var raw sql.RawBytes
		if err := scan(&raw); err != nil {
			return err
		}
		v := new(T)
		if err := json.Unmarshal(raw, v); err != nil {
			return fmt.Errorf("stored record: %w", err)
		}
		out = append(out, v)
		return nil
	})
	return out, err
}

func body[T any](t *txn, query string, args ...any) (*T, error) {
	var raw []byte
	if err := t.get(query, args, &raw); err != nil {
		return nil, err
	}
	v := new(T)
	if err := json.Unmarshal(raw, v); err != nil {
		return nil, fmt.Errorf("stored record: %w", err)
	}
	return v, nil
}

// noLimit is SQLite's way to say that all rows are wanted.
func noLimit(n int) int {
	if n <= 0 {
		return -1
	}
	return n
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// PutJob implements job.Tx.
func (t *txn) PutJob(j *job.Job) error {
	raw, err := json.Marshal(j)
	if err != nil {
		return fmt.Errorf("job %s: %w", j.ID, err)
	}
	_, err = t.exec(`INSERT INTO jobs (id, open, created, body) VALUES (?1, ?2, ?3, ?4)
		ON CONFLICT (id) DO UPDATE SET open = ?2, created = ?3, body = ?4`, j.ID, !j.Over(), nanos(j.Created), raw)
	return wrap(err, "put job %s", j.ID)
}

// Job implements job.Tx.
func (t *txn) Job(id string) (*job.Job, error) {
	j, err := body[job.Job](t, `SELECT body FROM jobs WHERE id = ?`, id)
	return j, wrap(err, "job %s", id)
}

// Jobs implements job.Tx.
func (t *txn) Jobs(all bool, limit int) ([]*job.Job, error) {
	query := `SELECT body FROM jobs WHERE open = 1 ORDER BY created DESC, n DESC LIMIT ?`
	if all {
		query = `SELECT body FROM jobs ORDER BY created DESC, n DESC LIMIT ?`
	}
	list, err := bodies[job.Job](t, query, noLimit(limit))
	return list, wrap(err, "list jobs")
}

// PutTask implements job.Tx.
func (t *txn) PutTask(r *job.TaskRecord) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("task %d of job %s: %w", r.Index, r.Job, err)
	}
	_, err = t.exec(`INSERT INTO tasks (job, idx, body) VALUES (?1, ?2, ?3)
		ON CONFLICT (job, idx) DO UPDATE SET body = ?3`, r.Job, r.Index, raw)
	return wrap(err, "put task %d of job %s", r.Index, r.Job)
}

// Task implements job.Tx.
func (t *txn) Task(id string, index int) (*job.TaskRecord, error) {
	r, err := body[job.TaskRecord](t, `SELECT body FROM tasks WHERE job = ? AND idx = ?`, id, index)
	return r, wrap(err, "task %d of job %s", index, id)
}

// Tasks implements job.Tx.
func (t *txn) Tasks(id string) ([]*job.TaskRecord, error) {
	list, err := bodies[job.TaskRecord](t, `SELECT body FROM tasks WHERE job = ? ORDER BY idx`, id)
	return list, wrap(err, "tasks of job %s", id)
}

// PutContract implements job.Tx.
func (t *txn) PutContract(c *job.Contract) error {
	raw, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("lease %s: %w", c.ID.Short(), err)
	}
	t.ring(leaseKey(c.ID))
	_, err = t.exec(`INSERT INTO contracts (id, side, open, job, task, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
		ON CONFLICT (id) DO UPDATE SET side = ?2, open = ?3, job = ?4, task = ?5, body = ?6`,
		c.ID[:], string(c.Side), !c.State.Terminal() || !c.Booked, c.Job, c.Task, raw)
	return wrap(err, "put lease %s", c.ID.Short())
}

// Contract implements job.Tx.
func (t *txn) Contract(id protocol.MsgID) (*job.Contract, error) {
	c, err := body[job.Contract](t, `SELECT body FROM contracts WHERE id = ?`, id[:])
	return c, wrap(err, "lease %s", id.Short())
}

// Contracts implements job.Tx: in the order they came, the newest when there
// are more than the limit.
func (t *txn) Contracts(f job.ContractFilter) ([]*job.Contract, error) {
	query, args := `SELECT body FROM contracts WHERE 1`, []any{}
	if f.Side != "" {
		query, args = query+` AND side = ?`, append(args, string(f.Side))
	}
	if f.Open {
		query += ` AND open = 1`
	}
	if f.Job != "" {
		query, args = query+` AND job = ?`, append(args, f.Job)
		if f.TaskSet {
			query, args = query+` AND task = ?`, append(args, f.Task)
		}
	}
	list, err := bodies[job.Contract](t, query+` ORDER BY n DESC LIMIT ?`, append(args, noLimit(f.Limit))...)
	slices.Reverse(list)
	return list, wrap(err, "list leases")
}

// wrap says what failed; nil stays nil.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
