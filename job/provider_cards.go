package job

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/job/sandbox"
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

// passes is why a container cannot have the cards of a wish, where lacks is what
// was found before; the cards that are let may lack only because others cannot be
// passed.
func (p *Provider) passes(r *protocol.Resources, cards int, lacks protocol.Reason) protocol.Reason {
	switch lacks {
	case protocol.Reason_REASON_UNSPECIFIED:
	case protocol.Reason_REASON_GPU_MODEL, protocol.Reason_REASON_GPU_VRAM, protocol.Reason_REASON_GPU_COUNT:
		sealed := slices.DeleteFunc(slices.Clone(p.Pool.Cards()), func(g gpu.GPU) bool {
			return !g.Trouble.None() && g.Trouble.Kind != gpu.KindDevices
		})
		if len(matching(sealed, r)) >= max(1, cards) {
			return protocol.Reason_REASON_GPU_DEVICES
		}
		return lacks
	default:
		return lacks
	}
	fit := matching(p.Pool.Total().GPUs, r)
	if p.Pass == nil && slices.ContainsFunc(fit, func(g gpu.GPU) bool { return !g.Fake }) {
		return protocol.Reason_REASON_GPU_DEVICES
	}
	for _, c := range r.GetGpuCapabilities() {
		if !slices.Contains(gpu.Capabilities, c) {
			return protocol.Reason_REASON_GPU_CAPABILITIES
		}
	}
	return protocol.Reason_REASON_UNSPECIFIED
}

// passCards lets a container use the cards of its lease.
func (e *execution) passCards(ctx context.Context, spec *sandbox.Spec) error {
	var real []string
	for _, uuid := range e.contract().Cards {
		g, ok := e.p.Pool.Card(uuid)
		if !ok {
			return fault("GPU %s is not in this machine any more", uuid)
		}
		if !g.Fake {
			real = append(real, uuid)
		}
	}
	if len(real) == 0 {
		return nil
	}
	wanted := e.lease.Msg.GetResources().GetGpuCapabilities()
	if len(wanted) == 0 {
		wanted = gpu.DefaultCapabilities
	}
	if e.p.Pass == nil {
		return fault("this provider cannot pass a GPU into a container")
	}
	passage, err := e.p.Pass(ctx, real, wanted)
	if err != nil {
		return fault("pass the GPU into the container: %w", err)
	}
	spec.Devices = devicesOf(passage)
	spec.Env = withCards(spec.Env, passage)
	return nil
}

// devicesOf is a passage as the sandbox takes it.
func devicesOf(p gpu.Passage) sandbox.Devices {
	d := sandbox.Devices{Capabilities: p.Capabilities}
	for _, n := range p.Nodes {
		d.Nodes = append(d.Nodes, sandbox.DeviceNode{Path: n.Path, Major: n.Major, Minor: n.Minor})
	}
	for _, f := range p.Files {
		d.Files = append(d.Files, sandbox.Mount{Source: f.Source, Dest: f.Dest, ReadOnly: true})
	}
	for _, l := range p.Links {
		d.Links = append(d.Links, sandbox.Link{Path: l.Path, Target: l.Target})
	}
	return d
}

// withCards adds a passage's variables to an environment, and its folders to
// where programs look for libraries, after those that the image and the job name.
func withCards(env []string, p gpu.Passage) []string {
	const libraries = "LD_LIBRARY_PATH"
	folders := p.Folders
	for i := len(env) - 1; i >= 0; i-- { // the last one counts
		if v, ok := strings.CutPrefix(env[i], libraries+"="); ok {
			folders = append(slices.DeleteFunc(strings.Split(v, ":"), func(f string) bool { return slices.Contains(p.Folders, f) }), folders...)
			break
		}
	}
	mine := append([]string{libraries + "=" + strings.Join(folders, ":")}, p.Env...)
	for _, e := range mine {
		name, _, _ := strings.Cut(e, "=")
		env = slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(v, name+"=") })
	}
	return append(env, mine...)
}

// checkCards ends the work when a card of it cannot be used any more, and
// remembers what else is wrong with one, for the result to tell.
func (e *execution) checkCards() {
	ailing := ""
	defer func() { e.noteAiling(ailing) }()
	for _, uuid := range e.contract().Cards {
		g, ok := e.p.Pool.Card(uuid)
		switch {
		case !ok:
			e.giveUp("GPU "+uuid+": the card is not in this machine any more", cardGrace)
		case g.Trouble.Ends:
			e.giveUp("GPU "+g.Title()+": "+g.Trouble.Text, cardGrace)
		case !g.Trouble.None():
			ailing = "GPU " + g.Title() + ": " + g.Trouble.Text
		}
	}
}

// noteAiling has the next heartbeat, and the result of a job that fails, tell what
// is wrong with a card; "" is nothing any more, which a result does not forget.
func (e *execution) noteAiling(what string) {
	e.mu.Lock()
	changed := e.ails != what
	e.ails = what
	if what != "" {
		e.ailing = what
	}
	e.mu.Unlock()
	if changed {
		poke(e.beat)
	}
}
