package job

import (
	"slices"
	"sync"

	"github.com/lumbung-net/lumbung/protocol"
)

// cachePlaces remembers which provider held a cache last. It breaks ties between
// bids: to ask providers for keys would tell everybody what they are.
type cachePlaces struct {
	mu    sync.Mutex
	order []string // keys, the latest noted last
	last  map[string]protocol.PeerID
}

const maxCachePlaces = 1024

func (p *cachePlaces) note(on protocol.PeerID, caches []*protocol.Cache) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil {
		p.last = map[string]protocol.PeerID{}
	}
	for _, c := range caches {
		p.order = append(slices.DeleteFunc(p.order, func(k string) bool { return k == c.GetKey() }), c.GetKey())
		p.last[c.GetKey()] = on
		if len(p.order) > maxCachePlaces {
			delete(p.last, p.order[0])
			p.order = p.order[1:]
		}
	}
}

// mark counts, at each bid, the job's caches that its provider held last.
func (p *cachePlaces) mark(s Spec, bids []Candidate) []Candidate {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range s.Caches {
		on, ok := p.last[c.Key]
		for i := range bids {
			if ok && bids[i].Peer == on {
				bids[i].Caches++
			}
		}
	}
	return bids
}
