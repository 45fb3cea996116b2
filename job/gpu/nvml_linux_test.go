//go:build linux && cgo

package gpu

import (
	"errors"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxb200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"

	"github.com/lumbung-net/lumbung/protocol"
)

// TestDetect looks at six kinds of machine.
func TestDetect(t *testing.T) {
	type want struct {
		cards          int
		compute, brand string
	}
	for model, c := range map[string]struct {
		m *machine
		want
	}{
		"a100-40": {newMachine(t, dgxa100.New()), want{8, "8.0", "nvidia"}},
		"h100-80": {newMachine(t, dgxh100.New()), want{8, "9.0", "nvidia"}},
		"h200":    {newMachine(t, dgxh200.New()), want{8, "9.0", "nvidia"}},
		"b200":    {newMachine(t, dgxb200.New()), want{8, "10.0", "nvidia"}},
		"rtx4090": {newMachine(t, nil, rtx4090, rtx4090), want{2, "8.9", "geforce"}},
		"rtx3090": {newMachine(t, nil, rtx3090), want{1, "8.6", "geforce"}},
	} {
		cards, err := Detect(c.m)
		if err != nil {
			t.Fatal(err)
		}
		if len(cards) != c.cards {
			t.Fatalf("%s: %d cards, want %d", model, len(cards), c.cards)
		}
		class, _ := protocol.FindModel(model)
		for i, g := range cards {
			if g.Model != model || g.VRAMBytes < class.VRAM*98/100 || g.Index != i || g.UUID != c.m.uuid(i) || g.Fake ||
				g.Driver == "" || !strings.Contains(g.CUDA, ".") || g.Compute != c.compute || g.Brand != c.brand || g.Parent != "" {
				t.Errorf("%s: card %d is %+v", model, i, g)
			}
			if h := g.Health; h.Celsius != 41 || h.SlowdownAt != 90 || h.Milliwatts != 60_000 || !g.Trouble.None() {
				t.Errorf("%s: card %d is well and is %+v, %+v", model, i, h, g.Trouble)
			}
			if got := protocol.VRAMClass(g.VRAMBytes); got != protocol.VRAMClass(class.VRAM) {
				t.Errorf("%s: memory class %s, want %s", model, got, protocol.VRAMClass(class.VRAM))
			}
		}
	}
}

func TestDetectWithoutDriver(t *testing.T) {
	for ret, want := range map[nvml.Return]error{
		nvml.ERROR_LIBRARY_NOT_FOUND: ErrNoDriver,
		nvml.ERROR_DRIVER_NOT_LOADED: ErrNoDriver,
		nvml.ERROR_NO_PERMISSION:     nvml.ERROR_NO_PERMISSION,
	} {
		lib := &mock.Interface{InitFunc: func() nvml.Return { return ret }}
		cards, err := Detect(lib)
		if len(cards) != 0 || !errors.Is(err, want) {
			t.Errorf("%s: %v, %v", ret, cards, err)
		}
	}
}

func TestDetectTellsWhatIsBroken(t *testing.T) {
	m := newMachine(t, dgxa100.New())
	m.set(3, func(s *cardState) { s.lost = true })
	silent := m.Devices[6].(*server.Device)
	silent.GetUUIDFunc = func() (string, nvml.Return) { return "", nvml.ERROR_UNKNOWN }
	cards, err := Detect(m)
	if len(cards) != 7 || len(Let(cards)) != 6 {
		t.Errorf("%d cards, %d to let; want seven that say who they are, six well ones", len(cards), len(Let(cards)))
	}
	if lost := cards[3].Trouble; lost.Kind != KindVanished || !lost.Ends {
		t.Errorf("the lost card: %+v", lost)
	}
	if !errors.Is(err, nvml.ERROR_GPU_IS_LOST) || !strings.Contains(err.Error(), "card 3") || !strings.Contains(err.Error(), "card 6") {
		t.Errorf("the error does not name the broken cards: %v", err)
	}
}

// TestDetectInstances finds the instances of a card that MIG splits, and not
// the card, to be let.
func TestDetectInstances(t *testing.T) {
	m := newMachine(t, dgxa100.New())
	m.split(5, instance("MIG-a", 3, 20480), instance("MIG-b", 1, 4864))
	cards, err := Detect(m)
	if err != nil || len(cards) != 10 {
		t.Fatalf("%d cards, %v; want eight and two instances", len(cards), err)
	}
	let := Let(cards)
	if len(let) != 9 {
		t.Errorf("%d cards to let, want seven and two instances", len(let))
	}
	found := map[string]GPU{}
	for _, g := range cards {
		found[g.UUID] = g
	}
	if g := found[m.uuid(5)]; g.Trouble.Kind != KindSplit || g.Trouble.Ends {
		t.Errorf("the card itself: %+v", g)
	}
	if g := found["MIG-a"]; g.Parent != m.uuid(5) || g.Model != "a100-40-mig-3g-20gb" || g.VRAMBytes != 20<<30 || !g.Trouble.None() || g.Driver == "" {
		t.Errorf("the large instance: %+v", g)
	}
	if g := found["MIG-b"]; g.Model != "a100-40-mig-1g-5gb" || g.Compute != "8.0" {
		t.Errorf("the small instance: %+v", g)
	}
}

// TestInventory runs on the real library: either there is a driver, or the
// error says that there is none.
func TestInventory(t *testing.T) {
	cards, err := Inventory()
	if err != nil && len(cards) == 0 && !errors.Is(err, ErrNoDriver) {
		t.Fatal(err)
	}
	if err == nil && len(cards) == 0 {
		t.Log("there is a driver and no card")
	}
	for _, c := range cards {
		t.Logf("%+v", c)
		if c.UUID == "" || c.Model == "" || c.VRAMBytes == 0 {
			t.Errorf("incomplete: %+v", c)
		}
	}
}
