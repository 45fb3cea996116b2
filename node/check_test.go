package node

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lumbung-net/lumbung/node/client"
)

// A bit that flips in the store is found, and told with the image it is of.
func TestCheckTellsWhatIsDamaged(t *testing.T) {
	r := start(t, nil)
	root := smallImage(t, r.Node, "worn")
	sound, err := r.c.CheckBlocks(t.Context(), nil)
	if err != nil || sound.Damaged != 0 || sound.Blocks == 0 {
		t.Fatalf("%+v: %v", sound, err)
	}
	packs, err := filepath.Glob(filepath.Join(r.cfg.Home, "blocks", "*.pack"))
	if err != nil || len(packs) != 1 {
		t.Fatalf("%v %v", packs, err)
	}
	data, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	data[0] ^= 1 // the first block put is one of the image's layer
	if err := os.WriteFile(packs[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := r.c.CheckBlocks(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.Blocks != sound.Blocks || got.Damaged != 1 || len(got.Found) != 1 {
		t.Fatalf("%+v", got)
	}
	d := got.Found[0]
	if d.Pack != filepath.Base(packs[0]) || d.Offset != 0 || d.Bytes == 0 || d.Reason == "" {
		t.Errorf("%+v", d)
	}
	want := client.DamagedRoot{CID: root.String(), What: "image worn"}
	if len(d.Roots) != 1 || d.Roots[0] != want {
		t.Errorf("needed by %+v, want %+v", d.Roots, want)
	}
}
