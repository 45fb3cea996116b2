package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/protocol"
)

// BenchmarkUpdate is a contract's transition: contract, evidence and event, on
// disk before it returns.
func BenchmarkUpdate(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			db := openTest(b, quiet())
			var n atomic.Int64
			var group sync.WaitGroup
			b.ResetTimer()
			for range writers {
				group.Go(func() {
					for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
						id := protocol.IDOf(fmt.Append(nil, i%1000))
						err := db.Update(b.Context(), func(tx job.Tx) error {
							return errors.Join(
								tx.PutContract(&job.Contract{ID: id, Side: job.SideRenter, State: job.Running, Job: "j", BeatSeq: uint64(i)}),
								tx.AppendMessage(id, job.Message{Kind: protocol.KindHeartbeat, Raw: fmt.Appendf(nil, "%300d", i), At: noon}),
								tx.Emit(job.Event{Type: job.EventTask, Job: "j"}),
							)
						})
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			group.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
		})
	}
}

// BenchmarkOpen opens a database of 10,000 jobs and lists those that are open.
func BenchmarkOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "l.db")
	db, err := Open(path, quiet())
	if err != nil {
		b.Fatal(err)
	}
	const jobs = 10_000
	update(b, db, func(tx job.Tx) error {
		for i := range jobs {
			j := &job.Job{ID: fmt.Sprint(i), State: job.JobDone, Created: noon.Add(time.Duration(i))}
			if i%100 == 0 {
				j.State = job.JobRunning
			}
			if err := errors.Join(tx.PutJob(j), tx.PutTask(&job.TaskRecord{Job: j.ID})); err != nil {
				return err
			}
		}
		return nil
	})
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		db, err := Open(path, quiet())
		if err != nil {
			b.Fatal(err)
		}
		view(b, db, func(tx job.Tx) error {
			open, err := tx.Jobs(false, 0)
			if len(open) != jobs/100 {
				b.Errorf("%d open jobs", len(open))
			}
			return err
		})
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAppendLog is the rate at which output is kept, in chunks of a
// hundred lines.
func BenchmarkAppendLog(b *testing.B) {
	db := openTest(b, quiet())
	const lines = 100
	n := 0
	for b.Loop() {
		id := protocol.IDOf(fmt.Append(nil, n/100))
		from := uint64(n%100)*lines + 1
		update(b, db, func(tx job.Tx) error {
			_, err := tx.AppendLog(id, records(from, from+lines-1))
			return err
		})
		n++
	}
	b.ReportMetric(float64(n*lines)/b.Elapsed().Seconds(), "records/s")
}
