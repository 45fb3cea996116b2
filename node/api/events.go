package api

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/node/client"
)

// events streams the node's events as server-sent events whose id is the
// event's number. A reader that takes nothing for Options.SlowReader is dropped
// and resumes by number.
func (s *Server) events(reader context.Context, w http.ResponseWriter, since uint64) {
	ctx, cancel := context.WithCancel(reader)
	defer cancel()
	out := &eventWriter{w: w, rc: http.NewResponseController(w), limit: s.opt.SlowReader, now: time.Now}
	w.Header().Set("Content-Type", "text/event-stream")
	// Comments are signs of life that a reader passes over.
	if out.write([]byte(": events of lumbung\n\n")) != nil {
		panic(http.ErrAbortHandler)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if out.beat(ctx, s.opt.Heartbeat) != nil {
			cancel()
		}
	})
	err := func() error {
		defer wg.Wait()
		defer cancel()
		return s.opt.Backend.Watch(ctx, since, out.event)
	}()
	if dropped := out.failed(); dropped != nil {
		s.log.Debug("a reader of events was dropped", "error", dropped)
		panic(http.ErrAbortHandler)
	}
	if err == nil || reader.Err() != nil {
		return // the node is stopping: the reader comes back by number
	}
	if raw, encErr := encode(s.problem(err)); encErr == nil {
		_ = out.write(fmt.Appendf(nil, "event: %s\ndata: %s\n", client.ProblemEvent, raw))
	}
}

// eventWriter writes messages whole, one at a time, each within a time.
type eventWriter struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	limit time.Duration
	now   func() time.Time

	mu  sync.Mutex
	err error
}

func (e *eventWriter) write(raw []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return e.err
	}
	e.err = e.rc.SetWriteDeadline(e.now().Add(e.limit))
	if e.err == nil {
		_, e.err = e.w.Write(raw)
	}
	if e.err == nil {
		e.err = e.rc.Flush()
	}
	if e.err != nil {
		e.err = fmt.Errorf("the reader of events left or is too slow: %w", e.err)
	}
	return e.err
}

func (e *eventWriter) failed() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

func (e *eventWriter) event(ev client.Event) error {
	raw, err := encode(ev)
	if err != nil {
		return err
	}
	return e.write(fmt.Appendf(nil, "id: %d\ndata: %s\n", ev.Seq, raw))
}

func (e *eventWriter) beat(ctx context.Context, every time.Duration) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if err := e.write([]byte(":\n\n")); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}
