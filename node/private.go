package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"filippo.io/age"
	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/api"
	"github.com/lumbung-net/lumbung/p2p"
	"github.com/lumbung-net/lumbung/p2p/content"
)

// privateTree is the name of an input in its private file.
const privateTree = "0"

// AddPrivate makes a private file of a file or folder of the renter's.
func (c renterContent) AddPrivate(ctx context.Context, from, dir string, to age.Recipient, progress func(job.Progress)) (job.Root, error) {
	trees := []content.Tree{{Name: privateTree, Path: below(dir, from)}}
	added, err := content.AddPrivate(ctx, c.n.blocks, trees, to, content.AddOptions{Progress: func(p content.Progress) {
		progress(job.Progress{Phase: "encrypting", Done: p.Done, Total: p.Total})
	}})
	if err != nil {
		return job.Root{}, err
	}
	c.n.hold(ctx, added.CID)
	return job.Root{CID: added.CID.Bytes(), Size: added.Size}, nil
}

// SizePrivate is about how large a private file would be.
func (c renterContent) SizePrivate(ctx context.Context, from, dir string) (uint64, error) {
	path := below(dir, from)
	if _, err := os.Stat(path); err != nil {
		return 0, err
	}
	return content.PrivateSize(ctx, []content.Tree{{Name: privateTree, Path: path}}), ctx.Err()
}

// below is a path that may be relative to a folder.
func below(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// OpenPrivate writes a private input out at dest.
func (c providerContent) OpenPrivate(ctx context.Context, root []byte, dest string, with age.Identity, maxBytes uint64) error {
	id, err := cid.Cast(root)
	if err != nil {
		return err
	}
	// As for other inputs: nothing follows the links but the container.
	o := content.ExportOptions{KeepOutsideLinks: true, Limits: content.Limits{Bytes: max(maxBytes, 1)}}
	_, err = content.OpenPrivate(ctx, c.n.blocks, id, with, map[string]string{privateTree: dest}, o)
	return err
}

// SavePrivate makes a private file of what is in a folder and holds it.
func (c providerContent) SavePrivate(ctx context.Context, dir string, to age.Recipient) ([]byte, uint64, error) {
	return c.savePrivate(ctx, dir, to, savedTime)
}

// checkpointTime is how long a checkpoint is kept for the transition that holds it
// in its lease's name.
const checkpointTime = time.Minute

// SaveCheckpoint is SavePrivate that holds for a short while.
func (c providerContent) SaveCheckpoint(ctx context.Context, dir string, to age.Recipient) ([]byte, uint64, error) {
	return c.savePrivate(ctx, dir, to, checkpointTime)
}

func (c providerContent) savePrivate(ctx context.Context, dir string, to age.Recipient, hold time.Duration) ([]byte, uint64, error) {
	defer c.n.blocks.HoldPuts()()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, 0, err
	}
	var trees []content.Tree
	for _, e := range entries {
		trees = append(trees, content.Tree{Name: e.Name(), Path: filepath.Join(dir, e.Name())})
	}
	added, err := content.AddPrivate(ctx, c.n.blocks, trees, to, content.AddOptions{Live: true})
	if err != nil {
		return nil, 0, ofJob(err, dir)
	}
	defer c.n.blocks.Hold(added.CID)() // a collection under way has read the holds already
	err = c.n.db.Update(ctx, func(tx job.Tx) error {
		return tx.HoldBlocks("saved:"+added.CID.String(), added.CID.Bytes(), c.n.now().Add(hold))
	})
	if err != nil {
		return nil, 0, err
	}
	return added.CID.Bytes(), added.Size, nil
}

// exportPrivate is export of a private task.
func (n *Node) exportPrivate(ctx context.Context, j *job.Job, t *job.TaskRecord) error {
	places, some := make([]string, len(j.Spec.Outputs)), false
	for i, out := range j.Spec.Outputs {
		if out.To != "" {
			places[i], some = below(j.Dir, out.To), true
		}
	}
	if !some {
		return nil
	}
	return n.openOutputs(ctx, j, t, places)
}

// privateOutputs is the error of somebody who wants to read a private file of a
// job of this node as it lies in the store.
func (n *Node) privateOutputs(ctx context.Context, root cid.Cid) error {
	if private, err := content.LooksPrivate(ctx, n.blocks, root); err != nil || !private {
		return nil //nolint:nilerr // reading it tells what is wrong
	}
	var found error
	err := n.db.View(ctx, func(tx job.Tx) error {
		jobs, err := tx.Jobs(true, 0)
		for _, j := range jobs {
			if !j.Spec.Private || found != nil {
				continue
			}
			for _, in := range j.Inputs {
				if bytes.Equal(in.CID, root.Bytes()) {
					found = privateErr(fmt.Sprintf("it is the encrypted input %s of the private job %s", in.To, j.ID), "what it was made of lies where the job's file says")
				}
			}
			tasks, err := tx.Tasks(j.ID)
			if err != nil {
				return err
			}
			for _, t := range tasks {
				if bytes.Equal(t.Outputs, root.Bytes()) {
					found = privateErr(fmt.Sprintf("it is the encrypted output of task %d of the private job %s", t.Index, j.ID), fmt.Sprintf("`lumbung get %s DIR --task %d` writes it out decrypted", j.ID, t.Index))
				}
			}
		}
		return err
	})
	return errors.Join(err, found)
}

func privateErr(what, remedy string) error {
	return &api.Error{Status: http.StatusUnprocessableEntity, Code: "private", Detail: what, Remedy: remedy}
}

// openOutputs writes a private task's outputs to the places named, one for each
// output of the job; "" is none.
func (n *Node) openOutputs(ctx context.Context, j *job.Job, t *job.TaskRecord, places []string) error {
	root, err := cid.Cast(t.Outputs)
	if err != nil {
		return fmt.Errorf("outputs of task %d: %w", t.Index, err)
	}
	key, err := n.keys.Outputs(j, t.Index)
	if err != nil {
		return err
	}
	dests := map[string]string{}
	for i, place := range places {
		dests[strconv.Itoa(i)] = place
	}
	if _, err := content.OpenPrivate(ctx, n.blocks, root, key, dests, content.ExportOptions{}); err != nil {
		return fmt.Errorf("write the private outputs of task %d: %w", t.Index, err)
	}
	return nil
}

// publicRoots remembers of roots whether they may be announced.
type publicRoots struct {
	mu    sync.Mutex
	known map[cid.Cid]bool
}

// public reports whether the DHT may be told of a root: not when it is a private
// file, nor while too little of a file is here to tell. Blocks do not change, so
// each root is looked at until its beginning is here, and no more.
func (n *Node) public(ctx context.Context, root cid.Cid) bool {
	u := &n.publicRoots
	u.mu.Lock()
	is, known := u.known[root]
	u.mu.Unlock()
	if known {
		return is
	}
	private, err := content.LooksPrivate(ctx, n.blocks, root)
	if err != nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.known == nil || len(u.known) >= 4*p2p.MaxRoots {
		u.known = map[cid.Cid]bool{}
	}
	u.known[root] = !private
	return !private
}
