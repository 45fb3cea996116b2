package job

import (
	"cmp"
	"slices"
	"time"
)

// Times is where the time of one attempt at a task went, on its renter's clock:
// spans that follow each other and sum up to Total. A phase that is under way
// counts up to now, one that never came is zero.
type Times struct {
	Task    int           `json:"task"`
	Attempt int           `json:"attempt"` // from 0
	State   string        `json:"state"`
	Waiting time.Duration `json:"waiting_ns"` // for its turn, and for a provider that is free
	Quoting time.Duration `json:"quoting_ns"` // asking for prices, and signing
	// Fetching holds Preparing too as long as no result has told them apart.
	Fetching  time.Duration `json:"fetching_ns"`
	Preparing time.Duration `json:"preparing_ns"` // by the provider's word
	Starting  time.Duration `json:"starting_ns"`  // until it was ready
	Running   time.Duration `json:"running_ns"`
	Saving    time.Duration `json:"saving_ns"` // and bringing the outputs here
	Total     time.Duration `json:"total_ns"`
}

// TimesOf divides the time of every attempt at a job's tasks, in their order. A
// task that waits, or was ended waiting, has a last attempt of waiting alone.
func TimesOf(j *Job, tasks []*TaskRecord, contracts []*Contract, now time.Time) []Times {
	sorted := slices.SortedFunc(slices.Values(contracts), func(a, b *Contract) int {
		return cmp.Or(cmp.Compare(a.Task, b.Task), cmp.Compare(a.Attempt, b.Attempt))
	})
	out := []Times{}
	for _, t := range tasks {
		from := j.Created
		for len(sorted) > 0 && sorted[0].Task <= t.Index {
			c := sorted[0]
			sorted = sorted[1:]
			if c.Task == t.Index {
				out = append(out, c.times(from, now))
				from = firstTime(c.EndedAt, now)
			}
		}
		if t.Lease.IsZero() {
			wait := firstTime(t.Ended, now).Sub(from)
			out = append(out, Times{Task: t.Index, Attempt: t.Attempts, State: t.State, Waiting: wait, Total: wait})
		}
	}
	return out
}

// times divides the time from a moment on: the job's beginning, or the end of
// the attempt before.
func (c *Contract) times(from, now time.Time) Times {
	end := firstTime(c.EndedAt, now)
	ready := c.StartingAt
	if c.ReadyMax == 0 {
		ready = time.Time{}
	}
	t := Times{Task: c.Task, Attempt: c.Attempt, State: string(c.State)}
	marks := []struct {
		to *time.Duration
		at time.Time // when it begins; zero is never
	}{
		{&t.Waiting, from},
		{&t.Quoting, firstTime(c.AskedAt, c.ProposedAt)},
		{&t.Fetching, c.LeasedAt},
		{&t.Starting, ready},
		{&t.Running, c.RunningAt},
		{&t.Saving, c.SavingAt},
	}
	for i, m := range marks {
		if m.at.IsZero() {
			continue
		}
		next := end
		for _, later := range marks[i+1:] {
			if !later.at.IsZero() {
				next = later.at
				break
			}
		}
		*m.to = max(0, next.Sub(m.at))
	}
	// The provider's word divides what its renter has seen, and adds nothing.
	t.Preparing = min(max(0, c.Took.Prepare), t.Fetching)
	t.Fetching -= t.Preparing
	t.Total = t.Waiting + t.Quoting + t.Fetching + t.Preparing + t.Starting + t.Running + t.Saving
	return t
}

// firstTime is the first time that there is.
func firstTime(times ...time.Time) time.Time {
	for _, t := range times {
		if !t.IsZero() {
			return t
		}
	}
	return time.Time{}
}
