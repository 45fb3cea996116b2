package p2p

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are counted always and registered where there is a registry.
type metrics struct {
	requests *prometheus.CounterVec
	calls    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
	inflight *prometheus.GaugeVec
	offers   *prometheus.CounterVec
	adverts  *prometheus.CounterVec
	peers    prometheus.GaugeFunc
}

func newMetrics(reg prometheus.Registerer, peers func() float64) (*metrics, error) {
	name := func(n string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "lumbung", Subsystem: "p2p", Name: n}
	}
	requests, calls, bytes := name("requests_total"), name("calls_total"), name("bytes_total")
	requests.Help = "Requests served, by route and status."
	calls.Help = "Requests made to other peers, by route and outcome."
	bytes.Help = "Bytes of messages, by route and direction."
	offers, adverts := name("offers_total"), name("adverts_total")
	offers.Help = "Gossiped offers, by what became of them."
	adverts.Help = "Publications of this node's adverts in the DHT, by outcome."
	m := &metrics{
		requests: prometheus.NewCounterVec(requests, []string{"route", "status"}),
		calls:    prometheus.NewCounterVec(calls, []string{"route", "outcome"}),
		bytes:    prometheus.NewCounterVec(bytes, []string{"route", "direction"}),
		offers:   prometheus.NewCounterVec(offers, []string{"fate"}),
		adverts:  prometheus.NewCounterVec(adverts, []string{"outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "lumbung", Subsystem: "p2p", Name: "request_seconds",
			Help: "Time from a request's stream to its answer, by route.", Buckets: prometheus.ExponentialBuckets(0.001, 3, 9),
		}, []string{"route"}),
		inflight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "lumbung", Subsystem: "p2p", Name: "requests_in_flight", Help: "Requests being served, by route.",
		}, []string{"route"}),
		peers: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "lumbung", Subsystem: "p2p", Name: "peers", Help: "Peers connected.",
		}, peers),
	}
	if reg == nil {
		return m, nil
	}
	for i, c := range m.all() {
		if err := reg.Register(c); err != nil {
			for _, done := range m.all()[:i] {
				reg.Unregister(done)
			}
			return nil, fmt.Errorf("register the network's metrics (one registry serves one host): %w", err)
		}
	}
	return m, nil
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.calls, m.seconds, m.bytes, m.inflight, m.offers, m.adverts, m.peers}
}

func (m *metrics) unregister(reg prometheus.Registerer) {
	if reg == nil {
		return
	}
	for _, c := range m.all() {
		reg.Unregister(c)
	}
}

func (m *metrics) done(route, status string, took time.Duration) {
	m.requests.WithLabelValues(route, status).Inc()
	m.seconds.WithLabelValues(route).Observe(took.Seconds())
}

func (m *metrics) called(route string, err error) {
	outcome := "answered"
	if err != nil {
		outcome = "broken"
		if errors.Is(err, ErrUnreachable) {
			outcome = "unreachable"
		}
	}
	m.calls.WithLabelValues(route, outcome).Inc()
}
