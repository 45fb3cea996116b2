//go:build unix

package content

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A live folder's vanishing and special files are left out; otherwise they are
// errors.
func TestAddLive(t *testing.T) {
	s := testStore(t)
	dir := t.TempDir()
	noErr(t, os.WriteFile(filepath.Join(dir, "ok"), []byte("ok"), 0o644))
	noErr(t, os.WriteFile(filepath.Join(dir, "empty"), nil, 0o644))
	noErr(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	noErr(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	noErr(t, os.WriteFile(filepath.Join(dir, "sub", "gone"), []byte("x"), 0o644))
	if _, err := Add(t.Context(), s, dir, AddOptions{}); !errors.Is(err, ErrUnsafe) || !strings.Contains(err.Error(), "pipe") {
		t.Errorf("a pipe: %v", err)
	}
	r, err := Add(t.Context(), s, dir, AddOptions{Live: true, opened: func(name string) {
		if name == "gone" {
			noErr(t, os.Remove(filepath.Join(dir, "sub", "gone")))
		}
	}})
	noErr(t, err)
	list, err := List(t.Context(), s, r.CID, "")
	noErr(t, err)
	var names []string
	for _, e := range list {
		names = append(names, e.Name)
	}
	if fmt.Sprint(names) != "[empty ok sub]" {
		t.Errorf("%v", names)
	}
	if list, err = List(t.Context(), s, r.CID, "sub"); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
}

// A file that became a pipe after it was listed is not waited for.
func TestAddDoesNotWaitForAPipe(t *testing.T) {
	s := testStore(t)
	dir := t.TempDir()
	p := filepath.Join(dir, "f")
	noErr(t, os.WriteFile(p, []byte("x"), 0o644))
	_, err := Add(t.Context(), s, dir, AddOptions{opened: func(string) {
		noErr(t, os.Remove(p))
		noErr(t, syscall.Mkfifo(p, 0o600))
	}})
	if !errors.Is(err, ErrUnsafe) {
		t.Errorf("%v", err)
	}
}
