package job

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

const (
	logChunkBytes = 128 << 10
	logChunkMost  = 4096             // records that one message may carry; a program may write byte by byte
	logTries      = 5                // reads in a row that fail after the work is over, before the rest is given up
	logEndTime    = 30 * time.Second // bounds the search for the output's end
)

// sendLogs brings the container's output to the renter, each record once, from
// where the renter has it up to, as it appears.
func (e *execution) sendLogs(ctx context.Context) {
	if !e.waitForContainer(ctx) {
		return
	}
	next, wait, failed := uint64(1), retryFirst, 0
	for ctx.Err() == nil {
		records, closed, err := e.p.Sandbox.ReadLog(ctx, e.containerID(), next, logChunkBytes)
		if err != nil {
			if !e.readsAgain(ctx, &failed, &wait, err) {
				return // the result says what is missing
			}
			continue
		}
		failed = 0
		if len(records) == 0 && closed {
			return
		}
		if len(records) == 0 {
			continue
		}
		if len(records) > logChunkMost {
			records, closed = records[:logChunkMost], false
		}
		e.sawLog(records[len(records)-1].Seq)
		wanted, err := e.sendChunk(ctx, records)
		if errors.Is(err, errClosedByRenter) {
			return
		}
		if err != nil {
			// A lease that is booked before its log is out is one that its renter closed.
			if e.forgotten() || e.contract().Booked || !pause(ctx, &wait, e.contract().Heartbeat, e.booked) {
				return
			}
			continue
		}
		next, wait = wanted, retryFirst
		if closed && next > records[len(records)-1].Seq {
			return
		}
	}
}

// readsAgain waits before the output is read once more, for as long as the work
// goes on and a few times after: a disk may mend, a container that is gone not.
func (e *execution) readsAgain(ctx context.Context, failed *int, wait *time.Duration, err error) bool {
	select {
	case <-e.worked:
		*failed++
	default:
	}
	if ctx.Err() != nil || errors.Is(err, sandbox.ErrNotFound) || *failed > logTries {
		e.p.Log.Error("read the container's output", "lease", e.lease.ID().Short(), "err", err)
		return false
	}
	e.p.Log.Warn("read the container's output, again soon", "lease", e.lease.ID().Short(), "err", err)
	return pause(ctx, wait, e.contract().Heartbeat, nil)
}

// sawLog notes that the output has so many records.
func (e *execution) sawLog(seq uint64) {
	for {
		seen := e.logSeen.Load()
		if seq <= seen || e.logSeen.CompareAndSwap(seen, seq) {
			return
		}
	}
}

// endLog brings into the result how many records of output there are, and that
// some are lost if they are: its renter would take what has come for all.
func (e *execution) endLog(ctx context.Context, end *Ended) {
	ctx, cancel := context.WithTimeout(ctx, logEndTime)
	defer cancel()
	wait := retryFirst
	for failed := 0; ; {
		records, closed, err := e.p.Sandbox.ReadLog(ctx, e.containerID(), e.logSeen.Load()+1, logChunkBytes)
		if len(records) > 0 {
			e.sawLog(records[len(records)-1].Seq)
		}
		if err == nil && closed {
			return
		}
		if err == nil {
			continue
		}
		if failed++; failed > logTries || errors.Is(err, sandbox.ErrNotFound) || !pause(ctx, &wait, e.contract().Heartbeat, nil) {
			end.Reason = strings.TrimPrefix(end.Reason+"; ", "; ") + "some of its output is lost: " + err.Error()
			return
		}
	}
}

// waitForContainer waits until there is output to read; false when there never
// will be any.
func (e *execution) waitForContainer(ctx context.Context) bool {
	if e.contract().started() {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-e.running:
		return true
	case <-e.worked:
		return e.contract().started()
	}
}

var errClosedByRenter = errors.New("the renter has closed the lease")

func (e *execution) sendChunk(ctx context.Context, records []LogRecord) (uint64, error) {
	msg := &protocol.LogChunk{LeaseId: idBytes(e.lease.ID()), FirstSeq: records[0].Seq}
	for _, r := range records {
		msg.Records = append(msg.Records, &protocol.LogRecord{Seq: r.Seq, Stream: uint32(r.Stream), AtMs: r.Time.UnixMilli(), Data: r.Data})
	}
	chunk, err := protocol.Sign(e.p.Signer, msg)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	verdict, err := e.p.Net.Logs(ctx, e.lease.From, chunk)
	if err != nil {
		return 0, err
	}
	if err := e.obey(ctx, verdict.Msg); err != nil {
		return 0, err
	}
	if verdict.Msg.GetLogSeq() == 0 {
		return 0, errClosedByRenter
	}
	return verdict.Msg.GetLogSeq(), nil
}

// awaitLogs lets the output arrive before the result, so that a job is over
// only when all of it has been heard.
func (e *execution) awaitLogs(ctx context.Context, logs <-chan struct{}) bool {
	select {
	case <-ctx.Done():
		return false
	case <-logs:
	case <-e.booked:
	}
	return true
}
