package job

import (
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/protocol"
)

// Capacity is what a provider sells: CPU thousandths of a core, bytes, and
// cards.
type Capacity struct {
	CPUMillis uint32
	Memory    uint64
	Disk      uint64
	GPUs      []gpu.GPU
}

// Reservation is capacity set aside: softly, until a deadline, for a bid that
// may be taken, or hard, for a lease.
type Reservation struct {
	ID        string
	Owner     string // the renter
	CPUMillis uint32
	Memory    uint64
	Disk      uint64
	GPUs      []string  // UUIDs
	Until     time.Time // zero is hard
	used      bool      // soft, and a lease has been taken from it
}

// Pool hands out a provider's capacity and never more of it than there is. One
// lock guards it, so concurrent awards see one another.
type Pool struct {
	mu    sync.Mutex
	total Capacity  // its cards are those that can be let
	cards []gpu.GPU // all there are, or were
	held  map[string]Reservation
	idle  map[string]time.Time // renters whose bids hold nothing until then
}

// A renter that lets what was held for it lapse gets bids and no hold on room for
// a while, so that offers alone cannot keep others from a provider.
const (
	idleFor = 5 * time.Minute
	maxIdle = 4096
)

// NewPool makes the pool of a capacity.
func NewPool(total Capacity) *Pool {
	p := &Pool{total: total, cards: total.GPUs, held: map[string]Reservation{}, idle: map[string]time.Time{}}
	p.total.GPUs = gpu.Let(p.cards)
	return p
}

// Total is all that can be let, reserved or not.
func (p *Pool) Total() Capacity {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total
}

// SetCards says what is known of all cards now: those with trouble are not let,
// and what holds them keeps its hold. A card that is left out is gone.
func (p *Pool) SetCards(cards []gpu.GPU) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cards, p.total.GPUs = cards, gpu.Let(cards)
}

// Cards are all cards, those that cannot be let too.
func (p *Pool) Cards() []gpu.GPU {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cards
}

// Card is what is known of a card; false when there is none of that UUID.
func (p *Pool) Card(uuid string) (gpu.GPU, bool) {
	cards := p.Cards()
	i := slices.IndexFunc(cards, func(g gpu.GPU) bool { return g.UUID == uuid })
	if i < 0 {
		return gpu.GPU{}, false
	}
	return cards[i], true
}

// Leased reports whether a lease holds a card.
func (p *Pool) Leased(uuid string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.held {
		if r.Until.IsZero() && slices.Contains(r.GPUs, uuid) {
			return true
		}
	}
	return false
}

// Free is what is neither reserved hard nor, when soft is set, softly.
func (p *Pool) Free(now time.Time, soft bool) Capacity {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lapse(now)
	return p.free("", soft)
}

func (p *Pool) lapse(now time.Time) {
	for id, r := range p.held {
		if r.Until.IsZero() || now.Before(r.Until) {
			continue
		}
		delete(p.held, id)
		if !r.used {
			p.noteIdle(r.Owner, r.Until.Add(idleFor), now)
		}
	}
}

// noteIdle remembers a renter whose hold was of no use. The lock is held.
func (p *Pool) noteIdle(renter string, until, now time.Time) {
	if len(p.idle) >= maxIdle {
		maps.DeleteFunc(p.idle, func(_ string, t time.Time) bool { return !now.Before(t) })
	}
	if len(p.idle) < maxIdle {
		p.idle[renter] = until
	}
}

// free leaves out soft reservations unless soft is set, and always those of the
// renter: its own bids do not stand in its way.
func (p *Pool) free(renter string, soft bool) Capacity {
	f := p.total
	taken := map[string]bool{}
	for _, r := range p.held {
		if !r.Until.IsZero() && (!soft || r.Owner == renter) {
			continue
		}
		f.CPUMillis -= min(f.CPUMillis, r.CPUMillis)
		f.Memory -= min(f.Memory, r.Memory)
		f.Disk -= min(f.Disk, r.Disk)
		for _, id := range r.GPUs {
			taken[id] = true
		}
	}
	f.GPUs = slices.DeleteFunc(slices.Clone(p.total.GPUs), func(g gpu.GPU) bool { return taken[g.UUID] })
	return f
}

// matching are the cards that a wish can be served with.
func matching(cards []gpu.GPU, r *protocol.Resources) []gpu.GPU {
	var fit []gpu.GPU
	for _, g := range cards {
		if len(r.GetGpuModels()) > 0 && !slices.Contains(r.GetGpuModels(), g.Model) {
			continue
		}
		if g.VRAMBytes < r.GetGpuVramBytes() || !drives(g, r) {
			continue
		}
		fit = append(fit, g)
	}
	return fit
}

// drives reports whether a card's driver is what a wish needs. A fake card has
// none and does for everything.
func drives(g gpu.GPU, r *protocol.Resources) bool {
	if g.Fake {
		return true
	}
	if r.GetGpuCuda() != "" && !gpu.AtLeast(g.CUDA, r.GetGpuCuda()) {
		return false
	}
	require, err := gpu.ParseRequire(r.GetGpuRequire())
	return err == nil && require.MetBy(g)
}

// cardsWanted is how many cards a wish takes from this provider.
func (c Capacity) cardsWanted(r *protocol.Resources) int {
	if r.GetGpuAll() {
		return max(1, len(matching(c.GPUs, r)))
	}
	return int(r.GetGpuCount())
}

// lacks names what a capacity has too little of for one task, or 0.
func (c Capacity) lacks(r *protocol.Resources, cards int) protocol.Reason {
	switch {
	case cards > 0 && !anyModel(c.GPUs, r):
		return protocol.Reason_REASON_GPU_MODEL
	case cards > 0 && len(matching(c.GPUs, r)) == 0 && slices.ContainsFunc(c.GPUs, func(g gpu.GPU) bool { return g.VRAMBytes >= r.GetGpuVramBytes() && !drives(g, r) }):
		return protocol.Reason_REASON_GPU_CUDA
	case cards > 0 && len(matching(c.GPUs, r)) == 0:
		return protocol.Reason_REASON_GPU_VRAM
	case len(matching(c.GPUs, r)) < cards:
		return protocol.Reason_REASON_GPU_COUNT
	case c.CPUMillis < r.GetCpuMillis():
		return protocol.Reason_REASON_CPU
	case c.Memory < r.GetMemoryBytes():
		return protocol.Reason_REASON_MEMORY
	case c.Disk < r.GetDiskBytes():
		return protocol.Reason_REASON_DISK
	}
	return protocol.Reason_REASON_UNSPECIFIED
}

func anyModel(cards []gpu.GPU, r *protocol.Resources) bool {
	if len(r.GetGpuModels()) == 0 {
		return len(cards) > 0
	}
	return slices.ContainsFunc(cards, func(g gpu.GPU) bool { return slices.Contains(r.GetGpuModels(), g.Model) })
}

// slots is how many tasks fit at once.
func (c Capacity) slots(r *protocol.Resources, cards, most int) int {
	n := most
	fit := func(have, need uint64) {
		if need > 0 {
			n = min(n, int(min(have/need, uint64(most))))
		}
	}
	fit(uint64(c.CPUMillis), uint64(r.GetCpuMillis()))
	fit(c.Memory, r.GetMemoryBytes())
	fit(c.Disk, r.GetDiskBytes())
	fit(uint64(len(matching(c.GPUs, r))), uint64(cards))
	return n
}

// Offer looks for room for up to most tasks of a renter and reserves it softly
// under id until a deadline, unless the renter has let such room lapse lately. It
// returns the slots, or why there are none: busy when it would fit if nothing else
// ran.
func (p *Pool) Offer(id, renter string, r *protocol.Resources, most int, now, until time.Time) (int, protocol.Reason) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lapse(now)
	cards := p.total.cardsWanted(r)
	if why := p.total.lacks(r, cards); why != protocol.Reason_REASON_UNSPECIFIED {
		return 0, why
	}
	free := p.free(renter, true)
	n := free.slots(r, cards, most)
	if n == 0 {
		return 0, protocol.Reason_REASON_BUSY
	}
	if !now.Before(p.idle[renter]) {
		p.held[id] = reservation(id, renter, free.GPUs, r, cards, n, until)
	}
	return n, protocol.Reason_REASON_UNSPECIFIED
}

func reservation(id, renter string, cards []gpu.GPU, r *protocol.Resources, perTask, tasks int, until time.Time) Reservation {
	res := Reservation{
		ID: id, Owner: renter, Until: until,
		CPUMillis: r.GetCpuMillis() * uint32(tasks),
		Memory:    r.GetMemoryBytes() * uint64(tasks),
		Disk:      r.GetDiskBytes() * uint64(tasks),
	}
	for _, g := range matching(cards, r)[:perTask*tasks] {
		res.GPUs = append(res.GPUs, g.UUID)
	}
	return res
}

// Take reserves hard for a renter's lease. What the bid softly held is used first, so an
// award within its bid's validity finds its room. It reports false, and changes
// nothing, when there is too little.
func (p *Pool) Take(lease, bid, renter string, r *protocol.Resources, now time.Time) (Reservation, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lapse(now)
	if held, ok := p.held[lease]; ok {
		return held, true
	}
	soft, hasSoft := p.held[bid]
	delete(p.held, bid)
	cards := p.total.cardsWanted(r)
	free := p.free(renter, true)
	if p.total.lacks(r, cards) != protocol.Reason_REASON_UNSPECIFIED || free.slots(r, cards, 1) == 0 {
		if hasSoft {
			p.held[bid] = soft
		}
		return Reservation{}, false
	}
	hard := reservation(lease, renter, free.GPUs, r, cards, 1, time.Time{})
	p.held[lease] = hard
	delete(p.idle, renter)
	if rest, ok := shrink(soft, hard); hasSoft && ok {
		p.held[bid] = rest
	}
	return hard, true
}

// shrink takes a lease's part out of its bid's soft reservation.
func shrink(soft, hard Reservation) (Reservation, bool) {
	if soft.CPUMillis <= hard.CPUMillis {
		return Reservation{}, false
	}
	soft.used = true
	soft.CPUMillis -= hard.CPUMillis
	soft.Memory -= min(soft.Memory, hard.Memory)
	soft.Disk -= min(soft.Disk, hard.Disk)
	soft.GPUs = slices.DeleteFunc(slices.Clone(soft.GPUs), func(id string) bool { return slices.Contains(hard.GPUs, id) })
	return soft, true
}

// roomOf is what a task takes of a provider: its files lie on the disk that its
// outputs and its log lie on too.
func roomOf(r *protocol.Resources, outputs, log uint64, checkpoints bool) *protocol.Resources {
	room, _ := proto.Clone(r).(*protocol.Resources)
	room.DiskBytes += outputs + log
	if checkpoints { // one lies here while it is made
		room.DiskBytes += checkpointRoom(r, outputs)
	}
	return room
}

func roomOfLease(l *protocol.Lease) *protocol.Resources {
	return roomOf(l.GetResources(), l.GetLimits().GetOutputBytes(), l.GetLimits().GetLogBytes(), l.GetSpec().GetCheckpointEveryMs() > 0)
}

func roomOfOffer(o *protocol.Offer) *protocol.Resources {
	return roomOf(o.GetResources(), o.GetOutputBytes(), o.GetLogBytes(), o.GetPortability() != nil)
}

// restored is the reservation of a lease found again, with the very cards that
// it had.
func restored(c *Contract, r *protocol.Resources) Reservation {
	return Reservation{
		ID: c.ID.String(), Owner: c.Renter, CPUMillis: r.GetCpuMillis(), Memory: r.GetMemoryBytes(), Disk: r.GetDiskBytes(), GPUs: c.Cards,
	}
}

// Restore puts a lease's reservation back after a restart, whatever is free:
// the work is there.
func (p *Pool) Restore(r Reservation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r.Until = time.Time{}
	p.held[r.ID] = r
}

// Release gives a reservation back; one that is not there is no error.
func (p *Pool) Release(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.held, id)
}

// Leases counts the hard reservations.
func (p *Pool) Leases() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, r := range p.held {
		if r.Until.IsZero() {
			n++
		}
	}
	return n
}
