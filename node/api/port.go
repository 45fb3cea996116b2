package api

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/lumbung-net/lumbung/node/client"
)

// Half is a connection whose directions end apart.
type Half interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// port upgrades the connection and joins it with a port of a container. It is
// upgraded only when the container has been reached: until then the answer can
// be a problem.
func (s *Server) port(ctx context.Context, w http.ResponseWriter, r *http.Request, ref string, task int, port uint16) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), client.PortProtocol) {
		upgradeRequired(w, client.PortProtocol)
		return
	}
	taken := false
	err := s.callConnect(ctx, ref, task, port, func() (Half, error) {
		taken = true
		return upgrade(ctx, w, client.PortProtocol)
	})
	if err != nil && !taken {
		writeProblem(w, s.problem(err))
	}
}

// callConnect keeps a panic of the backend from what it was called by.
func (s *Server) callConnect(ctx context.Context, ref string, task int, port uint16, accept func() (Half, error)) (err error) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("port panicked", "job", ref, "panic", fmt.Sprint(v))
			err = fmt.Errorf("the node failed at port %d of job %s", port, ref)
		}
	}()
	return s.opt.Backend.Connect(ctx, ref, task, port, accept)
}

func upgradeRequired(w http.ResponseWriter, proto string) {
	w.Header().Set("Upgrade", proto)
	writeProblem(w, &client.Problem{
		Title: http.StatusText(http.StatusUpgradeRequired), Status: http.StatusUpgradeRequired, Code: "upgrade_required",
		Detail: "this answers on an upgraded connection", Remedy: "send Connection: Upgrade and Upgrade: " + proto,
	})
}

// upgrade takes the connection over. It is closed when ctx ends, which Shutdown
// does not bring to taken connections.
func upgrade(ctx context.Context, w http.ResponseWriter, proto string) (Half, error) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take the connection over: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	// Read by the server's own reader the end of the client's direction would end
	// the request's context, and the other direction with it.
	ahead, err := buf.Peek(buf.Reader.Buffered())
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("take the connection over: %w", err)
	}
	c := &upgraded{Conn: conn, r: io.MultiReader(bytes.NewReader(bytes.Clone(ahead)), conn), stop: stop}
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+proto+"\r\n\r\n"); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// upgraded is a connection of which some may have been read ahead.
type upgraded struct {
	net.Conn
	r    io.Reader
	stop func() bool
}

func (u *upgraded) Read(p []byte) (int, error) { return u.r.Read(p) }

func (u *upgraded) CloseWrite() error {
	c, ok := u.Conn.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("%T: %w", u.Conn, http.ErrNotSupported)
	}
	return c.CloseWrite()
}

func (u *upgraded) Close() error {
	u.stop()
	return u.Conn.Close()
}
