package job

import (
	"time"

	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/protocol"
)

// cardGrace is how long a job may take to end when a card of it has gone; what it
// saved in that time reaches its renter.
const cardGrace = 10 * time.Second

// SetCards says what is known of the machine's cards now, those with trouble
// among them. Bids from here on are made of the rest, and jobs that cannot go on
// without a card are ended, as this provider's failure.
func (p *Provider) SetCards(cards []gpu.GPU) {
	p.Pool.SetCards(cards)
	p.mu.Lock()
	p.said = map[protocol.MsgID]protocol.Signed[*protocol.Answer]{}
	runs := make([]*execution, 0, len(p.runs))
	for _, e := range p.runs {
		runs = append(runs, e)
	}
	p.mu.Unlock()
	for _, e := range runs {
		e.checkCards()
	}
	p.Changed()
}

// checkCards ends the work when a card of it cannot be used any more, and
// remembers what else is wrong with one, for the result to tell.
func (e *execution) checkCards() {
	for _, uuid := range e.contract().Cards {
		g, ok := e.p.Pool.Card(uuid)
		switch {
		case !ok:
			e.giveUp("GPU "+uuid+": the card is not in this machine any more", cardGrace)
		case g.Trouble.Ends:
			e.giveUp("GPU "+g.Title()+": "+g.Trouble.Text, cardGrace)
		case !g.Trouble.None():
			e.mu.Lock()
			e.ailing = "GPU " + g.Title() + ": " + g.Trouble.Text
			e.mu.Unlock()
		}
	}
}
