package job

import (
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

// Took is where a provider's own time went, as it says: bringing what the task
// needs here, laying it out up to the container's start, and saving after its
// end. What it does not know is zero.
type Took struct {
	Fetch   time.Duration `json:"fetch_ns,omitempty"`
	Prepare time.Duration `json:"prepare_ns,omitempty"`
	Save    time.Duration `json:"save_ns,omitempty"`
}

func tookOf(r *protocol.Result) Took {
	ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
	return Took{Fetch: ms(r.GetFetchMs()), Prepare: ms(r.GetPrepareMs()), Save: ms(r.GetSaveMs())}
}

// tell puts it into a result. A clock that was set meanwhile is not the
// renter's trouble.
func (t Took) tell(r *protocol.Result) {
	ms := func(d time.Duration) int64 { return max(0, d).Milliseconds() }
	r.FetchMs, r.PrepareMs, r.SaveMs = ms(t.Fetch), ms(t.Prepare), ms(t.Save)
}

// tookInAll is Took with the saving that ends now.
func (c Contract) tookInAll(now time.Time) Took {
	t := c.Took
	if !c.SavingAt.IsZero() {
		t.Save = now.Sub(c.SavingAt)
	}
	return t
}

// timing measures an execution's way to its container's start, in one life of
// the node. Only the execution's own goroutine uses it.
type timing struct {
	began time.Time
	fetch time.Duration
}

func (t *timing) begin(now time.Time) { *t = timing{began: now} }

// took is how the time until now divides; nothing where it was not measured.
func (t *timing) took(now time.Time) Took {
	if t.began.IsZero() {
		return Took{}
	}
	return Took{Fetch: t.fetch, Prepare: now.Sub(t.began) - t.fetch}
}

// fetching counts the time until the function it returns is called.
func (e *execution) fetching() (stopped func()) {
	began := e.p.Now()
	return func() { e.timing.fetch += e.p.Now().Sub(began) }
}
