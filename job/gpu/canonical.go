package gpu

import (
	"strings"

	"github.com/lumbung-net/lumbung/protocol"
)

// maxModel is the longest model name that messages take, in bytes.
const maxModel = 32

// noise are words of drivers' names that tell no cards apart.
var noise = map[string]bool{
	"mock": true, "nvidia": true, "geforce": true, "tesla": true, "quadro": true,
	"gpu": true, "generation": true, "graphics": true, "edition": true,
}

// Canonical gives a card its model's name from its driver's name and its
// memory in bytes: "NVIDIA GeForce RTX 3080 Ti" is rtx3080ti, and an
// "NVIDIA A100-SXM4-80GB" and an "NVIDIA A100 80GB PCIe" are both a100-80. A
// card that has no class of its own keeps its driver's name as a slug, and is
// found by its memory.
func Canonical(name string, vram uint64) string {
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9')
	})
	var kept []string
	for _, w := range words {
		if !noise[w] {
			kept = append(kept, w)
		}
	}
	if len(kept) == 0 {
		return "unknown"
	}
	// Consumer and workstation cards: the words together are the name, and a
	// word more ("SUPER", "D", "Laptop") is another card.
	if kept[0] == "rtx" {
		return cut(strings.Join(kept, ""))
	}
	// Server cards: the first word is the family, the others say how it is
	// mounted. Families that come in several sizes are told apart by memory.
	if _, ok := protocol.FindModel(kept[0]); ok {
		return kept[0]
	}
	if m, ok := largestWithin(kept[0], vram); ok {
		return m
	}
	return cut(strings.Join(kept, "-"))
}

// largestWithin finds the family's model with most memory that the card has;
// drivers report somewhat more than the nominal size.
func largestWithin(family string, vram uint64) (string, bool) {
	best, size := "", uint64(0)
	for _, m := range protocol.Models() {
		if strings.HasPrefix(m.Name, family+"-") && m.VRAM <= vram && m.VRAM > size {
			best, size = m.Name, m.VRAM
		}
	}
	return best, best != ""
}

func cut(s string) string { return strings.TrimRight(s[:min(len(s), maxModel)], "-") }

// instanceModel is the name of a MIG instance of a model: "a100-40-mig-1g-5gb"
// for the profile 1g.5gb. It has no class of its own and is found by memory.
func instanceModel(model, profile string) string {
	return cut(model + "-mig-" + strings.ReplaceAll(profile, ".", "-"))
}
