package p2p

import (
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Strikes of one kind of misbehaviour. Being over a rate happens to honest
// peers and counts little.
const (
	strikeInvalid  = 1.0
	strikeOverRate = 0.05
	strikesFaded   = 10.0 / 60 // a second
)

// blameTable remembers who sent wrong things lately; it is bounded and forgets
// the peers longest unheard of first.
type blameTable struct {
	now   func() time.Time
	after float64
	ban   time.Duration

	mu    sync.Mutex
	peers *lru.Cache[peer.ID, *blamed]
}

type blamed struct {
	strikes float64
	at      time.Time
	until   time.Time
}

func newBlameTable(now func() time.Time, after float64, ban time.Duration) (*blameTable, error) {
	peers, err := lru.New[peer.ID, *blamed](4096)
	if err != nil {
		return nil, err
	}
	return &blameTable{now: now, after: after, ban: ban, peers: peers}, nil
}

// strike counts misbehaviour and reports whether the peer is refused from now.
func (t *blameTable) strike(p peer.ID, weight float64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	b, ok := t.peers.Get(p)
	if !ok {
		b = &blamed{at: now}
		t.peers.Add(p, b)
	}
	b.strikes = max(0, b.strikes-now.Sub(b.at).Seconds()*strikesFaded) + weight
	b.at = now
	if b.strikes < t.after {
		return false
	}
	b.strikes, b.until = 0, now.Add(t.ban)
	return true
}

// refused reports whether a peer is refused now.
func (t *blameTable) refused(p peer.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, ok := t.peers.Get(p)
	return ok && t.now().Before(b.until)
}

// refuse shuts a peer out at once.
func (t *blameTable) refuse(p peer.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	t.peers.Add(p, &blamed{at: now, until: now.Add(t.ban)})
}
