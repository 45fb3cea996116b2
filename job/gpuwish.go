package job

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lumbung-net/lumbung/protocol"
)

// maxGPUCount is how many cards one task may ask for.
const maxGPUCount = 16

// ParseGPUs reads which GPUs a task needs: a count (1), all, a model or several
// (rtx4090,rtx3090), memory (vram>=24GB), and a count behind any of these
// (rtx4090:2, vram>=24GB:all).
func ParseGPUs(s string) (GPUWish, error) {
	text := strings.TrimSpace(s)
	w := GPUWish{Count: 1}
	if i := strings.LastIndexByte(text, ':'); i >= 0 {
		if !w.parseCount(text[i+1:]) || text[:i] == "" {
			return GPUWish{}, gpuErr(s)
		}
		text = text[:i]
	} else if w.parseCount(text) {
		return w, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		part = strings.ToLower(strings.TrimSpace(part))
		if size, ok := strings.CutPrefix(part, "vram>="); ok {
			n, err := ParseSize(size)
			if err != nil || n == 0 || w.VRAM != 0 {
				return GPUWish{}, gpuErr(s)
			}
			w.VRAM = n
			continue
		}
		if err := knownModel(part); err != nil {
			return GPUWish{}, err
		}
		if !slices.Contains(w.Any, part) {
			w.Any = append(w.Any, part)
		}
	}
	return w, nil
}

// parseCount takes a count or "all"; false when it is neither.
func (w *GPUWish) parseCount(s string) bool {
	if s == "all" {
		w.Count, w.All = 0, true
		return true
	}
	n, err := number(s)
	if err != nil || n > maxGPUCount {
		return false
	}
	w.Count, w.All = n, false
	return true
}

func gpuErr(s string) error {
	return fmt.Errorf("%q names no GPUs; write 1, all, rtx4090:2, rtx4090,rtx3090 or vram>=24GB, with at most %d cards a task", s, maxGPUCount)
}

func knownModel(name string) error {
	if name == "" {
		return gpuErr(name)
	}
	if _, ok := protocol.FindModel(name); ok {
		return nil
	}
	var names []string
	for _, m := range protocol.Models() {
		names = append(names, m.Name)
	}
	if near := nearest(name, names); near != "" {
		return fmt.Errorf("GPU model %q is not known; did you mean %s? `lumbung offers` shows what there is", name, near)
	}
	return fmt.Errorf("GPU model %q is not known; write one such as rtx4090 or h100-80, or vram>=24GB for any with enough memory", name)
}

// nearest is the name that is the fewest edits away, or nothing when all are
// far.
func nearest(word string, names []string) string {
	best, least := "", max(2, len(word)/2)+1
	if len(word) > 64 {
		return ""
	}
	for _, name := range names {
		if d := edits(word, name); d < least {
			best, least = name, d
		}
	}
	return best
}

// edits is the Levenshtein distance of two words in bytes.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
