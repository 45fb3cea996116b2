package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// ProblemEvent is the type of a message that tells why a stream of events ends.
const ProblemEvent = "problem"

// Waits between attempts to take a broken stream up again.
const (
	minBackoff = 20 * time.Millisecond
	maxBackoff = time.Second
)

// LastEvent is the number of the newest event; Events from it on tells only of
// what is to come.
func (c *Client) LastEvent(ctx context.Context) (uint64, error) {
	l, err := get[LastEvent](ctx, c, "/v1/events/last", nil)
	return l.Seq, err
}

// Events calls fn with each event whose number is above since, first those of
// the past, then as they happen, in order and each once. When the stream
// breaks, because the node dropped a slow reader or is restarted, it is taken
// up again by number; a node that stays away for 15 s is an error. An error of
// fn ends it and is returned.
func (c *Client) Events(ctx context.Context, since uint64, fn func(Event) error) error {
	last, wait := since, minBackoff
	var broken time.Time // since when nothing came
	for {
		opened, err := c.follow(ctx, &last, fn)
		var own *callbackError
		var p *Problem
		switch {
		case errors.As(err, &own):
			if errors.Is(own.err, errStop) {
				return nil
			}
			return own.err
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &p) && !p.Retryable:
			return err
		case opened:
			broken, wait = time.Time{}, minBackoff
		}
		if broken.IsZero() {
			broken = time.Now()
		}
		if time.Since(broken) > patience {
			return fmt.Errorf("the events of the node at %s after number %d: %w", c.where, last, err)
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, maxBackoff)
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// callbackError is an error of the one who reads the events.
type callbackError struct{ err error }

func (e *callbackError) Error() string { return e.err.Error() }
func (e *callbackError) Unwrap() error { return e.err }

// follow reads one stream until it ends; opened says that the node answered.
func (c *Client) follow(ctx context.Context, last *uint64, fn func(Event) error) (opened bool, err error) {
	const path = "/v1/events"
	q := url.Values{"since": {strconv.FormatUint(*last, 10)}}
	resp, err := c.send(ctx, http.MethodGet, path, q, nil, http.Header{"Accept": {"text/event-stream"}})
	if err != nil {
		return false, err
	}
	defer func() { _ = resp.Body.Close() }()
	err = eachMessage(resp.Body, maxLine, func(m message) error {
		if m.event == ProblemEvent {
			p := &Problem{}
			if err := decodeLine(m.data, p); err != nil {
				return err
			}
			return p
		}
		var e Event
		if err := decodeLine(m.data, &e); err != nil {
			return err
		}
		if e.Seq <= *last {
			return nil
		}
		if err := fn(e); err != nil {
			return &callbackError{err}
		}
		*last = e.Seq
		return nil
	})
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return true, c.unreachable(http.MethodGet, path, err)
}

// message is one server-sent event.
type message struct {
	id    string
	event string
	data  []byte
}

// eachMessage parses a text/event-stream (HTML standard, section 9.2.6) and
// calls fn with each message that has data; its bytes are fn's only until it
// returns. A message that the end of the stream cuts off is dropped, as the
// standard says.
func eachMessage(r io.Reader, limit int, fn func(message) error) error {
	lr := lineReader{r: bufio.NewReaderSize(r, 16<<10), limit: limit}
	var m message
	some := false
	for {
		line, err := lr.next()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return &readError{err}
		case len(line) > 0:
			some = m.field(string(line)) || some
			if len(m.data) > limit {
				return &readError{fmt.Errorf("a message of over %d bytes: %w", limit, errTooLong)}
			}
			continue
		}
		if some {
			m.data = m.data[:len(m.data)-1]
			if err := fn(m); err != nil {
				return err
			}
		}
		m, some = message{data: m.data[:0]}, false
	}
}

// field takes one line in and reports whether it was data. Comments and fields
// that are not known are passed over.
func (m *message) field(line string) (data bool) {
	name, value, _ := strings.Cut(line, ":")
	value = strings.TrimPrefix(value, " ")
	switch name {
	case "data":
		m.data = append(append(m.data, value...), '\n')
		return true
	case "id":
		m.id = value
	case "event":
		m.event = value
	}
	return false
}
