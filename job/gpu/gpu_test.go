package gpu

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/lumbung-net/lumbung/protocol"
)

func TestCanonical(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name string
		mib  uint64
		want string
	}{
		{"NVIDIA GeForce RTX 4090", 24564, "rtx4090"},
		{"NVIDIA GeForce RTX 4090 D", 24564, "rtx4090d"},
		{"NVIDIA GeForce RTX 4090 Laptop GPU", 16376, "rtx4090laptop"},
		{"NVIDIA GeForce RTX 3080 Ti", 12288, "rtx3080ti"},
		{"NVIDIA GeForce RTX 4070 SUPER", 12282, "rtx4070super"},
		{"GeForce RTX 2080 Ti", 11264, "rtx2080ti"},
		{"NVIDIA RTX A6000", 49140, "rtxa6000"},
		{"NVIDIA RTX 6000 Ada Generation", 49140, "rtx6000ada"},
		{"Tesla T4", 15360, "t4"},
		{"Tesla V100-SXM2-16GB", 16384, "v100-16"},
		{"Tesla V100-PCIE-32GB", 32768, "v100-32"},
		{"NVIDIA A10", 24564, "a10"},
		{"NVIDIA A10G", 24564, "a10g"},
		{"NVIDIA L4", 24570, "l4"},
		{"NVIDIA L40S", 49140, "l40s"},
		{"NVIDIA A100-SXM4-40GB", 40960, "a100-40"},
		{"NVIDIA A100-SXM4-80GB", 81920, "a100-80"},
		{"NVIDIA A100 80GB PCIe", 81920, "a100-80"},
		{"NVIDIA H100 80GB HBM3", 81559, "h100-80"},
		{"NVIDIA H100 PCIe", 81559, "h100-80"},
		{"NVIDIA H100 NVL", 95830, "h100-94"},
		{"NVIDIA H200", 143771, "h200"},
		{"NVIDIA H200 NVL", 143771, "h200"},
		{"NVIDIA B200", 183359, "b200"},
		{"NVIDIA GeForce GTX 1080", 8192, "gtx-1080"},
		{"NVIDIA GH200 480GB", 97871, "gh200-480gb"},
		{"NVIDIA", 1, "unknown"},
	} {
		if got := Canonical(c.name, c.mib*mib); got != c.want {
			t.Errorf("%s with %d MiB is %q, want %q", c.name, c.mib, got, c.want)
		}
	}
}

func TestCanonicalNamesFitMessages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		got := Canonical(rapid.String().Draw(t, "name"), rapid.Uint64().Draw(t, "vram"))
		if got == "" || len(got) > maxModel || strings.Trim(got, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			t.Fatalf("%q is no model name", got)
		}
	})
}

func TestFake(t *testing.T) {
	cards, err := Fake("rtx4090:2, h200")
	if err != nil {
		t.Fatal(err)
	}
	if len(cards) != 3 || cards[1].Model != "rtx4090" || cards[2].Model != "h200" || cards[2].VRAMBytes != 141*protocol.GB {
		t.Errorf("got %+v", cards)
	}
	seen := map[string]bool{}
	for i, c := range cards {
		if !c.Fake || c.Index != i || seen[c.UUID] {
			t.Errorf("card %d: %+v", i, c)
		}
		seen[c.UUID] = true
	}
	again, err := Fake("rtx4090:2, h200")
	if err != nil || again[2].UUID != cards[2].UUID {
		t.Errorf("another UUID the second time: %v, %v", again, err)
	}
	for _, bad := range []string{"", "rtx9999", "rtx4090:0", "rtx4090:17", "rtx4090:x", "rtx4090:9,h200:9", "rtx4090,,"} {
		if cards, err := Fake(bad); err == nil {
			t.Errorf("%q made %+v", bad, cards)
		}
	}
}
