package api

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/lumbung-net/lumbung/node/client"
)

// Bounds on what callers may ask for.
const (
	maxRequests = 512 // at a time, streams among them
	maxBody     = 1 << 20
	bodyTime    = 10 * time.Second
)

// answer knows whether a handler has begun to answer.
type answer struct {
	http.ResponseWriter
	begun bool
}

func (a *answer) WriteHeader(status int) {
	a.begun = true
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	a.begun = true
	return a.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController find Flush, Hijack and the deadlines.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// contain bounds a request and keeps its panic from ending the node.
func (s *Server) contain(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.handlers.Add(1)
		defer s.handlers.Done()
		a := &answer{ResponseWriter: w}
		defer func() {
			if v := recover(); v != nil {
				s.panicked(a, r, v)
			}
		}()
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		default:
			writeProblem(a, &client.Problem{
				Title: "Busy", Status: http.StatusServiceUnavailable, Code: "busy", Retryable: true,
				Detail: fmt.Sprintf("%d requests are under way", maxRequests), Remedy: "try again when some have ended",
			})
			return
		}
		next.ServeHTTP(a, r)
	})
}

func (s *Server) panicked(a *answer, r *http.Request, v any) {
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v) // it wants the connection closed
	}
	// huma panics when an answer cannot be written, which is a client that left.
	if r.Context().Err() != nil {
		s.log.Debug("the caller left", "method", r.Method, "path", r.URL.Path, "error", fmt.Sprint(v))
		panic(http.ErrAbortHandler)
	}
	s.log.Error("a request panicked", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	if a.begun {
		panic(http.ErrAbortHandler)
	}
	writeProblem(a, &client.Problem{
		Title: http.StatusText(http.StatusInternalServerError), Status: http.StatusInternalServerError, Code: "internal",
		Detail: fmt.Sprintf("the node failed at %s %s", r.Method, r.URL.Path), Remedy: "see the node's log, and report what it says",
	})
}

// readWhole takes the body in before the handler runs, within a bound and a
// time, so that no deadline is left on the connection when the answer is long.
func readWhole(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body == nil || r.Body == http.NoBody || streams(r) {
			next.ServeHTTP(w, r)
			return
		}
		rc := http.NewResponseController(w)
		if err := rc.SetReadDeadline(time.Now().Add(bodyTime)); err != nil {
			writeProblem(w, problemOf(fmt.Errorf("bound the time of the request: %w", err)))
			return
		}
		raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		var long *http.MaxBytesError
		switch {
		case errors.As(err, &long):
			writeProblem(w, badRequest(http.StatusRequestEntityTooLarge, "too_large", fmt.Sprintf("the request's body is over %d bytes", maxBody)))
			return
		case err != nil:
			writeProblem(w, badRequest(http.StatusBadRequest, "bad_request", "the request's body did not arrive: "+err.Error()))
			return
		}
		if err := rc.SetReadDeadline(time.Time{}); err != nil {
			writeProblem(w, problemOf(fmt.Errorf("unbound the time of the answer: %w", err)))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(raw))
		next.ServeHTTP(w, r)
	})
}

// guard keeps web pages and other users of the machine off the TCP address.
type guard struct {
	token [sha256.Size]byte
	hosts map[string]bool
}

func newGuard(token string, addr net.Addr) guard {
	g := guard{token: sha256.Sum256([]byte(token)), hosts: map[string]bool{addr.String(): true}}
	if _, port, err := net.SplitHostPort(addr.String()); err == nil {
		for _, h := range []string{"localhost", "127.0.0.1", "::1"} {
			g.hosts[net.JoinHostPort(h, port)] = true
		}
	}
	return g
}

func (g guard) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := g.refuse(r); p != nil {
			if p.Status == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", `Bearer realm="lumbung"`)
			}
			writeProblem(w, p)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// refuse says why a request may not pass. The host is checked against DNS
// rebinding, the origin against pages of other sites.
func (g guard) refuse(r *http.Request) *client.Problem {
	if !g.hosts[strings.ToLower(r.Host)] {
		return &client.Problem{
			Title: "Wrong host", Status: http.StatusMisdirectedRequest, Code: "wrong_host",
			Detail: fmt.Sprintf("host %q is not this node's", clip(r.Host, 100)), Remedy: "call the node by its loopback address",
		}
	}
	for _, o := range r.Header.Values("Origin") {
		if !g.hosts[strings.TrimPrefix(strings.ToLower(o), "http://")] {
			return &client.Problem{
				Title: "Wrong origin", Status: http.StatusForbidden, Code: "wrong_origin",
				Detail: fmt.Sprintf("pages of %q may not call this node", clip(o, 100)), Remedy: "call from a page that the node serves, or without a browser",
			}
		}
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	sum := sha256.Sum256([]byte(token))
	if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(sum[:], g.token[:]) != 1 {
		return &client.Problem{
			Title: "Not allowed", Status: http.StatusUnauthorized, Code: "bad_token",
			Detail: "the token is missing or wrong", Remedy: "send the node's API token, the file api.token in its home, as Authorization: Bearer TOKEN",
		}
	}
	return nil
}
