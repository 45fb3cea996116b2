package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// maxLine bounds one line of a streamed answer.
const maxLine = 64 << 20

// errLine says that a line of a stream is not what it should be.
var errLine = errors.New("the node's answer makes no sense: are node and client of one version?")

// errStop ends a stream from within a callback, without an error.
var errStop = errors.New("stop")

// stream is a long request: progress as it goes, then its result. Cancelling
// ctx cancels the work.
func stream[T any](ctx context.Context, c *Client, method, path string, in any, progress func(Progress)) (T, error) {
	resp, err := c.send(ctx, method, path, nil, in, http.Header{"Accept": {"application/x-ndjson"}})
	if err != nil {
		var none T
		return none, err
	}
	return result[T](c, method, path, resp, progress)
}

// result reads the answer to a long request and closes it.
func result[T any](c *Client, method, path string, resp *http.Response, progress func(Progress)) (T, error) {
	var out T
	found := false
	err := c.readLines(resp, method, path, func(raw []byte) error {
		var l Line
		if err := decodeLine(raw, &l); err != nil {
			return err
		}
		switch {
		case l.Problem != nil:
			return l.Problem
		case l.Result != nil:
			if err := json.Unmarshal(l.Result, &out); err != nil {
				return fmt.Errorf("%w: result: %w", errLine, err)
			}
			found = true
			return errStop
		case l.Progress != nil && progress != nil:
			progress(*l.Progress)
		}
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("%s %s: the node at %s ended its answer without a result: is it still running? `lumbung status` tells: %w",
			method, path, c.where, io.ErrUnexpectedEOF)
	}
	return out, err
}

// lines calls fn with each line of an answer until its end, an error, or
// errStop.
func (c *Client) lines(ctx context.Context, method, path string, query url.Values, in any, fn func([]byte) error) error {
	resp, err := c.send(ctx, method, path, query, in, http.Header{"Accept": {"application/x-ndjson"}})
	if err != nil {
		return err
	}
	return c.readLines(resp, method, path, fn)
}

// readLines is lines for an answer that has begun.
func (c *Client) readLines(resp *http.Response, method, path string, fn func([]byte) error) error {
	defer func() { _ = resp.Body.Close() }()
	err := eachLine(resp.Body, maxLine, fn)
	var broken *readError
	switch {
	case errors.Is(err, errStop):
		return nil
	case errors.As(err, &broken):
		return c.unreachable(method, path, fmt.Errorf("the stream broke: %w", broken.err))
	}
	return err
}

func decodeLine(raw []byte, into any) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%w: %w", errLine, err)
	}
	return nil
}

// readError is a failure of the stream itself, not of the one who reads it.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

// eachLine calls fn with each line that is not empty, without its end. The
// bytes are fn's only until it returns.
func eachLine(r io.Reader, limit int, fn func([]byte) error) error {
	lr := lineReader{r: bufio.NewReaderSize(r, 16<<10), limit: limit}
	for {
		line, err := lr.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return &readError{err}
		}
		if len(line) == 0 {
			continue
		}
		if err := fn(line); err != nil {
			return err
		}
	}
}

// lineReader reads lines of up to limit bytes.
type lineReader struct {
	r     *bufio.Reader
	limit int
	buf   []byte
}

// next is the next line without its end (LF or CRLF); a last line without an
// end was cut off and is io.ErrUnexpectedEOF.
func (l *lineReader) next() ([]byte, error) {
	l.buf = l.buf[:0]
	for {
		part, err := l.r.ReadSlice('\n')
		if len(l.buf)+len(part) > l.limit {
			return nil, fmt.Errorf("a line of over %d bytes: %w", l.limit, errTooLong)
		}
		l.buf = append(l.buf, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && len(l.buf) > 0:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		}
		line := l.buf[:len(l.buf)-1]
		if n := len(line); n > 0 && line[n-1] == '\r' {
			line = line[:n-1]
		}
		return line, nil
	}
}
