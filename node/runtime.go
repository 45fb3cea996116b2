package node

import (
	"context"
	"fmt"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

// containers fits the sandbox to what the market asks of one, and gives
// containers their image while it arrives.
type containers struct {
	*sandbox.Runtime
	arrivals *arrivals
}

func (c containers) Prepare(ctx context.Context, spec sandbox.Spec) error {
	if root, whole := c.arrivals.folders(spec.ID); root != "" {
		spec.Rootfs, spec.Arriving = root, whole
	}
	return c.Runtime.Prepare(ctx, spec)
}

// Wait also feeds a container that runs since before the node was restarted.
func (c containers) Wait(ctx context.Context, id string) (sandbox.Exit, error) {
	c.arrivals.supply(c.Runtime, id)
	c.arrivals.running(id)
	return c.Runtime.Wait(ctx, id)
}

// Waited is how long a container has waited for its image; 0 if nobody tells.
func (c containers) Waited(ctx context.Context, id string) time.Duration {
	u, err := c.Usage(ctx, id)
	if err != nil {
		return 0
	}
	return u.Waited
}

func (c containers) Start(ctx context.Context, id string, secrets protocol.Secrets) error {
	c.arrivals.supply(c.Runtime, id)
	_, err := c.Runtime.Start(ctx, id, secrets)
	return err
}

func (c containers) Forward(ctx context.Context, id string) (job.Forwarder, error) {
	f, err := c.Runtime.Forward(ctx, id)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (c containers) ReadLog(ctx context.Context, id string, from uint64, maxBytes int) ([]job.LogRecord, bool, error) {
	log, err := c.Logs(id)
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = log.Close() }()
	records, _, closed, err := log.Next(ctx, from, maxBytes)
	if err != nil {
		return nil, false, fmt.Errorf("output of container %s: %w", id, err)
	}
	out := make([]job.LogRecord, 0, len(records))
	for _, r := range records {
		out = append(out, job.LogRecord{Seq: r.Seq, Stream: int(r.Stream), Time: r.Time, Data: r.Data})
	}
	return out, closed, nil
}
