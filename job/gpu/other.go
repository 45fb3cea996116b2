//go:build !linux || !cgo

package gpu

// Inventory lists no cards: it returns ErrNotBuilt.
func Inventory() ([]GPU, error) { return nil, ErrNotBuilt }
