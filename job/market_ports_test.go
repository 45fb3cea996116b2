package job

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/lumbung-net/lumbung/job/sandbox"
)

// Forward gives a way on which every port below 1000 is listened on and sends
// back what it gets, unless the program's words say otherwise.
func (h hands) Forward(_ context.Context, id string) (Forwarder, error) {
	if err := h.ok(); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.containers[id]
	if c == nil || c.state != "running" {
		return nil, sandbox.ErrNotRunning
	}
	return &mirror{m: h.machine, c: c, end: make(chan struct{})}, nil
}

// mirror is a Forwarder into a container that echoes.
type mirror struct {
	m    *machine
	c    *container
	once sync.Once
	end  chan struct{}
}

func (m *mirror) Dial(_ context.Context, port uint16) (sandbox.Conn, error) {
	m.m.mu.Lock()
	word, value, _ := strings.Cut(m.c.ports, "=")
	m.m.mu.Unlock()
	r, w := io.Pipe()
	switch {
	case port >= 1000 || word == "deaf":
		return nil, sandbox.ErrNotListening
	case word == "mute":
		_, nobody := io.Pipe()
		return echo{r, nobody}, nil
	case word == "answer":
		asked, ask := io.Pipe()
		m.m.group.Go(func() {
			req, err := http.ReadRequest(bufio.NewReader(asked))
			if err != nil {
				return
			}
			m.m.mu.Lock()
			m.m.requests = append(m.m.requests, req.Method+" "+req.URL.String())
			m.m.mu.Unlock()
			_, _ = fmt.Fprintf(w, "HTTP/1.1 %s so\r\nLocation: /elsewhere\r\n\r\n", value)
		})
		return echo{r, ask}, nil
	}
	return echo{r, w}, nil
}

// asked is what came to programs that answer.
func (m *machine) asked() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.requests)
}

func (m *mirror) Ended() <-chan struct{} { return m.end }

func (m *mirror) Close() error {
	m.once.Do(func() { close(m.end) })
	return nil
}

type echo struct {
	*io.PipeReader
	w *io.PipeWriter
}

func (e echo) Write(p []byte) (int, error) { return e.w.Write(p) }
func (e echo) CloseWrite() error           { return e.w.Close() }
func (e echo) Close() error                { return errors.Join(e.w.Close(), e.PipeReader.Close()) }
func (e echo) Reset() error                { return e.Close() }
