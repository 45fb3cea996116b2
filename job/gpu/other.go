//go:build !linux || !cgo

package gpu

import "context"

// Inventory lists no cards: it returns ErrNotBuilt.
func Inventory() ([]GPU, error) { return nil, ErrNotBuilt }

// Watch watches nothing: it returns ErrNotBuilt.
func Watch(context.Context, WatchOptions, func([]GPU), func([]GPU)) error { return ErrNotBuilt }

// Pass passes nothing: it returns ErrNotBuilt.
func Pass(_, _ []string) (Passage, error) { return Passage{}, ErrNotBuilt }
