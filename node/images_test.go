package node

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/p2p/content"
)

// smallImage loads an image of one file that says what it is.
func smallImage(t *testing.T, n *Node, name string) cid.Cid {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "rootfs")
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "program"), []byte(name), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	im, err := n.images.load(t.Context(), dir, content.LoadOptions{Name: name}, func(job.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	return im.Root
}

// A node that was killed leaves unpacked images in use and one half unpacked;
// the next life keeps the former within bounds and removes the latter.
func TestUnpackedImagesOfAnEarlierLife(t *testing.T) {
	home := t.TempDir()
	at := func(c *Config) { c.Home = home }
	r := start(t, at)
	var dirs []string
	var first cid.Cid
	for i := range keepTrees + 3 {
		root := smallImage(t, r.Node, fmt.Sprintf("image%d", i))
		if i == 0 {
			first = root
		}
		dir, _, err := r.images.rootfs(t.Context(), root, fmt.Sprintf("owner%d", i))
		if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	r.stop(t)() // the owners had no time to release
	partial := filepath.Join(home, "rootfs", "."+first.String()+".partial-123")
	if err := os.MkdirAll(filepath.Join(partial, "etc", "shut"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(partial, "etc"), 0o500); err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(home, "rootfs", first.String()[:20])
	if err := os.WriteFile(stray, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	again := start(t, at)
	for _, path := range []string{partial, stray} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	if got := here(dirs); got != len(dirs) {
		t.Errorf("%d of %d trees outlived the restart", got, len(dirs))
	}
	// The first is taken up again, by a container that still runs; another
	// image's end makes room.
	if _, _, err := again.images.rootfs(t.Context(), first, "owner0"); err != nil {
		t.Fatal(err)
	}
	other := smallImage(t, again.Node, "other")
	dir, _, err := again.images.rootfs(t.Context(), other, "newcomer")
	if err != nil {
		t.Fatal(err)
	}
	again.images.release("newcomer")
	if here([]string{dirs[0]}) != 1 || here([]string{dir}) != 1 {
		t.Error("the tree in use or the one used last was removed")
	}
	if got := here(dirs[1:]); got != keepTrees-1 {
		t.Errorf("%d idle trees of the earlier life are there, want %d", got, keepTrees-1)
	}
}

// A container may run on an image whose blocks are gone: its tree stays.
func TestTreeInUseOutlivesItsBlocks(t *testing.T) {
	r := start(t, nil)
	root := smallImage(t, r.Node, "gone")
	dir, _, err := r.images.rootfs(t.Context(), root, "before")
	if err != nil {
		t.Fatal(err)
	}
	r.images.release("before")
	if err := r.c.RemoveImage(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.images.rootfs(t.Context(), root, "container"); err == nil {
		t.Fatal("the image can still be read")
	}
	for i := range keepTrees + 1 {
		other := smallImage(t, r.Node, fmt.Sprintf("image%d", i))
		if _, _, err := r.images.rootfs(t.Context(), other, "passing"); err != nil {
			t.Fatal(err)
		}
		r.images.release("passing")
	}
	if here([]string{dir}) != 1 {
		t.Error("the tree was removed from under its container")
	}
}

// here counts the folders that there are.
func here(dirs []string) int {
	n := 0
	for _, d := range dirs {
		if _, err := os.Stat(d); err == nil {
			n++
		}
	}
	return n
}
