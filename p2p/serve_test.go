package p2p

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	lprotocol "github.com/libp2p/go-libp2p/core/protocol"
	dto "github.com/prometheus/client_model/go"

	"github.com/lumbung-net/lumbung/protocol"
)

type (
	pingReq     = protocol.Signed[*protocol.Ping]
	pingHandler = func(context.Context, peer.ID, pingReq) (pingReq, error)
)

var pingRoute = Route{Name: "echo", Timeout: 10 * time.Second}

// echo answers a ping with one of its own.
func echo(h *Host) pingHandler {
	return func(_ context.Context, _ peer.ID, req pingReq) (pingReq, error) {
		return protocol.Seal(h.Key(), h.Network(), &protocol.Ping{Nonce: req.Msg.GetNonce(), AtMs: req.Msg.GetAtMs()})
	}
}

func serve(t testing.TB, h *Host, r Route, fn pingHandler) {
	t.Helper()
	if err := Serve(h, r, fn); err != nil {
		t.Fatal(err)
	}
}

func call(t testing.TB, from, to *Host, r Route) (pingReq, error) {
	t.Helper()
	return Call[*protocol.Ping, *protocol.Ping](limited(t), from, to.ID(), r, seal(t, from, pingMsg()))
}

func TestCallAnswers(t *testing.T) {
	a, b := newHost(t), newHost(t)
	serve(t, b, pingRoute, echo(b))
	connect(t, a, b)
	resp, err := call(t, a, b, pingRoute)
	if err != nil {
		t.Fatal(err)
	}
	if resp.From != b.ID() {
		t.Errorf("answer from %s, want %s", resp.From, b.ID())
	}
	if got := a.via(b.ID()); got != "direct tcp" {
		t.Errorf("went by %q, want TCP before QUIC", got)
	}
}

func TestCallMapsStatuses(t *testing.T) {
	a, b := newHost(t), newHost(t)
	connect(t, a, b)
	for name, want := range map[string]error{
		"retry": protocol.ErrRetry, "elsewhere": protocol.ErrElsewhere, "blame": protocol.ErrBlame,
	} {
		r := Route{Name: name, Timeout: 10 * time.Second}
		serve(t, b, r, func(context.Context, peer.ID, pingReq) (pingReq, error) {
			return pingReq{}, fmt.Errorf("because \x1b[31mof %s: %w", name, want)
		})
		_, err := call(t, a, b, r)
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v", name, err)
		}
		for _, words := range []string{b.ID().String(), name, "because  [31mof"} {
			if !strings.Contains(fmt.Sprint(err), words) {
				t.Errorf("%q does not name %q", err, words)
			}
		}
	}
}

func TestInternalErrorsAndPanicsStayInside(t *testing.T) {
	a, b := newHost(t), newHost(t, func(c *Config) { c.Log = nil })
	connect(t, a, b)
	secret := errors.New("open /home/secret: permission denied")
	for name, fn := range map[string]pingHandler{
		"fails":  func(context.Context, peer.ID, pingReq) (pingReq, error) { return pingReq{}, secret },
		"panics": func(context.Context, peer.ID, pingReq) (pingReq, error) { panic(secret) },
	} {
		r := Route{Name: name, Timeout: 10 * time.Second}
		serve(t, b, r, fn)
		_, err := call(t, a, b, r)
		if !errors.Is(err, protocol.ErrRetry) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	serve(t, b, pingRoute, echo(b))
	if _, err := call(t, a, b, pingRoute); err != nil {
		t.Errorf("after the panic: %v", err)
	}
}

// raw opens a stream and says what it likes.
func raw(t *testing.T, from, to *Host, r Route, data []byte) (protocol.Status, string, error) {
	t.Helper()
	st, err := from.OpenStream(limited(t), to.ID(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Reset() }()
	if err := st.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Write(data); err != nil {
		t.Fatal(err)
	}
	status, body, err := readAnswer(bufio.NewReader(st), protocol.MaxSmall)
	return status, string(body), err
}

func TestServeRefusesWrongRequests(t *testing.T) {
	a, b, other := newHost(t), newHost(t, func(c *Config) { c.refuseAfter = 1000 }), newHost(t)
	serve(t, b, pingRoute, echo(b))
	connect(t, a, b)
	good := seal(t, a, pingMsg()).Raw
	otherNet, err := protocol.Seal(a.Key(), "test-other", pingMsg())
	if err != nil {
		t.Fatal(err)
	}
	badForm := seal(t, a, &protocol.Ping{Nonce: []byte("short")})
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	for name, c := range map[string]struct {
		data []byte
		says string
	}{
		"oversize frame, length only": {binary.AppendUvarint(nil, 1<<40), "over its limit"},
		"signed by another":           {appendFrame(nil, seal(t, other, pingMsg()).Raw), "signed by"},
		"of another network":          {appendFrame(nil, otherNet.Raw), "envelope"},
		"of another kind":             {appendFrame(nil, seal(t, a, &protocol.CapacityQuery{}).Raw), "envelope"},
		"bad signature":               {appendFrame(nil, flipped), "envelope"},
		"bad field":                   {appendFrame(nil, badForm.Raw), "nonce"},
		"empty":                       {appendFrame(nil, nil), "envelope"},
	} {
		t.Run(name, func(t *testing.T) {
			status, says, err := raw(t, a, b, pingRoute, c.data)
			if err != nil || status != protocol.StatusBlame || !strings.Contains(says, c.says) {
				t.Errorf("status %d, %q, %v", status, says, err)
			}
		})
	}
	if status, _, err := raw(t, a, b, pingRoute, appendFrame(nil, good)); err != nil || status != protocol.StatusOK {
		t.Errorf("a good request: status %d, %v", status, err)
	}
}

func TestServeLimitsRate(t *testing.T) {
	now := time.Now()
	a, b := newHost(t), newHost(t, func(c *Config) { c.Now = func() time.Time { return now } })
	r := Route{Name: "echo", Timeout: 10 * time.Second, PeerRate: Rate{PerSecond: 1, Burst: 5}}
	serve(t, b, r, echo(b))
	connect(t, a, b)
	answered, refused := 0, 0
	for range 20 {
		switch _, err := call(t, a, b, r); {
		case err == nil:
			answered++
		case errors.Is(err, protocol.ErrRetry):
			refused++
		default:
			t.Fatal(err)
		}
	}
	if answered != 5 || refused != 15 {
		t.Errorf("%d answered and %d refused, want 5 and 15", answered, refused)
	}
	if got := counted(t, b, "echo", "retry"); got != 15 {
		t.Errorf("metrics count %v refusals, want 15", got)
	}
}

func TestServeLimitsRateByAddress(t *testing.T) {
	now := time.Now()
	b := newHost(t, func(c *Config) { c.Now = func() time.Time { return now } })
	r := Route{Name: "echo", Timeout: 10 * time.Second, PeerRate: Rate{1, 100}, IPRate: Rate{1, 3}}
	serve(t, b, r, echo(b))
	answered := 0
	for range 6 {
		a := newHost(t)
		connect(t, a, b)
		if _, err := call(t, a, b, r); err == nil {
			answered++
		}
	}
	if answered != 3 {
		t.Errorf("six peers of one address got %d answers, want 3", answered)
	}
}

func TestServeLimitsPlaces(t *testing.T) {
	a, b := newHost(t), newHost(t)
	r := Route{Name: "slow", Timeout: 30 * time.Second, Concurrent: 2, PerPeer: 2}
	entered, leave := make(chan struct{}), make(chan struct{})
	serve(t, b, r, func(ctx context.Context, from peer.ID, req pingReq) (pingReq, error) {
		entered <- struct{}{}
		<-leave
		return echo(b)(ctx, from, req)
	})
	connect(t, a, b)
	done := make(chan error, 2)
	for range 2 {
		req := seal(t, a, pingMsg())
		go func() {
			_, err := Call[*protocol.Ping, *protocol.Ping](t.Context(), a, b.ID(), r, req)
			done <- err
		}()
		<-entered
	}
	if _, err := call(t, a, b, r); !errors.Is(err, protocol.ErrRetry) {
		t.Errorf("a third at a time: got %v, want a retry", err)
	}
	close(leave)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestSlowlorisIsCutOff(t *testing.T) {
	a, b := newHost(t), newHost(t)
	r := Route{Name: "echo", Timeout: 300 * time.Millisecond}
	serve(t, b, r, echo(b))
	connect(t, a, b)
	// One byte of the frame and then silence: the deadline answers.
	status, says, err := raw(t, a, b, r, []byte{200})
	if err != nil || status != protocol.StatusRetry || !strings.Contains(says, "too long") {
		t.Errorf("status %d, %q, %v", status, says, err)
	}
}

func TestRepeatOffendersAreShutOut(t *testing.T) {
	began := time.Now()
	var passed atomic.Int64 // the host looks at the clock whenever it likes
	a := newHost(t)
	b := newHost(t, func(c *Config) {
		c.refuseAfter, c.refuseFor = 3, time.Minute
		c.Now = func() time.Time { return began.Add(time.Duration(passed.Load())) }
	})
	serve(t, b, pingRoute, echo(b))
	connect(t, a, b)
	bad := appendFrame(nil, seal(t, a, &protocol.Ping{}).Raw)
	for range 3 {
		if !b.blame.refused(a.ID()) {
			_, _, _ = raw(t, a, b, pingRoute, bad)
		}
	}
	if !b.blame.refused(a.ID()) {
		t.Fatal("three invalid requests, and still welcome")
	}
	if _, err := call(t, a, b, pingRoute); err == nil {
		t.Error("a refused peer got an answer")
	}
	passed.Add(int64(2 * time.Minute))
	if b.blame.refused(a.ID()) {
		t.Error("refused for longer than the time set")
	}
}

func TestCallChecksTheAnswer(t *testing.T) {
	a, b, other := newHost(t), newHost(t), newHost(t)
	connect(t, a, b)
	answers := map[string][]byte{
		"oversize":          binary.AppendUvarint([]byte{0}, 1<<40),
		"signed by another": answerFrame(protocol.StatusOK, seal(t, other, pingMsg()).Raw),
		"garbage":           answerFrame(protocol.StatusOK, []byte("garbage")),
	}
	for name, data := range answers {
		b.host.SetStreamHandler(lprotocol.ID(protocol.ID(testNetwork, "lie")), func(st network.Stream) {
			_, _ = st.Write(data)
			_ = st.Close()
		})
		_, err := call(t, a, b, Route{Name: "lie", Timeout: 10 * time.Second})
		if !errors.Is(err, protocol.ErrInvalid) && !errors.Is(err, protocol.ErrTooLarge) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestCallNamesWhatTimedOut(t *testing.T) {
	a, b := newHost(t), newHost(t)
	release := make(chan struct{})
	serve(t, b, Route{Name: "never", Timeout: time.Minute}, func(ctx context.Context, _ peer.ID, _ pingReq) (pingReq, error) {
		<-release
		return pingReq{}, protocol.ErrRetry
	})
	defer close(release)
	connect(t, a, b)
	_, err := call(t, a, b, Route{Name: "never", Timeout: 100 * time.Millisecond})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), b.ID().String()) || !strings.Contains(err.Error(), "never") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Call[*protocol.Ping, *protocol.Ping](ctx, a, b.ID(), Route{Name: "never"}, seal(t, a, pingMsg()))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

func TestCallUnreachableAndUnserved(t *testing.T) {
	a, b := newHost(t), newHost(t)
	connect(t, a, b)
	if _, err := call(t, a, b, Route{Name: "unserved", Timeout: 10 * time.Second}); !errors.Is(err, protocol.ErrElsewhere) {
		t.Errorf("unserved route: got %v", err)
	}
	gone := newHost(t)
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := call(t, a, gone, pingRoute); !errors.Is(err, ErrUnreachable) {
		t.Errorf("unreachable peer: got %v", err)
	}
	if _, err := call(t, a, a, pingRoute); !errors.Is(err, ErrUnreachable) {
		t.Errorf("itself: got %v", err)
	}
}

func TestRawStreams(t *testing.T) {
	a, b := newHost(t), newHost(t)
	r := Route{Name: "bulk", Bulk: true, Memory: 1 << 20}
	if err := b.HandleStream(r, func(_ context.Context, _ peer.ID, st network.Stream) error {
		data, err := io.ReadAll(st)
		if err != nil {
			return err
		}
		if string(data) == "refuse" {
			return protocol.ErrElsewhere
		}
		_, err = st.Write(bytes.ToUpper(data))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	connect(t, a, b)
	send := func(s string) (string, error) {
		st, err := a.OpenStream(limited(t), b.ID(), r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = st.Reset() }()
		if _, err := io.WriteString(st, s); err != nil {
			t.Fatal(err)
		}
		if err := st.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(st)
		return string(data), StreamError(err)
	}
	if got, err := send("hello"); got != "HELLO" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := send("refuse"); !errors.Is(err, protocol.ErrElsewhere) {
		t.Errorf("refused: got %v", err)
	}
}

func TestCloseEndsHandlers(t *testing.T) {
	a, b := newHost(t), newHost(t)
	entered := make(chan struct{})
	if err := b.HandleStream(Route{Name: "wait"}, func(ctx context.Context, _ peer.ID, _ network.Stream) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	}); err != nil {
		t.Fatal(err)
	}
	connect(t, a, b)
	st, err := a.OpenStream(limited(t), b.ID(), Route{Name: "wait"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Reset() }()
	if _, err := st.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	<-entered
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{3, 'a', 'b', 'c'})
	f.Add([]byte{0})
	f.Add(binary.AppendUvarint(nil, 1<<63))
	f.Fuzz(func(t *testing.T, data []byte) {
		body, err := readFrame(bufio.NewReader(bytes.NewReader(data)), 64)
		if err == nil && (len(body) > 64 || !bytes.Contains(data, body)) {
			t.Errorf("%q was read from %q", body, data)
		}
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a cut frame looks like a regular end: %v", err)
		}
	})
}

func FuzzReadAnswer(f *testing.F) {
	f.Add(answerFrame(protocol.StatusOK, []byte("abc")))
	f.Add(answerFrame(protocol.StatusBlame, []byte("no")))
	f.Fuzz(func(t *testing.T, data []byte) {
		status, body, err := readAnswer(bufio.NewReader(bytes.NewReader(data)), 1024)
		if err != nil {
			return
		}
		limit := 1024
		if status != protocol.StatusOK {
			limit = maxDetail
		}
		if len(body) > limit {
			t.Errorf("%d bytes of status %d", len(body), status)
		}
		if words := plain(string(body), maxDetail); strings.ContainsAny(words, "\x1b\n\r\x00") || len(words) > maxDetail {
			t.Errorf("%q is not plain", words)
		}
	})
}

func BenchmarkCall(b *testing.B) {
	x, y := newHost(b), newHost(b)
	r := Route{Name: "echo", PeerRate: Rate{1e9, 1 << 30}, IPRate: Rate{1e9, 1 << 30}}
	serve(b, y, r, echo(y))
	connect(b, x, y)
	req := seal(b, x, pingMsg())
	for b.Loop() {
		if _, err := Call[*protocol.Ping, *protocol.Ping](b.Context(), x, y.ID(), r, req); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHostStart(b *testing.B) {
	for b.Loop() {
		h, err := New(Config{Network: testNetwork, Key: testKey(b), Listen: []string{"/ip4/127.0.0.1/tcp/0"}})
		if err != nil {
			b.Fatal(err)
		}
		if err := h.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func counted(t *testing.T, h *Host, route, status string) float64 {
	t.Helper()
	var m dto.Metric
	if err := h.metrics.requests.WithLabelValues(route, status).Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}
