package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Options of a server. Home, Backend, Gatherer and Log are needed.
type Options struct {
	Home     string
	Backend  Backend
	Gatherer prometheus.Gatherer // of /metrics
	Log      *slog.Logger

	TCPAddr string // also listen here, a loopback HOST:PORT; empty is not at all
	Token   string // that callers over TCP must show; at least 16 characters

	Heartbeat  time.Duration // between signs of life on event streams; 15 s
	SlowReader time.Duration // a reader of events that takes none for so long is dropped; 10 s
	Grace      time.Duration // that requests get to end in on shutdown; 3 s
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.Heartbeat, 15*time.Second)
	def(&o.SlowReader, 10*time.Second)
	def(&o.Grace, 3*time.Second)
	return o
}

// Server is the API of one node.
type Server struct {
	opt   Options
	log   *slog.Logger
	sock  *socket
	tcp   net.Listener // nil when not asked for
	http  http.Handler
	slots chan struct{}

	handlers sync.WaitGroup
	closed   sync.Once
	closeErr error
}

// New takes the home's socket, and the TCP address when there is one. A home
// whose node lives is ErrRunning. Call Run next, and Close in any case.
func New(ctx context.Context, o Options) (*Server, error) {
	o = o.withDefaults()
	s := &Server{opt: o, log: o.Log, slots: make(chan struct{}, maxRequests)}
	s.http = s.routes()
	sock, err := listenSocket(ctx, o.Home)
	if err != nil {
		return nil, err
	}
	s.sock = sock
	if o.TCPAddr == "" {
		return s, nil
	}
	if s.tcp, err = listenLoopback(ctx, o.TCPAddr, o.Token); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// SocketPath is where the server listens.
func (s *Server) SocketPath() string { return s.sock.path }

// TCPAddr is the TCP address that the server listens on, or "".
func (s *Server) TCPAddr() string {
	if s.tcp == nil {
		return ""
	}
	return s.tcp.Addr().String()
}

// Run serves until ctx ends. It then ends every stream, lets other requests
// come to their end for Options.Grace, and returns nil when all have.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	servers := []*http.Server{s.httpServer(ctx, s.contain(s.http))}
	listeners := []net.Listener{s.sock.listener}
	if s.tcp != nil {
		g := newGuard(s.opt.Token, s.tcp.Addr())
		servers = append(servers, s.httpServer(ctx, s.contain(g.wrap(s.http))))
		listeners = append(listeners, s.tcp)
	}
	failed := make(chan error, len(servers))
	var serving sync.WaitGroup
	for i, srv := range servers {
		serving.Go(func() {
			if err := srv.Serve(listeners[i]); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve the API on %s: %w", listeners[i].Addr(), err)
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	err = errors.Join(err, s.end(servers))
	serving.Wait()
	return err
}

// end stops the servers and waits for the handlers.
func (s *Server) end(servers []*http.Server) error {
	grace, cancel := context.WithTimeout(context.Background(), s.opt.Grace)
	defer cancel()
	var wg sync.WaitGroup
	for _, srv := range servers {
		wg.Go(func() {
			if srv.Shutdown(grace) != nil {
				_ = srv.Close() // ends those that block in a write
			}
		})
	}
	wg.Wait()
	done := make(chan struct{})
	go func() {
		s.handlers.Wait()
		close(done)
	}()
	late := time.NewTimer(s.opt.Grace)
	defer late.Stop()
	select {
	case <-done:
		return nil
	case <-late.C:
		return fmt.Errorf("requests of the API did not end within %s of being cancelled", 2*s.opt.Grace)
	}
}

func (s *Server) httpServer(ctx context.Context, h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// Close gives the socket and the home back. It is safe to call twice.
func (s *Server) Close() error {
	s.closed.Do(func() {
		if s.tcp != nil {
			s.closeErr = ignoreClosed(s.tcp.Close())
		}
		s.closeErr = errors.Join(s.closeErr, s.sock.Close())
	})
	return s.closeErr
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
