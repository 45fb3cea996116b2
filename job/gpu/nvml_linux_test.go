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

func TestDetectServers(t *testing.T) {
	for want, lib := range map[string]nvml.Interface{
		"a100-40": dgxa100.New(), "h100-80": dgxh100.New(), "h200": dgxh200.New(), "b200": dgxb200.New(),
	} {
		cards, err := Detect(lib)
		if err != nil {
			t.Fatal(err)
		}
		if len(cards) != 8 {
			t.Fatalf("%s: %d cards, want 8", want, len(cards))
		}
		model, _ := protocol.FindModel(want)
		seen := map[string]bool{}
		for i, c := range cards {
			if c.Model != want || c.VRAMBytes < model.VRAM || c.Index != i || c.Fake || seen[c.UUID] || c.Driver == "" || !strings.Contains(c.CUDA, ".") {
				t.Errorf("%s: card %d is %+v", want, i, c)
			}
			seen[c.UUID] = true
			if got := protocol.VRAMClass(c.VRAMBytes); got != protocol.VRAMClass(model.VRAM) {
				t.Errorf("%s: memory class %s, want %s", want, got, protocol.VRAMClass(model.VRAM))
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

func TestDetectLeavesOutWhatIsBroken(t *testing.T) {
	lib := dgxa100.New()
	lost, ok := lib.Devices[3].(*server.Device)
	if !ok {
		t.Fatal("the mock's devices are of another type")
	}
	lost.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, nvml.ERROR_GPU_IS_LOST }
	split, ok := lib.Devices[5].(*server.Device)
	if !ok {
		t.Fatal("the mock's devices are of another type")
	}
	split.MigMode = nvml.DEVICE_MIG_ENABLE
	cards, err := Detect(lib)
	if len(cards) != 6 {
		t.Errorf("%d cards, want the six whole ones", len(cards))
	}
	if !errors.Is(err, nvml.ERROR_GPU_IS_LOST) || !strings.Contains(err.Error(), "card 3") || !strings.Contains(err.Error(), "card 5") {
		t.Errorf("the error does not name the broken cards: %v", err)
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
