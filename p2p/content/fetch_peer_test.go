package content

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
)

// outage is a net whose peers are away from when they have sent a number of
// bytes until they were looked for a number of times.
type outage struct {
	*testNet
	after, looks int64
	sent, looked atomic.Int64
}

var errAway = errors.New("connection refused")

func (o *outage) away() bool { return o.sent.Load() >= o.after && o.looked.Load() < o.looks }

func (o *outage) OpenContent(ctx context.Context, to, protocol string) (Stream, error) {
	if o.away() {
		o.looked.Add(1)
		return nil, errAway
	}
	return o.testNet.OpenContent(ctx, to, protocol)
}

// breaks ends streams when the outage begins.
func (o *outage) breaks(st Stream) Stream {
	return spoiled{st, func(p []byte) (int, error) {
		if o.sent.Add(int64(len(p))); o.away() {
			return 0, errors.Join(errAway, st.Reset())
		}
		return st.Write(p)
	}}
}

// The only peer that has it may be away for longer than it takes to fail at
// reaching it as often as makes a peer one that is away.
func TestFetchOutlastsAnOutage(t *testing.T) {
	src, image, _ := exchangeSample(t)
	o := quickOptions
	o.Patience = time.Minute
	for name, tt := range map[string]struct {
		after int64
		o     FetchOptions
	}{
		"in the midst":           {6 << 20, FetchOptions{Peers: []string{"a"}}},
		"of an origin":           {6 << 20, FetchOptions{Origins: []string{"a"}}},
		"of an origin, at first": {0, FetchOptions{Origins: []string{"a"}}},
		"at first, found later":  {0, FetchOptions{MorePeers: func() []string { return []string{"a"} }}},
	} {
		t.Run(name, func(t *testing.T) {
			n := &outage{testNet: newTestNet(t), after: tt.after, looks: 2*awayAfter + 1}
			n.honest("a", src, o, n.breaks)
			s := testStore(t)
			noErr(t, NewExchange(s, n, o).Fetch(t.Context(), image, tt.o))
			wantComplete(t, s, image)
			if looked := n.looked.Load(); looked != n.looks {
				t.Errorf("%d looks at a peer that is away, %d were due", looked, n.looks)
			}
		})
	}
	t.Run("for ever", func(t *testing.T) {
		n := &outage{testNet: newTestNet(t), after: 6 << 20, looks: 1 << 40}
		n.honest("a", src, o, n.breaks)
		o.Patience = time.Second
		err := NewExchange(testStore(t), n, o).Fetch(t.Context(), image, FetchOptions{Peers: []string{"a"}})
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%v", err)
		}
	})
}

// fileSample puts a file of noise into a store.
func fileSample(t *testing.T, size int) (*Store, cid.Cid) {
	t.Helper()
	s := testStore(t)
	name := filepath.Join(t.TempDir(), "file")
	noErr(t, os.WriteFile(name, noise(3, size), 0o600))
	root, err := Add(t.Context(), s, name, AddOptions{})
	noErr(t, err)
	return s, root.CID
}

// A link on which no stream fills a slab, or ends its range, while Patience
// lasts is slow and not dead.
func TestFetchOverASlowLink(t *testing.T) {
	const bytesPerSecond = 512 << 10
	src, root := fileSample(t, 4<<20)
	n := newTestNet(t)
	n.honest("a", src, quickOptions, slow(bytesPerSecond))
	o := quickOptions
	o.Patience = 4 * time.Second // of the five streams, none has brought 512 KiB by then
	s := testStore(t)
	noErr(t, NewExchange(s, n, o).Fetch(t.Context(), root, FetchOptions{Peers: []string{"a"}}))
	wantComplete(t, s, root)
}

// What came does not wait for long to be stored.
func TestWhatCameIsStored(t *testing.T) {
	src, root := fileSample(t, 4<<20)
	n := newTestNet(t)
	open := make(chan struct{})
	defer close(open)
	n.honest("a", src, quickOptions, gated(3<<19, open)) // less than a slab
	var calls atomic.Int64
	o := quickOptions
	o.Patience, o.Stall, o.TailAfter = 1<<62, time.Hour, time.Hour                 // all comes on one stream
	o.Now = func() time.Time { return time.Unix(1_700_000_000+2*calls.Add(1), 0) } // each look at it takes 2 s
	f := NewExchange(testStore(t), n, o).Start(t.Context(), root, FetchOptions{Peers: []string{"a"}})
	defer f.Stop()
	first, err := refOf(leaves(t, src, root)[0])
	noErr(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	noErr(t, f.await(ctx, first))
}

// branches puts the blocks with links into a new store, so that the leaves are
// what is missing.
func branches(t *testing.T, src *Store, root cid.Cid) *Store {
	t.Helper()
	s := testStore(t)
	noErr(t, src.walk(t.Context(), root, func(l link, _ int, _ bool) error {
		if l.ref.codec == codecRaw {
			return nil
		}
		data, err := src.get(l.ref, nil)
		noErr(t, err)
		return s.put(l.ref.key, data)
	}))
	return s
}

// One that lies is found out on its first stream: it is asked on no other
// before it gave something that is right.
func TestOneStreamUntilProven(t *testing.T) {
	src, image, _ := exchangeSample(t)
	n := newTestNet(t)
	e := NewExchange(src, n, quickOptions)
	asked, lie := make(chan struct{}, 100), make(chan struct{})
	n.serve("liar", func(ctx context.Context, protocol string, st Stream) {
		_ = e.ServeStream(ctx, "asker", protocol, spoiled{st, func(p []byte) (int, error) {
			asked <- struct{}{}
			<-lie
			p = bytes.Clone(p)
			p[len(p)-1] ^= 1
			return st.Write(p)
		}})
	})
	to := NewExchange(branches(t, src, image), n, quickOptions)
	f := to.Start(t.Context(), image, FetchOptions{Peers: []string{"liar"}})
	defer f.Stop()
	<-asked
	f.f.mu.Lock()
	p := f.f.peers["liar"]
	if b := f.f.take(p, laneBulk, rangeBegin); b != nil || p.asked != 1 {
		t.Errorf("%d ranges handed to a peer that has shown nothing", p.asked)
	}
	f.f.mu.Unlock()
	close(lie)
	if err := f.Wait(t.Context()); !errors.Is(err, ErrUnavailable) || !to.Banned("liar") {
		t.Errorf("banned %v: %v", to.Banned("liar"), err)
	}
}

// endings is a net that tells of streams to one peer that are broken off.
type endings struct {
	*testNet
	of    string
	ended chan struct{}
}

type endingStream struct {
	Stream
	ended chan struct{}
}

func (s endingStream) Reset() error {
	select {
	case s.ended <- struct{}{}:
	default:
	}
	return s.Stream.Reset()
}

func (n *endings) OpenContent(ctx context.Context, to, protocol string) (Stream, error) {
	st, err := n.testNet.OpenContent(ctx, to, protocol)
	if err == nil && to == n.of && protocol == ProtocolGet {
		st = endingStream{st, n.ended}
	}
	return st, err
}

// All streams of one that lies end when one of them does, and cost no more than
// the block that was wrong.
func TestLiarsStreamsEnd(t *testing.T) {
	src, image, _ := exchangeSample(t)
	o := quickOptions
	o.Stall = time.Hour // or they would end by that
	o.Patience = time.Hour
	n := &endings{testNet: newTestNet(t), of: "liar", ended: make(chan struct{}, 100)}
	e := NewExchange(src, n, o)
	var full atomic.Int64
	all, over, open := make(chan struct{}), make(chan struct{}), make(chan struct{})
	defer close(over)
	letB := sync.OnceFunc(func() { close(open) })
	defer letB()
	n.serve("liar", func(ctx context.Context, protocol string, st Stream) {
		sent, last := 0, false
		_ = e.ServeStream(ctx, "asker", protocol, spoiled{st, func(p []byte) (int, error) {
			if sent += len(p); sent > 2<<20 && protocol == ProtocolGet && !last { // one lies when all have begun
				if last = full.Add(1) == streamsOfFew; last {
					close(all)
					p = bytes.Clone(p)
					p[len(p)-1] ^= 1
				} else {
					<-over
				}
			}
			return st.Write(p)
		}})
	})
	n.honest("b", src, o, gated(0, open))
	s := branches(t, src, image)
	to := NewExchange(s, n, o)
	f := to.Start(t.Context(), image, FetchOptions{Peers: []string{"liar", "b"}})
	defer f.Stop()
	<-all
	for range streamsOfFew {
		select {
		case <-n.ended:
		case <-time.After(time.Minute):
			t.Fatal("streams of a liar go on")
		}
	}
	if w := f.Progress().Wasted; w == 0 || w > MaxBlock { // once who ended them is done
		t.Errorf("%d bytes wasted on a liar", w)
	}
	if !to.Banned("liar") {
		t.Error("not banned")
	}
	letB()
	noErr(t, f.Wait(t.Context()))
	wantComplete(t, s, image)
}

// However many streams there are, the slabs are not more than their bound, and
// a peer with two leaves some for others.
func TestSlabsAreBounded(t *testing.T) {
	s := newSlabs()
	var greedy, other source
	var lent []*[slabBytes]byte
	for range maxSlabs - slabsSpared {
		b, err := s.take(t.Context(), &greedy)
		noErr(t, err)
		lent = append(lent, b)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.take(gone, &greedy); !errors.Is(err, context.Canceled) {
		t.Errorf("one that has many gets another: %v", err)
	}
	for range streamsPerPeer {
		_, err := s.take(t.Context(), &other)
		noErr(t, err)
	}
	got := make(chan error)
	go func() {
		_, err := s.take(t.Context(), &other)
		got <- err
	}()
	for range streamsPerPeer + 1 {
		s.give(&greedy, lent[0])
		lent = lent[1:]
	}
	noErr(t, <-got)
	if s.free != slabsSpared || other.slabs != streamsPerPeer+1 {
		t.Errorf("%d free, %d lent", s.free, other.slabs)
	}
	for s.free > 0 {
		_, err := s.take(t.Context(), new(source))
		noErr(t, err)
	}
	if _, err := s.take(gone, new(source)); !errors.Is(err, context.Canceled) {
		t.Errorf("one more than there are: %v", err)
	}
}

// An answer to dag/1 for whose walk there is no room ends early, and the rest
// comes by get/1; a walk gives back what it took.
func TestWalksAreBounded(t *testing.T) {
	src, image, folder := exchangeSample(t)
	n := newTestNet(t)
	served := n.honest("a", src, quickOptions, nil)
	for _, used := range []int64{0, maxWalks} {
		served.walks.used.Store(used)
		for _, root := range []cid.Cid{image, folder} {
			s := testStore(t)
			noErr(t, NewExchange(s, n, quickOptions).Fetch(t.Context(), root, FetchOptions{Peers: []string{"a"}}))
			wantComplete(t, s, root)
		}
		for deadline := time.Now().Add(time.Minute); served.walks.used.Load() != used; {
			if time.Now().After(deadline) {
				t.Fatalf("%d blocks in walks, %d were", served.walks.used.Load(), used)
			}
			runtime.Gosched()
		}
	}
	r, err := refOf(folder)
	noErr(t, err)
	b := newBreadth(r)
	b.walks = &served.walks
	if b.add([]link{{ref: ref{codec: codecPB}}}); !b.cut || len(b.queue) != 1 {
		t.Errorf("a walk beyond the bound has %d blocks", len(b.queue))
	}
}
