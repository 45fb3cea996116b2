package content

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"golang.org/x/time/rate"
)

// tcpStream is a Stream over a loopback connection.
type tcpStream struct{ *net.TCPConn }

func (s tcpStream) Reset() error {
	return errors.Join(s.SetLinger(0), s.Close())
}

// testNet connects exchanges by loopback TCP.
type testNet struct {
	t     testing.TB
	mu    sync.Mutex
	addr  map[string]string
	opens map[string]int
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

func newTestNet(t testing.TB) *testNet {
	n := &testNet{t: t, addr: map[string]string{}, opens: map[string]int{}, conns: map[net.Conn]struct{}{}}
	t.Cleanup(func() { // after every listener's own
		n.mu.Lock()
		for c := range n.conns {
			_ = c.Close()
		}
		n.mu.Unlock()
		n.wg.Wait()
	})
	return n
}

func (n *testNet) OpenContent(ctx context.Context, to, protocol string) (Stream, error) {
	n.mu.Lock()
	addr, ok := n.addr[to]
	n.opens[to]++
	n.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("no address of %s", to)
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(c, protocol+"\n"); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return tcpStream{c.(*net.TCPConn)}, nil
}

// serve listens for a peer. handle is what it does with a stream.
func (n *testNet) serve(id string, handle func(ctx context.Context, protocol string, st Stream)) {
	l, err := new(net.ListenConfig).Listen(n.t.Context(), "tcp", "127.0.0.1:0")
	noErr(n.t, err)
	n.mu.Lock()
	n.addr[id] = l.Addr().String()
	n.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	n.t.Cleanup(func() {
		cancel()
		_ = l.Close()
	})
	n.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.mu.Lock()
			n.conns[c] = struct{}{}
			n.mu.Unlock()
			n.wg.Go(func() {
				defer func() {
					_ = c.Close()
					n.mu.Lock()
					delete(n.conns, c)
					n.mu.Unlock()
				}()
				protocol, st, err := greet(c)
				if err == nil {
					handle(ctx, protocol, st)
				}
			})
		}
	})
}

// greet reads the protocol's name byte by byte, so that nothing behind it is taken.
func greet(c net.Conn) (string, Stream, error) {
	var name []byte
	var b [1]byte
	for len(name) < 32 {
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return "", nil, err
		}
		if b[0] == '\n' {
			break
		}
		name = append(name, b[0])
	}
	return string(name), tcpStream{c.(*net.TCPConn)}, nil
}

// honest serves a store as it is; wrap may spoil its streams.
func (n *testNet) honest(id string, s *Store, o ExchangeOptions, wrap func(Stream) Stream) *Exchange {
	e := NewExchange(s, n, o)
	n.serve(id, func(ctx context.Context, protocol string, st Stream) {
		if wrap != nil {
			st = wrap(st)
		}
		_ = e.ServeStream(ctx, "asker", "/lumbung/test/content/"+protocol, st) // how it ends is the asker's matter here
	})
	return e
}

// spoiled passes everything through write.
type spoiled struct {
	Stream
	write func(p []byte) (int, error)
}

func (s spoiled) Write(p []byte) (int, error) { return s.write(p) }

// liar flips a bit in the nth byte a peer sends over all its streams.
func liar(n int64) func(Stream) Stream {
	var sent atomic.Int64
	return func(st Stream) Stream {
		return spoiled{st, func(p []byte) (int, error) {
			end := sent.Add(int64(len(p)))
			if i := n - (end - int64(len(p))); i >= 0 && i < int64(len(p)) {
				p = bytes.Clone(p)
				p[i] ^= 1
			}
			return st.Write(p)
		}}
	}
}

// slow sends bytesPerSecond.
func slow(bytesPerSecond int) func(Stream) Stream {
	l := rate.NewLimiter(rate.Limit(bytesPerSecond), 4<<10)
	return func(st Stream) Stream {
		return spoiled{st, func(p []byte) (int, error) {
			done := 0
			for done < len(p) {
				piece := p[done:min(len(p), done+4<<10)]
				if err := l.WaitN(context.Background(), len(piece)); err != nil {
					return done, err
				}
				n, err := st.Write(piece)
				done += n
				if err != nil {
					return done, err
				}
			}
			return done, nil
		}}
	}
}

// mortal is gone for good after n bytes.
func mortal(n int64) func(Stream) Stream {
	var sent atomic.Int64
	return func(st Stream) Stream {
		return spoiled{st, func(p []byte) (int, error) {
			if sent.Add(int64(len(p))) > n {
				_ = st.Reset()
				return 0, io.ErrClosedPipe
			}
			return st.Write(p)
		}}
	}
}

var quickOptions = ExchangeOptions{Stall: 3 * time.Second, TailAfter: 50 * time.Millisecond, RetryAfter: 20 * time.Millisecond, Patience: 10 * time.Second}

// exchangeSample puts an image and a folder into a store.
func exchangeSample(t testing.TB) (s *Store, image, folder cid.Cid) {
	t.Helper()
	s = testStore(t)
	big := makeTar(t, tarEntry{file("data", "").h, string(noise(5, 24<<20))})
	image = imageOf(t, s, big, bigLayer(t))
	dir := filepath.Join(t.TempDir(), "in")
	noErr(t, os.MkdirAll(filepath.Join(dir, "many"), 0o755))
	for i := range 800 {
		noErr(t, os.WriteFile(filepath.Join(dir, "many", fmt.Sprintf("%04d", i)), noise(uint64(i), 4096), 0o644))
	}
	noErr(t, os.WriteFile(filepath.Join(dir, "large"), noise(77, 9<<20), 0o600))
	root, err := Add(t.Context(), s, dir, AddOptions{})
	noErr(t, err)
	return s, image, root.CID
}

func wantComplete(t testing.TB, s *Store, root cid.Cid) {
	t.Helper()
	have, total, complete, err := Missing(t.Context(), s, root)
	if err != nil || !complete || have != total {
		t.Fatalf("%s: %d of %d, complete %v: %v", root, have, total, complete, err)
	}
	noErr(t, s.walk(t.Context(), root, func(l link, _ int, _ bool) error {
		_, err := s.get(l.ref, nil)
		return err
	}))
}

// Whoever the peers are, as long as every block is with one honest peer the
// fetch completes, and nothing but true blocks is kept.
func TestFetchConformance(t *testing.T) {
	src, image, folder := exchangeSample(t)
	type peerSet func(t *testing.T, n *testNet) (peers []string, banned string)
	add := func(wrap func(Stream) Stream) func(n *testNet, id string) {
		return func(n *testNet, id string) { n.honest(id, src, quickOptions, wrap) }
	}
	partial := func(t *testing.T, n *testNet, id string, root cid.Cid, part, of int) {
		s := testStore(t)
		i := 0
		noErr(t, src.walk(t.Context(), root, func(l link, _ int, _ bool) error {
			if i++; i%of != part {
				return nil
			}
			data, err := src.get(l.ref, nil)
			noErr(t, err)
			return s.put(l.ref.key, data)
		}))
		n.honest(id, s, quickOptions, nil)
	}
	for _, root := range []struct {
		name string
		c    cid.Cid
		kind Kind
	}{{"image", image, KindImage}, {"folder", folder, KindDAG}} {
		for name, set := range map[string]peerSet{
			"one": func(_ *testing.T, n *testNet) ([]string, string) {
				add(nil)(n, "a")
				return []string{"a"}, ""
			},
			"three": func(_ *testing.T, n *testNet) ([]string, string) {
				add(nil)(n, "a")
				add(nil)(n, "b")
				add(nil)(n, "c")
				return []string{"a", "b", "c"}, ""
			},
			"liar at the first byte": func(_ *testing.T, n *testNet) ([]string, string) {
				add(liar(30))(n, "liar")
				add(nil)(n, "b")
				return []string{"liar", "b"}, "liar"
			},
			"liar in the middle": func(_ *testing.T, n *testNet) ([]string, string) {
				add(liar(3<<20))(n, "liar") // of 9 MiB and more, while the other brings little
				add(slow(4<<20))(n, "b")
				return []string{"liar", "b"}, "liar"
			},
			"slow": func(_ *testing.T, n *testNet) ([]string, string) {
				add(slow(100<<10))(n, "slow")
				add(nil)(n, "b")
				return []string{"slow", "b"}, ""
			},
			"dies": func(_ *testing.T, n *testNet) ([]string, string) {
				add(mortal(3<<20))(n, "mortal")
				add(nil)(n, "b")
				return []string{"mortal", "b"}, ""
			},
			"never there": func(_ *testing.T, n *testNet) ([]string, string) {
				add(nil)(n, "b")
				return []string{"nobody", "b"}, ""
			},
			"mute": func(_ *testing.T, n *testNet) ([]string, string) {
				n.serve("mute", func(ctx context.Context, _ string, st Stream) { <-ctx.Done(); _ = st.Reset() })
				add(nil)(n, "b")
				return []string{"mute", "b"}, ""
			},
			"babbler": func(_ *testing.T, n *testNet) ([]string, string) {
				n.serve("babbler", func(_ context.Context, _ string, st Stream) {
					_, _ = st.Write(noise(3, 1<<20))
					_, _ = io.Copy(io.Discard, st)
				})
				add(nil)(n, "b")
				return []string{"babbler", "b"}, "babbler"
			},
			"halves": func(t *testing.T, n *testNet) ([]string, string) {
				partial(t, n, "odd", root.c, 1, 2)
				partial(t, n, "even", root.c, 0, 2)
				return []string{"odd", "even"}, ""
			},
			"nothing and all": func(t *testing.T, n *testNet) ([]string, string) {
				n.honest("empty", testStore(t), quickOptions, nil)
				add(nil)(n, "b")
				return []string{"empty", "b"}, ""
			},
		} {
			t.Run(root.name+"/"+name, func(t *testing.T) {
				n := newTestNet(t)
				peers, banned := set(t, n)
				s := testStore(t)
				e := NewExchange(s, n, quickOptions)
				var last FetchProgress
				noErr(t, e.Fetch(t.Context(), root.c, FetchOptions{Kind: root.kind, Peers: peers, Progress: func(p FetchProgress) { last = p }}))
				wantComplete(t, s, root.c)
				sz, err := DAGSize(t.Context(), s, root.c)
				noErr(t, err)
				if last.HaveBytes != sz.Bytes || last.TotalBytes != sz.Bytes {
					t.Errorf("progress %+v, DAG %+v", last, sz)
				}
				if got := s.Stats().Bytes; got != sz.Bytes {
					t.Errorf("%d bytes stored for a DAG of %d", got, sz.Bytes)
				}
				for _, p := range peers {
					if e.Banned(p) != (p == banned) {
						t.Errorf("%s banned: %v", p, e.Banned(p))
					}
				}
			})
		}
	}
}

func TestFetchedImageUnpacks(t *testing.T) {
	src, image, _ := exchangeSample(t)
	n := newTestNet(t)
	n.honest("a", src, quickOptions, nil)
	s := testStore(t)
	noErr(t, NewExchange(s, n, quickOptions).Fetch(t.Context(), image, FetchOptions{Kind: KindImage, Peers: []string{"a"}}))
	a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	noErr(t, Unpack(t.Context(), src, image, a))
	noErr(t, Unpack(t.Context(), s, image, b))
	if tree(t, a) != tree(t, b) {
		t.Error("images differ")
	}
}

// Nothing that is here is fetched again: not after a kill, not in another image.
func TestFetchOnlyWhatIsMissing(t *testing.T) {
	src := testStore(t)
	shared, own := makeTar(t, tarEntry{file("data", "").h, string(noise(5, 24<<20))}), makeTar(t, file("a", "1"))
	first, second := imageOf(t, src, shared), imageOf(t, src, shared, own)
	n := newTestNet(t)
	n.honest("dies", src, quickOptions, mortal(14<<20))
	hasty := quickOptions
	hasty.Patience = 3 * time.Second
	n.honest("b", src, quickOptions, nil)
	dir := t.TempDir()
	s := openStore(t, dir)
	e := NewExchange(s, n, hasty)
	err := e.Fetch(t.Context(), first, FetchOptions{Kind: KindImage, Peers: []string{"dies"}})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "dies: ") {
		t.Fatalf("%v", err)
	}
	have, total, complete, err := Missing(t.Context(), s, first)
	if err != nil || complete || have < 4<<20 || have >= total {
		t.Fatalf("after the break: %d of %d %v %v", have, total, complete, err)
	}
	// What a kill leaves is what is on disk now.
	crashed := t.TempDir()
	noErr(t, os.CopyFS(crashed, os.DirFS(dir)))
	s = openStore(t, crashed)
	e = NewExchange(s, n, quickOptions)
	var last FetchProgress
	fetch := func(root cid.Cid) {
		noErr(t, e.Fetch(t.Context(), root, FetchOptions{Kind: KindImage, Peers: []string{"b"}, Progress: func(p FetchProgress) { last = p }}))
		wantComplete(t, s, root)
	}
	fetch(first)
	if last.Received > total-have+1<<10 {
		t.Errorf("received %d, %d were missing", last.Received, total-have)
	}
	fetch(first)
	if last.Received != 0 {
		t.Errorf("received %d of what was all there", last.Received)
	}
	// The second image shares its first layer: its chunks come once at most in
	// the first round trip's few MiB.
	fetch(second)
	if last.Received-last.Wasted > 32<<10 {
		t.Errorf("received %+v for one small layer", last)
	}
}

func TestFetchRefuses(t *testing.T) {
	src, image, folder := exchangeSample(t)
	n := newTestNet(t)
	n.honest("a", src, quickOptions, nil)
	n.honest("empty", testStore(t), quickOptions, nil)
	ask := func(root cid.Cid, o FetchOptions) error {
		return NewExchange(testStore(t), n, quickOptions).Fetch(t.Context(), root, o)
	}
	if err := ask(image, FetchOptions{Kind: KindImage, Peers: []string{"a"}, MaxBytes: 20 << 20}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("larger than agreed: %v", err)
	}
	if err := ask(folder, FetchOptions{Kind: KindImage, Peers: []string{"a"}}); !errors.Is(err, ErrMalformed) {
		t.Errorf("a folder as image: %v", err)
	}
	err := ask(image, FetchOptions{Peers: []string{"empty", "nobody"}})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "empty: ") || !strings.Contains(err.Error(), "no address of nobody") {
		t.Errorf("nobody has it: %v", err)
	}
	if err := ask(image, FetchOptions{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("no peers: %v", err)
	}
	sz, err := DAGSize(t.Context(), src, image)
	noErr(t, err)
	noErr(t, ask(image, FetchOptions{Kind: KindImage, Peers: []string{"a"}, MaxBytes: sz.Bytes}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := NewExchange(testStore(t), n, quickOptions).Fetch(ctx, image, FetchOptions{Peers: []string{"a"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Peers found later are asked too.
func TestFetchMorePeers(t *testing.T) {
	src, image, _ := exchangeSample(t)
	n := newTestNet(t)
	n.honest("late", src, quickOptions, nil)
	s := testStore(t)
	noErr(t, NewExchange(s, n, quickOptions).Fetch(t.Context(), image, FetchOptions{Kind: KindImage, MorePeers: func() []string { return []string{"late"} }}))
	wantComplete(t, s, image)
}

// A peer that is fetching serves what it has.
func TestFetchFromOneThatFetches(t *testing.T) {
	src, image, _ := exchangeSample(t)
	n := newTestNet(t)
	n.honest("src", src, quickOptions, slow(12<<20))
	mid, end := testStore(t), testStore(t)
	em := n.honest("mid", mid, quickOptions, nil)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := em.Fetch(t.Context(), image, FetchOptions{Kind: KindImage, Peers: []string{"src"}}); err != nil {
			t.Error(err)
		}
	})
	patient := quickOptions
	patient.RetryAfter = time.Second
	err := NewExchange(end, n, patient).Fetch(t.Context(), image, FetchOptions{Kind: KindImage, Peers: []string{"mid"}, MorePeers: func() []string { return nil }})
	wg.Wait()
	noErr(t, err)
	wantComplete(t, end, image)
}

func TestServeLimits(t *testing.T) {
	src, image, _ := exchangeSample(t)
	n := newTestNet(t)
	o := quickOptions
	o.Slots, o.SlotsPerPeer, o.Idle = 1, 1, 5*time.Second // longer than it takes to refuse the second
	n.honest("a", src, o, nil)
	open := func() *bufio.Reader {
		st, err := n.OpenContent(t.Context(), "a", ProtocolGet)
		noErr(t, err)
		t.Cleanup(func() { _ = st.Close() })
		noErr(t, st.SetDeadline(time.Now().Add(time.Minute)))
		r, err := refOf(image)
		noErr(t, err)
		_, err = st.Write(appendAsk(nil, []ref{r}))
		noErr(t, err)
		return bufio.NewReader(st)
	}
	first := open()
	if b, err := first.ReadByte(); err != nil || b != groupBlocks {
		t.Fatalf("%d %v", b, err)
	}
	if b, err := open().ReadByte(); err != nil || b != groupBusy {
		t.Errorf("over the slots: %d %v", b, err)
	}
	if _, err := io.Copy(io.Discard, first); err == nil { // ends by itself: it asks nothing
		t.Log("closed")
	}
	// The slot is free again, and a fetch that found it taken gets through.
	s := testStore(t)
	noErr(t, NewExchange(s, n, quickOptions).Fetch(t.Context(), image, FetchOptions{Kind: KindImage, Peers: []string{"a"}}))
	wantComplete(t, s, image)
}

func TestServeRefusesNonsense(t *testing.T) {
	src, image, _ := exchangeSample(t)
	n := newTestNet(t)
	got := make(chan error, 1)
	e := NewExchange(src, n, quickOptions)
	n.serve("a", func(ctx context.Context, protocol string, st Stream) { got <- e.ServeStream(ctx, "x", protocol, st) })
	r, err := refOf(image)
	noErr(t, err)
	long := make([]ref, maxAsk+1)
	for _, tc := range []struct {
		protocol string
		ask      []byte
		want     error
	}{
		{ProtocolGet, nil, nil},
		{ProtocolGet, []byte{0}, ErrProtocol},
		{ProtocolGet, appendAsk(nil, long), ErrProtocol},
		{ProtocolGet, appendAsk(nil, []ref{r})[:10], io.ErrUnexpectedEOF}, // it went away: no offence
		{ProtocolGet, bytes.Repeat([]byte{0xff}, 20), ErrProtocol},
		{ProtocolDAG, nil, io.ErrUnexpectedEOF},
		{ProtocolHave, nil, nil},
		{ProtocolHave, []byte{3, 1, 2, 3}, ErrProtocol},
		{ProtocolHave, appendCID(nil, r)[:9], io.ErrUnexpectedEOF},
		{ProtocolDAG, appendDAGAsk(nil, r, 1), nil},
		{"put/1", nil, ErrProtocol},
	} {
		st, err := n.OpenContent(t.Context(), "a", tc.protocol)
		noErr(t, err)
		_, _ = st.Write(tc.ask) // the other side may have gone already
		_ = st.CloseWrite()
		if err := <-got; !errors.Is(err, tc.want) {
			t.Errorf("%s %x: %v, want %v", tc.protocol, tc.ask, err, tc.want)
		}
		_ = st.Close()
	}
}

func TestBansAreBoundedAndEnd(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	e := NewExchange(testStore(t), nil, ExchangeOptions{Now: func() time.Time { return now }, BanFor: time.Minute})
	for i := range maxBans + 1 {
		e.ban(fmt.Sprint(i), ErrLiar)
		now = now.Add(time.Millisecond)
	}
	if len(e.bans) != maxBans || e.Banned("0") || !e.Banned("1") {
		t.Errorf("%d bans", len(e.bans))
	}
	now = now.Add(time.Minute)
	if e.Banned("1") {
		t.Error("banned for ever")
	}
}
