package client

import (
	"os"
	"path/filepath"
	"strings"
)

// maxSocketPath is what fits into a socket address everywhere: sun_path is 104
// bytes on macOS and 108 on Linux, with the final zero.
const maxSocketPath = 103

const (
	socketName  = "api.sock"
	pointerName = "api.path"
)

// RunDir is the private folder in a node's home for its socket and lock.
func RunDir(home string) string { return filepath.Join(home, "run") }

// PointerPath is the file that names the socket when the home's own path is too
// long for a socket address.
func PointerPath(home string) string { return filepath.Join(RunDir(home), pointerName) }

// HomeSocket is the socket's usual path, and whether that is short enough.
func HomeSocket(home string) (path string, fits bool) {
	path = filepath.Join(RunDir(home), socketName)
	return path, SocketFits(path)
}

// SocketFits reports whether a path can be a socket's address.
func SocketFits(path string) bool { return len(path) <= maxSocketPath }

// SocketPath is where the node of a home listens, or would.
func SocketPath(home string) string {
	path, fits := HomeSocket(home)
	if fits {
		return path
	}
	raw, err := os.ReadFile(PointerPath(home))
	if err != nil {
		return path
	}
	if p := strings.TrimSpace(string(raw)); filepath.IsAbs(p) && SocketFits(p) {
		return p
	}
	return path
}
