//go:build !linux

package node

// memoryFolder is of use only where containers run.
func memoryFolder(string) string { return "" }
