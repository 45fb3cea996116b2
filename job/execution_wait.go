package job

import (
	"context"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
)

// imageWaiter is a sandbox whose containers may begin before their image is
// whole.
type imageWaiter interface {
	// Waited is how much of a container's time it has waited for its image.
	Waited(ctx context.Context, id string) time.Duration
}

// waitedTime bounds the question how long a container has waited.
const waitedTime = time.Second

// waited is the part of the running time that nobody pays for: a provider that
// starts early must not earn more by it than one that fetches first. Before a
// container is ready it is the part of its time that does not count as its own.
func (e *execution) waited(ctx context.Context) time.Duration {
	w, ok := e.p.Sandbox.(imageWaiter)
	c := e.contract()
	if !ok || c.State != Running && c.State != Starting {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, waitedTime)
	defer cancel()
	return max(0, w.Waited(ctx, e.containerID())-c.WaitedBefore)
}

// paidTime is a running time without what the image was waited for meanwhile, as
// far as the time to fetch goes: a renter that keeps a file back would have all
// else for nothing.
func (c Contract) paidTime(ran, waited time.Duration) int64 {
	free := c.FetchMax - c.WaitedBefore
	switch {
	case !c.StartingAt.IsZero():
		free -= c.StartingAt.Sub(c.LeasedAt)
	case !c.RunningAt.IsZero():
		free -= c.RunningAt.Sub(c.LeasedAt)
	}
	free = max(0, free)
	return max(0, (ran - min(max(0, waited), free)).Milliseconds())
}

// affordable is how long the budget lasts at the price.
func (c Contract) affordable() time.Duration {
	ms := max(1, ledger.AffordableMillis(c.Budget, c.Price)) // zero would be no limit
	return time.Duration(min(ms, int64(1000*time.Hour/time.Millisecond))) * time.Millisecond
}
