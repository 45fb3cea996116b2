package content

import (
	"bufio"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
)

// askHave asks a peer of the net what it has.
func askHave(t *testing.T, n *testNet, to string, root cid.Cid) holding {
	t.Helper()
	st, err := n.OpenContent(t.Context(), to, ProtocolHave)
	noErr(t, err)
	defer func() { _ = st.Reset() }()
	noErr(t, st.SetDeadline(time.Now().Add(time.Minute)))
	r, err := refOf(root)
	noErr(t, err)
	_, err = st.Write(appendCID(nil, r))
	noErr(t, err)
	h, err := readHolding(bufio.NewReader(st))
	noErr(t, err)
	return h
}

func TestHaveTellsWhatIsHere(t *testing.T) {
	src, image, _ := exchangeSample(t)
	r, err := refOf(image)
	noErr(t, err)
	order, whole, err := src.walkHere(r)
	noErr(t, err)
	if !whole {
		t.Fatal("not whole at its source")
	}
	n := newTestNet(t)
	n.honest("all", src, quickOptions, nil)
	n.honest("none", testStore(t), quickOptions, nil)
	some := testStore(t)
	for i, b := range order {
		if b.codec != codecRaw || i%3 == 0 {
			data, err := src.get(b, nil)
			noErr(t, err)
			noErr(t, some.put(b.key, data))
		}
	}
	n.honest("some", some, quickOptions, nil)
	if h := askHave(t, n, "all", image); h.kind != haveAll {
		t.Errorf("%+v of all", h)
	}
	if h := askHave(t, n, "none", image); h.kind != haveNone {
		t.Errorf("%+v of nothing", h)
	}
	h := askHave(t, n, "some", image)
	if h.kind != haveSome || h.count != len(order) {
		t.Fatalf("%d of %d", h.count, len(order))
	}
	for i, b := range order {
		if _, here := some.size(b.key); here != h.bits.has(i) {
			t.Errorf("block %d: told %v, is %v", i, h.bits.has(i), here)
		}
	}
}

// What is told counts as uploaded, and an asker for whom there is no room soon
// is told to come again. A single byte is not worth a wait.
func TestHaveKeepsToTheRate(t *testing.T) {
	src, root := fileSample(t, 4<<20)
	n := newTestNet(t)
	o := quickOptions
	o.Stall, o.UploadRate = 2*time.Second, 1<<20
	all, some := n.honest("all", src, o, nil), n.honest("some", branches(t, src, root), o, nil)
	if h := askHave(t, n, "some", root); h.kind != haveSome {
		t.Errorf("answer of kind %d", h.kind)
	}
	for _, e := range []*Exchange{all, some} {
		e.turns.mu.Lock()
		e.turns.tokens = -1 << 40
		e.turns.mu.Unlock()
	}
	if h := askHave(t, n, "some", root); h.kind != haveBusy {
		t.Errorf("answer of kind %d beyond the rate", h.kind)
	}
	if h := askHave(t, n, "all", root); h.kind != haveAll {
		t.Errorf("answer of kind %d", h.kind)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := some.Spend(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("spent beyond the rate: %v", err)
	}
	some.turns.queued(0)
	noErr(t, NewExchange(src, n, quickOptions).Spend(ctx, 1<<40)) // no rate, no wait
}

// The walks remembered are bounded in their number and in what they hold
// together; those used longest ago are forgotten.
func TestWalksRememberedAreBounded(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for _, tt := range []struct{ blocks, kept int }{{1, maxWalked}, {maxDAGLinks / 2, 4}, {maxDAGLinks, 2}} {
		h := holdings{roots: map[ref]*walked{}}
		order := make([]ref, tt.blocks)
		for i := range 3 * maxWalked {
			root := ref{key: key{byte(i)}}
			h.add(root, &walked{order: order, at: now.Add(time.Duration(i))})
			h.add(root, &walked{order: order, at: now.Add(time.Duration(i))}) // walked anew
			if h.roots[root] == nil || len(h.roots) != min(i+1, tt.kept) {
				t.Fatalf("%d walks of %d blocks are remembered, %d should be", len(h.roots), tt.blocks, min(i+1, tt.kept))
			}
			if old := (ref{key: key{byte(i + 1 - tt.kept)}}); i >= tt.kept && h.roots[old] == nil {
				t.Fatalf("walk %d was forgotten before older ones", i+1-tt.kept)
			}
		}
	}
}

// countSent counts the bytes of blocks each peer of a net sends.
func countSent(n *atomic.Int64) func(Stream) Stream {
	return func(st Stream) Stream {
		return spoiled{st, func(p []byte) (int, error) {
			w, err := st.Write(p)
			n.Add(int64(w))
			return w, err
		}}
	}
}

// Eight that fetch at once from a provider leave the renter alone, and each
// other something to do.
func TestSwarmSparesTheOrigin(t *testing.T) {
	src := testStore(t)
	image := imageOf(t, src, makeTar(t, tarEntry{file("data", "").h, string(noise(5, 24<<20))}))
	size, err := DAGSize(t.Context(), src, image)
	noErr(t, err)
	n := newTestNet(t)
	var renter, provider atomic.Int64
	o := quickOptions
	o.UploadRate = 24 << 20
	o.SlotsPerPeer = 64 // all askers of this network have one name
	n.honest("renter", src, o, countSent(&renter))
	n.honest("provider", src, o, countSent(&provider))
	names := []string{"1", "2", "3", "4", "5", "6", "7", "8"}
	stores := map[string]*Store{}
	fetchers := map[string]*Exchange{}
	for _, name := range names {
		stores[name] = testStore(t)
		fetchers[name] = n.honest(name, stores[name], o, nil)
	}
	var wg sync.WaitGroup
	for _, name := range names {
		peers := []string{"provider"}
		for _, other := range names {
			if other != name {
				peers = append(peers, other)
			}
		}
		wg.Go(func() {
			err := fetchers[name].Fetch(t.Context(), image, FetchOptions{Kind: KindImage, Peers: peers, Origins: []string{"renter"}})
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	wg.Wait()
	for _, name := range names {
		wantComplete(t, stores[name], image)
	}
	t.Logf("copies: renter %.2f, provider %.2f", float64(renter.Load())/float64(size.Bytes), float64(provider.Load())/float64(size.Bytes))
	if renter.Load() > int64(size.Bytes)*13/10 {
		t.Errorf("the renter sent %d bytes for an image of %d that a provider has", renter.Load(), size.Bytes)
	}
	if provider.Load() > 6*int64(size.Bytes) {
		t.Errorf("the provider sent %d bytes to eight: they gave nothing to each other", provider.Load())
	}
}

// An origin gives what nobody else has, and all when nobody else is there.
func TestOriginGivesTheRest(t *testing.T) {
	src, image, _ := exchangeSample(t)
	n := newTestNet(t)
	n.honest("renter", src, quickOptions, nil)
	for name, peers := range map[string][]string{"alone": nil, "with one that has nothing": {"empty"}, "with one that is gone": {"nobody"}} {
		t.Run(name, func(t *testing.T) {
			n.honest("empty", testStore(t), quickOptions, nil)
			s := testStore(t)
			noErr(t, NewExchange(s, n, quickOptions).Fetch(t.Context(), image, FetchOptions{Kind: KindImage, Peers: peers, Origins: []string{"renter"}}))
			wantComplete(t, s, image)
		})
	}
}

// until waits until something is so of a fetch.
func (f *fetch) until(t *testing.T, so func() bool) {
	t.Helper()
	late := time.After(time.Minute)
	for {
		f.mu.Lock()
		done, wake := so(), f.wake
		f.mu.Unlock()
		if done {
			return
		}
		select {
		case <-wake:
		case <-late:
			t.Fatal("it never is so")
		}
	}
}

// A liar costs one block, whichever it is.
func TestLiarCostsOneBlock(t *testing.T) {
	src, root := fileSample(t, 24<<20) // noise, so that what is spoiled is a block and no frame
	for name, at := range map[string]int64{"early": 3 << 20, "in the midst": 11 << 20} {
		t.Run(name, func(t *testing.T) {
			n := newTestNet(t)
			n.honest("liar", src, quickOptions, liar(at))
			open := make(chan struct{})
			letB := sync.OnceFunc(func() { close(open) })
			defer letB()
			n.honest("b", src, quickOptions, gated(0, open))
			o := quickOptions
			o.Stall, o.Patience = time.Hour, time.Hour
			o.TailAfter = time.Hour // a range doubled, or a quick start doubled when it stalls, is counted as wasted too
			s := testStore(t)
			e := NewExchange(s, n, o)
			f := e.Start(t.Context(), root, FetchOptions{Peers: []string{"liar", "b"}})
			defer f.Stop()
			f.f.until(t, func() bool { p := f.f.peers["liar"]; return p != nil && p.dead })
			if w := f.Progress().Wasted; !e.Banned("liar") || w > MaxBlock || w == 0 {
				t.Errorf("banned %v, wasted %d", e.Banned("liar"), w)
			}
			letB()
			noErr(t, f.Wait(t.Context()))
			wantComplete(t, s, root)
		})
	}
}

func TestTransfersShow(t *testing.T) {
	src, image, _ := exchangeSample(t)
	n := newTestNet(t)
	from := n.honest("a", src, quickOptions, slow(16<<20))
	e := NewExchange(testStore(t), n, quickOptions)
	var in, out []Transfer
	seen := make(chan struct{})
	noErr(t, e.Fetch(t.Context(), image, FetchOptions{Kind: KindImage, Peers: []string{"a"}, Progress: func(p FetchProgress) {
		if in == nil && p.Received > 4<<20 {
			in, out = e.Transfers(), from.Transfers()
			close(seen)
		}
	}}))
	<-seen
	if len(in) != 1 || !in[0].In || in[0].Root != image || in[0].Bytes == 0 || in[0].Total < in[0].Bytes {
		t.Errorf("fetching: %+v", in)
	}
	if len(out) != 1 || out[0].In || out[0].Peer != "asker" || out[0].Root != image || out[0].Bytes == 0 || out[0].Rate == 0 {
		t.Errorf("serving: %+v", out)
	}
	if left := e.Transfers(); len(left) != 0 {
		t.Errorf("after the end: %+v", left)
	}
}
