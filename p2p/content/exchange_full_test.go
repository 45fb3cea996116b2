package content

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ipfs/go-cid"
)

// fullAfter makes a disk of m that has room for n more bytes of blocks.
func fullAfter(m *memFS, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = func(_ int, op string) fault {
		var used int
		for _, in := range m.names {
			used += len(in.data)
		}
		if op == "write" && used >= n {
			return noRoom
		}
		return noFault
	}
}

// A fetch and an add that fill the disk end with a clear error, lose nothing of
// what was there, and go on from where they were once there is room.
func TestFetchAndAddOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b", "c", "d"} {
		noErr(t, os.WriteFile(filepath.Join(dir, name), noise(uint64(name[0]), 3<<20), 0o600))
	}
	src := testStore(t)
	root, err := Add(t.Context(), src, dir, AddOptions{})
	noErr(t, err)
	whole, err := DAGSize(t.Context(), src, root.CID)
	noErr(t, err)
	n := newTestNet(t)
	n.honest("src", src, quickOptions, nil)
	var received uint64
	for _, tt := range []struct {
		name  string
		bring func(s *Store) (cid.Cid, error)
	}{
		{"fetch", func(s *Store) (cid.Cid, error) {
			received = 0
			err := NewExchange(s, n, quickOptions).Fetch(t.Context(), root.CID, FetchOptions{
				Peers: []string{"src"}, Progress: func(p FetchProgress) { received = p.Received },
			})
			return root.CID, err
		}},
		{"add", func(s *Store) (cid.Cid, error) {
			r, err := Add(t.Context(), s, dir, AddOptions{})
			return r.CID, err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMemFS()
			open := func() *Store {
				s, err := Open("store", Options{fs: m})
				noErr(t, err)
				return s
			}
			s := open()
			kept := noise(9, 100<<10)
			putRaw(t, s, kept)
			noErr(t, s.Sync())
			fullAfter(m, 5<<20)
			_, err := tt.bring(s)
			if !errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("no clear error: %v", err)
			}
			for _, word := range []string{"store", "12345 are free", "lumbung gc", "try again"} {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q is not said: %v", word, err)
				}
			}
			if err := s.Close(); err != nil && !errors.Is(err, ErrFull) {
				t.Errorf("close: %v", err)
			}
			m.restart(true, rand.New(rand.NewPCG(1, 2))) // a crash, and room
			s = open()
			defer func() { noErr(t, s.Close()) }()
			wantBlock(t, s, rawRef(kept).cid(), kept)
			had, _, _, err := Missing(t.Context(), s, root.CID) // 0 where the root is gone
			noErr(t, err)
			c, err := tt.bring(s)
			noErr(t, err)
			wantComplete(t, s, c)
			if tt.name == "fetch" && received > whole.Bytes-had+MaxBlockHard {
				t.Errorf("%d bytes came where %d of %d were here", received, had, whole.Bytes)
			}
			if !c.Equals(root.CID) {
				t.Errorf("%s and not %s", c, root.CID)
			}
		})
	}
}
