package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/node/client"
)

// realCards are cards that are not fake, as a driver would list them.
func realCards(trouble gpu.Trouble) []gpu.GPU {
	return []gpu.GPU{
		{UUID: "GPU-aaaaaaaa-1", Model: "rtx4090", Name: "NVIDIA GeForce RTX 4090", VRAMBytes: 24 << 30, Driver: "580.159.04", CUDA: "13.0", Compute: "8.9"},
		{
			UUID: "GPU-bbbbbbbb-2", Model: "rtx4090", Name: "NVIDIA GeForce RTX 4090", VRAMBytes: 24 << 30, Driver: "580.159.04", CUDA: "13.0", Compute: "8.9",
			Index: 1, Trouble: trouble, Health: gpu.Health{Celsius: 77, LastXid: 79},
		},
	}
}

// TestCardsLeaveTheOffers lets a card get sick and well again under a node.
func TestCardsLeaveTheOffers(t *testing.T) {
	looks := make(chan []gpu.GPU)
	told := make(chan struct{})
	n := start(t, func(c *Config) {
		c.Roles, c.Runsc = []string{RoleProvider}, "/nonexistent/runsc"
	}, func(n *Node) {
		n.provider.watch = func(ctx context.Context, _ gpu.WatchOptions, changed, seen func([]gpu.GPU)) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case cards := <-looks:
					seen(cards)
					changed(cards)
					told <- struct{}{}
				}
			}
		}
	})
	look := func(cards []gpu.GPU) *client.ProviderStats {
		t.Helper()
		looks <- cards
		<-told
		s, err := n.c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.Provider
	}
	if s := look(realCards(gpu.Trouble{})); len(s.GPUs) != 1 || s.GPUs[0].Count != 2 {
		t.Errorf("at first: %+v", s.GPUs)
	}
	xid := gpu.Trouble{Kind: gpu.KindXid, Text: "the driver reported Xid 79", Ends: true}
	if s := look(realCards(xid)); len(s.GPUs) != 1 || s.GPUs[0].Count != 1 {
		t.Errorf("with a sick card: %+v", s.GPUs)
	}
	signed, err := n.provider.record(n.now())
	if err != nil {
		t.Fatal(err)
	}
	if g := signed.Msg.GetGpus(); len(g) != 1 || g[0].GetCount() != 1 || g[0].GetDriver() != "580.159.04" {
		t.Errorf("advertised: %v", g)
	}
	families, err := n.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if strings.Contains(m.String(), "GPU-bbbbbbbb-2") {
				got[f.GetName()] = m.GetGauge().GetValue()
			}
		}
	}
	if got["DCGM_FI_DEV_GPU_TEMP"] != 77 || got["DCGM_FI_DEV_XID_ERRORS"] != 79 || got["lumbung_provider_gpu_let"] != 0 || got["DCGM_FI_DEV_FB_TOTAL"] != 24<<10 {
		t.Errorf("metrics of the sick card: %v", got)
	}
	if s := look(realCards(gpu.Trouble{})); s.GPUs[0].Count != 2 {
		t.Errorf("well again: %+v", s.GPUs)
	}
	awaitEvents(t, n, "GPU rtx4090 GPU-bbbbbbbb is not let: the driver reported Xid 79", "GPU rtx4090 GPU-bbbbbbbb is let again")
}

// awaitEvents waits for events with these texts.
func awaitEvents(t *testing.T, n *running, texts ...string) {
	t.Helper()
	found := errors.New("all are there")
	err := n.db.Watch(t.Context(), 0, func(e job.Event) error {
		texts = slices.DeleteFunc(texts, func(text string) bool { return strings.Contains(e.Text, text) })
		if len(texts) == 0 {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		t.Errorf("no events %q: %v", texts, err)
	}
}

// TestSupervised tells processes of this home's containers from others.
func TestSupervised(t *testing.T) {
	proc := t.TempDir()
	process := func(pid, name string, parent string, args ...string) {
		t.Helper()
		dir := filepath.Join(proc, pid)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for file, text := range map[string]string{
			"cmdline": strings.Join(args, "\x00") + "\x00", "stat": pid + " (" + name + ") S " + parent + " 1 1 0",
		} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	process("10", "lumbung", "1", "lumbung", "sandbox-shim", "/home/a/sandbox/jobs/l1")
	process("11", "runsc", "10", "runsc", "run")
	process("12", "exe (a) b", "11", "runsc-sandbox", "boot")
	process("20", "lumbung", "1", "lumbung", "sandbox-shim", "/home/ab/sandbox/jobs/l1")
	process("21", "exe", "20", "runsc-sandbox", "boot")
	process("30", "blender", "1", "blender")
	process("40", "loop", "40", "loop")
	for pid, want := range map[int][2]bool{
		12: {true, true}, 10: {true, true}, 21: {false, true}, 30: {false, true}, 40: {false, true}, 99: {false, false},
	} {
		if found, seen := supervised(proc, pid, "/home/a"); found != want[0] || seen != want[1] {
			t.Errorf("process %d: ours %v, seen %v", pid, found, seen)
		}
	}
}
