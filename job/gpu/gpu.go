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
	"strconv"
	"strings"

	"github.com/lumbung-net/lumbung/protocol"
)

// GPU is one card.
type GPU struct {
	UUID      string // names the card over restarts
	Model     string // canonical, such as "rtx4090"; see Canonical
	Name      string // as its driver calls it
	VRAMBytes uint64
	Driver    string // version
	CUDA      string // highest version that the driver runs, such as "12.4"
	Index     int    // position in the driver's order
	Fake      bool
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
