package content

import (
	"errors"
	"io"
)

// slabReader reads the tar that lies in slabs, and gives them back.
type slabReader struct {
	in  <-chan *slab
	cur *slab
	at  int
}

func (r *slabReader) Read(p []byte) (int, error) {
	for r.cur == nil || r.at == r.cur.n {
		r.done()
		s, ok := <-r.in
		if !ok {
			return 0, io.EOF
		}
		r.cur, r.at = s, 0
	}
	n := copy(p, r.cur.buf[slabHead+r.at:slabHead+r.cur.n])
	r.at += n
	return n, nil
}

func (r *slabReader) done() {
	if r.cur != nil {
		r.cur.release()
		r.cur = nil
	}
}

// drain gives all slabs back that still come.
func (r *slabReader) drain() {
	r.done()
	for s := range r.in {
		s.release()
	}
}

// putTOC puts the table of contents of a layer that passes by in slabs. A tar
// that has none, for what is in it, gives nil.
func putTOC(s *Store, in <-chan *slab) ([]sized, error) {
	r := &slabReader{in: in}
	defer r.drain()
	toc := []sized{}
	w := &tocWriter{put: func(b []byte) error {
		ref := rawRef(b)
		toc = append(toc, sized{ref, uint64(len(b))})
		return s.put(ref.key, b)
	}}
	err := eachEntry(r, w.add)
	if err == nil {
		err = w.flush()
	}
	if errors.Is(err, errNoTOC) {
		return nil, nil
	}
	return toc, err
}

// eachTOC calls f for the entries of a layer, as its table lists them. The
// blocks of the table must be here. ErrNoTOC says that it has none.
func (s *Store) eachTOC(m layerMap, f func(*tocEntry) error) error {
	if m.toc == nil {
		return ErrNoTOC
	}
	var at uint64
	for _, b := range m.toc {
		data, err := s.get(b.ref, nil)
		if err == nil {
			at, err = decodeTOC(data, at, f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ErrNoTOC says that an image cannot be used before it is whole: it was imported
// by an earlier version, or holds what no table of contents lists, as sparse files.
var ErrNoTOC = errors.New("the image has no table of contents")
