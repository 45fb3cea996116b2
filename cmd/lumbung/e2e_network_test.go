//go:build e2e

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node"
	"github.com/lumbung-net/lumbung/node/client"
)

// Without its bootstrap node a network of peers who know each other goes on.
func TestE2EBootstrapGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{providers: 2, heartbeat: 4 * time.Second})
	spec, out := untilTold(t)
	running := w.renter.submit(t, spec)
	w.renter.awaitLine(t, running.ID, "line 5")
	w.boot.kill()

	again, _ := steady(t, "5")
	w.renter.done(t, w.renter.submit(t, again).ID)
	_, count := w.renter.goOn(t, running.ID, out)
	wholeLog(t, w.renter.output(t, running.ID), count)
	t.Run("a restarted renter remembers its peers", func(t *testing.T) {
		w.renter.ok(t, "down")
		<-w.renter.exited
		if err := w.renter.start(); err != nil {
			t.Fatal(err)
		}
		if err := w.renter.sees(w.providers...); err != nil {
			t.Fatal(err)
		}
		spec, _ := steady(t, "5")
		w.renter.done(t, w.renter.submit(t, spec).ID)
	})
	t.Run("a killed renter remembers its peers", func(t *testing.T) {
		w.renter.kill()
		if err := w.renter.start(); err != nil {
			t.Fatal(err)
		}
		if err := w.renter.sees(w.providers...); err != nil {
			t.Fatal(err)
		}
		spec, _ := steady(t, "5")
		w.renter.done(t, w.renter.submit(t, spec).ID)
	})
	w.settled(t)
}

// A renter that has just joined knows nobody and heard no gossip: what it finds
// it finds in the DHT.
func TestE2EOffersThroughDHT(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{providers: 2, args: func(i int) []string {
		if i == 0 {
			return []string{"--fake-gpu", "rtx4090", "--region", "moon"}
		}
		return nil
	}})
	fresh := w.join("fresh", node.RoleRenter)
	// The first command of its life; finding may take a moment while it joins.
	var offers []client.ProviderOffer
	err := poll(boundedBy(t, e2eWait), func() (bool, error) {
		offers = decode[[]client.ProviderOffer](t, fresh.ok(t, "offers", "-o", "json"))
		return len(offers) == 2, nil
	})
	if err != nil {
		t.Fatalf("%v: %+v", err, offers)
	}
	for _, o := range offers {
		gpu := o.Peer == w.providers[0].id.PeerID
		if !o.Live || !o.Expires.After(time.Now()) || o.CPUMillis != 8000 {
			t.Errorf("%+v", o)
		}
		if gpu && (len(o.GPUs) != 1 || o.GPUs[0].Model != "rtx4090" || !o.GPUs[0].Fake || o.Region != "moon") || !gpu && len(o.GPUs) != 0 {
			t.Errorf("%+v", o)
		}
	}
	text := fresh.ok(t, "offers", "--gpu", "rtx4090")
	if !strings.Contains(text, w.providers[0].id.PeerID) || strings.Contains(text, w.providers[1].id.PeerID) {
		t.Errorf("offers --gpu rtx4090:\n%s", text)
	}
	// A drained provider is no longer found.
	w.providers[1].ok(t, "provider", "drain")
	err = poll(boundedBy(t, e2eWait), func() (bool, error) {
		offers = decode[[]client.ProviderOffer](t, fresh.ok(t, "offers", "-o", "json"))
		return len(offers) == 1 && offers[0].Peer == w.providers[0].id.PeerID, nil
	})
	if err != nil {
		t.Errorf("after a drain: %v: %+v", err, offers)
	}
}

// `lumbung down` leaves containers for the next `lumbung up`; with --stop-jobs
// it ends them, and the renter has the work done elsewhere.
func TestE2EDown(t *testing.T) {
	t.Parallel()
	// With heartbeats so rare only a goodbye can tell of an end soon.
	w := newWorld(t, worldOptions{providers: 2, heartbeat: 10 * time.Second})
	t.Run("leaves containers", func(t *testing.T) {
		spec, out := untilTold(t)
		j := w.renter.submit(t, spec)
		w.renter.awaitLine(t, j.ID, "line 10")
		p := w.by(t, w.renter.detail(t, j.ID).Tasks[0].Provider)
		p.ok(t, "down")
		<-p.exited
		if len(p.containers()) == 0 {
			t.Fatal("the container ended with its node")
		}
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		d, count := w.renter.goOn(t, j.ID, out)
		wholeLog(t, w.renter.output(t, j.ID), count)
		w.once(t, d)
	})
	t.Run("--stop-jobs ends them", func(t *testing.T) {
		spec, out := untilTold(t)
		j := w.renter.submit(t, spec)
		w.renter.awaitLine(t, j.ID, "line 10")
		first := w.renter.detail(t, j.ID).Tasks[0]
		p := w.by(t, first.Provider)
		p.ok(t, "down", "--stop-jobs")
		<-p.exited
		if left := p.containers(); len(left) > 0 {
			t.Errorf("left running: %v", left)
		}
		began := time.Now()
		again := w.renter.await(t, "the task to wait again", func(e client.Event) bool {
			return e.Type == job.EventTask && e.Job == j.ID && e.State == job.TaskQueued && e.Seq > 0 && strings.TrimSpace(e.Text) != ""
		})
		if took := time.Since(began); took > w.heartbeat {
			t.Errorf("the renter learned of it only %s after the provider had gone", took)
		}
		w.renter.await(t, "the task to run elsewhere", func(e client.Event) bool {
			return e.Type == job.EventTask && e.Job == j.ID && e.State == string(job.Running) && e.Seq > again.Seq
		})
		d, _ := w.renter.goOn(t, j.ID, out)
		if d.Tasks[0].Provider == first.Provider {
			t.Error("it ran on the provider that had gone")
		}
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		w.settled(t)
	})
}
