package protocol

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// GB is the unit that GPU makers count memory in, in bytes.
const GB = 1_000_000_000

// ClassCPU is the class of providers that run jobs without a GPU.
const ClassCPU = "cpu"

// vramBuckets are the classes of GPU memory, in GB.
var vramBuckets = []uint64{8, 16, 24, 48, 80, 141}

// Model is a GPU model under its one canonical name.
type Model struct {
	Name string // such as "rtx4090"
	VRAM uint64 // nominal, in bytes
}

// models are the cards that have a class of their own; all others are found by
// their memory.
var models = []Model{
	{"rtx2080ti", 11 * GB},
	{"rtx3060", 12 * GB},
	{"rtx3070", 8 * GB},
	{"rtx3080", 10 * GB},
	{"rtx3080ti", 12 * GB},
	{"rtx3090", 24 * GB},
	{"rtx3090ti", 24 * GB},
	{"rtx4060", 8 * GB},
	{"rtx4060ti", 16 * GB},
	{"rtx4070", 12 * GB},
	{"rtx4070ti", 12 * GB},
	{"rtx4080", 16 * GB},
	{"rtx4090", 24 * GB},
	{"rtx5070", 12 * GB},
	{"rtx5080", 16 * GB},
	{"rtx5090", 32 * GB},
	{"rtxa4000", 16 * GB},
	{"rtxa5000", 24 * GB},
	{"rtxa6000", 48 * GB},
	{"rtx6000ada", 48 * GB},
	{"t4", 16 * GB},
	{"v100-16", 16 * GB},
	{"v100-32", 32 * GB},
	{"a10", 24 * GB},
	{"l4", 24 * GB},
	{"l40", 48 * GB},
	{"l40s", 48 * GB},
	{"a100-40", 40 * GB},
	{"a100-80", 80 * GB},
	{"h100-80", 80 * GB},
	{"h100-94", 94 * GB},
	{"h200", 141 * GB},
	{"b200", 180 * GB},
}

// Models lists the canonical GPU models.
func Models() []Model { return slices.Clone(models) }

// FindModel looks a model up by its canonical name.
func FindModel(name string) (Model, bool) {
	i := slices.IndexFunc(models, func(m Model) bool { return m.Name == name })
	if i < 0 {
		return Model{}, false
	}
	return models[i], true
}

// ModelClass is the class of a GPU model.
func ModelClass(model string) string { return "gpu/nvidia/" + model }

// VRAMClass is the class of a card with so many bytes of memory: the largest
// bucket that it fills, or the smallest for a card below all of them.
func VRAMClass(bytes uint64) string {
	bucket := vramBuckets[0]
	for _, b := range vramBuckets {
		if bytes >= b*GB {
			bucket = b
		}
	}
	return "vram/" + strconv.FormatUint(bucket, 10)
}

// CheckClass reports whether a class is a known one.
func CheckClass(class string) error {
	if class == ClassCPU {
		return nil
	}
	if model, ok := strings.CutPrefix(class, "gpu/nvidia/"); ok {
		if _, known := FindModel(model); known {
			return nil
		}
	}
	if size, ok := strings.CutPrefix(class, "vram/"); ok {
		n, err := strconv.ParseUint(size, 10, 16)
		if err == nil && slices.Contains(vramBuckets, n) && strconv.FormatUint(n, 10) == size {
			return nil
		}
	}
	return fmt.Errorf("resource class %.40q is not known: %w", class, ErrInvalid)
}

// AllClasses lists every class, in a fixed order.
func AllClasses() []string {
	all := []string{ClassCPU}
	for _, b := range vramBuckets {
		all = append(all, "vram/"+strconv.FormatUint(b, 10))
	}
	for _, m := range models {
		all = append(all, ModelClass(m.Name))
	}
	return all
}

// ClassesWanted are the classes whose providers can serve the resources: the
// models asked for, where all have one; else the memory bucket and those above
// it; else cpu.
func ClassesWanted(r *Resources) []string {
	if r.GetGpuCount() == 0 && !r.GetGpuAll() {
		return []string{ClassCPU}
	}
	var classes []string
	for _, m := range r.GetGpuModels() {
		if _, ok := FindModel(m); ok {
			classes = append(classes, ModelClass(m))
		}
	}
	// A model without a class of its own is found by its memory; so are then
	// the others, for every card is in the class of its memory too.
	if len(classes) > 0 && len(classes) == len(r.GetGpuModels()) {
		return classes
	}
	classes = nil
	least := VRAMClass(r.GetGpuVramBytes())
	for _, b := range vramBuckets {
		class := "vram/" + strconv.FormatUint(b, 10)
		if class == least {
			least = ""
		}
		if least == "" {
			classes = append(classes, class)
		}
	}
	return classes
}

// ClassesOf are the classes that a capacity record serves.
func ClassesOf(c *Capacity) []string {
	var classes []string
	for _, g := range c.GetGpus() {
		if _, ok := FindModel(g.GetModel()); ok {
			classes = append(classes, ModelClass(g.GetModel()))
		}
		classes = append(classes, VRAMClass(g.GetVramBytes()))
	}
	if c.GetCpuMillis() > 0 {
		classes = append(classes, ClassCPU)
	}
	slices.Sort(classes)
	return slices.Compact(classes)
}
