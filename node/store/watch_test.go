package store

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"

	"github.com/lumbung-net/lumbung/job"
)

var errStop = errors.New("that will do")

func emit(t testing.TB, db *DB, n int) {
	t.Helper()
	update(t, db, func(tx job.Tx) error {
		for i := range n {
			if err := tx.Emit(job.Event{Type: job.EventNotice, Task: i}); err != nil {
				return err
			}
		}
		return nil
	})
}

func TestWatchResumesWithoutGapOrRepeat(t *testing.T) {
	db := openTest(t, quiet())
	const writers, each = 8, 60
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for i := range each {
				err := db.Update(t.Context(), func(tx job.Tx) error {
					if err := tx.Emit(job.Event{Type: job.EventTask, Job: fmt.Sprint(w), Task: i}); err != nil {
						return err
					}
					if i%7 == 3 {
						return errStop // its event must not be seen
					}
					return tx.Emit(job.Event{Type: job.EventTask, Job: fmt.Sprint(w), Task: i + 1000})
				})
				if err != nil && !errors.Is(err, errStop) {
					t.Error(err)
				}
			}
		})
	}
	kept := 0
	for i := range each {
		if i%7 != 3 {
			kept += 2 * writers
		}
	}
	for watcher := range 3 {
		group.Go(func() {
			var seen []job.Event
			for len(seen) < kept { // cut and resumed every few events
				n := 0
				err := db.Watch(t.Context(), uint64(len(seen)), func(e job.Event) error {
					seen = append(seen, e)
					if n++; n == 5+watcher*40 || len(seen) == kept {
						return errStop
					}
					return nil
				})
				if !errors.Is(err, errStop) {
					t.Error(err)
					return
				}
			}
			checkEvents(t, seen)
		})
	}
	group.Wait()
}

// checkEvents wants numbers without a gap, and every writer's events in its
// order.
func checkEvents(t *testing.T, seen []job.Event) {
	t.Helper()
	last := map[string]int{}
	for i, e := range seen {
		if e.Seq != uint64(i+1) {
			t.Errorf("event %d has the number %d", i+1, e.Seq)
			return
		}
		task := e.Task % 1000
		if task%7 == 3 {
			t.Errorf("event %d is of an update that failed", e.Seq)
		}
		if task < last[e.Job] {
			t.Errorf("event %d: task %d of writer %s after %d", e.Seq, task, e.Job, last[e.Job])
		}
		last[e.Job] = task
		if !e.Time.Equal(noon) {
			t.Errorf("event %d is of %s", e.Seq, e.Time)
		}
	}
}

func TestOldEventsMakeRoom(t *testing.T) {
	o := quiet()
	o.Events = 100
	db := openTest(t, o)
	emit(t, db, 1000)
	oldest, newest, err := db.EventBounds(t.Context())
	if err != nil || newest != 1000 || newest-oldest+1 < 100 || newest-oldest+1 > 110 {
		t.Fatalf("events %d to %d, %v", oldest, newest, err)
	}
	for _, since := range []uint64{0, oldest - 2, 1001, 1 << 63} {
		if err := db.Watch(t.Context(), since, func(job.Event) error { return errStop }); !errors.Is(err, ErrGone) {
			t.Errorf("since %d: %v", since, err)
		}
	}
	var first uint64
	err = db.Watch(t.Context(), oldest-1, func(e job.Event) error { first = e.Seq; return errStop })
	if !errors.Is(err, errStop) || first != oldest {
		t.Errorf("the oldest is %d, the first seen is %d, %v", oldest, first, err)
	}
}

func TestNumbersAreNotGivenTwiceOverARestart(t *testing.T) {
	o := quiet()
	o.Events = 1
	path := t.TempDir() + "/l.db"
	for round := range uint64(3) {
		db, err := Open(path, o)
		if err != nil {
			t.Fatal(err)
		}
		emit(t, db, 10)
		if _, newest, err := db.EventBounds(t.Context()); err != nil || newest != 10*(round+1) {
			t.Errorf("round %d: newest %d, %v", round, newest, err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSlowWatcherIsCut(t *testing.T) {
	for name, c := range map[string]struct{ events, lag, burst int }{
		"behind by more than the lag":    {10_000, 100, 2 * watchBatch},
		"its next events have been lost": {100, 1_000_000, 4 * watchBatch},
	} {
		t.Run(name, func(t *testing.T) {
			o := quiet()
			o.Events, o.MaxLag = c.events, c.lag
			db := openTest(t, o)
			emit(t, db, 1)
			var seen []uint64
			err := db.Watch(t.Context(), 0, func(e job.Event) error {
				seen = append(seen, e.Seq)
				switch e.Seq {
				case 1:
					go emit(t, db, 1) // wakes the watcher once it has caught up
				case 2:
					emit(t, db, c.burst) // while the watcher is at work
				}
				return nil
			})
			if !errors.Is(err, ErrSlow) {
				t.Fatalf("%v after %d events", err, len(seen))
			}
			for i, seq := range seen {
				if seq != uint64(i+1) {
					t.Fatalf("event %d after %d", seq, i)
				}
			}
		})
	}
}

func TestReplayOfMoreThanTheLagIsNotSlow(t *testing.T) {
	o := quiet()
	o.MaxLag = 10
	db := openTest(t, o)
	emit(t, db, 3*watchBatch)
	n := 0
	err := db.Watch(t.Context(), 0, func(job.Event) error {
		if n++; n == 3*watchBatch {
			return errStop
		}
		return nil
	})
	if !errors.Is(err, errStop) {
		t.Error(err)
	}
}

func TestWatchersEnd(t *testing.T) {
	db := openTest(t, quiet())
	emit(t, db, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- db.Watch(ctx, 0, func(job.Event) error { cancel(); return nil }) }()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	started := make(chan struct{})
	go func() { ended <- db.Watch(t.Context(), 0, func(job.Event) error { close(started); return nil }) }()
	update(t, db, func(tx job.Tx) error { return tx.PutContract(&job.Contract{ID: lease(1), State: job.Running}) })
	go func() {
		_, _, err := db.WaitLog(t.Context(), lease(1), 1, 100)
		ended <- err
	}()
	<-started
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-ended; !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	}
	for name, err := range map[string]error{
		"update": db.Update(t.Context(), func(job.Tx) error { return nil }),
		"view":   db.View(t.Context(), func(job.Tx) error { return nil }),
		"close":  db.Close(),
	} {
		if want := ErrClosed; name != "close" && !errors.Is(err, want) || name == "close" && err != nil {
			t.Errorf("%s after the end: %v", name, err)
		}
	}
}

func TestWaitLogFollowsToTheEnd(t *testing.T) {
	db := openTest(t, quiet())
	id := lease(1)
	if _, _, err := db.WaitLog(t.Context(), id, 1, 100); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("output of no lease: %v", err)
	}
	put := func(s job.State) {
		update(t, db, func(tx job.Tx) error { return tx.PutContract(&job.Contract{ID: id, State: s}) })
	}
	put(job.Running)
	const n = 200
	type result struct {
		got []job.LogRecord
		err error
	}
	followers := make(chan result, 4)
	for range cap(followers) {
		go func() {
			var r result
			for complete := false; !complete && r.err == nil; {
				var batch []job.LogRecord
				batch, complete, r.err = db.WaitLog(t.Context(), id, uint64(len(r.got)+1), 7*(recordCost+9))
				r.got = append(r.got, batch...)
			}
			followers <- r
		}()
	}
	for i := uint64(1); i <= n; i++ {
		update(t, db, func(tx job.Tx) error { _, err := tx.AppendLog(id, records(i, i)); return err })
	}
	put(job.Saving)
	put(job.Done)
	for range cap(followers) {
		r := <-followers
		if r.err != nil || !reflect.DeepEqual(r.got, records(1, n)) {
			t.Errorf("%d records, %v", len(r.got), r.err)
		}
	}
	got, complete, err := db.WaitLog(t.Context(), id, n-1, 1<<20)
	if err != nil || !complete || len(got) != 2 {
		t.Errorf("the last two: %d, complete %v, %v", len(got), complete, err)
	}
	got, complete, err = db.WaitLog(t.Context(), id, n+1, 1<<20)
	if err != nil || !complete || len(got) != 0 {
		t.Errorf("after the end: %d, complete %v, %v", len(got), complete, err)
	}
}
