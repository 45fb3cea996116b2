package sandbox

import (
	"context"
	"io"
	"log/slog"
	"time"
)

// Options of a Runtime.
type Options struct {
	// Dir is the runtime's own folder, under the node's home: absolute, on a
	// disk with room for the containers' writable layers.
	Dir string
	// RunscPath is used instead of the embedded runsc (also: EnvRunsc).
	RunscPath string
	// OCI is the name or path of an OCI runtime of the host (runc, crun) to use
	// instead of gVisor. An operator's choice: see the package comment.
	OCI string
	Log *slog.Logger
	Now func() time.Time
	// Resolv is the file that names the machine's name servers, which answer for
	// containers with a network; default is /etc/resolv.conf.
	Resolv string
	// Shim is the executable that is started as a supervisor; default is the
	// running one. Its main calls ShimMain.
	Shim string
}

// Handle is a started container.
type Handle struct {
	ID      string
	Shim    int // process id of the supervisor
	Started time.Time
}

// ExecSpec is one more program in a running container.
type ExecSpec struct {
	Args, Env []string // Env is added to the container's own
	Cwd       string   // default: the container's
	User      string   // uid[:gid]; default: the container's
	TTY       bool
	// Stdin may be read on until it ends after Exec has returned, except one with
	// SetReadDeadline (a net.Conn, a pipe), which Exec interrupts by that. Nil is
	// an empty one.
	Stdin  io.Reader
	Stdout io.Writer // nil: discarded. With TTY, stderr comes here too
	Stderr io.Writer
	Resize <-chan Size // with TTY: the first size and later ones
}

// Size of a terminal, in characters.
type Size struct{ Columns, Rows uint16 }

// MaxOpened bounds the files whose order of opening is remembered.
const MaxOpened = 4096

// Supplier brings the files of an image that arrives while a container runs.
type Supplier struct {
	// Fill returns when the file of that absolute path, without links in it, is
	// whole in Spec.Arriving. An error ends the container, as failed by the
	// sandbox. It may be called several times at once, and again for one path.
	Fill func(ctx context.Context, path string) error
	// Opened, if set, is told of the files that were opened, each once, in the
	// order of their first opening, from the container's start on.
	Opened func(path string)
	// Whole, if set, returns when the image is whole and verified, or with the
	// error that ends the container.
	Whole func(ctx context.Context) error
}

// Conn is a connection to a port of a container.
type Conn interface {
	io.ReadWriteCloser
	// CloseWrite ends the direction into the container.
	CloseWrite() error
	// Reset ends both directions at once, whatever is on the way.
	Reset() error
}
