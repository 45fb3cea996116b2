package node

import (
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lumbung-net/lumbung/job/gpu"
)

// cardMetrics are the cards of the node as they were last measured, under the
// names that NVIDIA's DCGM exporter gives.
type cardMetrics struct {
	mu    sync.Mutex
	cards []gpu.GPU
}

func (m *cardMetrics) set(cards []gpu.GPU) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cards = cards
}

var cardLabels = []string{"gpu", "UUID", "modelName", "fake"}

type cardSeries struct {
	desc  *prometheus.Desc
	value func(gpu.GPU) float64
	real  bool // fake cards have none
}

func series(name, help string, isReal bool, value func(gpu.GPU) float64) cardSeries {
	return cardSeries{prometheus.NewDesc(name, help, cardLabels, nil), value, isReal}
}

var cardSeriesAll = []cardSeries{
	series("DCGM_FI_DEV_FB_TOTAL", "Total frame buffer of the card in MiB.", false, func(g gpu.GPU) float64 { return float64(g.VRAMBytes >> 20) }),
	series("DCGM_FI_DEV_FB_USED", "Used frame buffer of the card in MiB.", true, func(g gpu.GPU) float64 { return float64(g.Health.UsedBytes >> 20) }),
	series("DCGM_FI_DEV_GPU_TEMP", "Temperature of the card in degrees Celsius.", true, func(g gpu.GPU) float64 { return float64(g.Health.Celsius) }),
	series("DCGM_FI_DEV_POWER_USAGE", "Power draw of the card in watts.", true, func(g gpu.GPU) float64 { return float64(g.Health.Milliwatts) / 1000 }),
	series("DCGM_FI_DEV_GPU_UTIL", "Utilization of the card in percent.", true, func(g gpu.GPU) float64 { return float64(g.Health.Utilization) }),
	series("DCGM_FI_DEV_XID_ERRORS", "Number of the last Xid error of the card, 0 for none.", true, func(g gpu.GPU) float64 { return float64(g.Health.LastXid) }),
	series("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "ECC errors that could not be corrected since the driver was loaded.", true, func(g gpu.GPU) float64 { return float64(g.Health.Uncorrected) }),
	series("lumbung_provider_gpu_let", "1 when the card can be let, 0 when it has trouble.", false, func(g gpu.GPU) float64 {
		if g.Trouble.None() {
			return 1
		}
		return 0
	}),
}

// Describe implements prometheus.Collector.
func (m *cardMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, s := range cardSeriesAll {
		to <- s.desc
	}
}

// Collect implements prometheus.Collector.
func (m *cardMetrics) Collect(to chan<- prometheus.Metric) {
	m.mu.Lock()
	cards := m.cards
	m.mu.Unlock()
	for _, g := range cards {
		for _, s := range cardSeriesAll {
			if g.Fake && s.real {
				continue
			}
			to <- prometheus.MustNewConstMetric(s.desc, prometheus.GaugeValue, s.value(g), strconv.Itoa(g.Index), g.UUID, g.Name, strconv.FormatBool(g.Fake))
		}
	}
}
