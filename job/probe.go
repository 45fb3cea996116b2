package job

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

const (
	probeTime  = 5 * time.Second // for one probe and its answer
	probeMost  = 2 * time.Second // between two probes
	probeBytes = 64 << 10        // of an answer that are read: its head, never its body
)

// probe asks a service once whether it is ready. connect is the way into its
// container. The error says what stands in the way, in words for its owner.
func probe(ctx context.Context, connect func(context.Context, uint16) (sandbox.Conn, error), ready *protocol.Ready, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := connect(ctx, uint16(ready.GetPort())) //nolint:gosec // validated
	switch {
	case errors.Is(err, sandbox.ErrNotListening):
		return fmt.Errorf("nothing listens on port %d", ready.GetPort())
	case err != nil:
		return err
	}
	defer func() { _ = conn.Reset() }() // the body is not wanted
	stop := context.AfterFunc(ctx, func() { _ = conn.Reset() })
	defer stop()
	status, err := askStatus(conn, ready)
	what := fmt.Sprintf("GET %s on port %d", ready.GetHttp(), ready.GetPort())
	switch {
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s was not answered within %s", what, limit.Round(time.Millisecond))
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case status < 200 || status > 399:
		return fmt.Errorf("%s was answered by status %d", what, status)
	}
	return nil
}

// askStatus sends the request of a probe and gives the status of its answer.
// Redirects are an answer and are not followed.
func askStatus(conn io.ReadWriter, ready *protocol.Ready) (int, error) {
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost:%d\r\nUser-Agent: lumbung\r\nAccept: */*\r\nConnection: close\r\n\r\n", ready.GetHttp(), ready.GetPort())
	if err != nil {
		return 0, err
	}
	return readStatus(conn)
}

// readStatus reads the head of an answer, which is anything that a stranger's
// program sends. What may come before the answer itself (1xx) is passed over.
func readStatus(r io.Reader) (int, error) {
	head := bufio.NewReader(io.LimitReader(r, probeBytes))
	for {
		resp, err := http.ReadResponse(head, nil)
		if err != nil {
			return 0, fmt.Errorf("no HTTP came back: %w", err)
		}
		_ = resp.Body.Close() // ends with the connection
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp.StatusCode, nil
		}
	}
}
