package sandbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestForward(t *testing.T) {
	e := newEnv(t)
	s := e.spec("serve", "7000")
	s.User = e.users("1000:1000")[0]
	e.start(s)
	e.until(s.ID, "serving")
	f, err := e.r.Forward(ctxOf(t), s.ID)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	dial := func(port uint16) Conn {
		t.Helper()
		c, err := f.Dial(ctxOf(t), port)
		must(t, err)
		return c
	}

	t.Run("each end ends by itself", func(t *testing.T) {
		c := dial(7001)
		defer func() { must(t, c.Close()) }()
		_, err := io.WriteString(c, "said before the end")
		must(t, err)
		must(t, c.CloseWrite())
		got, err := io.ReadAll(c)
		if err != nil || string(got) != "SAID BEFORE THE END" {
			t.Errorf("%q %v", got, err)
		}
	})

	t.Run("many at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				data := make([]byte, 200_000)
				_, _ = rand.Read(data)
				c, err := f.Dial(ctxOf(t), 7000)
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = c.Close() }()
				go func() {
					_, _ = c.Write(data)
					_ = c.CloseWrite()
				}()
				if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%d bytes came back of %d: %v", len(got), len(data), err)
				}
			})
		}
		wg.Wait()
	})

	t.Run("who is not read does not write on", func(t *testing.T) {
		c := dial(7002)
		_, err := io.ReadFull(c, make([]byte, 1<<20))
		must(t, err)
		must(t, c.Reset())
		var n int
		_, after, _ := strings.Cut(e.until(s.ID, "sent "), "sent ")
		if _, err := fmt.Sscan(after, &n); err != nil || n < 1<<20 || n > 24<<20 {
			t.Errorf("%d bytes were sent to one who took one MiB: %v", n, err)
		}
	})

	t.Run("nothing listens", func(t *testing.T) {
		if _, err := f.Dial(ctxOf(t), 7009); !errors.Is(err, ErrNotListening) || !strings.Contains(err.Error(), "7009") {
			t.Errorf("%v", err)
		}
		dial(7000) // and the others go on; the forwarder's end closes this one
	})

	t.Run("two forwarders, and the end of one", func(t *testing.T) {
		g, err := e.r.Forward(ctxOf(t), s.ID)
		must(t, err)
		c, err := g.Dial(ctxOf(t), 7000)
		must(t, err)
		must(t, g.Close())
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a connection outlived its forwarder")
		}
		_ = c.Close()
		must(t, dial(7000).Close())
		if os.Getenv(testOCI) == "" { // where nothing of ours is inside
			e.eventually(func() bool { return e.processes(s.ID) == 2 })
		}
	})

	must(t, e.r.Stop(ctxOf(t), s.ID, 0))
	select {
	case <-f.Ended():
	case <-ctxOf(t).Done():
		t.Error("it does not end with its container")
	}
	if _, err := f.Dial(ctxOf(t), 7000); err == nil {
		t.Error("connected to a container that has ended")
	}
	if _, err := e.r.Forward(ctxOf(t), s.ID); !errors.Is(err, ErrNotRunning) {
		t.Errorf("%v", err)
	}
	if _, err := e.r.Forward(ctxOf(t), "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// A forwarder that was stopped inside answers nobody; who dials leaves in time.
func TestForwardIntoAStoppedProgram(t *testing.T) {
	e := newEnv(t)
	s := e.spec("serve", "7000")
	e.start(s)
	e.until(s.ID, "serving")
	f, err := e.r.Forward(ctxOf(t), s.ID)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	c, err := f.Dial(ctxOf(t), 7000)
	must(t, err)
	must(t, c.Close())
	code, err := e.r.Exec(ctxOf(t), s.ID, ExecSpec{Args: []string{"/job", "stopothers"}})
	if code != 0 || err != nil {
		t.Fatal(code, err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 200*time.Millisecond, errors.New("waited enough"))
	defer cancel()
	if _, err := f.Dial(ctx, 7000); err == nil || !strings.Contains(err.Error(), "waited enough") {
		t.Errorf("%v", err)
	}
}
