package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a node of the test's own making, and a client of it.
func server(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewServer(h)
	c, err := Dial(s.Listener.Addr().String(), "token")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(); s.Close() })
	return c
}

func TestNoNode(t *testing.T) {
	home := t.TempDir()
	c, err := New(home)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Status(t.Context())
	var p *Problem
	if !errors.Is(err, ErrNoNode) || !errors.As(err, &p) {
		t.Fatalf("got %v", err)
	}
	if p.Code != "no_node" || p.Remedy != "start one with `lumbung up -d`" || !strings.Contains(err.Error(), home) || !strings.Contains(err.Error(), "lumbung up -d") {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := New(""); err == nil {
		t.Error("no home at all")
	}
	for _, bad := range [][2]string{{"localhost", "t"}, {"127.0.0.1:1", ""}} {
		if _, err := Dial(bad[0], bad[1]); err == nil {
			t.Errorf("Dial %q", bad)
		}
	}
}

func TestForeignNode(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may enter every home")
	}
	home := t.TempDir()
	if err := os.MkdirAll(RunDir(home), 0o700); err != nil {
		t.Fatal(err)
	}
	path, _ := HomeSocket(home)
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	c, err := New(home)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Status(t.Context())
	var p *Problem
	if !errors.As(err, &p) || p.Code != "not_allowed" {
		t.Errorf("got %v", err)
	}
}

func TestSocketPath(t *testing.T) {
	home := filepath.Join(t.TempDir(), strings.Repeat("d/", 60))
	if err := os.MkdirAll(RunDir(home), 0o700); err != nil {
		t.Fatal(err)
	}
	usual, fits := HomeSocket(home)
	if fits {
		t.Fatalf("%s fits", usual)
	}
	for content, want := range map[string]string{
		"/tmp/x/api.sock\n":               "/tmp/x/api.sock",
		"relative":                        usual,
		"":                                usual,
		"/" + strings.Repeat("long/", 50): usual,
	} {
		if err := os.WriteFile(PointerPath(home), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := SocketPath(home); got != want {
			t.Errorf("%q: %s", content, got)
		}
	}
	if got := SocketPath("/short"); got != filepath.FromSlash("/short/run/api.sock") {
		t.Error(got)
	}
}

// What listens there may be anything.
func TestStrangeServers(t *testing.T) {
	job := SubmitRequest{Spec: Spec{Image: "x"}, Dir: "/"}
	tests := []struct {
		name string
		h    http.HandlerFunc
		do   func(context.Context, *Client) error
		want string
	}{
		{
			"another service", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "nginx", http.StatusBadGateway) },
			func(ctx context.Context, c *Client) error { _, err := c.Status(ctx); return err }, "no explanation",
		},
		{
			"a redirect", func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://evil.example", http.StatusFound)
			},
			func(ctx context.Context, c *Client) error { _, err := c.Status(ctx); return err }, "no explanation",
		},
		{
			"no JSON", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
			func(ctx context.Context, c *Client) error { _, err := c.Status(ctx); return err }, "read the answer",
		},
		{
			"no lines", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>\n") },
			func(ctx context.Context, c *Client) error { _, err := c.Submit(ctx, job, nil); return err }, "makes no sense",
		},
		{
			"no result", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"progress":{}}`+"\n") },
			func(ctx context.Context, c *Client) error { _, err := c.Submit(ctx, job, nil); return err }, "without a result",
		},
		{
			"a wrong result", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"result":[]}`+"\n") },
			func(ctx context.Context, c *Client) error { _, err := c.Submit(ctx, job, nil); return err }, "makes no sense",
		},
		{
			"half a line", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"result":{}`) },
			func(ctx context.Context, c *Client) error { _, err := c.Submit(ctx, job, nil); return err }, "unexpected EOF",
		},
		{"a broken stream", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"progress":{}}`+"\n")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, func(ctx context.Context, c *Client) error { _, err := c.Submit(ctx, job, nil); return err }, "the stream broke"},
		{
			"a log without a record", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}\n") },
			func(ctx context.Context, c *Client) error { return c.Logs(ctx, "j", LogQuery{}, nil) }, "makes no sense",
		},
		{
			"no upgrade", func(http.ResponseWriter, *http.Request) {},
			func(ctx context.Context, c *Client) error {
				_, err := c.Exec(ctx, "j", ExecRequest{}, nil, nil, nil, nil)
				return err
			}, "did not switch",
		},
		{
			"a name of dots", func(http.ResponseWriter, *http.Request) { t.Error("it was asked for") },
			func(ctx context.Context, c *Client) error { _, err := c.Job(ctx, ".."); return err }, `".." is no name`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.do(t.Context(), server(t, tt.h))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestBoundedFails(t *testing.T) {
	b := &bounded{r: strings.NewReader("0123456789"), left: 4}
	got, err := io.ReadAll(b)
	if !errors.Is(err, errTooLong) || string(got) != "0123" {
		t.Errorf("%q %v", got, err)
	}
}

func TestFrames(t *testing.T) {
	var wire bytes.Buffer
	sent := []struct {
		t    FrameType
		data []byte
	}{
		{FrameStdin, []byte("in")},
		{FrameStdout, bytes.Repeat([]byte{7}, MaxFrame)},
		{FrameStderr, nil},
		{FrameResize, EncodeSize(-1, 1<<20)},
		{FrameExit, EncodeExit(-128)},
		{FrameStdinEOF, nil},
		{FramePing, nil},
		{FrameError, []byte("{}")},
	}
	for _, f := range sent {
		if err := WriteFrame(&wire, f.t, f.data); err != nil {
			t.Fatal(err)
		}
	}
	var buf []byte
	for _, f := range sent {
		kind, data, err := ReadFrame(&wire, &buf)
		if err != nil || kind != f.t || !bytes.Equal(data, f.data) {
			t.Fatalf("%d: %d %v", f.t, kind, err)
		}
	}
	if _, _, err := ReadFrame(&wire, &buf); err != io.EOF { //nolint:errorlint // the end is to be io.EOF itself
		t.Errorf("at the end: %v", err)
	}
	if rows, cols := DecodeSize(EncodeSize(-1, 1<<20)); rows != 0 || cols != 1<<16-1 {
		t.Errorf("size %d %d", rows, cols)
	}
	if code := DecodeExit(EncodeExit(-128)); code != -128 {
		t.Errorf("exit code %d", code)
	}
	for _, bad := range []struct {
		t FrameType
		n int
	}{{0, 0}, {9, 0}, {FrameStdin, MaxFrame + 1}, {FrameExit, 3}, {FramePing, 1}} {
		if err := WriteFrame(io.Discard, bad.t, make([]byte, bad.n)); !errors.Is(err, ErrFrame) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	for _, s := range []string{"", "\x01\x00\x00\x00\x02hi\x07\x00\x00\x00\x00", "\x05\x00\x00\x00\x04\x00\x00\x00\x01", "\x01\xff\xff\xff\xff", "\x04\x00\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		var buf []byte
		var out bytes.Buffer
		for {
			kind, data, err := ReadFrame(r, &buf)
			if err != nil {
				break
			}
			if len(data) > MaxFrame || cap(buf) > MaxFrame {
				t.Fatalf("%d bytes", len(data))
			}
			if err := WriteFrame(&out, kind, data); err != nil {
				t.Fatalf("what was read cannot be written: %v", err)
			}
		}
		// What was read is what was sent, to the byte.
		if !bytes.HasPrefix(in, out.Bytes()) {
			t.Fatalf("%x became %x", in, out.Bytes())
		}
	})
}

func FuzzEachLine(f *testing.F) {
	for _, s := range []string{"", "a\nb\r\n\nc", "\n\n", strings.Repeat("x", 300) + "\n", "{\"result\":1}\n"} {
		f.Add([]byte(s))
	}
	const limit = 200
	f.Fuzz(func(t *testing.T, in []byte) {
		var got []string
		err := eachLine(bytes.NewReader(in), limit, func(line []byte) error {
			got = append(got, string(line))
			return nil
		})
		var want []string
		whole, rest := in, []byte(nil)
		if i := bytes.LastIndexByte(in, '\n'); i >= 0 {
			whole, rest = in[:i+1], in[i+1:]
		} else {
			whole, rest = nil, in
		}
		bad := len(rest) > 0
		for _, line := range bytes.SplitAfter(whole, []byte("\n")) {
			if len(line) > limit {
				bad = true
				break
			}
			line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
			if len(line) > 0 {
				want = append(want, string(line))
			}
		}
		if !reflect.DeepEqual(got, want) || (err != nil) != bad {
			t.Fatalf("%q: got %q, %v; want %q, bad %v", in, got, err, want, bad)
		}
	})
}

func FuzzEachMessage(f *testing.F) {
	for _, s := range []string{
		"", ":\n\nid: 1\ndata: {}\n\n", "data: a\ndata: b\r\n\r\nevent: problem\ndata:\n\n", "data\n\n", "id: 3\n\n", "data: cut", ": only\n\n\n",
	} {
		f.Add(s)
	}
	const limit = 200
	f.Fuzz(func(t *testing.T, in string) {
		n := 0
		err := eachMessage(strings.NewReader(in), limit, func(m message) error {
			n++
			if len(m.data) > limit {
				t.Fatalf("%d bytes of data", len(m.data))
			}
			return nil
		})
		if most := strings.Count(in, "data"); n > most {
			t.Fatalf("%d messages out of %d fields (%v)", n, most, err)
		}
		// A message that was sent arrives as it is, behind whatever came.
		if err != nil || strings.ContainsAny(in, "\r") {
			return
		}
		var last message
		err = eachMessage(strings.NewReader(in+"\n\nid: 9\nevent: e\ndata: one\ndata: two\n\n"), limit, func(m message) error {
			last = message{m.id, m.event, bytes.Clone(m.data)}
			return nil
		})
		if want := (message{"9", "e", []byte("one\ntwo")}); err == nil && !reflect.DeepEqual(last, want) {
			t.Fatalf("%q: %+v", in, last)
		}
	})
}

func TestCallbackErrorsAreTold(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer token" {
			t.Error("no token was sent")
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = fmt.Fprint(w, "id: 1\ndata: {\"seq\":1}\n\nid: 1\ndata: {\"seq\":1}\n\nid: 2\ndata: {\"seq\":2}\n\n")
	})
	mine := errors.New("mine")
	var got []uint64
	err := c.Events(t.Context(), 0, func(e Event) error {
		got = append(got, e.Seq)
		if e.Seq == 2 {
			return mine
		}
		return nil
	})
	if !errors.Is(err, mine) || !reflect.DeepEqual(got, []uint64{1, 2}) {
		t.Errorf("%v %v", got, err)
	}
}
