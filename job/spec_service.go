package job

import (
	"time"

	"github.com/goccy/go-yaml/ast"

	"github.com/lumbung-net/lumbung/protocol"
)

// ReadySpec says when a service counts as running: once GET HTTP at the
// container's Port is answered by a status of 200 to 399. It has failed when
// that takes longer than Within; until then nothing is billed.
type ReadySpec struct {
	HTTP   string        `json:"http"` // a path
	Port   uint16        `json:"port,omitempty"`
	Within time.Duration `json:"within,omitempty"`
}

const (
	// DefaultReadyWithin is how long a service may take to be ready.
	DefaultReadyWithin = 5 * time.Minute
	// MaxReadyWithin bounds that: it is the provider's gift.
	MaxReadyWithin = 15 * time.Minute
	// MinIdleStop bounds a spec's IdleStop from below.
	MinIdleStop = 10 * time.Second
	// MaxIdleStop bounds it from above.
	MaxIdleStop = 400 * 24 * time.Hour
)

func (s Spec) withServiceDefaults() Spec {
	if s.Ready == nil {
		return s
	}
	r := *s.Ready
	setDefault(&r.Within, DefaultReadyWithin)
	if remote, ok := s.onlyPort(); ok {
		setDefault(&r.Port, remote)
	}
	s.Ready = &r
	return s
}

// onlyPort is the one port of the container that the job's ports lead to.
func (s Spec) onlyPort() (uint16, bool) {
	if len(s.Ports) == 0 {
		return 0, false
	}
	for _, p := range s.Ports {
		if p.Remote != s.Ports[0].Remote {
			return 0, false
		}
	}
	return s.Ports[0].Remote, true
}

func (s Spec) validateService() error {
	switch {
	case s.IdleStop == 0:
	case s.IdleStop < MinIdleStop || s.IdleStop > MaxIdleStop:
		return specErr("idle_stop: %s is not between %s and %dd", s.IdleStop, MinIdleStop, MaxIdleStop/(24*time.Hour))
	case len(s.Ports) == 0:
		return specErr("idle_stop: without ports nobody can be connected; name them under ports, or with -p")
	}
	r := s.Ready
	switch {
	case r == nil:
		return nil
	case r.Port == 0:
		return specErr("ready.port: missing; it may be left out only when ports name exactly one of the container's")
	case r.Within < time.Second || r.Within > MaxReadyWithin:
		return specErr("ready.within: %s is not between 1s and %s", r.Within, MaxReadyWithin)
	}
	if err := protocol.ProbePath(r.HTTP); err != nil {
		return specErr("ready.http: %v", err)
	}
	return nil
}

// wireService is what a provider is told of a service.
func wireService(s Spec, task *protocol.Task) {
	task.IdleStopMs = s.IdleStop.Milliseconds()
	if r := s.Ready; r != nil {
		task.Ready = &protocol.Ready{Port: uint32(r.Port), Http: r.HTTP, WithinMs: r.Within.Milliseconds()}
	}
}

// ready reads {http, port, within}.
func (f *specFile) ready(n ast.Node, at string) (*ReadySpec, error) {
	r := &ReadySpec{}
	return r, f.mapping(n, at, keys{
		"http":   f.text(&r.HTTP),
		"port":   scalar(f, &r.Port, parsePortNumber),
		"within": scalar(f, &r.Within, ParseDuration),
	})
}
