package content

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/ipfs/go-cid"
	"golang.org/x/sys/unix"
)

// Extended attributes come along, from a tar and from a folder.
func TestLoadXattrs(t *testing.T) {
	src := t.TempDir()
	path := filepath.Join(src, "f")
	noErr(t, os.WriteFile(path, []byte("x"), 0o600))
	if err := unix.Setxattr(path, "user.lumbung", []byte("v\x00w"), 0); errors.Is(err, unix.ENOTSUP) {
		t.Skip("this file system keeps no attributes")
	} else {
		noErr(t, err)
	}
	s := testStore(t)
	fromFolder, err := LoadImage(t.Context(), s, src, LoadOptions{})
	noErr(t, err)
	layer := makeTar(t, changed("f", "x", func(h *tar.Header) {
		h.Format, h.PAXRecords = tar.FormatPAX, map[string]string{"SCHILY.xattr.user.lumbung": "v\x00w"}
	}))
	for _, root := range []cid.Cid{fromFolder.Root, imageOf(t, s, layer)} {
		dir := filepath.Join(t.TempDir(), "root")
		noErr(t, Unpack(t.Context(), s, root, dir))
		f, err := os.Open(filepath.Join(dir, "f"))
		noErr(t, err)
		got, err := xattrsOf(f)
		noErr(t, errors.Join(err, f.Close()))
		if got["SCHILY.xattr.user.lumbung"] != "v\x00w" {
			t.Errorf("%q", got)
		}
	}
}
