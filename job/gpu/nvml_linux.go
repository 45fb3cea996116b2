//go:build linux && cgo

package gpu

import (
	"errors"
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Inventory lists the machine's cards as they are at one look: those that
// cannot be let too, with their Trouble. The error says why there are none, or
// which could not be read; cards that could be are returned with it.
func Inventory() ([]GPU, error) { return Detect(nvml.New()) }

// Detect lists the cards of a management library. Of a card that MIG splits,
// the card is followed by its instances.
func Detect(lib nvml.Interface) (cards []GPU, err error) {
	if ret := lib.Init(); ret != nvml.SUCCESS {
		return nil, initError(ret)
	}
	defer func() {
		if ret := lib.Shutdown(); ret != nvml.SUCCESS {
			err = errors.Join(err, fmt.Errorf("close NVIDIA's library: %w", ret))
		}
	}()
	looked, err := look(lib, nil)
	return newObserver().see(looked, nowhen), err
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

// look reads all cards once. The library is open. Processes for which ours says
// true are our own containers'; nil knows none.
func look(lib nvml.Interface, ours Ours) ([]GPU, error) {
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
	var cards []GPU
	var errs []error
	for i := range count {
		some, err := read(lib, i, ours)
		if err != nil {
			errs = append(errs, err)
		}
		for _, card := range some {
			card.Driver = driver
			card.CUDA = fmt.Sprintf("%d.%d", cuda/1000, cuda%1000/10) // NVML's encoding
			cards = append(cards, card)
		}
	}
	return cards, errors.Join(errs...)
}

// read reads a card, and its instances when it is split. A card that has a UUID
// and says no more has a Trouble; the error is for one that says nothing.
func read(lib nvml.Interface, i int, ours Ours) ([]GPU, error) {
	d, ret := lib.DeviceGetHandleByIndex(i)
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("NVIDIA card %d: open it (does nvidia-smi show an error?): %w", i, ret)
	}
	uuid, ret := d.GetUUID()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("NVIDIA card %d: uuid: %w", i, ret)
	}
	g := GPU{UUID: uuid, Index: i}
	lost := func(what string, ret nvml.Return) ([]GPU, error) {
		g.Trouble = Trouble{Kind: KindVanished, Ends: true, Text: fmt.Sprintf("the card does not answer (%s: %s)", what, ret)}
		return []GPU{g}, fmt.Errorf("NVIDIA card %d: %s: %w", i, what, ret)
	}
	if g.Name, ret = d.GetName(); ret != nvml.SUCCESS {
		return lost("name", ret)
	}
	memory, ret := d.GetMemoryInfo()
	if ret != nvml.SUCCESS {
		return lost("memory", ret)
	}
	g.VRAMBytes, g.Health.UsedBytes, g.Model = memory.Total, memory.Used, Canonical(g.Name, memory.Total)
	if major, minor, ret := d.GetCudaComputeCapability(); ret == nvml.SUCCESS {
		g.Compute = fmt.Sprintf("%d.%d", major, minor)
	}
	if brand, ret := d.GetBrand(); ret == nvml.SUCCESS {
		g.Brand = brandName(brand)
	}
	mode, _, ret := d.GetMigMode()
	if ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_SUPPORTED {
		return lost("MIG mode", ret)
	}
	measure(d, &g.Health)
	if ret == nvml.SUCCESS && mode == nvml.DEVICE_MIG_ENABLE {
		g.Trouble = Trouble{Kind: KindSplit, Text: "it is split by MIG, and its instances are let instead"}
		instances, err := readInstances(d, g, ours)
		return append([]GPU{g}, instances...), err
	}
	processes(d, &g, ours)
	return []GPU{g}, nil
}

// readInstances reads the MIG instances of a card.
func readInstances(d nvml.Device, card GPU, ours Ours) ([]GPU, error) {
	most, ret := d.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("NVIDIA card %d: count its MIG instances: %w", card.Index, ret)
	}
	var out []GPU
	var errs []error
	for j := range most {
		m, ret := d.GetMigDeviceHandleByIndex(j)
		if ret == nvml.ERROR_NOT_FOUND || ret == nvml.ERROR_INVALID_ARGUMENT {
			continue // no instance of that number
		}
		var g GPU
		if ret == nvml.SUCCESS {
			g, ret = readInstance(m, card)
		}
		if ret != nvml.SUCCESS {
			errs = append(errs, fmt.Errorf("NVIDIA card %d: MIG instance %d: %w", card.Index, j, ret))
			continue
		}
		processes(m, &g, ours)
		out = append(out, g)
	}
	return out, errors.Join(errs...)
}

func readInstance(m nvml.Device, card GPU) (GPU, nvml.Return) {
	g := card
	g.Parent, g.Trouble = card.UUID, Trouble{}
	var ret nvml.Return
	if g.UUID, ret = m.GetUUID(); ret != nvml.SUCCESS {
		return g, ret
	}
	memory, ret := m.GetMemoryInfo()
	if ret != nvml.SUCCESS {
		return g, ret
	}
	g.VRAMBytes, g.Health.UsedBytes = memory.Total, memory.Used
	a, ret := m.GetAttributes()
	if ret != nvml.SUCCESS {
		return g, ret
	}
	profile := fmt.Sprintf("%dg.%dgb", a.GpuInstanceSliceCount, (a.MemorySizeMB+1023)/1024)
	if a.ComputeInstanceSliceCount != a.GpuInstanceSliceCount {
		profile = fmt.Sprintf("%dc.%s", a.ComputeInstanceSliceCount, profile)
	}
	g.Name, g.Model = card.Name+" MIG "+profile, instanceModel(card.Model, profile)
	return g, nvml.SUCCESS
}

// measure reads what the card says of its health. What it does not measure, as
// ECC of consumer cards, stays zero.
func measure(d nvml.Device, h *Health) {
	if t, ret := d.GetTemperature(nvml.TEMPERATURE_GPU); ret == nvml.SUCCESS {
		h.Celsius = t
	}
	if t, ret := d.GetTemperatureThreshold(nvml.TEMPERATURE_THRESHOLD_SLOWDOWN); ret == nvml.SUCCESS {
		h.SlowdownAt = t
	}
	if p, ret := d.GetPowerUsage(); ret == nvml.SUCCESS {
		h.Milliwatts = p
	}
	if u, ret := d.GetUtilizationRates(); ret == nvml.SUCCESS {
		h.Utilization = u.Gpu
	}
	if n, ret := d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC); ret == nvml.SUCCESS {
		h.Uncorrected = n
	}
	if _, _, pending, failed, ret := d.GetRemappedRows(); ret == nvml.SUCCESS {
		h.RowsPending, h.RowsFailed = pending, failed
	}
	if pending, ret := d.GetRetiredPagesPendingStatus(); ret == nvml.SUCCESS && pending == nvml.FEATURE_ENABLED {
		h.RowsPending = true
	}
}

// desktopShare is the part of a card's memory below which programs that draw
// are taken for its owner's desktop, which is no harm.
const desktopShare = 8

// processes finds who else uses the card.
func processes(d nvml.Device, g *GPU, ours Ours) {
	foreign := func(pid uint32) {
		if ours != nil && ours(pid, g.UUID) {
			return
		}
		if g.Health.Foreign++; g.Health.ForeignFirst == 0 {
			g.Health.ForeignFirst = pid
		}
	}
	if list, ret := d.GetComputeRunningProcesses(); ret == nvml.SUCCESS {
		for _, p := range list {
			foreign(p.Pid)
		}
	}
	const unknown = ^uint64(0)
	if list, ret := d.GetGraphicsRunningProcesses(); ret == nvml.SUCCESS {
		for _, p := range list {
			if p.UsedGpuMemory != unknown && p.UsedGpuMemory > g.VRAMBytes/desktopShare {
				foreign(p.Pid)
			}
		}
	}
}

// brandName is the name that NVIDIA_REQUIRE_CUDA has for a product line.
func brandName(b nvml.BrandType) string {
	switch b {
	case nvml.BRAND_QUADRO:
		return "quadro"
	case nvml.BRAND_TESLA:
		return "tesla"
	case nvml.BRAND_NVS:
		return "nvs"
	case nvml.BRAND_GRID:
		return "grid"
	case nvml.BRAND_GEFORCE:
		return "geforce"
	case nvml.BRAND_TITAN:
		return "titan"
	case nvml.BRAND_NVIDIA:
		return "nvidia"
	case nvml.BRAND_QUADRO_RTX:
		return "quadrortx"
	case nvml.BRAND_NVIDIA_RTX:
		return "nvidiartx"
	case nvml.BRAND_GEFORCE_RTX:
		return "geforcertx"
	case nvml.BRAND_TITAN_RTX:
		return "titanrtx"
	}
	return "unknown"
}
