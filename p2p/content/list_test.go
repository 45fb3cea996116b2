package content

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
)

func TestResolve(t *testing.T) {
	s := testStore(t)
	root, err := Add(t.Context(), s, sampleTree(t), AddOptions{})
	noErr(t, err)
	for path, kind := range map[string]string{"": EntryFolder, "sub": EntryFolder, "sub/big": EntryFile, "/sub/./link": EntrySymlink} {
		e, err := Resolve(t.Context(), s, root.CID, path)
		if err != nil || e.Kind != kind {
			t.Errorf("%q: %+v %v", path, e, err)
		}
	}
	for path, want := range map[string]string{
		"none":           `no "none" in folder ` + root.CID.String(),
		"sub/none/x":     `no "none" in folder ` + root.CID.String() + "/sub",
		"sub/big/deeper": `no "deeper": ` + root.CID.String() + "/sub/big is a file, not a folder",
	} {
		if _, err := Resolve(t.Context(), s, root.CID, path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", path, err)
		}
	}
	// What is not here is named, so that it can be fetched.
	big, err := Resolve(t.Context(), s, root.CID, "sub/big")
	noErr(t, err)
	r, err := refOf(big.CID)
	noErr(t, err)
	s.mu.Lock()
	s.forget(r.key)
	s.mu.Unlock()
	var missing *MissingError
	if _, err := Resolve(t.Context(), s, root.CID, "sub/big"); !errors.As(err, &missing) || missing.CID != big.CID || !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	list, err := List(t.Context(), s, root.CID, "sub")
	if err != nil || list[0].Kind != EntryUnknown {
		t.Errorf("%+v %v", list, err)
	}
}
