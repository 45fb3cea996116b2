package job

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

// Forwarder connects to the ports of one container. sandbox.Forwarder is the
// real one.
type Forwarder interface {
	Dial(ctx context.Context, port uint16) (sandbox.Conn, error)
	// Ended is closed when it can connect no more.
	Ended() <-chan struct{}
	Close() error
}

// Connect connects a lease's renter to a port of its container.
func (p *Provider) Connect(ctx context.Context, from protocol.PeerID, lease protocol.MsgID, port uint16) (sandbox.Conn, error) {
	e := p.running(lease)
	if e == nil || e.lease.From != from {
		return nil, fmt.Errorf("lease %s has no container here: %w", lease.Short(), protocol.ErrElsewhere)
	}
	e.visits.begin()
	conn, err := e.reach.connect(ctx, port)
	if err != nil {
		e.visits.end(time.Time{})
		return nil, err
	}
	return e.visits.counted(conn, p.Now), nil
}

// reach is the way to the ports of one container, made when one is first asked
// for and made again when it broke.
type reach struct {
	make func(ctx context.Context) (Forwarder, error)

	mu     sync.Mutex
	way    Forwarder
	closed bool
}

func (r *reach) connect(ctx context.Context, port uint16) (sandbox.Conn, error) {
	way, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	return way.Dial(ctx, port)
}

func (r *reach) open(ctx context.Context) (Forwarder, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, sandbox.ErrNotRunning
	}
	if r.way != nil {
		select {
		case <-r.way.Ended():
			_ = r.way.Close() // what is over has nothing to say
			r.way = nil
		default:
			return r.way, nil
		}
	}
	way, err := r.make(ctx)
	if err != nil {
		return nil, err
	}
	r.way = way
	return way, nil
}

// close ends every connection, for good.
func (r *reach) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if r.way != nil {
		_ = r.way.Close() // the container may have ended it before
		r.way = nil
	}
}
