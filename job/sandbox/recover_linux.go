package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"time"
)

// Recover finds the containers of this folder after a restart, in the order of
// their ids. What half-made or half-removed containers left is removed.
func (r *Runtime) Recover(ctx context.Context) ([]Recovered, error) {
	entries, err := os.ReadDir(r.jobs)
	if err != nil {
		return nil, fmt.Errorf("looking for containers: %w", err)
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].Name() < entries[j].Name() })
	var found []Recovered
	for _, e := range entries {
		id := e.Name()
		dir, err := r.folder(id)
		if errors.Is(err, ErrNotFound) {
			if err := r.Remove(ctx, id); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		rec, err := r.recover(ctx, id, dir)
		if err != nil {
			return nil, fmt.Errorf("recovering %s: %w", id, err)
		}
		found = append(found, rec)
	}
	return found, nil
}

func (r *Runtime) recover(ctx context.Context, id, dir string) (Recovered, error) {
	x, done, err := r.settle(ctx, id, dir)
	switch {
	case errors.Is(err, ErrNotRunning):
		return Recovered{ID: id, Prepared: true}, nil
	case err != nil:
		return Recovered{}, err
	}
	return Recovered{ID: id, Running: !done, Exit: x}, nil
}

// removeTimeout bounds how long killed processes may take to vanish.
const removeTimeout = 30 * time.Second
