package p2p

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
)

// Bounds of the remembered peers.
const (
	bookSize     = 256
	bookAddrs    = 8
	bookFileSize = 1 << 20
	bookAge      = 30 * 24 * time.Hour
)

// book is the file of peers met, so that a node finds the network again when
// its bootstrap node is gone.
type book struct {
	path string

	mu     sync.Mutex
	loaded bool
	peers  map[peer.ID]remembered
}

type remembered struct {
	ID    peer.ID   `json:"id"`
	Addrs []string  `json:"addrs"`
	Seen  time.Time `json:"seen"`
}

type bookFile struct {
	Version int          `json:"version"`
	Peers   []remembered `json:"peers"`
}

func newBook(path string) *book { return &book{path: path, peers: make(map[peer.ID]remembered)} }

// load reads the file; a missing one is an empty book. A damaged one is an
// error and is written anew at the next save.
func (b *book) load() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loaded = true
	if b.path == "" {
		return nil
	}
	info, err := os.Stat(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("peers met before: %w", err)
	}
	if info.Size() > bookFileSize {
		return fmt.Errorf("peers met before: %s has %d bytes, over %d", b.path, info.Size(), bookFileSize)
	}
	raw, err := os.ReadFile(b.path)
	if err != nil {
		return fmt.Errorf("peers met before: %w", err)
	}
	peers, err := parseBook(raw)
	if err != nil {
		return fmt.Errorf("peers met before: %s: %w", b.path, err)
	}
	for _, p := range peers {
		b.peers[p.ID] = p
	}
	return nil
}

func parseBook(raw []byte) ([]remembered, error) {
	var file bookFile
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, err
	}
	if file.Version != 1 {
		return nil, fmt.Errorf("version %d is not known", file.Version)
	}
	if len(file.Peers) > bookSize {
		file.Peers = file.Peers[:bookSize]
	}
	for _, p := range file.Peers {
		if err := p.ID.Validate(); err != nil {
			return nil, err
		}
		if len(p.Addrs) > bookAddrs {
			return nil, fmt.Errorf("peer %s has %d addresses, over %d", p.ID, len(p.Addrs), bookAddrs)
		}
		for _, a := range p.Addrs {
			if _, err := multiaddr.NewMultiaddr(a); err != nil {
				return nil, fmt.Errorf("peer %s: %w", p.ID, err)
			}
		}
	}
	return file.Peers, nil
}

// note remembers peers that were connected at the time now.
func (b *book) note(peers []peer.AddrInfo, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range peers {
		if len(p.Addrs) == 0 {
			continue
		}
		r := remembered{ID: p.ID, Seen: now.UTC().Truncate(time.Second)}
		for _, a := range p.Addrs[:min(len(p.Addrs), bookAddrs)] {
			r.Addrs = append(r.Addrs, a.String())
		}
		b.peers[p.ID] = r
	}
	for _, old := range b.sorted()[min(len(b.peers), bookSize):] {
		delete(b.peers, old.ID)
	}
	for id, p := range b.peers {
		if now.Sub(p.Seen) > bookAge {
			delete(b.peers, id)
		}
	}
}

// sorted lists the peers, the ones seen last first.
func (b *book) sorted() []remembered {
	out := make([]remembered, 0, len(b.peers))
	for _, p := range b.peers {
		out = append(out, p)
	}
	slices.SortFunc(out, func(x, y remembered) int {
		if c := y.Seen.Compare(x.Seen); c != 0 {
			return c
		}
		return slices.Compare([]byte(x.ID), []byte(y.ID))
	})
	return out
}

// recent are up to n peers, the ones seen last first.
func (b *book) recent(n int) []peer.AddrInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []peer.AddrInfo
	for _, p := range b.sorted() {
		info := peer.AddrInfo{ID: p.ID}
		for _, s := range p.Addrs {
			if a, err := multiaddr.NewMultiaddr(s); err == nil {
				info.Addrs = append(info.Addrs, a)
			}
		}
		if out = append(out, info); len(out) == n {
			break
		}
	}
	return out
}

// save writes the file whole or not at all. A book that was never loaded is
// not written: it would wipe out what is there.
func (b *book) save() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.path == "" || !b.loaded {
		return nil
	}
	raw, err := json.MarshalIndent(bookFile{Version: 1, Peers: b.sorted()}, "", " ")
	if err != nil {
		return fmt.Errorf("remember peers: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(b.path), 0o700); err != nil {
		return fmt.Errorf("remember peers: %w", err)
	}
	tmp, err := writeTemp(b.path, raw)
	if err != nil {
		return fmt.Errorf("remember peers: %w", err)
	}
	if err := os.Rename(tmp, b.path); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("remember peers: %w", err)
	}
	return nil
}
