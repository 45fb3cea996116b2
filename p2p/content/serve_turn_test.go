package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// queued waits until n turns are waited for.
func (t *turns) queued(n int) {
	for {
		t.mu.Lock()
		have := len(t.queues[0]) + len(t.queues[1])
		t.mu.Unlock()
		if have == n {
			return
		}
		runtime.Gosched()
	}
}

// Those ahead come first, and one in eight of the others all the same.
func TestTurnsOrder(t *testing.T) {
	turns := newTurns(1, 0, time.Now)
	alive := func() error { return nil }
	hold, err := turns.take(t.Context(), false, 1, time.Minute, alive)
	noErr(t, err)
	order := make(chan byte, 40)
	done := make(chan struct{})
	start := func(first bool, name byte, n int) {
		turns.queued(n)
		go func() {
			give, err := turns.take(t.Context(), first, 1, time.Minute, alive)
			if err == nil {
				order <- name
				give.give()
			}
			done <- struct{}{}
		}()
	}
	n := 0
	for range 4 {
		start(false, 'o', n)
		n++
	}
	for range 20 {
		start(true, 'f', n)
		n++
	}
	turns.queued(n)
	hold.give()
	for range n {
		<-done
	}
	close(order)
	var got []byte
	for b := range order {
		got = append(got, b)
	}
	if want := "fffffffofffffffoffffffoo"; string(got) != want {
		t.Errorf("order %s, want %s", got, want)
	}
}

// Those without priority hold three turns of four at most, and those whose
// peers take nothing hold none.
func TestTurnsKept(t *testing.T) {
	turns := newTurns(4, 0, time.Now)
	alive := func() error { return nil }
	took := make(chan *turn)
	start := func(first bool) {
		go func() {
			w, err := turns.take(t.Context(), first, 1, time.Minute, alive)
			if err != nil {
				t.Error(err)
			}
			took <- w
		}()
	}
	var held []*turn
	for range 3 {
		start(false)
		held = append(held, <-took)
	}
	start(false)
	turns.queued(1)
	start(true) // the fourth turn is not for the one who waits
	lease := <-took
	held[0].blocked(true)
	held[0].blocked(true)
	fourth := <-took
	held[0].blocked(false) // it is written again: one more than there are
	start(true)
	turns.queued(1)
	fourth.give()
	turns.queued(1)
	lease.give()
	second := <-took
	second.give()
	for _, w := range held {
		w.give()
	}
	if turns.free != 4 || turns.others != 0 || turns.aside != 0 {
		t.Errorf("%d turns free of 4, %d held by others, %d aside", turns.free, turns.others, turns.aside)
	}
}

func TestTurnsRate(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	turns := newTurns(4, 1000, func() time.Time { return now })
	alive := func() error { return nil }
	give, err := turns.take(t.Context(), false, 3000, time.Minute, alive)
	noErr(t, err)
	give.give()
	turns.mu.Lock()
	wait := turns.wait()
	turns.mu.Unlock()
	if wait != 3*time.Second {
		t.Errorf("3000 bytes at 1000 a second: wait %v", wait)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := turns.take(ctx, false, 1, time.Minute, alive); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait given up: %v", err)
	}
	gone := errors.New("gone")
	if _, err := turns.take(t.Context(), true, 1, time.Millisecond, func() error { return gone }); !errors.Is(err, gone) {
		t.Errorf("a peer that went: %v", err)
	}
	turns.queued(0)
	now = now.Add(3 * time.Second)
	give, err = turns.take(t.Context(), false, 1, time.Minute, alive)
	noErr(t, err)
	give.give()
}

// A rate holds for all peers together, and a waiting asker is kept from
// thinking that its peer is gone.
func TestUploadRate(t *testing.T) {
	src, image, _ := exchangeSample(t)
	n := newTestNet(t)
	o := quickOptions
	o.UploadRate = 20 << 20
	served := n.honest("a", src, o, nil)
	patient := quickOptions
	patient.Stall = 3 * time.Second
	start := time.Now()
	s := testStore(t)
	noErr(t, NewExchange(s, n, patient).Fetch(t.Context(), image, FetchOptions{Kind: KindImage, Peers: []string{"a"}}))
	wantComplete(t, s, image)
	if took := time.Since(start); took < time.Second {
		t.Errorf("33 MB at 20 MiB a second took %v", took)
	}
	if served.group >= groupBytes*8 || served.group < firstGroup {
		t.Errorf("groups of %d bytes", served.group)
	}
}

func TestPriorityHasPlaces(t *testing.T) {
	e := NewExchange(testStore(t), nil, ExchangeOptions{Slots: 4, Priority: func(p string) bool { return p == "job" }})
	for _, p := range []string{"a", "b", "c", "d"} {
		if _, ok := e.admit(p, false); !ok {
			t.Fatalf("%s has no place", p)
		}
	}
	if _, ok := e.admit("e", false); ok {
		t.Error("a fifth has a place of four")
	}
	c, ok := e.admit("job", false)
	if !ok || !c.first.Load() {
		t.Error("who fetches for a job has none of the places kept for such")
	}
	if _, ok := e.admit("job", false); ok {
		t.Error("more places than there are")
	}
	if _, ok := e.admit("e", true); !ok {
		t.Error("no place to ask what is here")
	}
}

func TestBansOutlastTheProcess(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	file := filepath.Join(t.TempDir(), "sub", "bans.json")
	o := ExchangeOptions{Now: func() time.Time { return now }, BanFor: time.Minute, BanFile: file}
	s := testStore(t)
	NewExchange(s, nil, o).ban("broken", ErrProtocol)
	NewExchange(s, nil, o).ban("liar", ErrLiar)
	e := NewExchange(s, nil, o)
	if !e.Banned("broken") || !e.Banned("liar") || e.Banned("other") {
		t.Errorf("after a restart: %v", e.bans)
	}
	now = now.Add(30 * time.Second)
	e = NewExchange(s, nil, o)
	if !e.Banned("broken") || e.Banned("liar") {
		t.Errorf("30 s later: %v", e.bans)
	}
	e.ban("liar", ErrLiar) // the first lie was not forgotten
	now = now.Add(30 * time.Second)
	if e = NewExchange(s, nil, o); e.Banned("broken") || !e.Banned("liar") {
		t.Errorf("30 s after a second lie: %v", e.bans)
	}
	now = now.Add(-time.Hour) // a clock set back makes no ban longer
	if e := NewExchange(s, nil, o); e.Banned("liar") || len(e.bans) != 0 {
		t.Error("banned for longer than bans last")
	}
	noErr(t, os.WriteFile(file, []byte("{"), 0o600))
	if e := NewExchange(s, nil, o); len(e.bans) != 0 {
		t.Error("bans of a broken file")
	}
}

// One lie is forgiven soon, and a second one is not; nor is a broken protocol.
func TestBansByOffence(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	type offence struct {
		at  time.Duration
		why error
	}
	for name, tt := range map[string]struct {
		offences []offence
		until    time.Duration
	}{
		"one lie":                    {[]offence{{0, ErrLiar}}, firstBan},
		"on two streams":             {[]offence{{0, ErrLiar}, {time.Second, ErrLiar}}, firstBan + time.Second},
		"two lies":                   {[]offence{{0, ErrLiar}, {firstBan, ErrLiar}}, firstBan + time.Hour},
		"two far apart":              {[]offence{{0, ErrLiar}, {time.Hour, ErrLiar}}, time.Hour + firstBan},
		"broken protocol":            {[]offence{{0, fmt.Errorf("group: %w", ErrProtocol)}}, time.Hour},
		"a lie, and broken protocol": {[]offence{{0, ErrLiar}, {time.Second, ErrProtocol}}, time.Hour + time.Second},
		"broken protocol, and a lie": {[]offence{{0, ErrProtocol}, {time.Second, ErrLiar}}, time.Hour},
	} {
		now := start
		e := NewExchange(testStore(t), nil, ExchangeOptions{Now: func() time.Time { return now }})
		for _, o := range tt.offences {
			now = start.Add(o.at)
			e.ban("a", o.why)
		}
		now = start.Add(tt.until - 1)
		before := e.Banned("a")
		now = start.Add(tt.until)
		if !before || e.Banned("a") {
			t.Errorf("%s: not banned for %v but until %v", name, tt.until, e.bans["a"].Until.Sub(start))
		}
	}
}

// A bit that flips on the disk of an honest peer while its blocks are trusted
// costs it half a minute: it finds the block as the asker hangs up.
func TestFlippedBitIsForgiven(t *testing.T) {
	src, root := fileSample(t, 4<<20)
	bad := leaves(t, src, root)[2]
	r, err := refOf(bad)
	noErr(t, err)
	data, err := src.Get(t.Context(), bad)
	noErr(t, err)
	for name, to := range map[string]*Store{"dag": testStore(t), "get": branches(t, src, root)} {
		t.Run(name, func(t *testing.T) {
			noErr(t, src.put(r.key, data))
			flip(t, src, r, 5)
			n := newTestNet(t)
			served := n.honest("a", src, quickOptions, nil)
			var off atomic.Int64
			o := quickOptions
			o.Now = func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
			e := NewExchange(to, n, o)
			fetch := func() error { return e.Fetch(t.Context(), root, FetchOptions{Peers: []string{"a"}}) }
			if err := fetch(); !errors.Is(err, ErrUnavailable) || !e.Banned("a") {
				t.Fatalf("banned %v: %v", e.Banned("a"), err)
			}
			served.idle(t)
			off.Add(int64(firstBan))
			if err := fetch(); !errors.Is(err, ErrUnavailable) || e.Banned("a") {
				t.Fatalf("banned again %v: %v", e.Banned("a"), err)
			}
			if src.Has(bad) {
				t.Error("the damaged block is still there")
			}
			noErr(t, src.put(r.key, data))
			noErr(t, fetch())
			wantComplete(t, to, root)
		})
	}
}

// idle waits until no stream is served.
func (e *Exchange) idle(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
		e.mu.Lock()
		n := len(e.peers)
		e.mu.Unlock()
		switch {
		case n == 0:
			return
		case time.Now().After(deadline):
			t.Fatal("streams are still served")
		}
	}
}

// A fetch that ends well takes no trust away from what it was given.
func TestTrustOutlastsAFetch(t *testing.T) {
	src, root := fileSample(t, 24<<20)
	n := newTestNet(t)
	served := n.honest("a", src, quickOptions, nil)
	noErr(t, NewExchange(testStore(t), n, quickOptions).Fetch(t.Context(), root, FetchOptions{Peers: []string{"a"}}))
	served.idle(t)
	src.mu.Lock()
	defer src.mu.Unlock()
	for k, e := range src.blocks {
		if e.verified == 0 {
			t.Errorf("block %x is hashed again", k[:4])
		}
	}
}

// What ends a stream is the asker's fault only when its bytes are wrong.
func TestDisconnectIsNoOffence(t *testing.T) {
	r, err := refOf(putRaw(t, testStore(t), []byte("x")))
	noErr(t, err)
	whole := appendAsk(nil, []ref{r, r})
	for n := 1; n < len(whole); n++ {
		if _, err := readAsk(bytes.NewReader(whole[:n]), nil); errors.Is(err, ErrProtocol) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d of %d bytes: %v", n, len(whole), err)
		}
	}
	g := newGroupReader(bytes.NewReader([]byte{groupBlocks, 2, headBlock + 5}))
	if _, _, err := g.next(); errors.Is(err, ErrProtocol) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an answer cut off: %v", err)
	}
}

// pipeStream is a Stream without any buffer: what is not read blocks.
type pipeStream struct{ net.Conn }

func (pipeStream) CloseWrite() error { return nil }
func (s pipeStream) Reset() error    { return s.Close() }

// As many strangers as there are turns that ask and then read nothing keep
// neither each other nor one with a lease waiting.
func TestSlowReadersHoldNoTurns(t *testing.T) {
	src, image, _ := exchangeSample(t)
	r, err := refOf(leaves(t, src, image)[0])
	noErr(t, err)
	o := quickOptions
	o.Stall = time.Hour // so that none is given up
	o.Priority = func(peer string) bool { return peer == "job" }
	e := NewExchange(src, nil, o)
	var served sync.WaitGroup
	defer served.Wait()
	writes := make(chan struct{}, 100)
	ask := func(peer string) net.Conn {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { _ = ours.Close() })
		served.Go(func() {
			_ = e.ServeStream(t.Context(), peer, ProtocolGet, spoiled{pipeStream{theirs}, func(p []byte) (int, error) {
				writes <- struct{}{}
				return theirs.Write(p)
			}})
		})
		_, err := ours.Write(appendAsk(nil, []ref{r}))
		noErr(t, err)
		return ours
	}
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for i := range e.o.Uploads {
		open = append(open, ask(fmt.Sprint("stranger ", i)))
	}
	for i := range e.o.Uploads {
		select {
		case <-writes:
		case <-time.After(time.Minute):
			t.Fatalf("%d of %d strangers have a turn", i, e.o.Uploads)
		}
	}
	c := ask("job")
	open = append(open, c)
	noErr(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
	g := newGroupReader(c)
	if kind, heads, err := g.next(); err != nil || kind != groupBlocks || heads[0] < headBlock {
		t.Fatalf("one with a lease got %d %v: %v", kind, heads, err)
	}
}
