package node

import (
	"testing"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/node/client"
)

// A price given at a start wins over what was set before, and is what later
// starts that are told nothing ask.
func TestPricesOverStarts(t *testing.T) {
	home := t.TempDir()
	life := func(cpu, gpu, command string, wantCPU, wantGPU uint64) {
		t.Helper()
		n := start(t, func(c *Config) {
			c.Home, c.Roles, c.Runsc, c.PriceCPU, c.PriceGPU = home, []string{RoleProvider}, "/nonexistent/runsc", cpu, gpu
		})
		if got := n.provider.Pricing(); got.CPU != wantCPU || got.GPU != wantGPU {
			t.Errorf("told %q and %q it asks %d and %d, want %d and %d", cpu, gpu, got.CPU, got.GPU, wantCPU, wantGPU)
		}
		if command != "" {
			if _, err := n.c.ProviderPrice(t.Context(), client.PriceRequest{CPU: command}); err != nil {
				t.Error(err)
			}
		}
		n.stop(t)()
	}
	life("", "", "", defaultPriceCPU, defaultPriceGPU)
	life("", "", "0.02", defaultPriceCPU, defaultPriceGPU)
	life("", "", "", 20_000, defaultPriceGPU)
	life("0.03", "", "", 30_000, defaultPriceGPU)
	life("", "0.5", "", 30_000, 500_000)
	life("", "", "0.07", 30_000, 500_000)
	life("0.03", "", "", 30_000, 500_000)
}

func TestParsePrice(t *testing.T) {
	if p, err := parsePrice("0.40"); err != nil || p != defaultPriceGPU {
		t.Errorf("%d, %v", p, err)
	}
	if p, err := parsePrice("0.01"); err != nil || p != defaultPriceCPU {
		t.Errorf("%d, %v", p, err)
	}
	over := ledger.Amount{Asset: "usd", Hi: 1, Lo: 5}
	for _, text := range []string{"", "dear", "-1", "1000000.000001", over.String()[:len(over.String())-len(" usd")]} {
		if p, err := parsePrice(text); err == nil {
			t.Errorf("%q is %d", text, p)
		}
	}
}
