package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// PortProtocol is what a connection is upgraded to for a port of a container:
// the bytes of that connection and nothing else.
const PortProtocol = "lumbung-port/1"

// PortConn is a connection to a port of a container. The end of one direction
// leaves the other open.
type PortConn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Connect opens a connection to a TCP port of a task's container. When ctx ends
// while it is being made, it is given up; later ctx means nothing to it.
func (c *Client) Connect(ctx context.Context, ref string, task int, port uint16) (PortConn, error) {
	path, err := jobPath(ref, "/port")
	if err != nil {
		return nil, err
	}
	// The connection is the request's: its context must not end with the call.
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	q := url.Values{"task": {strconv.Itoa(task)}, "port": {strconv.Itoa(int(port))}}
	resp, err := c.send(life, http.MethodPost, path, q, nil, http.Header{"Connection": {"Upgrade"}, "Upgrade": {PortProtocol}})
	if !stop() && err == nil {
		_ = resp.Body.Close()
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	conn, ok := resp.Body.(PortConn)
	if !ok || resp.StatusCode != http.StatusSwitchingProtocols {
		_ = resp.Body.Close()
		cancel()
		return nil, fmt.Errorf("port of job %s: the node at %s did not switch to %s", ref, c.where, PortProtocol)
	}
	return portConn{conn, cancel}, nil
}

type portConn struct {
	PortConn
	cancel func()
}

func (p portConn) Close() error {
	defer p.cancel()
	return p.PortConn.Close()
}
