package node

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lumbung-net/lumbung/job/gpu"
)

// gpuMetrics are the cards that the node sells, under the names that NVIDIA's
// DCGM exporter gives.
func gpuMetrics(cards []gpu.GPU) prometheus.Collector {
	vec := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "DCGM_FI_DEV_FB_TOTAL", Help: "Total frame buffer of the card in MiB.",
	}, []string{"gpu", "UUID", "modelName", "fake"})
	for _, g := range cards {
		vec.WithLabelValues(strconv.Itoa(g.Index), g.UUID, g.Name, strconv.FormatBool(g.Fake)).Set(float64(g.VRAMBytes >> 20))
	}
	return vec
}
