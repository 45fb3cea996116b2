package api

import (
	"context"
	"io"
	"time"

	"github.com/lumbung-net/lumbung/node/client"
)

// Backend is the node as the API sees it. Every method returns soon after its
// context ends. A progress function may be called from any goroutine until the
// method returns; it never blocks. Errors are an *Error, an error that wraps
// job.ErrNotFound, job.ErrSpec or protocol.ErrRetry, or else a fault of the
// node (500). A ref is a job's id, a prefix of it that no other has, or its
// name.
type Backend interface {
	NodeBackend
	JobBackend
	ContentBackend
	FilesBackend
	MarketBackend

	// Watch calls fn with each event whose number is above since, in order and
	// each once: first those of the past, then as they happen, until ctx ends or
	// fn fails. fn blocks while its reader does, so Watch holds no lock or
	// transaction over a call.
	Watch(ctx context.Context, since uint64, fn func(client.Event) error) error
	// LastEvent is the number of the newest event, 0 before the first.
	LastEvent(ctx context.Context) (uint64, error)
}

// NodeBackend is the node itself.
type NodeBackend interface {
	Status(ctx context.Context) (client.Status, error)
	Identity(ctx context.Context) (client.Identity, error)
	// Shutdown begins to end the node and returns at once. Containers run on and
	// are found again by the next start, unless stopJobs ends them too.
	Shutdown(ctx context.Context, stopJobs bool) error
	Netcheck(ctx context.Context) (client.Netcheck, error)
	Ping(ctx context.Context, peer string) (client.PeerPing, error)
}

// JobBackend is the node as a renter. The specs it gets have their defaults
// filled in and are valid.
type JobBackend interface {
	Submit(ctx context.Context, r client.SubmitRequest, progress func(client.Progress)) (client.Job, error)
	Quote(ctx context.Context, r client.SubmitRequest, progress func(client.Progress)) (client.Quote, error)
	Jobs(ctx context.Context, all bool) ([]client.Job, error)
	Job(ctx context.Context, ref string) (client.JobDetail, error)
	StopJob(ctx context.Context, ref string, grace time.Duration) (client.Job, error)
	// Logs calls fn with each record. fn blocks while its reader does.
	Logs(ctx context.Context, ref string, q client.LogQuery, fn func(task int, rec client.LogRecord) error) error
	GetOutputs(ctx context.Context, ref, dest string, task int, progress func(client.Progress)) (client.Fetched, error)
	Exec(ctx context.Context, ref string, r client.ExecRequest, tty ExecIO) (code int, err error)
	// Connect reaches a port of a task's container, then calls accept for the
	// other side, and joins the two to their end. An error before accept is the
	// caller's to hear.
	Connect(ctx context.Context, ref string, task int, port uint16, accept func() (Half, error)) error
}

// ContentBackend is the node's store.
type ContentBackend interface {
	LoadImage(ctx context.Context, r client.PathRequest, progress func(client.Progress)) (client.Image, error)
	ImageFrom(ctx context.Context, r client.FromRequest, progress func(client.Progress)) (client.Image, error)
	Images(ctx context.Context) ([]client.Image, error)
	RemoveImage(ctx context.Context, ref string) error
	Add(ctx context.Context, r client.PathRequest, progress func(client.Progress)) (client.Added, error)
	// Cat writes a file; path is a CID, with a path below it or without.
	Cat(ctx context.Context, path string, w io.Writer) error
	Pin(ctx context.Context, r client.PinRequest, progress func(client.Progress)) (client.Added, error)
	Unpin(ctx context.Context, cid string) error
	Pins(ctx context.Context) ([]client.Pin, error)
	// ExportDAG writes a DAG as a CAR.
	ExportDAG(ctx context.Context, cid string, w io.Writer) error
	// ImportDAG reads a CAR to its end, or to what it refuses.
	ImportDAG(ctx context.Context, car io.Reader, progress func(client.Progress)) (client.Imported, error)
	GC(ctx context.Context) (client.Collected, error)
	// CheckBlocks reads every block and drops the damaged ones.
	CheckBlocks(ctx context.Context, progress func(client.Progress)) (client.Checked, error)
}

// MarketBackend is the node as a provider, and its money.
type MarketBackend interface {
	Offers(ctx context.Context, gpu string) ([]client.ProviderOffer, error)
	ProviderPause(ctx context.Context) (client.ProviderStats, error)
	ProviderResume(ctx context.Context) (client.ProviderStats, error)
	ProviderDrain(ctx context.Context) (client.ProviderStats, error)
	ProviderPrice(ctx context.Context, r client.PriceRequest) (client.Prices, error)
	Wallet(ctx context.Context) (client.Wallet, error)
	// Statement lists bookings from a time on; zero is the beginning.
	Statement(ctx context.Context, since time.Time) (client.Statement, error)
	// Contracts are the node's leases as a provider.
	Contracts(ctx context.Context) ([]client.Contract, error)
}

// ExecIO is the terminal of an exec. Stdin ends (io.EOF) when the client says
// so and fails when the client is gone; the context ends then too. Resize has
// only the newest size and is never closed.
type ExecIO struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan Size
}

// Size of a terminal, in characters.
type Size struct{ Rows, Cols int }
