package job

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lumbung-net/lumbung/protocol"
)

// wary is a content store that looks, at each step of a lease, whether what the
// step needs is kept from collection.
type wary struct {
	*shelf
	t     *testing.T
	store *memStore
}

// keepWatch lets every provider of a town be wary.
func keepWatch(t *testing.T) func(int, *ProviderConfig) {
	return func(i int, cfg *ProviderConfig) {
		s, ok := cfg.Content.(*shelf)
		if !ok {
			t.Fatalf("content of type %T", cfg.Content)
		}
		cfg.Content = wary{s, t, s.w.shops[i].store}
	}
}

func heldInputs(s *memStore) (roots []string) {
	s.view(func(t *memTx) {
		for owner, list := range t.s.holds {
			if strings.HasPrefix(owner, "inputs:") {
				roots = append(roots, list...)
			}
		}
	})
	return roots
}

func (c wary) look(step string, root []byte) {
	if !c.life.dead.Load() && !slices.Contains(heldInputs(c.store), string(root)) {
		c.t.Errorf("%s: the input is not held", step)
	}
}

func (c wary) FetchDAG(ctx context.Context, root []byte, from []protocol.PeerID, most uint64, progress func(Progress)) error {
	c.look("before the fetch", root)
	defer c.look("after the fetch", root)
	return c.shelf.FetchDAG(ctx, root, from, most, progress)
}

func (c wary) Materialize(ctx context.Context, root []byte, dest string) error {
	defer c.look("laid out", root)
	return c.shelf.Materialize(ctx, root, dest)
}

// Rootfs takes its time, as looking for an image on a busy disk does.
func (c wary) Rootfs(ctx context.Context, root []byte, owner string) (string, ImageInfo, error) {
	<-after(ctx, time.Second)
	return c.shelf.Rootfs(ctx, root, owner)
}

// ReleaseRootfs looks whether all that runs on this machine holds its image, for
// a release makes room.
func (c wary) ReleaseRootfs(owner string) {
	m := c.w.shopOfStore(c.store).machine
	for _, id := range m.left() {
		if !c.life.dead.Load() && id != owner && !slices.Contains(c.owners(), id) {
			c.t.Errorf("container %s is there while its image can be removed", id)
		}
	}
	c.shelf.ReleaseRootfs(owner)
}

func (w *town) shopOfStore(s *memStore) *shop {
	i := slices.IndexFunc(w.shops, func(p *shop) bool { return p.store == s })
	return w.shops[i]
}

func TestInputsAreHeldUntilTheLeaseIsOver(t *testing.T) {
	for _, killed := range []bool{false, true} {
		inTown(t, plan{prices: []uint64{testPrice}, change: keepWatch(t)}, func(t *testing.T, w *town) {
			gate := make(chan struct{})
			w.shops[0].depot.set(func(d *depot) { d.gate = gate })
			w.submit("j1", withFiles("print"))
			w.await("it to fetch", func() bool { return w.state("j1", 0) == Fetching })
			if killed {
				w.shops[0].kill()
				w.shops[0].store.mu.Lock()
				clear(w.shops[0].store.holds) // as if they had lapsed meanwhile
				w.shops[0].store.mu.Unlock()
				w.pass(testBeat)
				w.shops[0].reopen()
			}
			close(gate)
			if j := w.over("j1"); j.State != JobDone {
				t.Errorf("job %s %q", j.State, j.Reason)
			}
			w.await("the provider to clean up", w.quiet)
			if left := heldInputs(w.shops[0].store); len(left) > 0 {
				t.Errorf("%d inputs are still held", len(left))
			}
		})
	}
}

// A lease that ended while its provider was away gives its image up at once; by
// then the others that run there hold theirs again.
func TestImagesAreHeldAgainBeforeAnyIsReleased(t *testing.T) {
	inTown(t, plan{prices: []uint64{testPrice}, change: keepWatch(t)}, func(t *testing.T, w *town) {
		w.submit("j1", oneTask("sleep=1s"))
		w.submit("j2", oneTask("gate"))
		w.submit("j3", oneTask("gate"))
		w.await("them to run", func() bool { return w.shops[0].machine.running() == 3 })
		w.shops[0].kill()
		w.pass(2 * time.Second)
		w.shops[0].reopen()
		w.over("j1")
		w.shops[0].machine.open()
		w.over("j2")
		w.over("j3")
		w.await("the provider to clean up", w.quiet)
	})
}
