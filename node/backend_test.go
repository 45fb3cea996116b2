package node

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/api"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/node/store"
)

// A reader of events that is too slow, and one that begins too early, are told
// what they need to go on.
func TestEventsThatCannotGoOn(t *testing.T) {
	db, err := store.Open(filepath.Join(t.TempDir(), "lumbung.db"), store.Options{Log: slog.New(slog.DiscardHandler), Now: time.Now, Events: 40, MaxLag: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	b := backend{&Node{db: db}}
	emit := func(n int) {
		t.Helper()
		err := db.Update(t.Context(), func(tx job.Tx) error {
			var errs []error
			for range n {
				errs = append(errs, tx.Emit(job.Event{Type: job.EventNotice}))
			}
			return errors.Join(errs...)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	enough := errors.New("enough")
	emit(1)
	last, cuts := uint64(0), 0
	for err == nil { // as the client does
		err = b.Watch(t.Context(), last, func(e client.Event) error {
			if e.Seq != last+1 {
				t.Errorf("event %d after %d", e.Seq, last)
			}
			last = e.Seq
			if e.Seq == 1 {
				emit(30) // more than a reader that has caught up may fall behind
			}
			if e.Seq == 31 {
				return enough
			}
			return nil
		})
		cuts++
	}
	if !errors.Is(err, enough) || cuts < 2 {
		t.Errorf("after %d cuts: %v", cuts, err)
	}

	emit(69) // 100 in all
	for since, want := range map[uint64]string{0: "lumbung events --since ", 500: "after 100 for those to come"} {
		var gone *api.Error
		err := b.Watch(t.Context(), since, func(client.Event) error { return nil })
		if !errors.As(err, &gone) || gone.Status != http.StatusGone || gone.Code != "events_gone" || gone.Retryable || !strings.Contains(gone.Remedy, want) {
			t.Errorf("since %d: %+v, %v", since, gone, err)
		}
	}
}

// Of a path what it leads to is pinned, and nothing else is fetched.
func TestPinOfAPath(t *testing.T) {
	from := start(t, nil)
	to := start(t, func(c *Config) { c.Bootstrap = from.Addrs()[:1] })
	if err := to.host.WaitBootstrapped(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	part, beside := noise(7, 1<<20), noise(8, 3<<20)
	for name, data := range map[string][]byte{"deep/part/file": part, "beside": beside} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	all, err := from.c.Add(t.Context(), client.PathRequest{Path: dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := to.c.Pin(t.Context(), client.PinRequest{CID: all.CID + "/deep/part"}, nil)
	if err != nil || got.CID == all.CID || got.Bytes < uint64(len(part)) {
		t.Fatalf("%+v, %v", got, err)
	}
	if had := to.blocks.Stats().Bytes; had > uint64(len(part)+len(beside)/2) {
		t.Errorf("%d bytes were fetched for %d", had, len(part))
	}
	if pins, err := to.c.Pins(t.Context()); err != nil || len(pins) != 1 || pins[0].CID != got.CID {
		t.Errorf("pins %+v, %v", pins, err)
	}
	from.stop(t)()
	if _, err := to.c.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := to.c.Cat(t.Context(), got.CID+"/file", &b); err != nil || !bytes.Equal(b.Bytes(), part) {
		t.Errorf("%d bytes of %d, %v", b.Len(), len(part), err)
	}
	if err := to.c.Unpin(t.Context(), got.CID); err != nil {
		t.Error(err)
	}
	for bad, code := range map[string]string{got.CID + "/none": "no_path", "nonsense/file": "bad_cid"} {
		var p *client.Problem
		if _, err := to.c.Pin(t.Context(), client.PinRequest{CID: bad}, nil); !errors.As(err, &p) || p.Code != code || p.Remedy == "" {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
