package job

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/protocol"
)

// maxGPUCount is how many cards one task may ask for.
const maxGPUCount = 16

// ParseGPUs reads which GPUs a task needs: a count (1), all, a model or several
// (rtx4090,rtx3090), memory (vram>=24GB), a driver (cuda>=12.4), and a count
// behind any of these (rtx4090:2, vram>=24GB:all).
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
		if least, ok := strings.CutPrefix(part, "cuda>="); ok {
			if !gpu.IsVersion(least) || w.CUDA != "" {
				return GPUWish{}, gpuErr(s)
			}
			w.CUDA = least
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
	return fmt.Errorf("%q names no GPUs; write 1, all, rtx4090:2, rtx4090,rtx3090, vram>=24GB or cuda>=12.4, with at most %d cards a task", s, maxGPUCount)
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

// knownCapability refuses a part of the driver that containers do not get.
func knownCapability(name string) error {
	if slices.Contains(gpu.Capabilities, name) {
		return nil
	}
	if near := nearest(name, gpu.Capabilities); near != "" {
		return fmt.Errorf("GPU capability %q is not known; did you mean %s?", name, near)
	}
	return fmt.Errorf("GPU capability %q is not known; take of %s", name, strings.Join(gpu.Capabilities, ", "))
}

func (w GPUWish) validate() error {
	for _, m := range w.Any {
		if _, ok := protocol.FindModel(m); !ok {
			return specErr("gpus.any: model %q is not known; `lumbung offers` shows the names", m)
		}
	}
	if w.CUDA != "" && (!gpu.IsVersion(w.CUDA) || len(w.CUDA) > 16) {
		return specErr("gpus.cuda: %.20q is no version such as 12.4", w.CUDA)
	}
	for _, c := range w.Capabilities {
		if err := knownCapability(c); err != nil {
			return specErr("gpus.capabilities: %w", err)
		}
	}
	if _, err := gpu.ParseRequire(w.Require); err != nil {
		return specErr("what the image requires of a GPU's driver: %w", err)
	}
	return nil
}

// Variables by which images say what they require of a driver.
const (
	envRequireCUDA    = "NVIDIA_REQUIRE_CUDA"
	envDisableRequire = "NVIDIA_DISABLE_REQUIRE"
)

// requireOf is what an image requires of the driver of the cards that a task
// gets, as the job's own environment leaves it.
func requireOf(image []string, job map[string]string) string {
	value := func(name string) string {
		if v, ok := job[name]; ok {
			return v
		}
		for i := len(image) - 1; i >= 0; i-- {
			if v, ok := strings.CutPrefix(image[i], name+"="); ok {
				return v
			}
		}
		return ""
	}
	switch strings.ToLower(value(envDisableRequire)) {
	case "1", "true", "t":
		return ""
	}
	return value(envRequireCUDA)
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
