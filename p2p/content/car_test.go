package content

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/go-cid"
	car "github.com/ipld/go-car/v2"
	carstorage "github.com/ipld/go-car/v2/storage"
	"github.com/multiformats/go-multihash"
)

// exported is the CAR of a root.
func exported(t testing.TB, s *Store, root cid.Cid) []byte {
	t.Helper()
	var b bytes.Buffer
	size, err := ExportCAR(t.Context(), s, root, &b, nil)
	noErr(t, err)
	if all, err := DAGSize(t.Context(), s, root); err != nil || size != all {
		t.Errorf("exported %+v, the DAG is %+v, %v", size, all, err)
	}
	return b.Bytes()
}

// sections are where the blocks of a CARv1 begin, and where it ends.
func sections(t testing.TB, raw []byte) []int {
	t.Helper()
	var out []int
	for at := 0; at < len(raw); {
		n, size := binary.Uvarint(raw[at:])
		if size <= 0 {
			t.Fatalf("no section at %d", at)
		}
		at += size + int(n)
		out = append(out, at)
	}
	return out
}

func TestCARRoundTrip(t *testing.T) {
	s, image, folder := exchangeSample(t)
	for name, root := range map[string]cid.Cid{"image": image, "folder": folder, "leaf": putRaw(t, s, []byte("leaf")), "empty": putRaw(t, s, nil)} {
		t.Run(name, func(t *testing.T) {
			raw := exported(t, s, root)
			if !bytes.Equal(raw, exported(t, s, root)) {
				t.Error("the same root gave two CARs")
			}
			to := testStore(t)
			var last Progress
			got, err := ImportCAR(t.Context(), to, bytes.NewReader(raw), CAROptions{Progress: func(p Progress) { last = p }})
			noErr(t, err)
			wantComplete(t, to, root)
			if got.Version != 1 || len(got.Roots) != 1 || got.Roots[0] != root || got.Blocks != uint64(len(sections(t, raw))-1) || last.Done != uint64(len(raw)) {
				t.Errorf("%+v, progress %+v", got, last)
			}
			if !bytes.Equal(exported(t, to, root), raw) {
				t.Error("what was imported gives another CAR")
			}
		})
	}
}

// TestCARAsOthersReadIt holds what is written against the library of Kubo, in
// its order too.
func TestCARAsOthersReadIt(t *testing.T) {
	s, _, folder := exchangeSample(t)
	br, err := car.NewBlockReader(bytes.NewReader(exported(t, s, folder)))
	noErr(t, err)
	if br.Version != 1 || len(br.Roots) != 1 || br.Roots[0] != folder {
		t.Errorf("header %d %v", br.Version, br.Roots)
	}
	var want []cid.Cid
	service := plainBoxo(t, s, folder)
	noErr(t, merkledag.Walk(t.Context(), merkledag.GetLinksDirect(service), folder, func(c cid.Cid) bool {
		if slices.Contains(want, c) {
			return false
		}
		want = append(want, c)
		return true
	}))
	var got []cid.Cid
	for {
		blk, err := br.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		noErr(t, err)
		wantBlock(t, s, blk.Cid(), blk.RawData())
		got = append(got, blk.Cid())
	}
	if len(got) < 10 || !slices.Equal(got, want) {
		t.Errorf("the blocks are %v\ndepth first they are %v", got, want)
	}
}

// fileAt is a file in memory that go-car's writer of CARv2 wants.
type fileAt struct {
	b  []byte
	at int
}

func (f *fileAt) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.b).ReadAt(p, off)
}

func (f *fileAt) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(f.b) {
		f.b = append(f.b, make([]byte, end-len(f.b))...)
	}
	return copy(f.b[off:], p), nil
}

func (f *fileAt) Write(p []byte) (int, error) {
	n, err := f.WriteAt(p, int64(f.at))
	f.at += n
	return n, err
}

// carV2 writes a CARv2 as go-car does.
func carV2(t testing.TB, s *Store, root cid.Cid, roots ...cid.Cid) []byte {
	t.Helper()
	f := &fileAt{}
	w, err := carstorage.NewReadableWritable(f, append([]cid.Cid{root}, roots...))
	noErr(t, err)
	noErr(t, s.walk(t.Context(), root, func(l link, _ int, _ bool) error {
		data, err := s.get(l.ref, nil)
		if err != nil {
			return err
		}
		return w.Put(t.Context(), l.ref.cid().KeyString(), data)
	}))
	noErr(t, w.Finalize())
	return f.b
}

func TestCARv2IsRead(t *testing.T) {
	s, _, folder := exchangeSample(t)
	raw := carV2(t, s, folder)
	to := testStore(t)
	got, err := ImportCAR(t.Context(), to, io.MultiReader(bytes.NewReader(raw)), CAROptions{})
	noErr(t, err)
	wantComplete(t, to, folder)
	if got.Version != 2 || len(got.Roots) != 1 || got.Roots[0] != folder {
		t.Errorf("%+v", got)
	}
	// Cut in the midst of its data, where one block ends: only the header tells.
	var h car.Header
	_, err = h.ReadFrom(bytes.NewReader(raw[car.PragmaSize:]))
	noErr(t, err)
	ends := sections(t, raw[h.DataOffset:h.DataOffset+h.DataSize])
	cut := int(h.DataOffset) + ends[len(ends)-2]
	got, err = ImportCAR(t.Context(), testStore(t), bytes.NewReader(raw[:cut]), CAROptions{})
	if !errors.Is(err, ErrMalformed) || !errors.Is(err, io.ErrUnexpectedEOF) || got.Blocks != uint64(len(ends)-2) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestCARRefused(t *testing.T) {
	s, _, folder := exchangeSample(t)
	raw := exported(t, s, folder)
	ends := sections(t, raw)
	last := ends[len(ends)-2] // where the last block begins
	spoil := func(at int) []byte {
		b := bytes.Clone(raw)
		b[at] ^= 1
		return b
	}
	section := func(c cid.Cid, data []byte) []byte {
		b := binary.AppendUvarint(nil, uint64(c.ByteLen()+len(data)))
		return append(append(b, c.Bytes()...), data...)
	}
	hash := func(code uint64) cid.Cid {
		sum, err := multihash.Sum([]byte("x"), code, -1)
		noErr(t, err)
		return cid.NewCidV1(cid.Raw, sum)
	}
	head := raw[:ends[0]]
	tests := map[string]struct {
		raw    []byte
		err    error
		blocks int // that were good
		says   string
	}{
		"nothing":          {nil, ErrMalformed, 0, "header"},
		"no CAR":           {[]byte("this is no CAR at all, but a text"), ErrMalformed, 0, "header"},
		"half a header":    {raw[:ends[0]/2], ErrMalformed, 0, "header"},
		"a huge header":    {binary.AppendUvarint(nil, 1<<40), ErrMalformed, 0, "header"},
		"cut in a block":   {raw[:last+40], io.ErrUnexpectedEOF, len(ends) - 2, "block"},
		"cut in a length":  {append(bytes.Clone(raw[:last]), 0x80), io.ErrUnexpectedEOF, len(ends) - 2, "block"},
		"cut at a block":   {raw[:last], ErrNotWhole, len(ends) - 2, folder.String()},
		"a lying block":    {spoil(ends[2] - 1), ErrMismatch, 1, "block 2 at offset"},
		"a huge block":     {append(bytes.Clone(head), binary.AppendUvarint(nil, 1<<30)...), ErrMalformed, 0, "block 1 at offset"},
		"no CID":           {append(bytes.Clone(head), 3, 1, 2, 3), ErrMalformed, 0, "block 1 at offset"},
		"a hash not known": {append(bytes.Clone(raw), section(hash(multihash.SHA3_256), []byte("x"))...), ErrUnsupportedCID, len(ends) - 1, "sha3-256"},
		"an inlined block": {append(bytes.Clone(raw), section(hash(multihash.IDENTITY), []byte("x"))...), ErrUnsupportedCID, len(ends) - 1, "identity"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			to := testStore(t)
			got, err := ImportCAR(t.Context(), to, bytes.NewReader(tt.raw), CAROptions{})
			if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v", err)
			}
			if got.Blocks != uint64(tt.blocks) || to.Stats().Blocks != uint64(tt.blocks) {
				t.Errorf("%d blocks counted, %d kept, want %d", got.Blocks, to.Stats().Blocks, tt.blocks)
			}
		})
	}
	t.Run("too much", func(t *testing.T) {
		if _, err := ImportCAR(t.Context(), testStore(t), bytes.NewReader(raw), CAROptions{MaxBytes: 1 << 20}); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := ImportCAR(ctx, testStore(t), bytes.NewReader(raw), CAROptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
	t.Run("not whole here", func(t *testing.T) {
		to := testStore(t)
		if _, err := ImportCAR(t.Context(), to, bytes.NewReader(raw[:last]), CAROptions{}); !errors.Is(err, ErrNotWhole) {
			t.Fatal(err)
		}
		if _, err := ExportCAR(t.Context(), to, folder, io.Discard, nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v", err)
		}
		// The rest completes it: what came first was not lost.
		_, err := ImportCAR(t.Context(), to, bytes.NewReader(append(bytes.Clone(head), raw[last:]...)), CAROptions{})
		noErr(t, err)
		wantComplete(t, to, folder)
	})
}

// TestCARDepthFirst is about a block that is linked twice: it comes where going
// down meets it first.
func TestCARDepthFirst(t *testing.T) {
	s := testStore(t)
	leaf := merkledag.NewRawNode([]byte("leaf"))
	other := merkledag.NewRawNode([]byte("other"))
	inner := merkledag.NodeWithData([]byte("inner"))
	noErr(t, inner.AddNodeLink("", leaf))
	root := merkledag.NodeWithData([]byte("root"))
	noErr(t, root.AddNodeLink("a", inner))
	noErr(t, root.AddNodeLink("b", other))
	noErr(t, root.AddNodeLink("c", leaf))
	d := dagService{t.Context(), s}
	c, err := Normalize(root.Cid())
	noErr(t, err)
	noErr(t, errors.Join(d.Add(t.Context(), leaf), d.Add(t.Context(), other), d.Add(t.Context(), inner), d.Add(t.Context(), root)))
	br, err := car.NewBlockReader(bytes.NewReader(exported(t, s, c)))
	noErr(t, err)
	var got []string
	for {
		b, err := br.Next()
		if err != nil {
			break
		}
		got = append(got, b.Cid().String())
	}
	in, err := Normalize(inner.Cid())
	noErr(t, err)
	if want := []string{c.String(), in.String(), leaf.Cid().String(), other.Cid().String()}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func FuzzImportCAR(f *testing.F) {
	s, _, folder := exchangeSample(f)
	small := putRaw(f, s, []byte("leaf"))
	for _, root := range []cid.Cid{small, folder} {
		var b bytes.Buffer
		if _, err := ExportCAR(f.Context(), s, root, &b, nil); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes()[:min(b.Len(), 4096)])
	}
	f.Add(carV2(f, s, small))
	f.Add([]byte{})
	to := openStore(f, f.TempDir())
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := to.Stats().Damaged
		got, err := ImportCAR(t.Context(), to, bytes.NewReader(raw), CAROptions{MaxBytes: 1 << 20})
		if got.Bytes > uint64(len(raw)) {
			t.Errorf("%d bytes of blocks out of %d", got.Bytes, len(raw))
		}
		if err == nil {
			for _, root := range got.Roots {
				if _, _, complete, err := Missing(t.Context(), to, root); err != nil || !complete {
					t.Errorf("root %s is not whole: %v", root, err)
				}
			}
		}
		if to.Stats().Damaged != before {
			t.Error("bad bytes were stored")
		}
	})
}
