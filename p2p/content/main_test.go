package content

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"

	"github.com/ipfs/go-cid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(pumpEnv); dir != "" { // a helper process of TestTransferMemory
		if err := pumpMain(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func testStore(t testing.TB) *Store {
	t.Helper()
	return openStore(t, t.TempDir())
}

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// noise returns n bytes that depend on seed alone.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	var k [32]byte
	k[0], k[1], k[2], k[3] = byte(seed), byte(seed>>8), byte(seed>>16), byte(seed>>24)
	_, _ = rand.NewChaCha8(k).Read(b)
	return b
}

func noiseReader(seed uint64, n int64) io.Reader {
	var k [32]byte
	k[0], k[1] = byte(seed), byte(seed>>8)
	return io.LimitReader(rand.NewChaCha8(k), n)
}

// leastAllocated is how many bytes do allocates in all, whether they stay or not.
// The counters are of the whole process, so a run that is over most may have been
// disturbed by what other tests left running: it is the least of a few.
func leastAllocated(t testing.TB, most uint64, do func()) uint64 {
	t.Helper()
	least := uint64(math.MaxUint64)
	for range 5 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		do()
		runtime.ReadMemStats(&after)
		if least = min(least, after.TotalAlloc-before.TotalAlloc); least <= most {
			break
		}
	}
	return least
}

func putRaw(t testing.TB, s *Store, data []byte) cid.Cid {
	t.Helper()
	c := rawRef(data).cid()
	if err := s.Put(t.Context(), c, data); err != nil {
		t.Fatal(err)
	}
	return c
}

func wantBlock(t testing.TB, s *Store, c cid.Cid, data []byte) {
	t.Helper()
	got, err := s.Get(t.Context(), c)
	if err != nil {
		t.Fatalf("get %s: %v", c, err)
	}
	if !bytes.Equal(got, data) {
		t.Fatalf("get %s: other bytes", c)
	}
}

func noErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
