package content

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
)

// FastCDC (Xia et al., "FastCDC: a Fast and Efficient Content-Defined Chunking
// Approach for Data Deduplication", USENIX ATC 2016) with these sizes cuts a
// layer tar. Cut points are part of no format, but two nodes that cut
// differently share no blocks, so a test pins them.
const (
	cdcMin    = 64 << 10
	cdcNormal = 256 << 10
	cdcMax    = MaxBlock - 4<<10
)

// putMap puts the map of a layer, in parts if it is long. toc is its table of
// contents, nil if it has none.
func putMap(s *Store, list []sized, diff key, total uint64, toc ...sized) (layerRef, error) {
	m := layerMap{diff: diff, size: total, chunks: list, toc: toc}
	if len(list) > partChunks {
		m.chunks = nil
		for len(list) > 0 {
			part := list[:min(partChunks, len(list))]
			list = list[len(part):]
			data, r, err := encodeChunks(part)
			if err == nil {
				err = s.put(r.key, data)
			}
			if err != nil {
				return layerRef{}, err
			}
			var n uint64
			for _, c := range part {
				n += c.size
			}
			m.parts = append(m.parts, sized{r, n})
		}
		if len(m.parts) > maxParts {
			return layerRef{}, fmt.Errorf("layer of %d bytes: %w", total, ErrTooLarge)
		}
	}
	data, r, err := m.encode()
	if err == nil {
		err = s.put(r.key, data)
	}
	return layerRef{diff: diff, size: total, mp: r}, err
}

// layerReader yields the tar of a layer out of its chunks and checks at the
// end that it is the tar the diff id names.
type layerReader struct {
	ctx   context.Context
	s     *Store
	want  layerRef
	parts []sized // not yet read
	list  []sized // chunks of the part being read
	buf   []byte  // what is left of the current chunk
	block []byte
	h     hash.Hash
	read  uint64
}

func openLayer(ctx context.Context, s *Store, l layerRef) (*layerReader, error) {
	data, err := s.get(l.mp, nil)
	if err != nil {
		return nil, fmt.Errorf("layer map: %w", err)
	}
	m, err := decodeLayerMap(data)
	if err != nil {
		return nil, err
	}
	if m.diff != l.diff || m.size != l.size {
		return nil, fmt.Errorf("%w: the layer map is of another layer than the root says", ErrMismatch)
	}
	return &layerReader{ctx: ctx, s: s, want: l, parts: m.parts, list: m.chunks, h: sha256.New()}, nil
}

func (r *layerReader) Read(p []byte) (int, error) {
	for len(r.buf) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

// next brings the following chunk, or io.EOF when all were right.
func (r *layerReader) next() error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	c, ok, err := r.nextChunk()
	if err != nil {
		return fmt.Errorf("layer %s: %w", r.want.diff.digest(), err)
	}
	if !ok {
		return r.finish()
	}
	data, err := r.s.get(c.ref, r.block)
	if err != nil {
		return fmt.Errorf("layer %s: %w", r.want.diff.digest(), err)
	}
	if uint64(len(data)) != c.size {
		return fmt.Errorf("layer %s: %w: chunk %s has %d bytes, not %d", r.want.diff.digest(), ErrMismatch, c.ref, len(data), c.size)
	}
	r.block, r.buf = data, data
	r.read += c.size
	_, _ = r.h.Write(data)
	return nil
}

func (r *layerReader) finish() error {
	if got := key(r.h.Sum(nil)); got != r.want.diff || r.read != r.want.size {
		return fmt.Errorf("layer %s: %w: its chunks make %s", r.want.diff.digest(), ErrMismatch, got.digest())
	}
	return io.EOF
}
