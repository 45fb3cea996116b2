package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrNoNode says that no node runs in the home that was asked for.
var ErrNoNode = errors.New("no node runs")

// Bounds of what a node's answer may be.
const (
	maxAnswer  = 256 << 20 // a job of 100,000 tasks with all its contracts
	maxProblem = 1 << 20
)

// patience is how long a broken stream of events is tried again before the
// node counts as gone.
const patience = 15 * time.Second

// Client talks to one node. It is safe for concurrent use; Close gives its idle
// connections back.
type Client struct {
	http  *http.Transport
	base  string
	token string
	where string // for messages: the home or the address
}

// New is a client of the node that runs in home, over its Unix socket. Nothing
// is dialled yet: when no node runs, the first call says ErrNoNode.
func New(home string) (*Client, error) {
	if home == "" {
		return nil, errors.New("the node's home is empty: name one with --home")
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		// The path is looked up for each connection: a node that was started
		// later may have chosen another.
		path := SocketPath(home)
		if !SocketFits(path) { // and no node has named another
			return nil, fmt.Errorf("socket %s: %w", path, os.ErrNotExist)
		}
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{http: transport(dial), base: "http://lumbung", where: home}, nil
}

// Dial is a client of the node whose API listens on a loopback TCP address,
// with the token that the node demands there.
func Dial(addr, token string) (*Client, error) {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return nil, fmt.Errorf("API address %q: want HOST:PORT: %w", addr, err)
	}
	if token == "" {
		return nil, fmt.Errorf("API address %s: a token is needed over TCP", addr)
	}
	var d net.Dialer
	return &Client{http: transport(d.DialContext), base: "http://" + addr, token: token, where: addr}, nil
}

func transport(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Transport {
	return &http.Transport{
		DialContext:        dial,
		DisableCompression: true,
		MaxIdleConns:       8,
		IdleConnTimeout:    time.Minute,
	}
}

// Close gives idle connections back. Calls under way go on.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// noNode is ErrNoNode with its remedy, also as a Problem.
type noNode struct {
	where string
	err   error
}

func (e *noNode) Error() string {
	return fmt.Sprintf("no node runs at %s: start one with `lumbung up -d`", e.where)
}
func (e *noNode) Is(target error) bool { return target == ErrNoNode }
func (e *noNode) Unwrap() error        { return e.err }

func (e *noNode) As(target any) bool {
	p, ok := target.(**Problem)
	if !ok {
		return false
	}
	*p = &Problem{
		Title: "No node runs", Status: http.StatusServiceUnavailable, Detail: "no node runs at " + e.where,
		Code: "no_node", Remedy: "start one with `lumbung up -d`", Retryable: true,
	}
	return true
}

// unreachable explains why no answer came.
func (c *Client) unreachable(method, path string, err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s %s of the node at %s: gave up waiting: %w", method, path, c.where, err)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return &noNode{where: c.where, err: err}
	case errors.Is(err, os.ErrPermission):
		return &Problem{
			Title: "Not allowed", Status: http.StatusForbidden, Code: "not_allowed",
			Detail: fmt.Sprintf("the node at %s belongs to another user", c.where),
			Remedy: "run this as that user, or name a home of your own with --home",
		}
	}
	return fmt.Errorf("%s %s of the node at %s: %w", method, path, c.where, err)
}

// send makes a request and hands back an answer that is not a problem. The
// caller closes its body.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, in any, header http.Header) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("%s %s: encode the request: %w", method, path, err)
		}
		body = bytes.NewReader(raw)
	}
	target := c.base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return c.do(req)
}

// do sends a request and hands back an answer that is not a problem.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		return nil, c.unreachable(req.Method, req.URL.Path, err)
	}
	if resp.StatusCode >= 300 {
		defer func() { _ = resp.Body.Close() }()
		return nil, c.problem(req.Method, req.URL.Path, resp)
	}
	return resp, nil
}

// problem reads why a request was refused.
func (c *Client) problem(method, path string, resp *http.Response) error {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	if err != nil {
		return fmt.Errorf("%s %s of the node at %s: %s: %w", method, path, c.where, resp.Status, err)
	}
	p := &Problem{}
	media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || media != "application/problem+json" || json.Unmarshal(raw, p) != nil {
		return &Problem{
			Title: resp.Status, Status: resp.StatusCode, Code: "not_a_node",
			Detail: fmt.Sprintf("what listens at %s answered %s %s with %s and no explanation", c.where, method, path, resp.Status),
			Remedy: "check that the address is that of a lumbung node of this version",
		}
	}
	if p.Status == 0 {
		p.Status = resp.StatusCode
	}
	return p
}

// call is a request with one answer; out may be nil.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	resp, err := c.send(ctx, method, path, query, in, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body := &bounded{r: resp.Body, left: maxAnswer}
	if out == nil {
		_, err = io.Copy(io.Discard, body)
	} else {
		err = json.NewDecoder(body).Decode(out)
	}
	if err != nil {
		return fmt.Errorf("%s %s: read the answer of the node at %s: %w", method, path, c.where, err)
	}
	// What is left is a line end; reading it lets the connection be used again.
	_, _ = io.CopyN(io.Discard, body, 16)
	return nil
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var out T
	err := c.call(ctx, http.MethodGet, path, query, nil, &out)
	return out, err
}

func post[T any](ctx context.Context, c *Client, path string, in any) (T, error) {
	var out T
	err := c.call(ctx, http.MethodPost, path, nil, in, &out)
	return out, err
}

// errTooLong says that an answer is over its bound.
var errTooLong = errors.New("the answer is too long")

// bounded fails, rather than ends, when more comes than may.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLong
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	return n, err
}

// segment makes one path segment of a name. Dots alone would be taken for
// folders on the way, and no job or image can be called so.
func segment(name string) (string, error) {
	if strings.Trim(name, ".") == "" {
		return "", &Problem{
			Title: "Not found", Status: http.StatusNotFound, Code: "not_found",
			Detail: strconv.Quote(name) + " is no name or id", Remedy: "`lumbung ps -a` lists the jobs, `lumbung image ls` the images",
		}
	}
	return url.PathEscape(name), nil
}
