package content

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Names of the two protocols, the last part of their ids.
const (
	// ProtocolGet carries lists of CIDs one way and blocks, in the same order,
	// the other.
	ProtocolGet = "get/1"
	// ProtocolDAG carries one root one way and the DAG under it, breadth
	// first, up to a number of bytes, the other.
	ProtocolDAG = "dag/1"
	// ProtocolHave carries one root one way and which blocks under it are
	// there the other, again and again.
	ProtocolHave = "have/1"
)

// Stream is one bidirectional stream to a peer.
type Stream interface {
	io.Reader
	io.Writer
	CloseWrite() error
	Close() error
	Reset() error
	SetDeadline(t time.Time) error
}

// Network opens streams. protocol is one of the three above; to is a peer id. It dials if it must, within ctx.
type Network interface {
	OpenContent(ctx context.Context, to string, protocol string) (Stream, error)
}

// Errors of the exchange.
var (
	// ErrUnavailable says that no peer could give all blocks.
	ErrUnavailable = errors.New("not all blocks could be had")
	// ErrBusy says that a peer serves as many streams as it wants to.
	ErrBusy = errors.New("the peer is serving others")
	// ErrLiar says that a peer sent bytes that are not what was asked for.
	ErrLiar = errors.New("the peer sent bytes that do not match")
	// ErrProtocol says that a peer did not keep to the protocol.
	ErrProtocol = errors.New("the peer does not keep to the protocol")
)

// ExchangeOptions configures an Exchange. Zero fields take the defaults.
type ExchangeOptions struct {
	Log *slog.Logger
	// Now is the clock for bans and rates; nil is time.Now.
	Now func() time.Time
	// Slots is how many streams are served at once; 0 is 64, and a quarter
	// more for peers with priority. One stream of get/1 or dag/1 uses 1 MiB of
	// memory, or what its largest block has, and as much again where it packs;
	// the walks of all dag/1 streams together have 524,288 blocks.
	Slots int
	// SlotsPerPeer is how many of them one peer may have; 0 is 12.
	SlotsPerPeer int
	// Uploads is how many of them are sent to at one time, the others waiting
	// for their turn; 0 is 16.
	Uploads int
	// UploadRate bounds what all peers together are served, and PeerRate what
	// one is, in bytes of blocks a second; 0 is no bound. What have/1 answers,
	// and what is told to Spend, counts in UploadRate.
	UploadRate, PeerRate uint64
	// Priority, if set, says whether a peer is served ahead of others: one
	// that fetches for a job awarded to it, or by it. It must not block.
	Priority func(peer string) bool
	// Idle is how long a served stream may ask nothing; 0 is a minute.
	Idle time.Duration
	// Stall is how long a peer may give no byte, or take none, before it is
	// given up; 0 is 20 s.
	Stall time.Duration
	// TailAfter is how long a range may be out before an idle peer is asked
	// for what is missing of it too; 0 is 1 s.
	TailAfter time.Duration
	// RetryAfter is the first pause before a peer that failed is tried again,
	// and before peers without the blocks are asked anew; 0 is 500 ms.
	RetryAfter time.Duration
	// Patience is how long a fetch goes on without a byte; 0 is a minute.
	Patience time.Duration
	// BanFor is how long a peer is not asked again that broke the protocol, or
	// sent wrong bytes twice within that time; 0 is an hour. The first wrong
	// bytes ban it for 30 s.
	BanFor time.Duration
	// BanFile, if set, is where bans are kept over restarts.
	BanFile string
}

func (o ExchangeOptions) orDefault() ExchangeOptions {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.Idle, time.Minute)
	def(&o.Stall, 20*time.Second)
	def(&o.TailAfter, time.Second)
	def(&o.RetryAfter, 500*time.Millisecond)
	def(&o.Patience, time.Minute)
	def(&o.BanFor, time.Hour)
	if o.Slots <= 0 {
		o.Slots = 64
	}
	if o.SlotsPerPeer <= 0 {
		o.SlotsPerPeer = 12
	}
	if o.Uploads <= 0 {
		o.Uploads = 16
	}
	if o.Priority == nil {
		o.Priority = func(string) bool { return false }
	}
	return o
}

// Exchange serves blocks to peers and fetches DAGs from them.
type Exchange struct {
	s     *Store
	n     Network
	o     ExchangeOptions
	turns *turns
	group int // bytes of the blocks sent in one turn
	holds holdings
	slabs slabs
	walks walks

	packOnce sync.Once
	encoders [2]*zstd.Encoder // one that is fast, one that packs well

	mu      sync.Mutex
	served  int                // streams being served, but for those of have/1
	asked   int                // streams of have/1 being served
	peers   map[string]*client // peers being served
	bans    map[string]ban
	fetches map[*fetch]struct{}
}

// NewExchange returns an Exchange over a store. It owns no goroutine: Fetch and
// ServeStream work in their callers', and a Fetcher's end with its Stop.
func NewExchange(s *Store, n Network, o ExchangeOptions) *Exchange {
	o = o.orDefault()
	e := &Exchange{
		s: s, n: n, o: o, turns: newTurns(o.Uploads, o.UploadRate, time.Now), group: groupBytes,
		slabs: newSlabs(), peers: map[string]*client{}, bans: map[string]ban{}, fetches: map[*fetch]struct{}{},
	}
	for _, r := range []uint64{o.UploadRate, o.PeerRate} { // small pieces, so that a slow node is a steady one
		if r > 0 {
			e.group = max(firstGroup, min(e.group, int(min(r, 1<<40)/4)))
		}
	}
	if err := e.loadBans(); err != nil {
		e.o.Log.Warn("bans of earlier are forgotten", "err", err)
	}
	return e
}

// Protocols returns the last parts of the ids ServeStream understands.
func (e *Exchange) Protocols() []string { return []string{ProtocolGet, ProtocolDAG, ProtocolHave} }
