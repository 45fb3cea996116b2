package content

import (
	"archive/tar"
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/ipfs/go-cid"
)

// maxLazyChunks bounds the chunks of an image whose places are kept in memory.
const maxLazyChunks = 1 << 20

// layerAt reads any part of a layer's tar whose chunks are here.
type layerAt struct {
	s    *Store
	ref  layerRef
	m    layerMap
	list []sized
	ends []uint64 // where each chunk ends in the tar

	mu   sync.Mutex
	last int    // chunk that lies in data, -1 for none
	data []byte // replaced, never changed
}

// openLayersAt reads the maps of an image's layers, which must be here with
// their parts.
func openLayersAt(s *Store, refs []layerRef) ([]*layerAt, error) {
	var layers []*layerAt
	room := maxLazyChunks
	for _, r := range refs {
		a, err := openLayerAt(s, r, room)
		if err != nil {
			return nil, err
		}
		room -= len(a.list)
		layers = append(layers, a)
	}
	return layers, nil
}

func openLayerAt(s *Store, l layerRef, room int) (*layerAt, error) {
	data, err := s.get(l.mp, nil)
	if err != nil {
		return nil, fmt.Errorf("layer map: %w", err)
	}
	a := &layerAt{s: s, ref: l, last: -1}
	if a.m, err = decodeLayerMap(data); err != nil {
		return nil, err
	}
	if a.m.diff != l.diff || a.m.size != l.size {
		return nil, fmt.Errorf("%w: the layer map is of another layer than the root says", ErrMismatch)
	}
	a.list = a.m.chunks
	for _, p := range a.m.parts {
		data, err := s.get(p.ref, nil)
		if err != nil {
			return nil, fmt.Errorf("part of a layer map: %w", err)
		}
		list, err := decodeChunks(data, p.size)
		if err != nil {
			return nil, err
		}
		if a.list = append(a.list, list...); len(a.list) > room {
			return nil, tooManyChunks()
		}
	}
	if len(a.list) > room {
		return nil, tooManyChunks()
	}
	a.ends = make([]uint64, len(a.list))
	var end uint64
	for i, c := range a.list {
		end += c.size
		a.ends[i] = end
	}
	return a, nil
}

func tooManyChunks() error {
	return fmt.Errorf("%w: an image of more than %d chunks is not read before it is whole", ErrTooLarge, maxLazyChunks)
}

// chunk is the one that holds a byte of the tar; len(list) if none does.
func (a *layerAt) chunk(off uint64) int {
	return sort.Search(len(a.ends), func(i int) bool { return a.ends[i] > off })
}

// cids names the chunks that hold n bytes from off on.
func (a *layerAt) cids(off, n uint64) []cid.Cid {
	var out []cid.Cid
	for i := a.chunk(off); n > 0 && i < len(a.list) && a.ends[i]-a.list[i].size < off+n; i++ {
		out = append(out, a.list[i].ref.cid())
	}
	return out
}

// ReadAt implements io.ReaderAt.
func (a *layerAt) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		at := uint64(off) + uint64(n) //nolint:gosec // not negative
		i := a.chunk(at)
		if i == len(a.list) {
			return n, io.EOF
		}
		data, err := a.load(i)
		if err != nil {
			return n, err
		}
		n += copy(p[n:], data[at-(a.ends[i]-a.list[i].size):])
	}
	return n, nil
}

func (a *layerAt) load(i int) ([]byte, error) {
	a.mu.Lock()
	last, data := a.last, a.data
	a.mu.Unlock()
	if last == i {
		return data, nil
	}
	c := a.list[i]
	data, err := a.s.get(c.ref, nil)
	if err == nil && uint64(len(data)) != c.size {
		err = fmt.Errorf("%w: chunk %s has %d bytes, not %d", ErrMismatch, c.ref, len(data), c.size)
	}
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", a.ref.diff.digest(), err)
	}
	a.mu.Lock()
	a.last, a.data = i, data
	a.mu.Unlock()
	return data, nil
}

// open returns the body of an entry, after it has compared the header that lies
// in the tar with what the table of contents says of it.
func (a *layerAt) open(e *tocEntry) (*io.SectionReader, error) {
	c := &countReader{r: io.NewSectionReader(a, int64(e.from), int64(e.len))} //nolint:gosec // bounded by maxLayerLen
	h, err := tar.NewReader(c).Next()
	if err != nil {
		return nil, fmt.Errorf("%w: layer %s has no entry at %d: %w", ErrMismatch, a.ref.diff.digest(), e.from, err)
	}
	real, err := entryOf(h)
	if err != nil || !real.same(e) || c.n+e.size > e.len {
		return nil, fmt.Errorf("%w: layer %s has another entry at %d (%.100q) than its table of contents says (%.100q)",
			ErrMismatch, a.ref.diff.digest(), e.from, real.name, e.name)
	}
	return io.NewSectionReader(a, int64(e.from+c.n), int64(e.size)), nil //nolint:gosec // bounded by maxLayerLen
}
