package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/node/client"
)

func TestGCCheck(t *testing.T) {
	sound := client.Checked{Blocks: 12, Bytes: 4096}
	worn := client.Checked{Blocks: 12, Bytes: 4096, Damaged: 2, Found: []client.DamagedBlock{
		{CID: "bafkone", Pack: "00000001.pack", Offset: 77, Bytes: 300, Reason: "its bytes differ", Roots: []client.DamagedRoot{{CID: "bafyroot", What: "image worn"}}},
		{CID: "bafktwo", Pack: "00000002.pack", Bytes: 5, Reason: "it cannot be read"},
	}}
	for _, tc := range []struct {
		found client.Checked
		code  int
		words []string
		notes []string
	}{
		{sound, 0, []string{"12 blocks", "0 damaged"}, nil},
		{worn, exitFailed, []string{"2 damaged", "bafkone", "00000001.pack", "77", "bafyroot", "image worn", "bafktwo", "nothing"}, []string{"lumbung pin ROOT"}},
	} {
		a := newTestApp(t)
		newFakeNode(t, a, 0).checked = tc.found
		if code := a.main([]string{"gc", "--check"}); code != tc.code {
			t.Errorf("%d damaged: code %d: %s", tc.found.Damaged, code, a.err.String())
		}
		for _, w := range tc.words {
			if !strings.Contains(a.out.String(), w) {
				t.Errorf("stdout lacks %q:\n%s", w, a.out.String())
			}
		}
		for _, w := range tc.notes {
			if !strings.Contains(a.err.String(), w) {
				t.Errorf("stderr lacks %q:\n%s", w, a.err.String())
			}
		}
		a.out.b.Reset()
		if code := a.main([]string{"gc", "--check", "-o", "json"}); code != tc.code {
			t.Errorf("json: code %d", code)
		}
		if v := verdictIn(t, a); v["code"] != float64(tc.code) || (v["remedy"] == "") != (tc.code == 0) {
			t.Errorf("json %v", v)
		}
		var got client.Checked
		if err := json.Unmarshal([]byte(a.out.String()), &got); err != nil || got.Damaged != tc.found.Damaged || len(got.Found) != len(tc.found.Found) {
			t.Errorf("json %+v: %v", got, err)
		}
	}
}
