package content

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// packedGroup is a packed group as a sender makes it.
func packedGroup(heads []uint32, data []byte) []byte {
	enc, _ := zstd.NewWriter(nil, zstd.WithWindowSize(packWindow)) // the options are right
	frame := enc.EncodeAll(data, nil)
	b := appendGroup(nil, heads)
	b[0] = groupPacked
	b = binary.AppendUvarint(b, uint64(len(frame)))
	return append(b, frame...)
}

// counted counts what a peer writes.
type counted struct {
	Stream
	n *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.Stream.Write(p)
}

// fetchCounted moves a file of these bytes, and returns what was written for it.
func fetchCounted(t *testing.T, data []byte, o ExchangeOptions) int64 {
	t.Helper()
	net := newTestNet(t)
	from, to := testStore(t), testStore(t)
	root, err := AddReader(t.Context(), from, bytes.NewReader(data), AddOptions{})
	noErr(t, err)
	var sent atomic.Int64
	net.honest("a", from, o, func(st Stream) Stream { return counted{st, &sent} })
	noErr(t, NewExchange(to, net, ExchangeOptions{}).Fetch(t.Context(), root.CID, FetchOptions{Peers: []string{"a"}}))
	var got bytes.Buffer
	noErr(t, Cat(t.Context(), to, root.CID, "", &got))
	if !bytes.Equal(got.Bytes(), data) {
		t.Error("other bytes came")
	}
	return sent.Load()
}

// Over a slow link what shrinks is packed, and only that; a fast link is left alone.
func TestGroupsArePacked(t *testing.T) {
	text := []byte(strings.Repeat("a line of text that says the same again and again\n", 100_000))
	for i := range text {
		if i%97 == 0 {
			text[i] = byte(i * i >> 7) // not so much the same that it says nothing
		}
	}
	slow := ExchangeOptions{PeerRate: slowLink / 2}
	if n := fetchCounted(t, text, slow); n > int64(len(text))/2 {
		t.Errorf("%d bytes of text were sent as %d", len(text), n)
	}
	random := noise(5, 5<<20)
	if n := fetchCounted(t, random, slow); n < int64(len(random)) || n > int64(len(random))+64<<10 {
		t.Errorf("%d bytes of noise were sent as %d", len(random), n)
	}
	w := &server{e: NewExchange(testStore(t), newTestNet(t), ExchangeOptions{}), c: &client{link: linkRate{rate: 2 * slowLink}}}
	if n := len(w.pack(text, 0)); n != len(text) {
		t.Errorf("packed for a link that is known to be fast: %d", n)
	}
	w.c.link.rate = slowLink / 2
	if n := len(w.pack(text, 0)); n > len(text)/2 {
		t.Errorf("not packed for a slow link: %d", n)
	}
}

func TestPackedGroupsAreChecked(t *testing.T) {
	data := noise(9, 3000)
	two := []uint32{headBlock + 1000, headBlock + 2000}
	read := func(raw []byte) error {
		g := newGroupReader(bytes.NewReader(raw))
		defer g.close()
		for {
			_, heads, err := g.next()
			if err != nil || heads == nil {
				return err
			}
			for _, h := range heads {
				if err := g.read(make([]byte, h-headBlock)); err != nil {
					return err
				}
			}
		}
	}
	plain := bytes.Repeat([]byte("0123456789"), 300)
	good := append(packedGroup(two, plain), groupEnd)
	noErr(t, read(good))
	for what, raw := range map[string][]byte{
		"more than its blocks": append(packedGroup(two, bytes.Repeat([]byte("0123456789"), 400)), groupEnd),
		"less than its blocks": append(packedGroup(two, plain[:2000]), groupEnd),
		"longer than them":     append(packedGroup(two, append(data, data...)), groupEnd),
		"no frame":             append(append(func() []byte { b := appendGroup(nil, two); b[0] = groupPacked; return b }(), 4), 1, 2, 3, 4, groupEnd),
	} {
		if err := read(raw); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := read(good[:len(good)-20]); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrProtocol) {
		t.Errorf("a stream that ends in the midst: %v", err)
	}
	// A window larger than agreed on is refused before memory is taken for it.
	enc, err := zstd.NewWriter(nil, zstd.WithWindowSize(8<<20))
	noErr(t, err)
	var frame bytes.Buffer
	enc.Reset(&frame)
	_, err = enc.Write(bytes.Repeat(plain, 1000))
	noErr(t, err)
	noErr(t, enc.Close())
	wide := appendGroup(nil, []uint32{headBlock + 1<<20, headBlock + 1<<20, headBlock + 3_000_000 - 2<<20})
	wide[0] = groupPacked
	wide = append(binary.AppendUvarint(wide, uint64(frame.Len())), frame.Bytes()...)
	if err := read(wide); !errors.Is(err, ErrProtocol) {
		t.Errorf("a wide window: %v", err)
	}
}

// What fills buffers on the way does not make a slow link a fast one, nor do
// streams that wait for each other make a fast one slow.
func TestLinkRate(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	var slow, fast linkRate
	if !slow.slower(verySlow) {
		t.Error("a link that is not known yet is not packed for")
	}
	// 12 MiB a second behind a buffer of 4 MiB, in writes of 256 KiB.
	const piece = 256 << 10
	for i := range 100 {
		slow.began(at)
		if i >= 16 {
			at = at.Add(time.Second / 48)
		}
		slow.ended(piece, at)
		at = at.Add(time.Second) // between requests nothing is written
	}
	if !slow.slower(verySlow) || slow.slower(8<<20) {
		t.Errorf("12 MiB a second are seen as %.1f", slow.rate/(1<<20))
	}
	// A GiB a second, shared by eight streams whose writes overlap.
	for range 200 {
		for range 8 {
			fast.began(at)
		}
		for range 8 {
			at = at.Add(time.Second / 4096)
			fast.ended(piece, at)
		}
	}
	if fast.slower(slowLink) || !fast.slower(2<<30) {
		t.Errorf("1024 MiB a second are seen as %.1f", fast.rate/(1<<20))
	}
	fast.bound(1 << 20)
	if !fast.slower(verySlow) {
		t.Error("a limit of our own is not minded")
	}
}
