package content

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// The file "layers" of a store remembers the layers that were imported and
// verified here: which chunks make the tar with a digest. An import whose config
// names one of them needs to read nothing of it. It is a cache: a record that is
// damaged or whose blocks are gone is as none.
const (
	knownFile   = "layers"
	knownRecord = 32 + 8 + 32 + 4 // diff id, size, map, checksum
	maxKnown    = 1 << 13
)

func (s *Store) knownPath() string { return filepath.Join(s.dir, knownFile) }

// readKnown returns the records, oldest first.
func readKnown(path string) ([]layerRef, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of known layers: %w", err)
	}
	return decodeKnown(data), nil
}

func decodeKnown(data []byte) []layerRef {
	list := make([]layerRef, 0, min(len(data)/knownRecord, maxKnown))
	for len(data) >= knownRecord && len(list) < maxKnown {
		rec := data[:knownRecord]
		data = data[knownRecord:]
		if crc32.ChecksumIEEE(rec[:72]) != binary.LittleEndian.Uint32(rec[72:]) {
			continue
		}
		r := layerRef{diff: key(rec[:32]), size: binary.LittleEndian.Uint64(rec[32:]), mp: ref{key(rec[40:72]), codecCBOR}}
		if r.size <= maxLayerLen {
			list = append(list, r)
		}
	}
	return list
}

func encodeKnown(list []layerRef) []byte {
	out := make([]byte, 0, len(list)*knownRecord)
	for _, r := range list {
		at := len(out)
		out = append(out, r.diff[:]...)
		out = binary.LittleEndian.AppendUint64(out, r.size)
		out = append(out, r.mp.key[:]...)
		out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(out[at:]))
	}
	return out
}

// knownLayers is the list as one load sees it.
type knownLayers struct {
	once sync.Once
	refs map[key]layerRef
}

// known returns the layer whose tar has the digest want, if it was imported
// here before and is whole. Its blocks are then as safe from a collection as
// those put.
func (l *loader) known(ctx context.Context, want key) (layerRef, bool) {
	l.layers.once.Do(func() {
		l.layers.refs = map[key]layerRef{}
		list, err := readKnown(l.s.knownPath())
		if err != nil {
			l.s.log.Warn("known layers are imported again", "err", err)
		}
		for _, r := range list {
			l.layers.refs[r.diff] = r
		}
	})
	r, ok := l.layers.refs[want]
	return r, ok && l.s.wholeLayer(ctx, r)
}

// wholeLayer says whether the map of a layer and all its chunks are here, and
// counts them as put.
func (s *Store) wholeLayer(ctx context.Context, l layerRef) bool {
	m, ok := s.renewMap(l)
	if !ok {
		return false
	}
	if m.toc == nil {
		return false // it may be of a time before there were any
	}
	lists := [][]sized{m.chunks, m.toc}
	for _, p := range m.parts {
		data, err := s.get(p.ref, nil)
		if err != nil || ctx.Err() != nil || !s.renew(p.ref.key, uint64(len(data))) {
			return false
		}
		list, err := decodeChunks(data, p.size)
		if err != nil {
			return false
		}
		lists = append(lists, list)
	}
	for _, list := range lists {
		for _, c := range list {
			if !s.renew(c.ref.key, c.size) {
				return false
			}
		}
	}
	return true
}

func (s *Store) renewMap(l layerRef) (layerMap, bool) {
	data, err := s.get(l.mp, nil)
	if err != nil || !s.renew(l.mp.key, uint64(len(data))) {
		return layerMap{}, false
	}
	m, err := decodeLayerMap(data)
	return m, err == nil && m.diff == l.diff && m.size == l.size
}

// renew counts a block of n bytes as put now, and says whether it is here.
func (s *Store) renew(k key, n uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.blocks[k]
	if !ok || uint64(e.at.length) != n {
		return false
	}
	e.gen = s.gen
	s.blocks[k] = s.touch(k, e)
	return true
}

// remember adds an image's layers to the list. Of two loads that end at once
// one may be forgotten.
func (l *loader) remember(img Image) error {
	list, err := readKnown(l.s.knownPath())
	if err != nil {
		return err
	}
	there := make(map[layerRef]bool, len(list))
	for _, r := range list {
		there[r] = true
	}
	had := len(list)
	for _, layer := range img.Layers {
		diff, err := parseDigest(layer.DiffID)
		if err != nil {
			return err
		}
		mp, err := refOf(layer.Map)
		if err != nil {
			return err
		}
		if r := (layerRef{diff, layer.Bytes, mp}); !there[r] {
			there[r], list = true, append(list, r)
		}
	}
	if len(list) == had {
		return nil
	}
	return writeKnown(l.s.knownPath(), encodeKnown(list[max(0, len(list)-maxKnown):]))
}

func writeKnown(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), knownFile+"-*.tmp")
	if err != nil {
		return fmt.Errorf("remember layers: %w", err)
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("remember layers: %w", errors.Join(err, os.Remove(tmp.Name())))
	}
	return nil
}
