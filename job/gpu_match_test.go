package job

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/job/sandbox"
)

// realCards are cards that are not fake, of a driver.
func realCards(driver, cuda string) []gpu.GPU {
	return []gpu.GPU{
		{UUID: "GPU-1", Model: "rtx4090", VRAMBytes: 24e9, Driver: driver, CUDA: cuda, Brand: "geforce", Compute: "8.9"},
		{UUID: "GPU-2", Model: "rtx4090", VRAMBytes: 24e9, Driver: driver, CUDA: cuda, Brand: "geforce", Compute: "8.9", Index: 1},
	}
}

// passing lets a provider pass cards by names only.
func passing(_ int, cfg *ProviderConfig) {
	cfg.Pass = func(_ context.Context, cards, capabilities []string) (gpu.Passage, error) {
		p := gpu.Passage{
			Nodes: []gpu.Node{{Path: "/dev/nvidiactl", Major: 195, Minor: 255}},
			Files: []gpu.File{{Source: "/host/libcuda.so.580", Dest: "/usr/lib/libcuda.so.580"}},
			Links: []gpu.Link{{Path: "/usr/lib/libcuda.so.1", Target: "libcuda.so.580"}},
			Env:   []string{"NVIDIA_VISIBLE_DEVICES=" + strings.Join(cards, ",")}, Folders: []string{"/usr/lib"}, Capabilities: capabilities,
		}
		for i := range cards {
			p.Nodes = append(p.Nodes, gpu.Node{Path: "/dev/nvidia" + string(rune('0'+i)), Major: 195, Minor: int64(i)})
		}
		return p, nil
	}
}

// TestMatchDriver holds what jobs and images want of a driver against cards of
// an old and a new one.
func TestMatchDriver(t *testing.T) {
	for name, c := range map[string]struct {
		image    string
		change   func(*Spec)
		old, now string // why it is not placed, empty when it is
	}{
		"anything":            {"tool", func(*Spec) {}, "", ""},
		"a CUDA version":      {"tool", func(s *Spec) { s.GPUs.CUDA = "12.4" }, "REASON_GPU_CUDA", ""},
		"one to come":         {"tool", func(s *Spec) { s.GPUs.CUDA = "13.1" }, "REASON_GPU_CUDA", "REASON_GPU_CUDA"},
		"an image's wish":     {"cuda", func(*Spec) {}, "REASON_GPU_CUDA", ""},
		"the job's own":       {"cuda", func(s *Spec) { s.Env = map[string]string{"NVIDIA_REQUIRE_CUDA": "cuda>=12.0"} }, "", ""},
		"no requirement":      {"cuda", func(s *Spec) { s.Env = map[string]string{"NVIDIA_DISABLE_REQUIRE": "true"} }, "", ""},
		"no GPU at all":       {"cuda", func(s *Spec) { s.GPUs = GPUWish{} }, "", ""},
		"too much memory":     {"cuda", func(s *Spec) { s.GPUs.VRAM = 80e9 }, "REASON_GPU_VRAM", "REASON_GPU_VRAM"},
		"another model":       {"cuda", func(s *Spec) { s.GPUs.Any = []string{"h200"} }, "REASON_GPU_MODEL", "REASON_GPU_MODEL"},
		"parts of the driver": {"tool", func(s *Spec) { s.GPUs.Capabilities = []string{"compute", "video"} }, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			for want, cards := range map[*string][]gpu.GPU{&c.old: realCards("535.129.03", "12.2"), &c.now: realCards("580.159.04", "13.0")} {
				inTown(t, plan{prices: []uint64{testPrice}, cards: cards, change: passing}, func(t *testing.T, w *town) {
					s := onCards(1, "exit=0")
					s.Image = c.image
					c.change(&s)
					w.submit("j1", s)
					j := w.over("j1")
					if *want == "" && j.State != JobDone || *want != "" && (j.State != JobFailed || j.Unplaced[*want] != 1) {
						t.Errorf("driver %s: job %s, unplaced %v, want %q", cards[0].Driver, j.State, j.Unplaced, *want)
					}
				})
			}
		})
	}
}

func TestOddRequirement(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		s := onCards(1, "exit=0")
		s.Image = "odd"
		if err := w.trySubmit("j1", s); !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), "compares nothing") {
			t.Errorf("submitted with %v", err)
		}
	})
}

// TestSealedCards declines for cards that cannot be passed into a container, with
// that reason.
func TestSealedCards(t *testing.T) {
	sealed := ailing(realCards("999.1", "13.0"), map[int]gpu.Trouble{
		0: {Kind: gpu.KindDevices, Text: "gVisor cannot"}, 1: {Kind: gpu.KindDevices, Text: "gVisor cannot"},
	})
	for name, p := range map[string]plan{
		"driver not known":   {cards: sealed, change: passing},
		"nothing to pass by": {cards: realCards("580.159.04", "13.0")},
	} {
		t.Run(name, func(t *testing.T) {
			p.prices = []uint64{testPrice}
			inTown(t, p, func(t *testing.T, w *town) {
				w.shops[0].total.GPUs = nil // for the count of what is left
				w.submit("j1", onCards(1, "exit=0"))
				if j := w.over("j1"); j.State != JobFailed || j.Unplaced["REASON_GPU_DEVICES"] != 1 {
					t.Errorf("job %s, unplaced %v", j.State, j.Unplaced)
				}
				w.shops[0].total.GPUs = w.shops[0].pool.Total().GPUs
			})
		})
	}
}

// TestPassedIntoContainer sees what the sandbox is given.
func TestPassedIntoContainer(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}, cards: realCards("580.159.04", "13.0"), change: passing}, func(t *testing.T, w *town) {
		m := w.shops[0].machine
		s := onCards(2, "gate")
		s.Env = map[string]string{"LD_LIBRARY_PATH": "/opt/lib:/usr/lib", "NVIDIA_VISIBLE_DEVICES": "all"}
		w.submit("j1", s)
		w.await("it runs", func() bool { return w.state("j1", 0) == Running })
		var spec sandbox.Spec
		m.mu.Lock()
		for _, c := range m.containers {
			spec = c.spec
		}
		m.mu.Unlock()
		want := sandbox.Devices{
			Nodes: []sandbox.DeviceNode{
				{Path: "/dev/nvidiactl", Major: 195, Minor: 255}, {Path: "/dev/nvidia0", Major: 195}, {Path: "/dev/nvidia1", Major: 195, Minor: 1},
			},
			Files:        []sandbox.Mount{{Source: "/host/libcuda.so.580", Dest: "/usr/lib/libcuda.so.580", ReadOnly: true}},
			Links:        []sandbox.Link{{Path: "/usr/lib/libcuda.so.1", Target: "libcuda.so.580"}},
			Capabilities: []string{"compute", "utility"},
		}
		if !reflect.DeepEqual(spec.Devices, want) {
			t.Errorf("devices %+v, want %+v", spec.Devices, want)
		}
		for _, e := range []string{"NVIDIA_VISIBLE_DEVICES=GPU-1,GPU-2", "LD_LIBRARY_PATH=/opt/lib:/usr/lib"} {
			if !slices.Contains(spec.Env, e) {
				t.Errorf("%s is not in %q", e, spec.Env)
			}
		}
		if slices.Contains(spec.Env, "NVIDIA_VISIBLE_DEVICES=all") {
			t.Error("the job's own wish for all cards is in the environment")
		}
		m.open()
		w.over("j1")
	})
}
