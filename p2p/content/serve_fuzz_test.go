package content

import (
	"bufio"
	"bytes"
	"fmt"
	"testing"
)

// Requests: what is understood means the same when written again.
func FuzzAsk(f *testing.F) {
	f.Add(appendAsk(nil, []ref{{}, {codec: codecPB}}))
	f.Add(appendAsk(nil, []ref{{codec: codecCBOR}})[:20])
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Add([]byte{0x81, 0x00})
	f.Fuzz(func(t *testing.T, data []byte) {
		refs, err := readAsk(bytes.NewReader(data), nil)
		if err != nil {
			return
		}
		if len(refs) == 0 || len(refs) > maxAsk {
			t.Fatalf("%d blocks asked for", len(refs))
		}
		if again, err := readAsk(bytes.NewReader(appendAsk(nil, refs)), nil); err != nil || fmt.Sprint(again) != fmt.Sprint(refs) {
			t.Fatalf("a request does not survive writing and reading: %v", err)
		}
	})
}

func FuzzDAGAsk(f *testing.F) {
	f.Add(appendDAGAsk(nil, ref{}, 7))
	f.Add(appendDAGAsk(nil, ref{codec: codecPB}, 1<<62))
	f.Add([]byte{1, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, leaves, err := readDAGAsk(bytes.NewReader(data))
		if err != nil {
			return
		}
		again, n, err := readDAGAsk(bytes.NewReader(appendDAGAsk(nil, r, leaves)))
		if err != nil || again != r || n != leaves {
			t.Fatalf("%v %d became %v %d: %v", r, leaves, again, n, err)
		}
	})
}

// Answers: whatever the heads say, no more memory is taken than the bounds say,
// and no more bytes are believed than came.
func FuzzGroups(f *testing.F) {
	f.Add(append(appendGroup(nil, []uint32{headBlock + 3, headMissing, headLeftOut}), 1, 2, 3, groupEnd))
	f.Add([]byte{groupWait, groupWait, groupBusy})
	f.Add([]byte{groupBlocks, 0})
	f.Add([]byte{groupBlocks, 1, 0xff, 0xff, 0xff, 0x7f})
	f.Add(append(packedGroup([]uint32{headBlock + 9000, headMissing, headBlock + 1000}, make([]byte, 10_000)), groupEnd))
	f.Add(packedGroup([]uint32{headBlock + 9000}, make([]byte, 10_000)))
	f.Fuzz(func(t *testing.T, data []byte) {
		g := newGroupReader(bytes.NewReader(data))
		buf := make([]byte, MaxBlockHard)
		got, packed := 0, 0
		for {
			kind, heads, err := g.next()
			if err != nil {
				return
			}
			if (kind == groupBlocks) != (len(heads) > 0) || len(heads) > maxAsk {
				t.Fatalf("group of kind %d with %d heads", kind, len(heads))
			}
			for _, h := range heads {
				if h > headBlock+MaxBlockHard {
					t.Fatalf("block of %d bytes", h-headBlock)
				}
				if h < headBlock {
					continue
				}
				if err := g.read(buf[:h-headBlock]); err != nil {
					return
				}
				got += int(h - headBlock)
				if g.packed == nil && got-packed > len(data) {
					t.Fatal("more bytes than were sent")
				}
				if g.packed != nil {
					packed += int(h - headBlock)
				}
				if packed > 4*MaxBlockHard { // what is packed may be as large as the heads say
					return
				}
			}
		}
	})
}

func FuzzHave(f *testing.F) {
	f.Add([]byte{haveNone})
	f.Add([]byte{haveAll})
	f.Add(appendHolding(nil, holding{kind: haveSome, count: 70, bits: bitset{5, 33}}))
	f.Add([]byte{haveSome, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := readHolding(bufio.NewReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		if h.count > maxDAGLinks || h.bits.count() > h.count {
			t.Fatalf("%d bits of %d", h.bits.count(), h.count)
		}
		again, err := readHolding(bufio.NewReader(bytes.NewReader(appendHolding(nil, h))))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(h) {
			t.Fatalf("%v became %v: %v", h, again, err)
		}
	})
}
