package main

import (
	"bytes"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// screen is a terminal, or a file, that is read while it is written.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// testApp is an app without a terminal in a home of its own.
type testApp struct {
	*app
	out, err *screen
	signals  chan os.Signal
	vars     map[string]string
}

func newTestApp(t *testing.T) *testApp {
	t.Helper()
	home := t.TempDir()
	a := &testApp{out: &screen{}, err: &screen{}, signals: make(chan os.Signal, 4), vars: map[string]string{
		"LUMBUNG_HOME": home, "XDG_CONFIG_HOME": t.TempDir(), "XDG_DATA_HOME": t.TempDir(),
	}}
	a.app = &app{
		in: strings.NewReader(""), env: func(k string) string { return a.vars[k] }, now: time.Now, signals: a.signals, second: time.Minute,
		con: &console{out: a.out, err: a.err, width: func() int { return 80 }},
	}
	return a
}

func (a *testApp) home() string { return a.vars["LUMBUNG_HOME"] }
