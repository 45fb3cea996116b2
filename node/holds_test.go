package node

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/p2p/content"
	"github.com/lumbung-net/lumbung/protocol"
)

// collect removes all that nothing holds.
func collect(t *testing.T, n *Node) client.Collected {
	t.Helper()
	got, err := backend{n}.GC(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Error(err)
	}
	return got
}

// collecting is a provider's content with a collection after each of its steps.
type collecting struct {
	job.ProviderContent
	t *testing.T
	n *Node
}

func (c collecting) FetchImage(ctx context.Context, im *protocol.Image, from []protocol.PeerID, progress func(job.Progress)) error {
	defer collect(c.t, c.n)
	return c.ProviderContent.FetchImage(ctx, im, from, progress)
}

func (c collecting) FetchDAG(ctx context.Context, root []byte, from []protocol.PeerID, most uint64, progress func(job.Progress)) error {
	defer collect(c.t, c.n)
	return c.ProviderContent.FetchDAG(ctx, root, from, most, progress)
}

func (c collecting) Materialize(ctx context.Context, root []byte, dest string) error {
	defer collect(c.t, c.n)
	return c.ProviderContent.Materialize(ctx, root, dest)
}

func (c collecting) Save(ctx context.Context, dir string) ([]byte, uint64, error) {
	defer collect(c.t, c.n)
	return c.ProviderContent.Save(ctx, dir)
}

// copier is a sandbox whose every program writes its inputs, one after the
// other, to a file in each of its outputs.
type copier struct{ job.Sandbox }

func (copier) Prepare(_ context.Context, spec sandbox.Spec) error {
	var all []byte
	for _, m := range spec.Mounts {
		if !m.ReadOnly {
			continue
		}
		data, err := os.ReadFile(m.Source)
		if err != nil {
			return err
		}
		all = append(all, data...)
	}
	for _, m := range spec.Mounts {
		if m.ReadOnly {
			continue
		}
		if err := os.WriteFile(filepath.Join(m.Source, "copy"), all, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (copier) Start(context.Context, string, protocol.Secrets) error { return nil }

func (copier) Wait(context.Context, string) (sandbox.Exit, error) {
	now := time.Now()
	return sandbox.Exit{Started: now, Ended: now, Source: sandbox.SourceJob}, nil
}

func (copier) Stop(context.Context, string, time.Duration) error { return nil }

func (copier) ReadLog(context.Context, string, uint64, int) ([]job.LogRecord, bool, error) {
	return nil, true, nil
}

func (copier) Recover(context.Context) ([]sandbox.Recovered, error) { return nil, nil }
func (copier) Remove(context.Context, string) error                 { return nil }

// end waits for a job's end.
func (r *running) end(t *testing.T, id string) client.JobDetail {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	over := errors.New("over")
	var d client.JobDetail
	err := r.db.Watch(ctx, 0, func(e job.Event) error {
		if e.Job != id || e.Type != job.EventJob {
			return nil
		}
		var err error
		if d, err = (backend{r.Node}).Job(ctx, id); err == nil && d.Job.Over() {
			err = over
		}
		return err
	})
	if !errors.Is(err, over) {
		t.Fatalf("job %s has not ended: %v, %+v", id, err, d.Job)
	}
	return d
}

// someInputs writes files that are several blocks each, and their inputs.
func someInputs(t *testing.T, names ...string) (dir string, inputs []job.InputSpec, all []byte) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range names {
		data := bytes.Repeat([]byte(name), 3<<20)
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		inputs = append(inputs, job.InputSpec{From: name, To: "/in/" + name})
		all = append(all, data...)
	}
	return dir, inputs, all
}

// namelessImage loads an image and forgets its name, so that nothing keeps it.
func namelessImage(t *testing.T, r *running) string {
	t.Helper()
	root := smallImage(t, r.Node, "nameless")
	if err := r.c.RemoveImage(t.Context(), "nameless"); err != nil {
		t.Fatal(err)
	}
	return "cid:" + root.String()
}

// Blocks are collected on both sides after every step of a job, and yet nothing
// that a later step needs is gone.
func TestCollectionsWhileAJobIsOnItsWay(t *testing.T) {
	provider := start(t, func(c *Config) { c.Roles, c.Runsc = []string{RoleProvider}, "/nonexistent/runsc" }, func(n *Node) {
		n.provider.Sandbox = copier{}
		n.provider.Content = collecting{n.provider.Content, t, n}
	})
	renter := start(t, func(c *Config) { c.Bootstrap = provider.Addrs()[:1] })
	dir, inputs, all := someInputs(t, "a", "b")
	spec := job.Spec{
		Image: namelessImage(t, renter), Command: []string{"copy"}, Memory: 64 << 20, Disk: 64 << 20, On: provider.PeerID(),
		Inputs: inputs, Outputs: []job.OutputSpec{{From: "/out"}},
	}
	j, err := backend{renter.Node}.Submit(t.Context(), client.SubmitRequest{Spec: spec, Dir: dir}, func(client.Progress) { collect(t, renter.Node) })
	if err != nil {
		t.Fatal(err)
	}
	if d := renter.end(t, j.ID); d.Job.State != job.JobDone {
		t.Fatalf("job %s %q: %+v", d.Job.State, d.Job.Reason, d.Tasks)
	}
	to := filepath.Join(t.TempDir(), "out")
	if _, err := (backend{renter.Node}).GetOutputs(t.Context(), j.ID, to, -1, func(client.Progress) {}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(to, "copy")); err != nil || !bytes.Equal(got, all) {
		t.Errorf("%d bytes came back (%v), want the %d of the inputs", len(got), err, len(all))
	}
}

// A quote holds what it gathers while it asks, and nothing after.
func TestQuoteHoldsWhatItGathers(t *testing.T) {
	r := start(t, func(c *Config) { c.BidWindow = 50 * time.Millisecond })
	dir, inputs, _ := someInputs(t, "a", "b")
	spec := job.Spec{Image: namelessImage(t, r), Command: []string{"copy"}, Inputs: inputs}
	seen := 0
	_, err := backend{r.Node}.Quote(t.Context(), client.SubmitRequest{Spec: spec, Dir: dir}, func(client.Progress) {
		if got := collect(t, r.Node); got.Blocks > 0 {
			t.Errorf("%d blocks were collected under the quote", got.Blocks)
		}
		seen++
	})
	if err != nil || seen == 0 {
		t.Fatalf("%d collections, %v", seen, err)
	}
	collect(t, r.Node)
	if left := r.blocks.Stats().Blocks; left != 0 {
		t.Errorf("%d blocks are left after the quote", left)
	}
}

// Content found under a name stays, though the name goes meanwhile.
func TestNamedImageIsHeldWhileItsNameGoes(t *testing.T) {
	r := start(t, nil)
	root := smallImage(t, r.Node, "going")
	ctx, release := r.holding(t.Context())
	defer release()
	if _, err := (renterContent{r.Node}).ResolveImage(ctx, "going", "", func(job.Progress) {}); err != nil {
		t.Fatal(err)
	}
	if err := r.c.RemoveImage(t.Context(), "going"); err != nil {
		t.Fatal(err)
	}
	collect(t, r.Node)
	if _, _, complete, err := content.Missing(t.Context(), r.blocks, root); err != nil || !complete {
		t.Errorf("the image is gone: %v", err)
	}
	release()
	collect(t, r.Node)
	if left := r.blocks.Stats().Blocks; left != 0 {
		t.Errorf("%d blocks are left", left)
	}
}

// What a peer named and no store can hold does not stop collections.
func TestOddRootDoesNotStopCollections(t *testing.T) {
	r := start(t, nil)
	root := smallImage(t, r.Node, "kept")
	odd := cid.NewCidV1(cid.GitRaw, root.Hash())
	err := r.db.Update(t.Context(), func(tx job.Tx) error { return tx.HoldBlocks("inputs:1", odd.Bytes(), time.Time{}) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := content.Add(t.Context(), r.blocks, t.TempDir(), content.AddOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, r.Node); got.Blocks != 1 {
		t.Errorf("%d blocks were collected, want that of the folder added", got.Blocks)
	}
	if _, _, complete, err := content.Missing(t.Context(), r.blocks, root); err != nil || !complete {
		t.Errorf("the image is gone: %v", err)
	}
}

// slowRoots reads what is to be kept, and is done with it when it is told.
type slowRoots struct {
	n    *Node
	read chan struct{}
	done chan struct{}
}

func (r slowRoots) Roots(ctx context.Context) ([]cid.Cid, error) {
	list, err := roots{r.n}.Roots(ctx)
	close(r.read)
	<-r.done
	return list, err
}

// A collection that has read what is kept does not take what gets its name
// after that, from an import that began before it.
func TestNamingDuringACollection(t *testing.T) {
	for name, add := range map[string]func(t *testing.T, n *Node, dir string, progress func(string)) cid.Cid{
		"add": func(t *testing.T, n *Node, dir string, progress func(string)) cid.Cid {
			added, err := backend{n}.Add(t.Context(), client.PathRequest{Path: dir}, func(p client.Progress) { progress(p.Phase) })
			if err != nil {
				t.Fatal(err)
			}
			return cid.MustParse(added.CID)
		},
		"image load": func(t *testing.T, n *Node, dir string, progress func(string)) cid.Cid {
			im, err := n.images.load(t.Context(), dir, content.LoadOptions{Name: "named"}, func(p job.Progress) { progress(p.Phase) })
			if err != nil {
				t.Fatal(err)
			}
			return im.Root
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, nil)
			dir, _, _ := someInputs(t, "a")
			slow := slowRoots{r.Node, make(chan struct{}), make(chan struct{})}
			ended := make(chan error, 1)
			root := add(t, r.Node, dir, func(phase string) {
				if phase != "done" {
					return
				}
				go func() {
					_, err := r.blocks.GC(t.Context(), slow, content.GCOptions{})
					ended <- err
				}()
				<-slow.read
			})
			close(slow.done)
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			if _, _, complete, err := content.Missing(t.Context(), r.blocks, root); err != nil || !complete {
				t.Errorf("what was named is gone: %v", err)
			}
		})
	}
}
