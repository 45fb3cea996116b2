//go:build linux && cgo

package gpu

import (
	"sync"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
)

// Cards that go-nvml has no mocks of.
var (
	rtx4090 = gpus.Config{
		Name: "NVIDIA GeForce RTX 4090", Architecture: nvml.DEVICE_ARCH_ADA, Brand: nvml.BRAND_GEFORCE,
		MemoryMB: 24564, CudaMajor: 8, CudaMinor: 9, PciDeviceId: 0x268410DE,
	}
	rtx3090 = gpus.Config{
		Name: "NVIDIA GeForce RTX 3090", Architecture: nvml.DEVICE_ARCH_AMPERE, Brand: nvml.BRAND_GEFORCE,
		MemoryMB: 24576, CudaMajor: 8, CudaMinor: 6, PciDeviceId: 0x220410DE,
	}
)

// machine is a mocked machine whose cards' state a test changes while it is
// watched.
type machine struct {
	*server.Server
	events chan nvml.EventData

	mu    sync.Mutex
	state map[string]*cardState
}

type cardState struct {
	health    Health
	compute   []nvml.ProcessInfo
	graphics  []nvml.ProcessInfo
	gone      bool // from the driver's list
	lost      bool // listed, and answers nothing
	consumer  bool // has no ECC
	instances []nvml.Device
}

const mockDriver = "580.159.04"

// newMachine completes a server's mocks, or makes one of the cards.
func newMachine(t *testing.T, s *server.Server, cards ...gpus.Config) *machine {
	t.Helper()
	if s == nil {
		s = server.NewServerWithGPUs(mockDriver, mockDriver, 13000, cards...)
	}
	m := &machine{Server: s, events: make(chan nvml.EventData), state: map[string]*cardState{}}
	for _, d := range s.Devices {
		m.complete(d.(*server.Device))
	}
	s.DeviceGetCountFunc = func() (int, nvml.Return) { return len(m.listed()), nvml.SUCCESS }
	s.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		list := m.listed()
		if i < 0 || i >= len(list) {
			return nil, nvml.ERROR_INVALID_ARGUMENT
		}
		return list[i], nvml.SUCCESS
	}
	s.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) {
		return &mock.EventSet{
			FreeFunc: func() nvml.Return { return nvml.SUCCESS },
			WaitFunc: func(uint32) (nvml.EventData, nvml.Return) {
				select {
				case e := <-m.events:
					return e, nvml.SUCCESS
				case <-t.Context().Done():
					return nvml.EventData{}, nvml.ERROR_TIMEOUT
				}
			},
		}, nvml.SUCCESS
	}
	return m
}

func (m *machine) listed() []*server.Device {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*server.Device
	for _, d := range m.Devices {
		if d := d.(*server.Device); !m.state[d.UUID].gone {
			out = append(out, d)
		}
	}
	return out
}

// set changes the state of a card, by its place.
func (m *machine) set(i int, change func(*cardState)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m.state[m.uuid(i)])
}

func (m *machine) uuid(i int) string { return m.Devices[i].(*server.Device).UUID }

func (m *machine) complete(d *server.Device) {
	st := &cardState{health: Health{Celsius: 41, SlowdownAt: 90, Milliwatts: 60_000}, consumer: d.Config.Brand == nvml.BRAND_GEFORCE}
	m.state[d.UUID] = st
	get := func() cardState {
		m.mu.Lock()
		defer m.mu.Unlock()
		return *st
	}
	memory := d.GetMemoryInfoFunc
	d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) {
		if get().lost {
			return nvml.Memory{}, nvml.ERROR_GPU_IS_LOST
		}
		return memory()
	}
	d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return get().health.Celsius, nvml.SUCCESS }
	d.GetTemperatureThresholdFunc = func(nvml.TemperatureThresholds) (uint32, nvml.Return) {
		return get().health.SlowdownAt, nvml.SUCCESS
	}
	d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return get().health.Milliwatts, nvml.SUCCESS }
	d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) {
		return nvml.Utilization{Gpu: get().health.Utilization}, nvml.SUCCESS
	}
	ecc := func() nvml.Return {
		if st.consumer {
			return nvml.ERROR_NOT_SUPPORTED
		}
		return nvml.SUCCESS
	}
	d.GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) {
		return get().health.Uncorrected, ecc()
	}
	d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) {
		h := get().health
		return 0, 0, h.RowsPending, h.RowsFailed, ecc()
	}
	d.GetRetiredPagesPendingStatusFunc = func() (nvml.EnableState, nvml.Return) {
		return nvml.FEATURE_DISABLED, nvml.ERROR_NOT_SUPPORTED
	}
	d.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) { return get().compute, nvml.SUCCESS }
	d.GetGraphicsRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) { return get().graphics, nvml.SUCCESS }
	d.RegisterEventsFunc = func(mask uint64, _ nvml.EventSet) nvml.Return {
		if st.consumer && mask&nvml.EventTypeDoubleBitEccError != 0 {
			return nvml.ERROR_NOT_SUPPORTED
		}
		return nvml.SUCCESS
	}
	d.IsMigDeviceHandleFunc = func() (bool, nvml.Return) { return false, nvml.SUCCESS }
	d.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
	d.GetMigDeviceHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if list := get().instances; i < len(list) {
			return list[i], nvml.SUCCESS
		}
		return nil, nvml.ERROR_NOT_FOUND
	}
}

// split makes MIG instances of a card.
func (m *machine) split(i int, instances ...*mock.Device) {
	m.Devices[i].(*server.Device).MigMode = nvml.DEVICE_MIG_ENABLE
	m.set(i, func(s *cardState) {
		for _, d := range instances {
			s.instances = append(s.instances, d)
		}
	})
}

func instance(uuid string, slices uint32, mib uint64) *mock.Device {
	return &mock.Device{
		GetUUIDFunc:       func() (string, nvml.Return) { return uuid, nvml.SUCCESS },
		GetMemoryInfoFunc: func() (nvml.Memory, nvml.Return) { return nvml.Memory{Total: mib << 20}, nvml.SUCCESS },
		GetAttributesFunc: func() (nvml.DeviceAttributes, nvml.Return) {
			return nvml.DeviceAttributes{GpuInstanceSliceCount: slices, ComputeInstanceSliceCount: slices, MemorySizeMB: mib}, nvml.SUCCESS
		},
		GetComputeRunningProcessesFunc:  func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.SUCCESS },
		GetGraphicsRunningProcessesFunc: func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.SUCCESS },
	}
}
