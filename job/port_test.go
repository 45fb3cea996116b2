package job

import (
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

func TestConnectToAContainer(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}}, func(t *testing.T, w *town) {
		p := providerOf(w.shops[0])
		w.submit("j1", oneTask("gate"))
		w.await("the task to run", func() bool { return w.state("j1", 0) == Running })
		lease := w.renter.store.allContracts()[0].ID
		c, err := p.Connect(t.Context(), w.renter.id(), lease, 80)
		if err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		group.Go(func() {
			_, _ = io.WriteString(c, "hello")
			_ = c.CloseWrite()
		})
		if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
			t.Errorf("%q %v", got, err)
		}
		group.Wait()
		if _, err := p.Connect(t.Context(), w.renter.id(), lease, 2000); !errors.Is(err, sandbox.ErrNotListening) {
			t.Errorf("%v", err)
		}
		if _, err := p.Connect(t.Context(), w.shops[0].id(), lease, 80); !errors.Is(err, protocol.ErrElsewhere) {
			t.Errorf("another than the renter was connected: %v", err)
		}
		w.shops[0].machine.outage() // the way in breaks with the container
		w.over("j1")
		if _, err := p.Connect(t.Context(), w.renter.id(), lease, 80); err == nil {
			t.Error("connected to a container that has ended")
		}
	})
}

// keeper is a PortKeeper that remembers.
type keeper struct {
	mu   sync.Mutex
	open map[string][]PortSpec
	fail error
}

func (k *keeper) Open(job string, ports []PortSpec) ([]PortSpec, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return nil, k.fail
	}
	k.open[job] = ports
	out := []PortSpec{}
	for i, p := range ports {
		if p.Local == 0 {
			p.Local = uint16(5000 + i)
		}
		out = append(out, p)
	}
	return out, nil
}

func (k *keeper) Close(job string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.open, job)
}

func (k *keeper) has(job string) []PortSpec {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.open[job]
}

// TestPortsAreKept follows the ports of a job over the renter's death to the
// job's end: they stay as they were.
func TestPortsAreKept(t *testing.T) {
	k := &keeper{open: map[string][]PortSpec{}}
	inTown(t, plan{prices: []uint64{testPrice}, ports: k}, func(t *testing.T, w *town) {
		s := oneTask("gate")
		s.Ports = []PortSpec{{Remote: 80}}
		w.submit("j1", s)
		w.await("the task to run", func() bool { return w.state("j1", 0) == Running })
		if got := w.renter.store.job("j1").Spec.Ports; len(got) != 1 || got[0].Local != 5000 {
			t.Errorf("the job's ports are %v", got)
		}
		w.renter.kill()
		k.Close("j1") // the process is gone, and what it listened on
		w.renter.reopen()
		if got := k.has("j1"); len(got) != 1 || got[0].Local != 5000 {
			t.Errorf("opened again as %v", got)
		}
		w.stop("j1", 0)
		w.over("j1")
		w.await("the end of its ports", func() bool { return k.has("j1") == nil })

		k.fail = errors.New("port 80 is taken")
		if err := w.trySubmit("j2", s); err == nil || !strings.Contains(err.Error(), "is taken") {
			t.Errorf("%v", err)
		}
		if j := w.renter.store.job("j2"); j.ID != "" {
			t.Error("a job whose port is taken was stored")
		}
	})
}

func TestParsePort(t *testing.T) {
	for text, want := range map[string]PortSpec{"80": {0, 80}, "8080:80": {8080, 80}, "0:80": {0, 80}} {
		got, err := ParsePort(text)
		if err != nil || got != want {
			t.Errorf("%s: %v %v", text, got, err)
		}
		if again, err := ParsePort(got.String()); err != nil || again != got {
			t.Errorf("%s: printed as %s, read as %v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", "a", "80:", ":80", "80:0", "0", "70000", "80:70000", "1:2:3", "-1:80", "0x50"} {
		if got, err := ParsePort(text); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
}
