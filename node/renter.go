package node

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/p2p/content"
)

// newRenter makes the renter's side. Every node has one: a provider too may
// want something done elsewhere.
func (n *Node) newRenter() *job.Renter {
	return job.NewRenter(job.RenterConfig{
		Signer: n.signer, Keys: n.keys, Store: n.db, Net: market{n.host}, Content: renterContent{n},
		Heartbeat: n.cfg.Heartbeat, Window: n.cfg.BidWindow, Export: n.export, ExportStream: n.exportStream, Ports: newListeners(n.log, n.connect), Now: n.now, Log: n.log,
	})
}

// export writes a task's outputs to where its job wants them.
func (n *Node) export(ctx context.Context, j *job.Job, t *job.TaskRecord) error {
	if j.Spec.Private {
		return n.exportPrivate(ctx, j, t)
	}
	for i, out := range j.Spec.Outputs {
		if out.To == "" {
			continue
		}
		dest := out.To
		if !filepath.IsAbs(dest) {
			dest = filepath.Join(j.Dir, dest)
		}
		if err := n.exportOutput(ctx, t, i, dest); err != nil {
			return err
		}
	}
	return nil
}

// exportOutput writes one of a task's outputs to a folder.
func (n *Node) exportOutput(ctx context.Context, t *job.TaskRecord, i int, dest string) error {
	root, err := cid.Cast(t.Outputs)
	if err != nil {
		return fmt.Errorf("outputs of task %d: %w", t.Index, err)
	}
	sub, err := n.child(ctx, root, strconv.Itoa(i))
	if err != nil {
		return fmt.Errorf("output %d of task %d: %w", i, t.Index, err)
	}
	if err := content.Export(ctx, n.blocks, sub, dest); err != nil {
		return fmt.Errorf("write output %d of task %d to %s: %w", i, t.Index, dest, err)
	}
	return nil
}

// child is what a folder of a DAG holds under a name.
func (n *Node) child(ctx context.Context, root cid.Cid, name string) (cid.Cid, error) {
	entries, err := content.List(ctx, n.blocks, root, "")
	if err != nil {
		return cid.Undef, err
	}
	for _, e := range entries {
		if e.Name == name {
			return e.CID, nil
		}
	}
	return cid.Undef, fmt.Errorf("%s/%s: %w", root, name, content.ErrNotFound)
}
