package content

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// lengths appends the blocks' lengths, -1 for one that is not here.
func (s *Store) lengths(refs []ref, into []int32) []int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range refs {
		n := int32(-1)
		if e, ok := s.blocks[r.key]; ok {
			n = int32(e.at.length)
		}
		into = append(into, n)
	}
	return into
}

// extent is a range of a pack that holds blocks one behind the other.
type extent struct {
	p        *pack
	off      int64
	n        int // bytes
	from, to int // of the refs
}

// readRun reads blocks on their way to a peer one behind the other into buf,
// with one system call for those that lie together. lens are their lengths as
// lengths told them; of a block that is gone or damaged it becomes -1, and the
// bytes of those behind it move up. It returns how many bytes there are. As
// getServed does, it hashes only what was not seen right lately.
func (s *Store) readRun(refs []ref, lens []int32, buf []byte) (int, error) {
	pieces, old, err := s.findRun(refs, lens)
	if err != nil {
		return 0, err
	}
	at := 0
	for _, pc := range pieces {
		if err == nil {
			_, err = pc.p.f.ReadAt(buf[at:at+pc.n], pc.off)
			if errors.Is(err, io.EOF) { // cut off: what is missing fails its hash
				err = nil
				old = append(old, pc.from)
				for i := pc.from + 1; i < pc.to; i++ {
					old = append(old, i)
				}
			}
			if err != nil {
				err = fmt.Errorf("read %d blocks from %s: %w", pc.to-pc.from, pc.p.path, err)
			}
		}
		at += pc.n
		if rerr := pc.p.release(); err == nil {
			err = rerr
		}
	}
	if err != nil {
		return 0, err
	}
	if len(old) > 0 {
		return s.verifyRun(refs, lens, buf[:at], old)
	}
	return at, nil
}

// findRun finds the pieces that hold the blocks, acquired, and those of the
// blocks that must be hashed.
func (s *Store) findRun(refs []ref, lens []int32) (pieces []extent, old []int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, ErrClosed
	}
	now := seconds(s.now().Unix())
	for i, r := range refs {
		e, ok := s.blocks[r.key]
		if !ok || lens[i] != int32(e.at.length) {
			lens[i] = -1
		}
		if lens[i] < 0 {
			continue
		}
		if t := s.touch(r.key, e); t != e {
			s.blocks[r.key] = t
		}
		if e.verified == 0 || now < e.verified || now-e.verified >= uint32(trustFor.Seconds()) {
			old = append(old, i)
		}
		p, off := s.packs[e.at.pack], int64(e.at.offset)
		if k := len(pieces) - 1; k >= 0 && pieces[k].p == p && pieces[k].off+int64(pieces[k].n) == off {
			pieces[k].n += int(lens[i])
			pieces[k].to = i + 1
			continue
		}
		p.acquire()
		pieces = append(pieces, extent{p: p, off: off, n: int(lens[i]), from: i, to: i + 1})
	}
	return pieces, old, nil
}

// verifyRun hashes those of the blocks read that are named in old, and takes
// out the damaged ones.
func (s *Store) verifyRun(refs []ref, lens []int32, data []byte, old []int) (int, error) {
	check := make(map[int]struct{}, len(old))
	for _, i := range old {
		check[i] = struct{}{}
	}
	now := seconds(s.now().Unix())
	from, to := 0, 0
	for i, r := range refs {
		n := int(max(lens[i], 0))
		if lens[i] < 0 {
			continue
		}
		block := data[from : from+n]
		from += n
		if _, must := check[i]; must {
			if sha256.Sum256(block) != r.key {
				lens[i] = -1
				if _, err := s.get(r, nil); err != nil && !errors.Is(err, ErrNotFound) { // quarantines it
					return 0, err
				}
				continue
			}
			s.vouchNow(r.key, now)
		}
		to += copy(data[to:], block)
	}
	return to, nil
}

// vouchNow is vouch for a block that was read without its place.
func (s *Store) vouchNow(k key, now uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.blocks[k]; ok {
		e.verified = now
		s.blocks[k] = e
	}
}

// doubt has blocks hashed the next time they are served.
func (s *Store) doubt(keys []key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		if e, ok := s.blocks[k]; ok {
			e.verified = 0
			s.blocks[k] = e
		}
	}
}
