package node

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"filippo.io/age"
	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/p2p/content"
)

// Private files are not announced, nor is a file of which too little is here to
// tell; all else is.
func TestPrivateRootsAreNotAnnounced(t *testing.T) {
	n := start(t, nil)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), bytes.Repeat([]byte("x"), 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	folder, err := content.Add(t.Context(), n.blocks, dir, content.AddOptions{})
	if err != nil {
		t.Fatal(err)
	}
	file, err := content.Add(t.Context(), n.blocks, filepath.Join(dir, "f"), content.AddOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := content.AddPrivate(t.Context(), n.blocks, []content.Tree{{Name: "0", Path: dir}}, key.Recipient(), content.AddOptions{})
	if err != nil {
		t.Fatal(err)
	}
	missing, err := content.ParseCID("bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time from memory
		for what, c := range map[string]struct {
			root cid.Cid
			want bool
		}{
			"a folder": {folder.CID, true}, "a file": {file.CID, true}, "a private file": {sealed.CID, false}, "what is not here": {missing, false},
		} {
			if got := n.public(t.Context(), c.root); got != c.want {
				t.Errorf("%s: announced %v", what, got)
			}
		}
	}
	for _, root := range []cid.Cid{folder.CID, file.CID, sealed.CID} {
		if err := n.db.Pin(t.Context(), root, ""); err != nil {
			t.Fatal(err)
		}
	}
	roots, err := n.heldRoots(t.Context())
	if err != nil || len(roots) != 2 {
		t.Errorf("announced %v, %v", roots, err)
	}
}
