package content

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"golang.org/x/time/rate"
)

// maxBans bounds the list of liars; when it is full the oldest is forgiven.
const maxBans = 4096

// haveStreams is how many streams of have/1, which idle, one peer may have; all
// peers together may have sixteen times as many.
const haveStreams = 8

// client is a peer with streams being served.
type client struct {
	streams, asking int
	first           atomic.Bool   // it is served ahead of others
	limit           *rate.Limiter // nil is no limit
	link            linkRate
	since           time.Time
	sent            atomic.Uint64
	root            cid.Cid // last asked for by dag/1 or have/1; guarded by Exchange.mu
}

// admit gives a stream to be served a slot. idle says that it is of have/1.
func (e *Exchange) admit(peer string, idle bool) (*client, bool) {
	first := e.o.Priority(peer)
	e.mu.Lock()
	defer e.mu.Unlock()
	c, places := e.peers[peer], e.o.Slots
	if first {
		places += (places + 3) / 4
	}
	switch {
	case idle && (e.asked >= 16*haveStreams || c != nil && c.asking >= haveStreams):
		return nil, false
	case !idle && (e.served >= places || c != nil && c.streams >= e.o.SlotsPerPeer):
		return nil, false
	}
	if c == nil {
		c = &client{since: e.o.Now()}
		c.link.bound(e.o.UploadRate)
		if e.o.PeerRate > 0 {
			c.link.bound(e.o.PeerRate)
			c.limit = rate.NewLimiter(rate.Limit(e.o.PeerRate), max(e.group, MaxBlockHard)+headRoom)
		}
		e.peers[peer] = c
	}
	c.first.Store(first)
	if idle {
		c.asking++
		e.asked++
	} else {
		c.streams++
		e.served++
	}
	return c, true
}

func (e *Exchange) dismiss(peer string, c *client, idle bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if idle {
		c.asking--
		e.asked--
	} else {
		c.streams--
		e.served--
	}
	if c.streams+c.asking == 0 {
		delete(e.peers, peer)
	}
}

// asksFor notes what a peer fetches, to show it.
func (e *Exchange) asksFor(c *client, r ref) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c.root = r.cid()
}

// Transfer is a fetch, or what one peer is being served.
type Transfer struct {
	In    bool
	Root  cid.Cid       // undefined where a peer has not told
	Peers int           // that gave something, or take
	Peer  string        // that is served
	Bytes uint64        // so far; of a fetch, those here
	Total uint64        // of a fetch, as far as known
	Rate  float64       // bytes a second
	ETA   time.Duration // 0 is not known
}

// Transfers returns what is under way, fetches first, then peers by what they
// were given.
func (e *Exchange) Transfers() []Transfer {
	now := e.o.Now()
	e.mu.Lock()
	var out []Transfer
	for id, c := range e.peers {
		n := c.sent.Load()
		if n == 0 {
			continue
		}
		t := Transfer{Root: c.root, Peers: 1, Peer: id, Bytes: n}
		if d := now.Sub(c.since).Seconds(); d > 0 {
			t.Rate = float64(n) / d
		}
		out = append(out, t)
	}
	fetches := make([]*fetch, 0, len(e.fetches))
	for f := range e.fetches {
		fetches = append(fetches, f)
	}
	e.mu.Unlock()
	for _, f := range fetches {
		f.mu.Lock()
		p := f.progress()
		f.mu.Unlock()
		t := Transfer{In: true, Root: f.root.cid(), Peers: p.Peers, Bytes: p.HaveBytes, Total: p.TotalBytes, Rate: p.Rate}
		if p.Rate > 0 && p.TotalBytes > p.HaveBytes {
			t.ETA = time.Duration(float64(p.TotalBytes-p.HaveBytes) / p.Rate * float64(time.Second))
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b Transfer) int {
		if a.In != b.In {
			if a.In {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Peer, b.Peer))
	})
	return out
}

// firstBan is how long a peer is banned whose bytes were wrong once: it may be
// honest, and its disk may be what lied. It finds that out and mends it as
// those bytes are asked for again.
const firstBan = 30 * time.Second

// ban is one against a peer. It is remembered for as long as its next offence
// counts as a second one.
type ban struct {
	At    time.Time `json:"at"` // of the offence
	Until time.Time `json:"until"`
}

// Banned says whether a peer sent wrong bytes lately.
func (e *Exchange) Banned(peer string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.o.Now()
	b, ok := e.bans[peer]
	if ok && !now.Before(b.At.Add(e.o.BanFor)) {
		delete(e.bans, peer)
		return false
	}
	return ok && now.Before(b.Until)
}

// ban bans a peer: briefly when it lied once, for BanFor when it did before, or
// broke the protocol, which no disk does. What it lies on streams that were
// open when it was banned is no second offence.
func (e *Exchange) ban(peer string, why error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.o.Now()
	b, known := e.bans[peer]
	known = known && now.Before(b.At.Add(e.o.BanFor))
	last := e.o.BanFor
	if errors.Is(why, ErrLiar) && (!known || now.Before(b.Until)) {
		last = min(firstBan, last)
	}
	if until := now.Add(last); until.After(b.Until) {
		b = ban{At: now, Until: until}
	}
	e.o.Log.Warn("peer banned", "peer", peer, "until", b.Until, "err", why)
	if _, listed := e.bans[peer]; !listed && len(e.bans) >= maxBans {
		oldest := ""
		for p, o := range e.bans {
			if oldest == "" || o.Until.Before(e.bans[oldest].Until) {
				oldest = p
			}
		}
		delete(e.bans, oldest)
	}
	e.bans[peer] = b
	if err := e.saveBans(); err != nil {
		e.o.Log.Warn("the ban will not outlast this process", "peer", peer, "err", err)
	}
}

// saveBans writes the bans to their file. The caller holds mu.
func (e *Exchange) saveBans() error {
	if e.o.BanFile == "" {
		return nil
	}
	data, err := json.Marshal(e.bans)
	if err != nil {
		return err
	}
	tmp := e.o.BanFile + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("write bans: %w", err)
	}
	return os.Rename(tmp, e.o.BanFile)
}

// loadBans reads what saveBans wrote, but for bans that are over.
func (e *Exchange) loadBans() error {
	if e.o.BanFile == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(e.o.BanFile), 0o700); err != nil {
		return fmt.Errorf("bans: %w", err)
	}
	data, err := os.ReadFile(e.o.BanFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bans: %w", err)
	}
	bans := map[string]ban{}
	if err := json.Unmarshal(data, &bans); err != nil {
		return fmt.Errorf("bans in %s: %w", e.o.BanFile, err)
	}
	now := e.o.Now()
	for p, b := range bans {
		// One of the future, or that lasts longer than bans do, was made by a clock that was wrong.
		if len(e.bans) < maxBans && now.Before(b.At.Add(e.o.BanFor)) && !now.Before(b.At) && b.Until.Sub(b.At) <= e.o.BanFor {
			e.bans[p] = b
		}
	}
	return nil
}
