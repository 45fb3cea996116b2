package store

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

func TestJobsAndTasks(t *testing.T) {
	db := openTest(t, quiet())
	jobs := []*job.Job{
		{ID: "old", State: job.JobRunning, Created: noon, Spec: job.Spec{Image: "a", Env: map[string]string{"K": "v"}}, Spent: ledger.Units("usd", 7)},
		{ID: "over", State: job.JobDone, Created: noon.Add(time.Second), Ended: noon.Add(time.Minute), Counts: map[string]int{"done": 2}},
		{ID: "new", State: job.JobQueued, Created: noon.Add(2 * time.Second), Grace: time.Second, Image: job.ImageRef{Root: []byte{1, 2}}},
	}
	update(t, db, func(tx job.Tx) error {
		var errs []error
		for _, j := range jobs {
			errs = append(errs, tx.PutJob(j))
		}
		for i := 2; i >= 0; i-- {
			errs = append(errs, tx.PutTask(&job.TaskRecord{Job: "old", Index: i, State: job.TaskQueued, Lease: lease(byte(i))}))
		}
		return errors.Join(errs...)
	})
	view(t, db, func(tx job.Tx) error {
		for _, want := range jobs {
			if got, err := tx.Job(want.ID); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("job %s: %+v, %v", want.ID, got, err)
			}
		}
		for _, c := range []struct {
			all   bool
			limit int
			want  string
		}{{true, 0, "new over old"}, {false, 0, "new old"}, {true, 2, "new over"}, {false, 1, "new"}} {
			list, err := tx.Jobs(c.all, c.limit)
			var ids []string
			for _, j := range list {
				ids = append(ids, j.ID)
			}
			if got := strings.Join(ids, " "); err != nil || got != c.want {
				t.Errorf("Jobs(%v, %d) = %s, %v; want %s", c.all, c.limit, got, err, c.want)
			}
		}
		tasks, err := tx.Tasks("old")
		if err != nil || len(tasks) != 3 || tasks[0].Index != 0 || tasks[2].Index != 2 || tasks[1].Lease != lease(1) {
			t.Errorf("tasks %+v, %v", tasks, err)
		}
		_, errJob := tx.Job("none")
		_, errTask := tx.Task("old", 9)
		_, errLease := tx.Contract(lease(200))
		_, errMsg := tx.LastMessage(lease(200), protocol.KindLease)
		for _, err := range []error{errJob, errTask, errLease, errMsg} {
			if !errors.Is(err, job.ErrNotFound) {
				t.Errorf("%v is no ErrNotFound", err)
			}
		}
		return nil
	})
	// A record is a copy, and a change of state moves it between the lists.
	jobs[0].State = job.JobFailed
	view(t, db, func(tx job.Tx) error {
		if list, err := tx.Jobs(false, 0); err != nil || len(list) != 2 {
			t.Errorf("changing the caller's copy changed the store: %v, %v", list, err)
		}
		return nil
	})
	update(t, db, func(tx job.Tx) error { return tx.PutJob(jobs[0]) })
	view(t, db, func(tx job.Tx) error {
		if list, err := tx.Jobs(false, 0); err != nil || len(list) != 1 || list[0].ID != "new" {
			t.Errorf("open jobs %v, %v", list, err)
		}
		return nil
	})
}

func TestContracts(t *testing.T) {
	db := openTest(t, quiet())
	all := []*job.Contract{
		{ID: lease(1), Side: job.SideRenter, State: job.Running, Job: "a", Task: 0},
		{ID: lease(2), Side: job.SideRenter, State: job.Done, Job: "a", Task: 1},
		{ID: lease(3), Side: job.SideRenter, State: job.Done, Job: "a", Task: 0, Booked: true, Outputs: []byte{1}},
		{ID: lease(4), Side: job.SideProvider, State: job.Running, Job: "a", Task: 0, CancelAt: noon},
		{ID: lease(5), Side: job.SideProvider, State: job.Refused, Job: "b", Booked: true},
	}
	update(t, db, func(tx job.Tx) error {
		var errs []error
		for _, c := range all {
			errs = append(errs, tx.PutContract(c))
		}
		return errors.Join(errs...)
	})
	for _, c := range []struct {
		f    job.ContractFilter
		want []int
	}{
		{job.ContractFilter{}, []int{1, 2, 3, 4, 5}},
		{job.ContractFilter{Side: job.SideRenter}, []int{1, 2, 3}},
		{job.ContractFilter{Open: true}, []int{1, 2, 4}},
		{job.ContractFilter{Side: job.SideProvider, Open: true}, []int{4}},
		{job.ContractFilter{Side: job.SideRenter, Job: "a"}, []int{1, 2, 3}},
		{job.ContractFilter{Job: "a", Task: 0}, []int{1, 2, 3, 4}},
		{job.ContractFilter{Job: "a", Task: 0, TaskSet: true}, []int{1, 3, 4}},
		{job.ContractFilter{Job: "a", Task: 1, TaskSet: true, Open: true}, []int{2}},
		{job.ContractFilter{Limit: 2}, []int{4, 5}},
		{job.ContractFilter{Job: "none"}, nil},
	} {
		view(t, db, func(tx job.Tx) error {
			list, err := tx.Contracts(c.f)
			if err != nil || len(list) != len(c.want) {
				t.Errorf("%+v: %d found, %v; want %v", c.f, len(list), err, c.want)
				return nil
			}
			for i, n := range c.want {
				if !reflect.DeepEqual(list[i], all[n-1]) {
					t.Errorf("%+v: number %d is %+v", c.f, i, list[i])
				}
			}
			return nil
		})
	}
}

func TestMessages(t *testing.T) {
	db := openTest(t, quiet())
	id := lease(1)
	msg := func(kind protocol.Kind, text string, s int) job.Message {
		return job.Message{Kind: kind, Raw: []byte(text), At: noon.Add(time.Duration(s) * time.Second)}
	}
	in := []job.Message{
		msg(protocol.KindLease, "lease", 0), msg(protocol.KindDecision, "yes", 1),
		msg(protocol.KindHeartbeat, "b1", 2), msg(protocol.KindHeartbeat, "b2", 3),
	}
	update(t, db, func(tx job.Tx) error {
		for _, m := range append(in, msg(protocol.KindDecision, "yes", 9)) { // the same bytes again
			if err := tx.AppendMessage(id, m); err != nil {
				return err
			}
		}
		return tx.AppendMessage(lease(2), in[0]) // of another lease
	})
	view(t, db, func(tx job.Tx) error {
		if got, err := tx.Messages(id); err != nil || !reflect.DeepEqual(got, in) {
			t.Errorf("messages %v, %v", got, err)
		}
		if got, err := tx.LastMessage(id, protocol.KindHeartbeat); err != nil || string(got.Raw) != "b2" {
			t.Errorf("last heartbeat %v, %v", got, err)
		}
		return nil
	})
}

func TestHeartbeatsDoNotPileUp(t *testing.T) {
	db := openTest(t, quiet())
	update(t, db, func(tx job.Tx) error {
		errs := []error{tx.AppendMessage(lease(1), job.Message{Kind: protocol.KindLease, Raw: []byte("lease")})}
		for i := range 10 * keepBeats {
			errs = append(errs, tx.AppendMessage(lease(1), job.Message{Kind: protocol.KindHeartbeat, Raw: fmt.Appendf(nil, "beat %d", i)}))
		}
		return errors.Join(errs...)
	})
	view(t, db, func(tx job.Tx) error {
		got, err := tx.Messages(lease(1))
		if err != nil || len(got) != 1+keepBeats || got[0].Kind != protocol.KindLease {
			t.Fatalf("%d messages, %v", len(got), err)
		}
		if last := string(got[len(got)-1].Raw); last != fmt.Sprintf("beat %d", 10*keepBeats-1) {
			t.Errorf("the newest is %q", last)
		}
		return nil
	})
}

func records(from, to uint64) []job.LogRecord {
	var out []job.LogRecord
	for i := from; i <= to; i++ {
		out = append(out, job.LogRecord{Seq: i, Stream: 1 + int(i%2), Time: noon.Add(time.Duration(i)), Data: fmt.Appendf(nil, "line %d\n", i)})
	}
	return out
}

func TestLogs(t *testing.T) {
	db := openTest(t, quiet())
	id := lease(1)
	for _, c := range []struct {
		in   []job.LogRecord
		next uint64
	}{
		{nil, 1},
		{records(3, 4), 1}, // behind a gap
		{records(1, 2), 3},
		{records(1, 5), 6}, // 1 and 2 are here
		{records(2, 3), 6}, // nothing new
		{append(records(6, 6), records(9, 9)...), 7},
	} {
		update(t, db, func(tx job.Tx) error {
			next, err := tx.AppendLog(id, c.in)
			if next != c.next {
				t.Errorf("after %v the next is %d, want %d", c.in, next, c.next)
			}
			return err
		})
	}
	view(t, db, func(tx job.Tx) error {
		for _, c := range []struct {
			from uint64
			max  int
			want []job.LogRecord
		}{
			{0, 0, records(1, 6)},
			{1, 1 << 20, records(1, 6)},
			{4, 1 << 20, records(4, 6)},
			{2, 1, records(2, 2)}, // at least one
			{2, 2 * (recordCost + 7), records(2, 3)},
			{7, 100, nil},
			{1 << 63, 100, nil},
		} {
			if got, err := tx.Log(id, c.from, c.max); err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("Log(%d, %d) = %v, %v; want %v", c.from, c.max, got, err, c.want)
			}
		}
		if got, err := tx.Log(lease(9), 1, 100); err != nil || got != nil {
			t.Errorf("log of nothing: %v, %v", got, err)
		}
		return nil
	})
}

func TestLogIsBounded(t *testing.T) {
	db := openTest(t, quiet())
	const n = 70
	big := make([]byte, 1<<20)
	update(t, db, func(tx job.Tx) error {
		for i := uint64(1); i <= n; i++ {
			next, err := tx.AppendLog(lease(1), []job.LogRecord{{Seq: i, Stream: 1, Time: noon, Data: big}})
			if err != nil || next != i+1 {
				return fmt.Errorf("record %d: next %d, %w", i, next, err)
			}
		}
		return nil
	})
	var total, last int
	var remark job.LogRecord
	view(t, db, func(tx job.Tx) error {
		for from := uint64(1); ; {
			batch, err := tx.Log(lease(1), from, 0)
			if err != nil || len(batch) == 0 {
				return err
			}
			if len(batch) > maxLogBatch>>20 {
				t.Errorf("%d records of 1 MiB in one read", len(batch))
			}
			for _, r := range batch {
				total += len(r.Data)
				last, remark = int(r.Seq), r
			}
			from = batch[len(batch)-1].Seq + 1
		}
	})
	if total > MaxLogBytes || total < MaxLogBytes-2<<20 {
		t.Errorf("%d bytes are kept, the bound is %d", total, MaxLogBytes)
	}
	if remark.Stream != 3 || !strings.Contains(string(remark.Data), "64 MiB") || last >= n {
		t.Errorf("the last record is %d, stream %d", remark.Seq, remark.Stream)
	}
}

func TestPostBooksOnce(t *testing.T) {
	db := openTest(t, quiet())
	first := charge("l1", true, 0, 100)
	update(t, db, func(tx job.Tx) error {
		return errors.Join(tx.Post(first), tx.Post(first), tx.Post(charge("l1", true, 100, 40)), tx.Post(charge("l2", false, 0, 1<<63)))
	})
	again := first
	again.Time = noon.Add(time.Hour) // repeated later
	update(t, db, func(tx job.Tx) error { return tx.Post(again) })
	err := db.Update(t.Context(), func(tx job.Tx) error { return tx.Post(charge("l1", true, 0, 101)) })
	if !errors.Is(err, ErrConflict) {
		t.Errorf("another charge of the same lease: %v", err)
	}
	err = db.Update(t.Context(), func(tx job.Tx) error {
		bad := first
		bad.Legs = bad.Legs[:1]
		return tx.Post(bad)
	})
	if !errors.Is(err, ledger.ErrEntry) {
		t.Errorf("half an entry: %v", err)
	}
	entries, err := db.Entries(t.Context(), EntryFilter{})
	if err != nil || len(entries) != 3 || !reflect.DeepEqual(entries[0], first) {
		t.Fatalf("entries %+v, %v", entries, err)
	}
	want, err := ledger.Balances(entries)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := db.Balances(t.Context()); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("kept balances %v, %v; the entries say %v", got, err, want)
	}
	for _, c := range []struct {
		f    EntryFilter
		want int
	}{
		{EntryFilter{Cause: "l1"}, 2},
		{EntryFilter{Cause: "l1", Kind: ledger.KindCorrection}, 1},
		{EntryFilter{Account: ledger.OwedTo("provider")}, 2},
		{EntryFilter{Account: ledger.OwedBy("renter")}, 1},
		{EntryFilter{From: noon.Add(time.Second)}, 0},
		{EntryFilter{From: noon, To: noon.Add(time.Second)}, 3},
		{EntryFilter{To: noon}, 0},
		{EntryFilter{Limit: 1}, 1},
	} {
		if got, err := db.Entries(t.Context(), c.f); err != nil || len(got) != c.want {
			t.Errorf("%+v: %d entries, %v; want %d", c.f, len(got), err, c.want)
		}
	}
}

func TestStatementKnowsItsLeases(t *testing.T) {
	db := openTest(t, quiet())
	c := &job.Contract{ID: lease(1), Side: job.SideRenter, State: job.Done, Job: "j1", Task: 3, UsageMs: 1500, Asset: "usd", Price: 600_000}
	update(t, db, func(tx job.Tx) error {
		return errors.Join(tx.PutContract(c), tx.Post(charge(c.ID.String(), true, 0, 250)), tx.Post(charge("other", true, 0, 5)))
	})
	s, err := db.Statement(t.Context(), EntryFilter{})
	if err != nil || len(s.Rows) != 2 {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, r := range s.Rows {
		if r.Lease == c.ID.String() && (r.Task != 3 || r.UsageMs != 1500 || r.Price != ledger.Units("usd", 600_000) || r.Charge.Lo != 250 || r.State != "done") {
			t.Errorf("row %+v", r)
		}
	}
	if s.Totals[0].Owed.Lo != 255 {
		t.Errorf("totals %+v", s.Totals)
	}
}

func TestHoldsAndRoots(t *testing.T) {
	db := openTest(t, quiet())
	a, b, c, d := root(t, "a"), root(t, "b"), root(t, "c"), root(t, "d")
	update(t, db, func(tx job.Tx) error {
		return errors.Join(
			tx.HoldBlocks("job:1", a.Bytes(), time.Time{}),
			tx.HoldBlocks("job:1", b.Bytes(), noon.Add(time.Hour)),
			tx.HoldBlocks("job:2", a.Bytes(), noon.Add(time.Hour)),
			tx.HoldBlocks("job:2", c.Bytes(), noon), // lapsed
			tx.HoldBlocks("job:3", d.Bytes(), noon.Add(-time.Hour)),
			tx.HoldBlocks("job:3", d.Bytes(), noon.Add(time.Minute)), // prolonged
		)
	})
	if err := db.Pin(t.Context(), c, "mine"); err != nil {
		t.Fatal(err)
	}
	wantRoots(t, db, a.String(), b.String(), c.String(), d.String())
	update(t, db, func(tx job.Tx) error { return tx.ReleaseBlocks("job:1") })
	wantRoots(t, db, a.String(), c.String(), d.String())
	if n, err := db.ExpireHolds(t.Context(), noon.Add(time.Minute)); err != nil || n != 2 {
		t.Errorf("%d holds lapsed, %v", n, err)
	}
	wantRoots(t, db, a.String(), c.String())
	if err := db.Unpin(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := db.Unpin(t.Context(), c); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("second unpin: %v", err)
	}
	wantRoots(t, db, a.String())
	if err := db.Update(t.Context(), func(tx job.Tx) error { return tx.HoldBlocks("x", []byte("no cid"), noon) }); err == nil {
		t.Error("no CID was held")
	}
}

func wantRoots(t *testing.T, db *DB, want ...string) {
	t.Helper()
	roots, err := db.Roots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, r := range roots {
		have[r.String()] = true
	}
	for _, w := range want {
		if !have[w] {
			t.Errorf("root %s is missing", w)
		}
	}
	if len(roots) != len(want) {
		t.Errorf("%d roots, want %d", len(roots), len(want))
	}
}

func TestAFailedUpdateLeavesNothing(t *testing.T) {
	db := openTest(t, quiet())
	boom := errors.New("boom")
	err := db.Update(t.Context(), func(tx job.Tx) error {
		_, logErr := tx.AppendLog(lease(1), records(1, 3))
		return errors.Join(logErr,
			tx.PutJob(&job.Job{ID: "j"}), tx.Post(charge("l", true, 0, 5)), tx.Emit(job.Event{Type: job.EventJob}),
			tx.HoldBlocks("o", root(t, "a").Bytes(), time.Time{}), boom)
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was lost")
			}
		}()
		_ = db.Update(t.Context(), func(tx job.Tx) error {
			if err := tx.PutJob(&job.Job{ID: "j"}); err != nil {
				return err
			}
			panic("boom")
		})
	}()
	view(t, db, func(tx job.Tx) error {
		if _, err := tx.Job("j"); !errors.Is(err, job.ErrNotFound) {
			t.Errorf("job: %v", err)
		}
		if got, err := tx.Log(lease(1), 1, 100); err != nil || got != nil {
			t.Errorf("log: %v, %v", got, err)
		}
		return nil
	})
	if _, newest, err := db.EventBounds(t.Context()); err != nil || newest != 0 {
		t.Errorf("newest event %d, %v", newest, err)
	}
	if b, err := db.Balances(t.Context()); err != nil || len(b) != 0 {
		t.Errorf("balances %v, %v", b, err)
	}
	wantRoots(t, db)
}

func TestViewCannotWriteAndSeesOneState(t *testing.T) {
	db := openTest(t, quiet())
	update(t, db, func(tx job.Tx) error { return tx.PutJob(&job.Job{ID: "a"}) })
	err := db.View(t.Context(), func(tx job.Tx) error {
		if err := tx.PutJob(&job.Job{ID: "b"}); !errors.Is(err, ErrView) {
			t.Errorf("a view wrote: %v", err)
		}
		if _, err := tx.Job("a"); err != nil {
			return err
		}
		if err := db.Update(t.Context(), func(tx job.Tx) error { return tx.PutJob(&job.Job{ID: "c"}) }); err != nil {
			return err
		}
		if _, err := tx.Job("c"); !errors.Is(err, job.ErrNotFound) {
			t.Errorf("the view saw a later write: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	view(t, db, func(tx job.Tx) error { _, err := tx.Job("c"); return err })
}

func TestUpdateOfAnEndedContextIsNotRun(t *testing.T) {
	db := openTest(t, quiet())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := db.Update(ctx, func(job.Tx) error { t.Error("it ran"); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := db.View(ctx, func(tx job.Tx) error { _, err := tx.Jobs(true, 0); return err }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	view(t, db, func(tx job.Tx) error { _, err := tx.Jobs(true, 0); return err }) // the reader is still good
}

// What checkpoints took the place of is told, until somebody holds it again or it
// is gone; what else is let go is not.
func TestDropped(t *testing.T) {
	db := openTest(t, quiet())
	a, b, c := root(t, "a"), root(t, "b"), root(t, "c")
	hold := func(owner string, c cid.Cid, until time.Time) {
		update(t, db, func(tx job.Tx) error { return tx.HoldBlocks(owner, c.Bytes(), until) })
	}
	want := func(want ...cid.Cid) {
		t.Helper()
		got, err := db.Dropped(t.Context())
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%v %v, want %v", got, err, want)
		}
	}
	hold("checkpoint:j:0", a, time.Time{})
	hold("job:1", c, time.Time{})
	want()
	update(t, db, func(tx job.Tx) error { // as one takes the place of another
		return errors.Join(tx.ReleaseBlocks("checkpoint:j:0"), tx.HoldBlocks("checkpoint:j:0", b.Bytes(), noon), tx.ReleaseBlocks("job:1"))
	})
	want(a)
	update(t, db, func(tx job.Tx) error { // kept
		return errors.Join(tx.ReleaseBlocks("checkpoint:j:0"), tx.HoldBlocks("checkpoint:j:0", b.Bytes(), noon))
	})
	want(a)
	hold("job:2", a, time.Time{})
	want()
	update(t, db, func(tx job.Tx) error { return tx.ReleaseBlocks("job:2") })
	want()
	if n, err := db.ExpireHolds(t.Context(), noon); err != nil || n != 1 {
		t.Errorf("%d holds lapsed, %v", n, err)
	}
	want(b)
	if err := db.ForgetDropped(t.Context(), []cid.Cid{b}); err != nil {
		t.Fatal(err)
	}
	want()
}
