package sandbox

import (
	"fmt"
	"strings"
)

// Portability says where the state of a container can be restored: where Engine
// is the same and no bit of CPU is missing.
type Portability struct {
	// Engine names what writes and reads the state, the architecture, and whether
	// containers are root's or an ordinary user's: the two see other users.
	Engine string
	// CPU has a bit for each feature of the processor.
	CPU []byte
}

// Bounds of a Portability.
const (
	MaxEngine = 128 // bytes
	MaxCPU    = 64
)

// Holds says by nil that state saved where p is can be restored here.
func (here Portability) Holds(p Portability) error {
	if here.Engine != p.Engine {
		return fmt.Errorf("%w: its state is of %s, and this is %s", ErrCheckpoint, p.Engine, here.Engine)
	}
	missing := 0
	for i, b := range p.CPU {
		var have byte
		if i < len(here.CPU) {
			have = here.CPU[i]
		}
		for rest := b &^ have; rest != 0; rest &= rest - 1 {
			missing++
		}
	}
	if missing > 0 {
		return fmt.Errorf("%w: %d features of the processor that its program began on are missing here", ErrCheckpoint, missing)
	}
	return nil
}

// valid bounds what runsc says.
func (here Portability) valid() bool {
	return here.Engine != "" && len(here.Engine) <= MaxEngine && !strings.ContainsAny(here.Engine, " \n\x00") &&
		len(here.CPU) > 0 && len(here.CPU) <= MaxCPU
}
