//go:build linux && cgo

package gpu

import (
	"errors"
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Inventory lists the machine's cards. The error says why there are none, or
// which could not be read; cards that could be are returned with it.
func Inventory() ([]GPU, error) { return Detect(nvml.New()) }

// Detect lists the cards of a management library. Cards split by MIG are left
// out: a slice cannot be handed to a container yet, and the whole no longer can.
func Detect(lib nvml.Interface) (cards []GPU, err error) {
	if ret := lib.Init(); ret != nvml.SUCCESS {
		return nil, initError(ret)
	}
	defer func() {
		if ret := lib.Shutdown(); ret != nvml.SUCCESS {
			err = errors.Join(err, fmt.Errorf("close NVIDIA's library: %w", ret))
		}
	}()
	driver, ret := lib.SystemGetDriverVersion()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("version of the NVIDIA driver: %w", ret)
	}
	cuda, ret := lib.SystemGetCudaDriverVersion()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("CUDA version of the NVIDIA driver: %w", ret)
	}
	count, ret := lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("count the NVIDIA cards: %w", ret)
	}
	var errs []error
	for i := range count {
		card, e := read(lib, i)
		if e != nil {
			errs = append(errs, e)
			continue
		}
		card.Driver = driver
		card.CUDA = fmt.Sprintf("%d.%d", cuda/1000, cuda%1000/10) // NVML's encoding
		cards = append(cards, card)
	}
	return cards, errors.Join(errs...)
}

func initError(ret nvml.Return) error {
	switch ret {
	case nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_DRIVER_NOT_LOADED:
		return fmt.Errorf("%w (%w)", ErrNoDriver, ret)
	case nvml.ERROR_NO_PERMISSION:
		return fmt.Errorf("no permission to use the NVIDIA cards: add this user to the group that owns /dev/nvidia*: %w", ret)
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return fmt.Errorf("the NVIDIA driver was updated but not reloaded: restart the machine: %w", ret)
	}
	return fmt.Errorf("open NVIDIA's library: %w", ret)
}

func read(lib nvml.Interface, i int) (GPU, error) {
	fail := func(what string, ret nvml.Return) (GPU, error) {
		return GPU{}, fmt.Errorf("NVIDIA card %d: %s: %w", i, what, ret)
	}
	d, ret := lib.DeviceGetHandleByIndex(i)
	if ret != nvml.SUCCESS {
		return fail("open it (does nvidia-smi show an error?)", ret)
	}
	uuid, ret := d.GetUUID()
	if ret != nvml.SUCCESS {
		return fail("uuid", ret)
	}
	name, ret := d.GetName()
	if ret != nvml.SUCCESS {
		return fail("name", ret)
	}
	memory, ret := d.GetMemoryInfo()
	if ret != nvml.SUCCESS {
		return fail("memory", ret)
	}
	mode, _, ret := d.GetMigMode()
	if ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_SUPPORTED {
		return fail("MIG mode", ret)
	}
	if ret == nvml.SUCCESS && mode == nvml.DEVICE_MIG_ENABLE {
		return GPU{}, fmt.Errorf("NVIDIA card %d (%s) is split by MIG and left out: switch MIG off to offer it", i, name)
	}
	return GPU{UUID: uuid, Model: Canonical(name, memory.Total), Name: name, VRAMBytes: memory.Total, Index: i}, nil
}
