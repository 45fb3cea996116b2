package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/node/client"
)

const (
	linesType     = "application/x-ndjson"
	progressEvery = 100 * time.Millisecond
)

// lineWriter writes an answer of JSON lines. Nothing is sent before the first
// line, so that what fails at once is an ordinary problem.
type lineWriter struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	begun bool
}

func newLineWriter(w http.ResponseWriter) *lineWriter {
	return &lineWriter{w: w, rc: http.NewResponseController(w)}
}

func (l *lineWriter) line(v any) error {
	raw, err := encode(v)
	if err != nil {
		return err
	}
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", linesType)
	}
	if _, err := l.w.Write(raw); err != nil {
		return fmt.Errorf("the caller left: %w", err)
	}
	return nil
}

func (l *lineWriter) flush() error {
	if err := l.rc.Flush(); err != nil {
		return fmt.Errorf("the caller left: %w", err)
	}
	return nil
}

// fail ends the answer with a problem, in the form that is still possible.
func (l *lineWriter) fail(p *client.Problem, line any) {
	if !l.begun {
		writeProblem(l.w, p)
		return
	}
	_ = l.line(line) // a caller that left needs no answer
}

// encode is v as one line of JSON.
func encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return buf.Bytes(), nil
}

// long answers a request with its progress and then its result. The work is
// cancelled when the caller leaves, and never waits for it.
func (s *Server) long(ctx context.Context, w http.ResponseWriter, work func(context.Context, func(client.Progress)) (any, error)) {
	s.longTo(ctx, newLineWriter(w), work)
}

// longTo is long for an answer that may have begun.
func (s *Server) longTo(ctx context.Context, out *lineWriter, work func(context.Context, func(client.Progress)) (any, error)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := &meter{now: time.Now, news: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		if m.report(done, out) != nil {
			cancel()
		}
	})
	result, err := func() (any, error) {
		defer wg.Wait()
		defer close(done)
		return work(ctx, m.set)
	}()
	if p, ok := m.take(); ok && out.begun {
		// The last word on progress is not lost to the rate.
		_ = out.line(client.Line{Progress: &p})
	}
	if err == nil {
		var raw []byte
		if raw, err = encode(result); err == nil {
			_ = out.line(client.Line{Result: raw}) // nobody is there to tell
			return
		}
	}
	p := s.problem(err)
	out.fail(p, client.Line{Problem: p})
}

// meter holds the newest progress until it is reported.
type meter struct {
	now  func() time.Time
	news chan struct{}

	mu    sync.Mutex
	last  client.Progress
	fresh bool
	// The phase's beginning, for the rate.
	since time.Time
	from  uint64
}

// set takes progress in; a rate that is not given is the phase's mean.
func (m *meter) set(p client.Progress) {
	m.mu.Lock()
	now := m.now()
	if m.since.IsZero() || p.Phase != m.last.Phase || p.Done < m.from {
		m.since, m.from = now, p.Done
	}
	if took := now.Sub(m.since).Seconds(); p.Rate == 0 && took > 0 {
		p.Rate = float64(p.Done-m.from) / took
	}
	m.last, m.fresh = p, true
	m.mu.Unlock()
	select {
	case m.news <- struct{}{}:
	default:
	}
}

func (m *meter) take() (client.Progress, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fresh := m.fresh
	m.fresh = false
	return m.last, fresh
}

// report writes progress, at most one line in progressEvery, until done.
func (m *meter) report(done <-chan struct{}, out *lineWriter) error {
	for {
		select {
		case <-m.news:
		case <-done:
			return nil
		}
		if p, ok := m.take(); ok {
			if err := out.line(client.Line{Progress: &p}); err != nil {
				return err
			}
			if err := out.flush(); err != nil {
				return err
			}
		}
		t := time.NewTimer(progressEvery)
		select {
		case <-t.C:
		case <-done:
			t.Stop()
			return nil
		}
	}
}

// logs streams a job's output. A slow reader slows the backend's reading down,
// and nothing else.
func (s *Server) logs(ctx context.Context, w http.ResponseWriter, ref string, q client.LogQuery) {
	out := newLineWriter(w)
	err := s.opt.Backend.Logs(ctx, ref, q, func(task int, rec client.LogRecord) error {
		if err := out.line(client.LogLine{Task: task, Record: &rec}); err != nil {
			return err
		}
		if q.Follow {
			return out.flush()
		}
		return nil
	})
	if err != nil {
		p := s.problem(err)
		out.fail(p, client.LogLine{Problem: p})
		return
	}
	if !out.begun {
		w.Header().Set("Content-Type", linesType)
		w.WriteHeader(http.StatusOK)
	}
}

// cat streams a file. A problem that comes too late for a status is a trailer.
func (s *Server) cat(ctx context.Context, w http.ResponseWriter, path string) {
	s.download(w, "application/octet-stream", func(to io.Writer) error { return s.opt.Backend.Cat(ctx, path, to) })
}

// download streams bytes.
func (s *Server) download(w http.ResponseWriter, kind string, write func(io.Writer) error) {
	a := &catWriter{w: w, kind: kind}
	err := write(a)
	switch {
	case err == nil:
		a.begin()
	case !a.begun:
		writeProblem(w, s.problem(err))
	default:
		raw, err := json.Marshal(s.problem(err))
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set(client.ProblemTrailer, string(raw))
	}
}

type catWriter struct {
	w     http.ResponseWriter
	kind  string
	begun bool
}

func (c *catWriter) begin() {
	if c.begun {
		return
	}
	c.begun = true
	c.w.Header().Set("Content-Type", c.kind)
	c.w.Header().Set("Trailer", client.ProblemTrailer)
	c.w.WriteHeader(http.StatusOK)
}

func (c *catWriter) Write(p []byte) (int, error) {
	c.begin()
	return c.w.Write(p)
}

// problem explains an error, and logs it when it is the node's own fault.
func (s *Server) problem(err error) *client.Problem {
	p := problemOf(err)
	if p.Code == "internal" {
		s.log.Error("a request failed", "error", err)
	}
	return p
}
