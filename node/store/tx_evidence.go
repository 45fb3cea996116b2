package store

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/protocol"
)

// keepBeats is how many heartbeats of a lease are kept: usage is cumulative, so
// a newer one says all that an older one did.
const keepBeats = 32

// AppendMessage implements job.Tx. Of heartbeats only the newest are kept, or
// a lease of days would fill the disk with them.
func (t *txn) AppendMessage(lease protocol.MsgID, m job.Message) error {
	hash := sha256.Sum256(m.Raw)
	res, err := t.exec(`INSERT INTO messages (lease, kind, hash, at, raw) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (lease, hash) DO NOTHING`, lease[:], string(m.Kind), hash[:], nanos(m.At), m.Raw)
	if err != nil {
		return fmt.Errorf("keep %s of lease %s: %w", m.Kind, lease.Short(), err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 || m.Kind != protocol.KindHeartbeat {
		return err
	}
	_, err = t.exec(`DELETE FROM messages WHERE lease = ?1 AND kind = ?2 AND n <= (
		SELECT n FROM messages WHERE lease = ?1 AND kind = ?2 ORDER BY n DESC LIMIT 1 OFFSET ?3)`,
		lease[:], string(m.Kind), keepBeats)
	return wrap(err, "drop old heartbeats of lease %s", lease.Short())
}

// Messages implements job.Tx.
func (t *txn) Messages(lease protocol.MsgID) ([]job.Message, error) {
	var out []job.Message
	err := t.each(`SELECT kind, raw, at FROM messages WHERE lease = ? ORDER BY n`, []any{lease[:]}, func(scan func(...any) error) error {
		m, err := scanMessage(scan)
		out = append(out, m)
		return err
	})
	return out, wrap(err, "messages of lease %s", lease.Short())
}

// LastMessage implements job.Tx.
func (t *txn) LastMessage(lease protocol.MsgID, kind protocol.Kind) (job.Message, error) {
	m, err := scanMessage(func(into ...any) error {
		return t.get(`SELECT kind, raw, at FROM messages WHERE lease = ? AND kind = ? ORDER BY n DESC LIMIT 1`, []any{lease[:], string(kind)}, into...)
	})
	return m, wrap(err, "%s of lease %s", kind, lease.Short())
}

func scanMessage(scan func(...any) error) (job.Message, error) {
	var kind string
	var at int64
	var m job.Message
	err := scan(&kind, &m.Raw, &at)
	m.Kind, m.At = protocol.Kind(kind), fromNanos(at)
	return m, err
}

// logHead is how far the output of a lease is here.
type logHead struct {
	id, next int64
	bytes    int64
	full     bool
}

// recordCost is counted for each record beside its data.
const recordCost = 64

// AppendLog implements job.Tx. Records are numbered from 1. Those behind a gap
// are not taken: the number returned says what is wanted. Beyond MaxLogBytes
// records are counted and not kept, after a remark that says so.
func (t *txn) AppendLog(lease protocol.MsgID, records []job.LogRecord) (uint64, error) {
	h, err := t.logHead(lease)
	if err != nil {
		return 0, fmt.Errorf("append to the log of lease %s: %w", lease.Short(), err)
	}
	was := h
	for i := range records {
		r := &records[i]
		if int64(r.Seq) < h.next {
			continue
		}
		if int64(r.Seq) > h.next {
			break
		}
		if err := t.appendRecord(&h, r); err != nil {
			return 0, fmt.Errorf("append record %d to the log of lease %s: %w", r.Seq, lease.Short(), err)
		}
	}
	if h == was {
		return uint64(h.next), nil
	}
	t.ring(leaseKey(lease))
	_, err = t.exec(`UPDATE log_heads SET next = ?, bytes = ?, full = ? WHERE id = ?`, h.next, h.bytes, h.full, h.id)
	return uint64(h.next), wrap(err, "append to the log of lease %s", lease.Short())
}

func (t *txn) appendRecord(h *logHead, r *job.LogRecord) error {
	h.next++
	if h.full {
		return nil
	}
	stream, data := r.Stream, r.Data
	h.bytes += int64(len(data)) + recordCost
	if h.bytes > MaxLogBytes {
		h.full = true
		stream, data = 3, fmt.Appendf(nil, "lumbung: more than %d MiB of output; what follows was not kept\n", MaxLogBytes>>20)
	}
	if data == nil {
		data = []byte{}
	}
	_, err := t.exec(`INSERT INTO logs (head, seq, stream, at, data) VALUES (?, ?, ?, ?, ?)`, h.id, int64(r.Seq), stream, nanos(r.Time), data)
	return err
}

func (t *txn) logHead(lease protocol.MsgID) (logHead, error) {
	h := logHead{next: 1}
	err := t.get(`SELECT id, next, bytes, full FROM log_heads WHERE lease = ?`, []any{lease[:]}, &h.id, &h.next, &h.bytes, &h.full)
	if !errors.Is(err, job.ErrNotFound) || t.reads {
		return h, err
	}
	res, err := t.exec(`INSERT INTO log_heads (lease, next, bytes, full) VALUES (?, 1, 0, 0)`, lease[:])
	if err != nil {
		return h, err
	}
	h.id, err = res.LastInsertId()
	return h, err
}

// maxLogBatch bounds what one Log reads, whatever it is asked for.
const maxLogBatch = 4 << 20

// Log implements job.Tx. At least one record is returned when there is one.
func (t *txn) Log(lease protocol.MsgID, from uint64, maxBytes int) ([]job.LogRecord, error) {
	if maxBytes <= 0 || maxBytes > maxLogBatch {
		maxBytes = maxLogBatch
	}
	var out []job.LogRecord
	err := t.each(`SELECT seq, stream, at, data FROM logs
		WHERE head = (SELECT id FROM log_heads WHERE lease = ?) AND seq >= ? ORDER BY seq`, []any{lease[:], int64(min(from, 1<<62))},
		func(scan func(...any) error) error {
			var r job.LogRecord
			var at int64
			if err := scan(&r.Seq, &r.Stream, &at, &r.Data); err != nil {
				return err
			}
			r.Time = fromNanos(at)
			if maxBytes -= len(r.Data) + recordCost; maxBytes < 0 && len(out) > 0 {
				return errEnough
			}
			out = append(out, r)
			return nil
		})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return out, wrap(err, "log of lease %s", lease.Short())
}

// errEnough ends the reading of rows.
var errEnough = errors.New("enough")
