package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/p2p/content"
)

// snapshots remembers, for each output folder that is streamed, what its files
// became.
type snapshots struct {
	mu   sync.Mutex
	seen map[string]*content.ShortMemory // by folder
}

func (s *snapshots) of(dir string) *content.ShortMemory {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = map[string]*content.ShortMemory{}
	}
	if s.seen[dir] == nil {
		s.seen[dir] = &content.ShortMemory{}
	}
	return s.seen[dir]
}

// known is the memory of a folder that was streamed, or none.
func (s *snapshots) known(dir string) content.Memory {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.seen[dir]; m != nil {
		return m
	}
	return nil
}

func (s *snapshots) end(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.seen, dir)
}

// savedTime is how long saved outputs are kept for the transition that holds
// them in the lease's name, which a full disk can delay.
const savedTime = 24 * time.Hour

// saved makes a DAG of a folder and holds it: for itself, or in the name of an
// owner that holds nothing else.
func (n *Node) saved(ctx context.Context, dir, owner string, o content.AddOptions) ([]byte, uint64, error) {
	defer n.blocks.HoldPuts()()
	added, err := content.Add(ctx, n.blocks, dir, o)
	if err != nil {
		return nil, 0, ofJob(err, dir)
	}
	defer n.blocks.Hold(added.CID)() // a collection under way has read the holds already
	err = n.db.Update(ctx, func(tx job.Tx) error {
		if owner == "" {
			owner = "saved:" + added.CID.String()
		} else if err := tx.ReleaseBlocks(owner); err != nil {
			return err
		}
		return tx.HoldBlocks(owner, added.CID.Bytes(), n.now().Add(savedTime))
	})
	if err != nil {
		return nil, 0, err
	}
	return added.CID.Bytes(), added.Size, nil
}

// ofJob marks an error that lies in what a job has put out in a folder: the
// store's own files have other paths.
func ofJob(err error, dir string) error {
	var p *fs.PathError
	closed := errors.As(err, &p) && errors.Is(p.Err, fs.ErrPermission) && (!filepath.IsAbs(p.Path) || strings.HasPrefix(p.Path, dir))
	if closed || errors.Is(err, content.ErrUnsafe) {
		return fmt.Errorf("%w: %w", job.ErrOutputs, err)
	}
	return err
}

// Snapshot makes a DAG of folders that a job is writing to, and holds it until
// the caller has had the time to.
func (c providerContent) Snapshot(ctx context.Context, dir string, names []string) ([]byte, uint64, error) {
	return c.n.saved(ctx, dir, "snapshot:"+dir, content.AddOptions{Live: true, Only: names, Memory: c.n.snapshots.of(dir)})
}

// EndSnapshots forgets what Snapshot remembers.
func (c providerContent) EndSnapshots(dir string) { c.n.snapshots.end(dir) }

// exportStream writes a running task's streamed outputs to where its job wants
// them.
func (n *Node) exportStream(ctx context.Context, j *job.Job, t *job.TaskRecord) error {
	_, err := n.writeStreamed(ctx, t, func(i int) string {
		if i < len(j.Spec.Outputs) && j.Spec.Outputs[i].To == "" {
			return ""
		}
		return n.streamPlace(j, i, "")
	})
	return err
}

// streamPlace is where a streamed output goes; a provider may name any number.
func (n *Node) streamPlace(j *job.Job, i int, dest string) string {
	if i >= len(j.Spec.Outputs) || !j.Spec.Outputs[i].Stream {
		return ""
	}
	return n.outputPlace(j, i, j.Spec.Outputs[i], dest)
}

// writeStreamed writes what a running task's streamed outputs are now to the
// place of each; "" is none.
func (n *Node) writeStreamed(ctx context.Context, t *job.TaskRecord, place func(i int) string) ([]string, error) {
	root, err := cid.Cast(t.Streamed)
	if err != nil {
		return nil, fmt.Errorf("streamed outputs of task %d: %w", t.Index, err)
	}
	entries, err := content.List(ctx, n.blocks, root, "")
	if err != nil {
		return nil, fmt.Errorf("streamed outputs of task %d: %w", t.Index, err)
	}
	var paths []string
	for _, e := range entries {
		i, err := strconv.Atoi(e.Name)
		if err != nil || i < 0 || strconv.Itoa(i) != e.Name {
			return paths, fmt.Errorf("streamed outputs of task %d: its provider sent %q, which is no output", t.Index, e.Name)
		}
		to := place(i)
		if to == "" {
			continue
		}
		if err := content.Export(ctx, n.blocks, e.CID, to); err != nil {
			return paths, fmt.Errorf("write output %d of task %d to %s: %w", i, t.Index, to, err)
		}
		paths = append(paths, to)
	}
	return paths, nil
}
