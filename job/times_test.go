package job

import (
	"reflect"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

func TestTimesOf(t *testing.T) {
	at := func(s int) time.Time { return noon.Add(time.Duration(s) * time.Second) }
	sec := func(n int) time.Duration { return time.Duration(n) * time.Second }
	now := at(100)
	lease := protocol.IDOf([]byte("lease"))
	j := &Job{Created: at(0)}
	for name, c := range map[string]struct {
		task      TaskRecord
		contracts []Contract
		want      []Times
	}{
		"waits": {
			TaskRecord{State: TaskQueued},
			nil,
			[]Times{{State: "queued", Waiting: sec(100), Total: sec(100)}},
		},
		"ended waiting": {
			TaskRecord{State: "failed", Ended: at(30)},
			nil,
			[]Times{{State: "failed", Waiting: sec(30), Total: sec(30)}},
		},
		"is being awarded": {
			TaskRecord{State: "proposed", Lease: lease},
			[]Contract{{State: Proposed, AskedAt: at(95), ProposedAt: at(98)}},
			[]Times{{State: "proposed", Waiting: sec(95), Quoting: sec(5), Total: sec(100)}},
		},
		"fetches": {
			TaskRecord{State: "fetching", Lease: lease},
			[]Contract{{State: Fetching, AskedAt: at(1), ProposedAt: at(2), LeasedAt: at(3), FetchingAt: at(4)}},
			[]Times{{State: "fetching", Waiting: sec(1), Quoting: sec(2), Fetching: sec(97), Total: sec(100)}},
		},
		"starts": {
			TaskRecord{State: "starting", Lease: lease},
			[]Contract{{State: Starting, ReadyMax: sec(60), AskedAt: at(1), ProposedAt: at(2), LeasedAt: at(3), FetchingAt: at(4), StartingAt: at(60)}},
			[]Times{{State: "starting", Waiting: sec(1), Quoting: sec(2), Fetching: sec(57), Starting: sec(40), Total: sec(100)}},
		},
		"done, and its provider told": {
			TaskRecord{State: "done", Lease: lease, Ended: at(90)},
			[]Contract{{
				State: Done, ReadyMax: sec(60), AskedAt: at(1), ProposedAt: at(2), LeasedAt: at(3), FetchingAt: at(4), StartingAt: at(10),
				RunningAt: at(20), SavingAt: at(50), EndedAt: at(90), Took: Took{Fetch: sec(3), Prepare: sec(2), Save: sec(1)},
			}},
			[]Times{{
				State: "done", Waiting: sec(1), Quoting: sec(2), Fetching: sec(5), Preparing: sec(2), Starting: sec(10), Running: sec(30),
				Saving: sec(40), Total: sec(90),
			}},
		},
		"its provider tells nonsense": {
			TaskRecord{State: "failed", Lease: lease, Ended: at(30)},
			[]Contract{{State: Failed, ProposedAt: at(2), LeasedAt: at(3), FetchingAt: at(4), EndedAt: at(30), Took: Took{Prepare: sec(1000)}}},
			[]Times{{State: "failed", Waiting: sec(2), Quoting: sec(1), Preparing: sec(27), Total: sec(30)}},
		},
		"tried again, and waits": {
			TaskRecord{State: TaskQueued, Attempts: 2},
			[]Contract{
				{Attempt: 1, State: Lost, AskedAt: at(11), ProposedAt: at(12), LeasedAt: at(13), FetchingAt: at(14), RunningAt: at(20), EndedAt: at(40)},
				{Attempt: 0, State: Refused, AskedAt: at(1), ProposedAt: at(2), EndedAt: at(10)},
			},
			[]Times{
				{State: "refused", Waiting: sec(1), Quoting: sec(9), Total: sec(10)},
				{Attempt: 1, State: "lost", Waiting: sec(1), Quoting: sec(2), Fetching: sec(7), Running: sec(20), Total: sec(30)},
				{Attempt: 2, State: "queued", Waiting: sec(60), Total: sec(60)},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var contracts []*Contract
			for i := range c.contracts {
				c.contracts[i].Task = 1
				contracts = append(contracts, &c.contracts[i])
			}
			c.task.Index = 1
			for i := range c.want {
				c.want[i].Task = 1
			}
			other := Times{State: "queued", Waiting: sec(100), Total: sec(100)}
			got := TimesOf(j, []*TaskRecord{{State: TaskQueued}, &c.task}, contracts, now)
			if want := append([]Times{other}, c.want...); !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

// timesOf is where a job's time went, by the renter's store.
func (w *town) timesOf(id string) []Times {
	var contracts []*Contract
	for _, c := range w.renter.store.allContracts() {
		contracts = append(contracts, &c)
	}
	var tasks []*TaskRecord
	for _, t := range w.renter.store.tasksOf(id) {
		tasks = append(tasks, &t)
	}
	j := w.renter.store.job(id)
	return TimesOf(&j, tasks, contracts, time.Now())
}

// TestWhereTheTimeWent has a job take its time in every phase, and asks while it
// is in each and in the end.
func TestWhereTheTimeWent(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		w.shops[0].depot.set(func(d *depot) { d.took = 7 * time.Second })
		w.rules(func(c call) fate {
			if c.name == "outputs" {
				return fate{delay: 9 * time.Second}
			}
			return fate{}
		})
		began := time.Now()
		w.submit("j1", service(time.Minute, "deaf", "sleep=20s", "answer=200", "sleep=10s"))
		within := func(name string, got, least, most time.Duration) {
			t.Helper()
			if got < least || got > most {
				t.Errorf("%s for %s, want %s to %s", name, got, least, most)
			}
		}
		for _, phase := range []struct {
			state State
			of    func(Times) time.Duration
		}{
			{Fetching, func(x Times) time.Duration { return x.Fetching }},
			{Starting, func(x Times) time.Duration { return x.Starting }},
			{Running, func(x Times) time.Duration { return x.Running }},
			{Saving, func(x Times) time.Duration { return x.Saving }},
		} {
			w.await(string(phase.state), func() bool { return w.state("j1", 0) == phase.state })
			w.pass(2 * time.Second)
			x := w.timesOf("j1")
			if len(x) != 1 || x[0].State != string(phase.state) {
				t.Fatalf("%s: %+v", phase.state, x)
			}
			within(string(phase.state), phase.of(x[0]), 2*time.Second, 3*time.Second)
			within("all in all", x[0].Total, time.Since(began)-time.Second, time.Since(began))
		}
		if j := w.over("j1"); j.State != JobDone {
			t.Fatalf("job %s", j.State)
		}
		x := w.timesOf("j1")[0]
		fetch := leaseOn(w.renter).Took.Fetch
		within("fetching", x.Fetching, 7*time.Second, 15*time.Second) // an image and an input
		within("fetching, by its provider", fetch, 7*time.Second, x.Fetching)
		within("starting", x.Starting, 20*time.Second, 20*time.Second+probeMost)
		within("running", x.Running, 10*time.Second-probeMost, 10*time.Second)
		within("saving", x.Saving, 9*time.Second, 20*time.Second)
		within("all in all", x.Total, 45*time.Second, time.Since(began))
	})
}
