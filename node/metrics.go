package node

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// registerMetrics adds the node's own figures to those of its parts.
func (n *Node) registerMetrics() {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "lumbung", Name: name, Help: help}, value)
	}
	n.metrics.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		gauge("peers", "Peers connected.", func() float64 { return float64(len(n.host.Peers())) }),
		gauge("store_blocks", "Blocks in the store.", func() float64 { return float64(n.blocks.Stats().Blocks) }),
		gauge("store_bytes", "Bytes of blocks in the store.", func() float64 { return float64(n.blocks.Stats().Bytes) }),
		gauge("renter_jobs", "Jobs under way.", func() float64 { jobs, _ := n.renter.Active(); return float64(jobs) }),
		gauge("renter_tasks", "Leases under way as a renter.", func() float64 { _, tasks := n.renter.Active(); return float64(tasks) }),
	)
	if n.provider == nil {
		return
	}
	p := n.provider
	n.metrics.MustRegister(
		&p.measured,
		gauge("provider_leases", "Leases under way as a provider.", func() float64 { return float64(len(p.Leases())) }),
		gauge("provider_cpu_millis_free", "Thousandths of a core that are not reserved.", func() float64 { return float64(p.Pool.Free(n.now(), false).CPUMillis) }),
		gauge("provider_memory_free_bytes", "Memory that is not reserved.", func() float64 { return float64(p.Pool.Free(n.now(), false).Memory) }),
		gauge("provider_gpus_free", "Cards that are not reserved.", func() float64 { return float64(len(p.Pool.Free(n.now(), false).GPUs)) }),
	)
}
