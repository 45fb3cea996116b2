package job

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

// machine is a provider's sandbox: containers are goroutines that follow the
// words of their command. It outlives the provider's runner, as containers
// outlive the node.
//
// Words: "print" one line, "print=3" three, "sleep=2s" between what surrounds
// it, "gate" waits until the test opens it, "exit=3" ends with that code,
// "stubborn" does not hear a polite stop. From "deaf" on nothing listens on its
// ports, from "mute" on what is asked there is not answered, and from
// "answer=204" on it is by HTTP with that status.
type machine struct {
	t  testingT
	mu sync.Mutex
	// broken lets Prepare or Start fail, by the name of the step.
	broken     map[string]error
	whole      uint64 // records of output that can be read although "log" is broken
	containers map[string]*container
	gate       chan struct{}
	started    []string // what ran, as job/task of their environment
	given      []protocol.Secrets
	requests   []string // that came to programs that answer
	group      sync.WaitGroup
}

type testingT interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

type container struct {
	spec    sandbox.Spec
	state   string // prepared, running, ended
	exit    sandbox.Exit
	log     []LogRecord
	changed chan struct{} // closed by the next change
	term    chan struct{} // closed by a polite stop
	kill    chan struct{}
	killed  bool
	asked   bool
	ports   string // the last word of those about ports

	// What a checkpoint holds: the words that are behind, and what "tick" counts.
	At      int
	Counter int
	freeze  chan struct{} // closed by a checkpoint that ends it
}

func newMachine(t testingT) *machine {
	return &machine{t: t, broken: map[string]error{}, containers: map[string]*container{}, gate: make(chan struct{})}
}

// open lets every program pass its gate.
func (m *machine) open() {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.gate:
	default:
		close(m.gate)
	}
}

// breakStep lets a step fail from now on; nil mends it.
func (m *machine) breakStep(step string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken[step] = err
}

// outage ends every container and forgets it, as a machine that lost its power.
func (m *machine) outage() {
	m.mu.Lock()
	for id, c := range m.containers {
		if !c.killed {
			c.killed = true
			close(c.kill)
		}
		delete(m.containers, id)
	}
	m.mu.Unlock()
	m.group.Wait()
}

func (m *machine) ran() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.started)
}

func (m *machine) left() (ids []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.containers {
		ids = append(ids, id)
	}
	return ids
}

func (m *machine) running() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, c := range m.containers {
		if c.state == "running" {
			n++
		}
	}
	return n
}

// hands are a provider process's hold on its machine; they do nothing once the
// process was killed.
type hands struct {
	*machine
	life *life
}

func (h hands) ok() error {
	if h.life.dead.Load() {
		return errDead
	}
	return nil
}

func (h hands) Prepare(ctx context.Context, spec sandbox.Spec) error {
	if err := h.ok(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.broken["prepare"]; err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if h.containers[spec.ID] != nil {
		return sandbox.ErrExists
	}
	h.containers[spec.ID] = &container{
		spec: spec, state: "prepared", changed: make(chan struct{}), term: make(chan struct{}), kill: make(chan struct{}),
		freeze: make(chan struct{}),
	}
	if spec.Restore == "" {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(spec.Restore, "plain"))
	if err == nil {
		_, err = fmt.Sscanf(string(data), "at %d counter %d", &h.containers[spec.ID].At, &h.containers[spec.ID].Counter)
	}
	if err != nil {
		delete(h.containers, spec.ID)
	}
	return err
}

func (h hands) Start(_ context.Context, id string, secrets protocol.Secrets) error {
	if err := h.ok(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.containers[id]
	switch {
	case h.broken["start"] != nil:
		return h.broken["start"]
	case c == nil:
		return sandbox.ErrNotFound
	case c.state != "prepared":
		return sandbox.ErrExists
	}
	if c.spec.Secrets != (len(secrets) > 0) {
		return sandbox.ErrSpec
	}
	if len(secrets) > 0 {
		h.given = append(h.given, secrets)
	}
	h.started = append(h.started, envOf(c.spec, varJob)+"/"+envOf(c.spec, varIndex))
	c.state, c.exit.Started = "running", time.Now()
	c.tell()
	h.group.Go(func() { h.live(c) })
	return nil
}

func envOf(spec sandbox.Spec, name string) string {
	for _, e := range spec.Env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

// tell wakes those who wait for a change. The lock is held.
func (c *container) tell() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// live is the life of a container.
func (m *machine) live(c *container) {
	limit := time.NewTimer(c.spec.RunLimit)
	defer limit.Stop()
	exit := m.program(c, limit.C)
	m.mu.Lock()
	defer m.mu.Unlock()
	c.state = "ended"
	exit.Started, exit.Ended = c.exit.Started, time.Now()
	c.exit = exit
	c.tell()
}

func (m *machine) program(c *container, limit <-chan time.Time) sandbox.Exit {
	term := c.term
	if slices.Contains(c.spec.Args, "stubborn") {
		term = nil
	}
	wait := func(timer <-chan time.Time, gate <-chan struct{}) *sandbox.Exit {
		select {
		case <-timer:
		case <-gate:
		case <-term:
			return &sandbox.Exit{Code: 143, Signal: 15, Stopped: true, Source: sandbox.SourceJob}
		case <-c.freeze:
			return &sandbox.Exit{Code: 137, Signal: 9, Stopped: true, Source: sandbox.SourceJob}
		case <-c.kill:
			return &sandbox.Exit{Code: 137, Signal: 9, Stopped: true, Source: sandbox.SourceJob}
		case <-limit:
			ns := uint64(c.spec.RunLimit)
			return &sandbox.Exit{
				Code: sandbox.CodeTimeout, Source: sandbox.SourceJob,
				Exceeded: &sandbox.Exceeded{Limit: sandbox.LimitTime, Max: ns, Seen: ns, At: time.Now(), Killed: true},
			}
		}
		return nil
	}
	for i, word := range c.spec.Args {
		name, value, _ := strings.Cut(word, "=")
		var exit *sandbox.Exit
		if i < c.At {
			if name == "answer" { // the server is part of what was saved
				m.mu.Lock()
				c.ports = word
				m.mu.Unlock()
			}
			continue
		}
		m.mu.Lock()
		c.At = i
		m.mu.Unlock()
		switch name {
		case "tick": // N: one line a second, counted
			n, _ := strconv.Atoi(value)
			for exit == nil && c.Counter < n {
				if exit = wait(time.After(time.Second), nil); exit == nil {
					m.tick(c)
				}
			}
		case "print":
			n, _ := strconv.Atoi(value)
			for range max(1, n) {
				m.print(c)
			}
		case "sleep":
			d, err := time.ParseDuration(value)
			if err != nil {
				m.t.Errorf("program: %v", err)
			}
			exit = wait(time.After(d), nil)
		case "gate":
			exit = wait(nil, m.gate)
		case "exit":
			code, _ := strconv.Atoi(value)
			exit = &sandbox.Exit{Code: code, Source: sandbox.SourceJob}
		case "deaf", "mute", "answer":
			m.mu.Lock()
			c.ports = word
			m.mu.Unlock()
		case "surf": // up to the limit
			if !c.spec.Outbound {
				exit = &sandbox.Exit{Code: 7, Source: sandbox.SourceJob}
				break
			}
			n, _ := strconv.ParseUint(value, 10, 64)
			exit = &sandbox.Exit{Source: sandbox.SourceJob, Usage: sandbox.Usage{NetUp: n, NetDown: c.spec.NetBytes - n}}
		case "crash":
			exit = &sandbox.Exit{Code: sandbox.CodeSandbox, Source: sandbox.SourceSandbox, Reason: "the sandbox fell over"}
		}
		if exit != nil {
			return *exit
		}
	}
	return sandbox.Exit{Source: sandbox.SourceJob}
}

func (m *machine) print(c *container) {
	m.mu.Lock()
	defer m.mu.Unlock()
	seq := uint64(len(c.log)) + 1
	c.log = append(c.log, LogRecord{Seq: seq, Stream: 1, Time: time.Now(), Data: fmt.Appendf(nil, "line %d\n", seq)})
	c.tell()
}

func (m *machine) tick(c *container) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c.Counter++
	seq := uint64(len(c.log)) + 1
	c.log = append(c.log, LogRecord{Seq: seq, Stream: 1, Time: time.Now(), Data: fmt.Appendf(nil, "tick %d\n", c.Counter)})
	c.tell()
}

// Checkpoint writes where the program is.
func (h hands) Checkpoint(_ context.Context, id, dir string, end bool) error {
	if err := h.ok(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.containers[id]
	switch {
	case h.broken["checkpoint"] != nil:
		return h.broken["checkpoint"]
	case c == nil || c.state != "running":
		return sandbox.ErrNotRunning
	}
	if !c.spec.Savable {
		h.t.Errorf("%s is saved and is not savable", id)
	}
	text := fmt.Sprintf("at %d counter %d", c.At, c.Counter)
	if err := os.WriteFile(filepath.Join(dir, "state"), []byte(text), 0o600); err != nil {
		return err
	}
	if end {
		close(c.freeze)
	}
	return nil
}

// await waits for what look finds in a container.
func (h hands) await(ctx context.Context, id string, look func(*container) bool) error {
	for {
		if err := h.ok(); err != nil {
			return err
		}
		h.mu.Lock()
		c := h.containers[id]
		if c == nil {
			h.mu.Unlock()
			return sandbox.ErrNotFound
		}
		done, changed := look(c), c.changed
		h.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (h hands) Wait(ctx context.Context, id string) (exit sandbox.Exit, err error) {
	var broken error
	err = h.await(ctx, id, func(c *container) bool {
		exit, broken = c.exit, h.broken["wait"]
		return c.state == "ended" || broken != nil
	})
	return exit, errors.Join(err, broken)
}

func (h hands) ReadLog(ctx context.Context, id string, from uint64, _ int) (records []LogRecord, closed bool, err error) {
	var broken error
	err = h.await(ctx, id, func(c *container) bool {
		if err := h.broken["log"]; err != nil && from > h.whole {
			broken = err
			return true
		}
		if from <= uint64(len(c.log)) {
			records = slices.Clone(c.log[from-1:])
		}
		closed = c.state == "ended"
		return closed || len(records) > 0
	})
	return records, closed, errors.Join(err, broken)
}

func (h hands) Stop(ctx context.Context, id string, grace time.Duration) error {
	if err := h.ok(); err != nil {
		return err
	}
	h.mu.Lock()
	c := h.containers[id]
	switch {
	case c == nil:
		h.mu.Unlock()
		return sandbox.ErrNotFound
	case c.state != "running":
		h.mu.Unlock()
		return sandbox.ErrNotRunning
	}
	if !c.asked {
		c.asked = true
		close(c.term)
	}
	h.mu.Unlock()
	patience, cancel := context.WithTimeout(ctx, max(grace, time.Millisecond))
	defer cancel()
	ended := func(c *container) bool { return c.state == "ended" }
	if err := h.await(patience, id, ended); err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	h.mu.Lock()
	if !c.killed {
		c.killed = true
		close(c.kill)
	}
	h.mu.Unlock()
	return h.await(ctx, id, ended)
}

func (h hands) Exec(_ context.Context, id string, spec sandbox.ExecSpec) (int, error) {
	if err := h.ok(); err != nil {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.containers[id]; c == nil || c.state != "running" {
		return 0, sandbox.ErrNotRunning
	}
	return len(spec.Args), nil
}

func (h hands) Recover(context.Context) (out []sandbox.Recovered, err error) {
	if err := h.ok(); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, c := range h.containers {
		out = append(out, sandbox.Recovered{ID: id, Running: c.state == "running", Prepared: c.state == "prepared", Exit: c.exit})
	}
	return out, nil
}

func (h hands) Remove(ctx context.Context, id string) error {
	if err := h.ok(); err != nil {
		return err
	}
	if err := h.Stop(ctx, id, 0); err != nil && h.ok() != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.containers, id)
	return nil
}
