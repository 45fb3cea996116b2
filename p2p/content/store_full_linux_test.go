package content

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
)

// A disk that is really full, small, and in memory.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small disk to fill; TestFullAtEveryOperation does the same on a disk of its own making")
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=6m,mode=700"); err != nil {
		t.Skipf("no disk can be mounted here: %v", err)
	}
	t.Cleanup(func() { noErr(t, syscall.Unmount(dir, 0)) })
	s := openStore(t, dir)
	var kept [][]byte
	block := func(i int) []byte { return noise(uint64(i), 700<<10) }
	var err error
	for i := 0; err == nil && i < 12; i++ {
		b := block(i)
		if err = s.Put(t.Context(), rawRef(b).cid(), b); err == nil {
			kept = append(kept, b)
		}
	}
	if !errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("%d blocks of 700 KiB on 6 MiB: %v", len(kept), err)
	}
	for _, word := range []string{dir, "716800 more bytes", "are free", "lumbung gc"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not said: %v", word, err)
		}
	}
	noErr(t, s.Sync())
	noErr(t, s.Close())
	s = openStore(t, dir)
	for _, b := range kept {
		wantBlock(t, s, rawRef(b).cid(), b)
	}
	// Collection gives room on the full disk, and what did not fit then does.
	st, err := s.GC(t.Context(), rootList{rawRef(kept[0]).cid()}, GCOptions{})
	noErr(t, err)
	if st.DiskBytes < uint64(len(kept)-1)*(700<<10) {
		t.Errorf("%+v of %d blocks", st, len(kept))
	}
	for i := 20; i < 24; i++ {
		putRaw(t, s, block(i))
	}
	noErr(t, s.Sync())
	wantBlock(t, s, rawRef(kept[0]).cid(), kept[0])
}
