package content

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
)

// MissingError names a block that is not here; it is an ErrNotFound.
type MissingError struct {
	CID cid.Cid
	err error
}

func (e *MissingError) Error() string { return e.err.Error() }

// Unwrap is the cause.
func (e *MissingError) Unwrap() error { return e.err }

// notHere names the block that an error of the store is about.
func notHere(r ref, err error) error {
	if errors.Is(err, ErrNotFound) {
		return &MissingError{r.cid(), err}
	}
	return err
}

// Resolve finds what a path under a root leads to; an empty one is the root. A
// path that does not exist is fs.ErrNotExist and names the part that is missing.
func Resolve(ctx context.Context, s *Store, root cid.Cid, path string) (Entry, error) {
	n, err := dagService{ctx, s}.find(ctx, root, path)
	if err != nil {
		return Entry{}, fmt.Errorf("%s: %w", joinCID(root, path), err)
	}
	return n.entry(path), nil
}
