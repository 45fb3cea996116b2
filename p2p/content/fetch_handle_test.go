package content

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/ipfs/go-cid"
)

// gated lets nothing through after n bytes until open is closed.
func gated(n int64, open <-chan struct{}) func(Stream) Stream {
	var sent atomic.Int64
	return func(st Stream) Stream {
		return spoiled{st, func(p []byte) (int, error) {
			if sent.Add(int64(len(p))) > n {
				<-open
			}
			return st.Write(p)
		}}
	}
}

func leaves(t *testing.T, s *Store, root cid.Cid) []cid.Cid {
	t.Helper()
	var out []cid.Cid
	noErr(t, s.walk(t.Context(), root, func(l link, _ int, _ bool) error {
		if l.ref.codec == codecRaw {
			out = append(out, l.ref.cid())
		}
		return nil
	}))
	return out
}

// What somebody waits for comes before the rest: the last block is here while
// most of the others are not.
func TestNeedComesFirst(t *testing.T) {
	src, image, _ := exchangeSample(t)
	last := leaves(t, src, image)
	last = last[len(last)-2:]
	n := newTestNet(t)
	n.honest("a", src, quickOptions, slow(8<<20))
	s := testStore(t)
	f := NewExchange(s, n, quickOptions).Start(t.Context(), image, FetchOptions{Kind: KindImage, Peers: []string{"a"}})
	defer f.Stop()
	noErr(t, f.Need(t.Context(), last))
	for _, c := range last {
		if !s.Has(c) {
			t.Errorf("%s is not here", c)
		}
	}
	have, total, _, err := Missing(t.Context(), s, image)
	noErr(t, err)
	if have > total*3/4 {
		t.Errorf("%d of %d bytes came before what was needed", have, total)
	}
	noErr(t, f.Wait(t.Context()))
	wantComplete(t, s, image)
	noErr(t, f.Need(t.Context(), last)) // after the end too
	if p := f.Progress(); p.HaveBytes == 0 || p.Received == 0 {
		t.Errorf("%+v", p)
	}
}

func TestNeedEndsWithTheFetch(t *testing.T) {
	src, image, _ := exchangeSample(t)
	all := leaves(t, src, image)
	n := newTestNet(t)
	open := make(chan struct{})
	defer close(open)
	n.honest("a", src, quickOptions, gated(1<<20, open))
	e := NewExchange(testStore(t), n, quickOptions)
	f := e.Start(t.Context(), image, FetchOptions{Kind: KindImage, Peers: []string{"a"}})
	failed := make(chan error, 1)
	go func() { failed <- f.Need(t.Context(), all) }()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Need(ctx, all[len(all)-1:]); !errors.Is(err, context.Canceled) {
		t.Errorf("a waiter that gave up: %v", err)
	}
	if err := f.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a waiter for the end that gave up: %v", err)
	}
	f.Stop()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("a waiter of a stopped fetch: %v", err)
	}
	nobody := e.Start(t.Context(), image, FetchOptions{Peers: []string{"nobody"}})
	defer nobody.Stop()
	if err := nobody.Need(t.Context(), all[:1]); !errors.Is(err, ErrUnavailable) {
		t.Errorf("nobody has it: %v", err)
	}
	bad := e.Start(t.Context(), cid.Undef, FetchOptions{})
	defer bad.Stop()
	if err := bad.Need(t.Context(), all[:1]); !errors.Is(err, ErrUnsupportedCID) {
		t.Errorf("no root: %v", err)
	}
	other := rawRef([]byte("of no DAG")).cid()
	n.honest("b", src, quickOptions, nil)
	ok := e.Start(t.Context(), image, FetchOptions{Peers: []string{"b"}})
	defer ok.Stop()
	noErr(t, ok.Wait(t.Context()))
	if err := ok.Need(t.Context(), []cid.Cid{other}); !errors.Is(err, ErrNotFound) {
		t.Errorf("of another DAG: %v", err)
	}
}
