package sandbox

import (
	"os"
	"path/filepath"
	"testing"
)

// A mount with a limit of its own is held to it, counts what lay there before,
// and does not count as output.
func TestMountLimit(t *testing.T) {
	e := newEnv(t)
	cache := filepath.Join(e.base, "cache")
	must(t, os.Mkdir(cache, 0o755))
	must(t, os.WriteFile(filepath.Join(cache, "before"), make([]byte, 3<<20), 0o644))
	s := e.spec("write", "/cache/f", "hello", ";", "echo", "fine")
	s.OutputBytes = 1 << 20
	s.Mounts = []Mount{{Source: cache, Dest: "/cache", MaxBytes: 8 << 20}}
	if x, out := e.run(s); x.Code != 0 || x.Exceeded != nil {
		t.Errorf("below the limit: %+v %s", x, out)
	}
	s = e.spec("fill", "/cache/x")
	s.DiskBytes, s.OutputBytes = 4<<30, 4<<30
	s.Mounts = []Mount{{Source: cache, Dest: "/cache", MaxBytes: 8 << 20}}
	x, _ := e.run(s)
	wantExceeded(t, x, LimitCache, 137, true)
	must(t, RemoveTree(cache))
}
