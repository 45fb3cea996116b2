package gpu

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// observer makes out of single looks what is known of the cards: those that
// vanished, errors that came between two looks, and heat or foreign use that
// lasts. It is pure but for what it remembers.
type observer struct {
	known map[string]*observed // by UUID
}

type observed struct {
	last    GPU
	xid     xid
	xidAt   time.Time
	hot     int // looks in a row
	foreign int
	absent  int
}

const (
	// lasting is how many looks in a row heat or foreign use ends a job after; the
	// offers lose the card with the first. absence is that of a card that is not
	// listed: one list that the driver fails to give must not end all jobs.
	lasting = 3
	absence = 2
	// cooled is by how many degrees a card must have cooled to be let again.
	cooled = 5
	// defaultSlowdown is taken for a card that does not say where it slows down.
	defaultSlowdown = 90
)

func newObserver() *observer { return &observer{known: map[string]*observed{}} }

// note remembers an error that the driver reported of a card.
func (o *observer) note(uuid string, x xid, at time.Time) {
	c := o.known[uuid]
	if c == nil || c.xid != 0 && !ofProgram[c.xid] && ofProgram[x] {
		return // nobody's, or it stays the worse one
	}
	c.xid, c.xidAt = x, at
}

// see takes one look at all cards and gives what is known of them, those that
// have gone among them, in the driver's order.
func (o *observer) see(looked []GPU, now time.Time) []GPU {
	seen := map[string]bool{}
	for _, g := range looked {
		seen[g.UUID] = true
		c := o.known[g.UUID]
		if c == nil {
			c = &observed{}
			o.known[g.UUID] = c
		}
		c.look(g)
	}
	out := make([]GPU, 0, len(o.known))
	for uuid, c := range o.known {
		g := c.last
		if !seen[uuid] {
			c.absent++
			g.Trouble = Trouble{Kind: KindVanished, Text: "the card is gone: the driver does not list it any more", Ends: c.absent >= absence}
		} else {
			g.Health.LastXid = uint64(c.xid)
			g.Trouble = c.judge(o.parent(g), now)
		}
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b GPU) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.UUID, b.UUID))
	})
	return out
}

// parent is what is known of the card that an instance is part of; errors are
// reported of that.
func (o *observer) parent(g GPU) *observed { return o.known[g.Parent] }

func (c *observed) look(g GPU) {
	c.absent = 0
	if g.Trouble.Ends && c.last.UUID != "" { // it says no more than that
		c.last.Trouble = g.Trouble
		return
	}
	limit := g.Health.slowdown()
	wasHot := c.hot > 0
	switch t := g.Health.Celsius; {
	case t >= limit:
		c.hot++
	case !wasHot || t+cooled <= limit:
		c.hot = 0
	}
	if g.Health.Foreign > 0 {
		c.foreign++
	} else {
		c.foreign = 0
	}
	c.last = g
}

func (h Health) slowdown() uint32 {
	if h.SlowdownAt == 0 {
		return defaultSlowdown
	}
	return h.SlowdownAt
}

// judge names the worst that is wrong with the card.
func (c *observed) judge(parent *observed, now time.Time) Trouble {
	h := c.last.Health
	if t := c.last.Trouble; t.Ends { // it does not answer
		return t
	}
	errors := []*observed{c}
	if parent != nil {
		errors = append(errors, parent)
	}
	var mild Trouble
	for _, e := range errors {
		t := e.xid.trouble(e.xidAt, now)
		if t.Ends {
			return t
		}
		mild = worse(mild, t)
	}
	switch {
	case h.Uncorrected > 0:
		return Trouble{Kind: KindMemory, Ends: true, Text: fmt.Sprintf("%d ECC errors that could not be corrected since the driver was loaded: reset the card", h.Uncorrected)}
	case h.RowsFailed:
		return Trouble{Kind: KindMemory, Ends: true, Text: "broken memory could not be replaced: the card needs service"}
	case h.RowsPending:
		return Trouble{Kind: KindMemory, Text: "broken memory is replaced with the next reset of the card"}
	case c.hot > 0:
		return Trouble{Kind: KindHeat, Ends: c.hot >= lasting, Text: fmt.Sprintf("it is %d °C hot and slows down at %d °C", h.Celsius, h.slowdown())}
	case c.foreign > 0:
		return Trouble{
			Kind: KindForeign, Ends: c.foreign >= lasting,
			Text: fmt.Sprintf("somebody else on this machine uses it (process %d)", h.ForeignFirst),
		}
	}
	return worse(mild, c.last.Trouble)
}

// worse is the first that is any.
func worse(a, b Trouble) Trouble {
	if !a.None() {
		return a
	}
	return b
}

// changed reports whether two states of the cards differ in what the market
// acts on.
func changed(a, b []GPU) bool {
	return !slices.EqualFunc(a, b, func(x, y GPU) bool {
		return x.UUID == y.UUID && x.Trouble.Kind == y.Trouble.Kind && x.Trouble.Ends == y.Trouble.Ends &&
			x.Driver == y.Driver && x.VRAMBytes == y.VRAMBytes && x.Model == y.Model
	})
}
