// Package gpu knows the graphics cards of this machine: it reads them from
// NVIDIA's management library and gives each its canonical model name, hiding
// the many names that the library has for one card. Fake cards take their place
// on networks for development and tests. Which card is in use is the business
// of package job's pool, where cards are reserved together with everything else
// a task needs.
package gpu

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lumbung-net/lumbung/protocol"
)

// GPU is one card, or one MIG instance of a card that is split.
type GPU struct {
	UUID      string // names the card over restarts
	Model     string // canonical, such as "rtx4090"; see Canonical
	Name      string // as its driver calls it
	VRAMBytes uint64
	Driver    string // version
	CUDA      string // highest version that the driver runs, such as "12.4"
	Compute   string // compute capability, such as "8.9"
	Brand     string // product line, as NVIDIA_REQUIRE_CUDA names it: "tesla", "geforce"
	Index     int    // position in the driver's order
	Parent    string // of a MIG instance, the UUID of the card that it is part of
	Fake      bool
	Health    Health
	Trouble   Trouble // why the card is not let now; the zero value is none
}

// Health is what the driver measured of a card. What it does not say is zero.
type Health struct {
	Celsius      uint32 // of the chip
	SlowdownAt   uint32 // degrees Celsius from which the card slows itself down
	Milliwatts   uint32
	Utilization  uint32 // percent of the last sample
	UsedBytes    uint64 // of its memory
	Uncorrected  uint64 // ECC errors in memory since the driver was loaded
	LastXid      uint64 // number of the last critical error, 0 for none
	RowsPending  bool   // memory that is broken is taken out with the next reset
	RowsFailed   bool   // memory that is broken could not be taken out
	Foreign      uint32 // process ids that are not of our containers: how many
	ForeignFirst uint32 // and the first of them
}

// Kinds of Trouble.
const (
	KindVanished = "vanished" // it is not listed any more, or does not answer
	KindXid      = "xid"      // the driver reported a critical error
	KindMemory   = "memory"   // broken memory
	KindHeat     = "heat"
	KindForeign  = "foreign" // somebody else uses it
	KindSplit    = "split"   // MIG is on: its instances are let instead
	KindDevices  = "devices" // it is well, but cannot be passed into a container
)

// Trouble is why a card is not let.
type Trouble struct {
	Kind string
	Text string // one clause, without the card's name
	// Ends says that a job on the card cannot go on.
	Ends bool
}

// None reports whether the card can be let.
func (t Trouble) None() bool { return t.Kind == "" }

// Let are the cards that can be given to jobs.
func Let(cards []GPU) []GPU {
	return slices.DeleteFunc(slices.Clone(cards), func(g GPU) bool { return !g.Trouble.None() })
}

// Title names a card for people: model and the start of its UUID.
func (g GPU) Title() string {
	id := g.UUID
	if n := strings.IndexByte(id, '-') + 1 + 8; !g.Fake && len(id) > n {
		id = id[:n]
	}
	return g.Model + " " + id
}

// Why a machine shows no cards, or fewer than it has.
var (
	// ErrNoDriver says that no NVIDIA driver is installed or loaded.
	ErrNoDriver = errors.New("no NVIDIA driver answers: install it and check that nvidia-smi lists the cards")
	// ErrNotBuilt says that this build cannot look for cards.
	ErrNotBuilt = errors.New("this build of lumbung cannot see GPUs: it needs Linux and must be built with CGO_ENABLED=1 and a C compiler")
)

// maxFake bounds fake cards of one node; a capacity record counts sixteen
// kinds at most, and tests need few.
const maxFake = 16

// Fake makes cards that are none from a specification such as "rtx4090",
// "rtx4090:2" or "rtx4090,a100-80:2". Their UUIDs are the same every time.
func Fake(spec string) ([]GPU, error) {
	var out []GPU
	for part := range strings.SplitSeq(spec, ",") {
		name, count, counted := strings.Cut(strings.TrimSpace(part), ":")
		n := 1
		if counted {
			var err error
			if n, err = strconv.Atoi(count); err != nil || n < 1 || n > maxFake {
				return nil, fmt.Errorf("fake GPU %q: %q is no number from 1 to %d", part, count, maxFake)
			}
		}
		m, ok := protocol.FindModel(name)
		if !ok {
			return nil, fmt.Errorf("fake GPU %q: model %q is not known, take one of %s", part, name, strings.Join(modelNames(), ", "))
		}
		for range n {
			i := len(out)
			out = append(out, GPU{
				UUID: fmt.Sprintf("FAKE-%s-%d", m.Name, i), Model: m.Name, Name: "fake " + m.Name,
				VRAMBytes: m.VRAM, Driver: "fake", Index: i, Fake: true,
			})
		}
	}
	if len(out) > maxFake {
		return nil, fmt.Errorf("%d fake GPUs, over %d", len(out), maxFake)
	}
	return out, nil
}

func modelNames() []string {
	var out []string
	for _, m := range protocol.Models() {
		out = append(out, m.Name)
	}
	return out
}
