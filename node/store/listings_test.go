package store

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"
)

func TestListings(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	o := quiet()
	o.Now = func() time.Time { return now }
	path := filepath.Join(t.TempDir(), "l.db")
	db, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	remember := func(folder string, body []byte) {
		t.Helper()
		if err := db.Remember(t.Context(), map[string][]byte{folder: body}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(folder string, body []byte) {
		t.Helper()
		got, err := db.Recall(t.Context(), folder)
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("%s: %d bytes, %v, want %d", folder, len(got), err, len(body))
		}
	}
	want("/a", nil)
	remember("/a", []byte("one"))
	remember("/a", []byte("two"))
	remember("/empty", nil)
	want("/a", []byte("two"))
	want("/empty", nil)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = Open(path, o); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	want("/a", []byte("two"))
	// What was used longest ago goes first, and a use counts.
	large := make([]byte, maxListings/4)
	for i, name := range []string{"/1", "/2", "/3"} {
		now = now.Add(time.Duration(i+1) * 2 * usedGrain)
		remember(name, large)
	}
	now = now.Add(2 * usedGrain)
	want("/1", large)
	now = now.Add(time.Second)
	remember("/4", large)
	want("/a", nil)
	want("/1", large)
	remember("/5", large)
	want("/2", nil)
	want("/1", large)
	want("/5", large)
}
