//go:build e2e

package main

import (
	"strings"
	"testing"
	"time"
)

// TestE2EOutbound: a job that asks for a network goes to the provider that
// allows it, has one, and does not reach the provider's machine. What it may
// reach is tried in package sandbox, where there is an internet.
func TestE2EOutbound(t *testing.T) {
	w := newWorld(t, worldOptions{providers: 2, heartbeat: 4 * time.Second, args: func(i int) []string {
		if i == 1 {
			return []string{"--allow-net"}
		}
		return nil
	}})

	r := w.renter.run(t, w.dir, []string{"--network", "outbound", "--name", "out"}, "reach", "169.254.169.254:80", "192.168.1.1:80")
	if r.code != 0 || !strings.Contains(r.out, "nameserver 10.89.0.1\n") || !strings.Contains(r.out, "eth0:") || strings.Count(r.out, "connection refused") != 2 {
		t.Errorf("with a network: %v", r)
	}
	d := w.renter.detail(t, "out")
	if task := d.Tasks[0]; task.Provider != w.providers[1].id.PeerID || task.NetUp == 0 {
		t.Errorf("%+v", task)
	}
	if text := w.renter.ok(t, "inspect", "out"); !strings.Contains(text, "outbound, ") || !strings.Contains(text, " received by tasks that are over; at most ") {
		t.Error(text)
	}
	r = w.renter.run(t, w.dir, nil, "cat", "/proc/net/dev")
	if r.code != 0 || strings.Contains(r.out, "eth0") || !strings.Contains(r.out, "lo:") {
		t.Errorf("without: %v", r)
	}
}
