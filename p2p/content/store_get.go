package content

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ipfs/go-cid"
)

// trustFor is how long a block that was seen right is served without being
// hashed again.
const trustFor = 10 * time.Minute

// Get returns the bytes of a block, verified. ErrNotFound says it is not here,
// or was here with bytes that do not match and has been dropped.
func (s *Store) Get(ctx context.Context, c cid.Cid) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, err := refOf(c)
	if err != nil {
		return nil, err
	}
	return s.get(r, nil)
}

// get reads into buf if it is large enough. It counts as a use.
func (s *Store) get(r ref, buf []byte) ([]byte, error) { return s.read(r, buf, true) }

// getServed is get for blocks on their way to a peer, who checks them anyway:
// one that this process has put, or read and found right, less than trustFor
// ago is not hashed again. Its bytes are in the kernel's page cache as a rule,
// and hashing is a third of what sending costs. A bit that flips on the disk is
// found when trustFor is over, by Check, or by a receiver that then breaks the
// stream, which ends the trust in what it was sent last.
func (s *Store) getServed(r ref, buf []byte) ([]byte, error) {
	e, p, err := s.find(r, true)
	if err != nil {
		return nil, err
	}
	now := seconds(s.now().Unix())
	if e.verified == 0 || now < e.verified || now-e.verified >= uint32(trustFor.Seconds()) {
		if buf, err = s.readAt(r, e, p, buf, true); err == nil {
			s.vouch(r.key, e.at, now)
		}
		return buf, err
	}
	return s.readAt(r, e, p, buf, false)
}

// vouch notes that a block was seen right at a place.
func (s *Store) vouch(k key, at place, now uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.blocks[k]; ok && e.at == at {
		e.verified = now
		s.blocks[k] = e
	}
}

func (s *Store) read(r ref, buf []byte, use bool) ([]byte, error) {
	e, p, err := s.find(r, use)
	if err != nil {
		return nil, err
	}
	return s.readAt(r, e, p, buf, true)
}

// find returns where a block lies, with its pack acquired.
func (s *Store) find(r ref, use bool) (entry, *pack, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return entry{}, nil, ErrClosed
	}
	e, ok := s.blocks[r.key]
	if !ok {
		return entry{}, nil, fmt.Errorf("%s: %w", r, ErrNotFound)
	}
	if use {
		if t := s.touch(r.key, e); t != e {
			s.blocks[r.key] = t
		}
	}
	p := s.packs[e.at.pack]
	p.acquire()
	return e, p, nil
}

// readAt reads the block at e, and releases p.
func (s *Store) readAt(r ref, e entry, p *pack, buf []byte, verify bool) ([]byte, error) {
	n := int(e.at.length)
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	_, err := p.f.ReadAt(buf, int64(e.at.offset))
	if errors.Is(err, io.EOF) && n == 0 {
		err = nil
	}
	if rerr := p.release(); err == nil {
		err = rerr
	}
	switch {
	case err == nil && (!verify || sha256.Sum256(buf) == r.key):
		return buf, nil
	case err != nil && !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("read block %s from %s: %w", r, p.path, err)
	}
	s.quarantine(r, e, p.path)
	return nil, fmt.Errorf("%s: %w: its bytes on disk were damaged, it was dropped and can be fetched again", r, ErrNotFound)
}

// quarantine forgets a block whose bytes are bad, and says whether it was still
// known. The place is not written again; compaction reclaims it.
func (s *Store) quarantine(r ref, bad entry, path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.blocks[r.key]; !ok || e.at != bad.at {
		return false
	}
	s.forget(r.key)
	s.damaged++
	s.log.Error("damaged block dropped", "block", r.String(), "pack", path, "offset", bad.at.offset)
	return true
}
