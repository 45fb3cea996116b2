package job

import (
	"context"
	"time"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/protocol"
)

// RenterNetwork is what a renter asks of the network. A call's error says which
// peer it failed on and wraps protocol's ErrRetry, ErrElsewhere or ErrBlame
// when the peer answered so.
type RenterNetwork interface {
	PublishOffer(ctx context.Context, offer protocol.Signed[*protocol.Offer]) error
	// Providers finds peers that advertise one of the classes in the DHT.
	Providers(ctx context.Context, classes []string, limit int) ([]protocol.PeerID, error)
	Quote(ctx context.Context, to protocol.PeerID, offer protocol.Signed[*protocol.Offer]) (protocol.Signed[*protocol.Answer], error)
	Propose(ctx context.Context, to protocol.PeerID, lease protocol.Signed[*protocol.Lease]) (protocol.Signed[*protocol.Decision], error)
	Cancel(ctx context.Context, to protocol.PeerID, cancel protocol.Signed[*protocol.Cancel]) (protocol.Signed[*protocol.LeaseStatus], error)
	LeaseStatus(ctx context.Context, to protocol.PeerID, q protocol.Signed[*protocol.LeaseQuery]) (protocol.Signed[*protocol.LeaseStatus], error)
	// Addrs are this node's own addresses, for those who must call back.
	Addrs() [][]byte
	// RTT is the last measured round trip to a peer, 0 when unknown.
	RTT(protocol.PeerID) time.Duration
}

// ProviderNetwork is what a provider asks of the network. Addrs given with a
// call are the ones that the other side signed.
type ProviderNetwork interface {
	Answer(ctx context.Context, to protocol.PeerID, addrs [][]byte, answer protocol.Signed[*protocol.Answer]) error
	Heartbeat(ctx context.Context, to protocol.PeerID, hb protocol.Signed[*protocol.Heartbeat]) (protocol.Signed[*protocol.Verdict], error)
	Logs(ctx context.Context, to protocol.PeerID, chunk protocol.Signed[*protocol.LogChunk]) (protocol.Signed[*protocol.Verdict], error)
	Result(ctx context.Context, to protocol.PeerID, res protocol.Signed[*protocol.Result]) (protocol.Signed[*protocol.Receipt], error)
	// Learn remembers a peer's addresses for the calls to come.
	Learn(id protocol.PeerID, addrs [][]byte)
}

// ImageInfo is what the market must know of an image.
type ImageInfo struct {
	ImageRef
	Entrypoint, Command, Env []string
	Workdir, User            string
}

// Progress is how far a transfer is, in bytes; Total may be 0 while unknown.
type Progress struct {
	Phase string
	Done  uint64
	Total uint64
}

// RenterContent is what a renter asks of the content store.
type RenterContent interface {
	PrivateInputs
	// ResolveImage finds an image by its name or id, or imports it from a file,
	// folder or cid.
	ResolveImage(ctx context.Context, ref, dir string, progress func(Progress)) (ImageInfo, error)
	// AddInput makes a DAG of a file or folder, or resolves a cid.
	AddInput(ctx context.Context, from, dir string, progress func(Progress)) (Root, error)
	// FetchDAG brings a DAG here from the peers named.
	FetchDAG(ctx context.Context, root []byte, from []protocol.PeerID, maxBytes uint64, progress func(Progress)) error
}

// ProviderContent is what a provider asks of the content store.
type ProviderContent interface {
	PrivateOutputs
	CheckpointContent
	// CachedImage is how many of an image's bytes are here.
	CachedImage(ctx context.Context, root []byte) uint64
	FetchImage(ctx context.Context, im *protocol.Image, from []protocol.PeerID, progress func(Progress)) error
	FetchDAG(ctx context.Context, root []byte, from []protocol.PeerID, maxBytes uint64, progress func(Progress)) error
	// Rootfs is a read-only folder with the image's files, made once and shared;
	// release says that it is no longer used by that owner.
	Rootfs(ctx context.Context, root []byte, owner string) (dir string, info ImageInfo, err error)
	ReleaseRootfs(owner string)
	// Materialize writes a DAG out as a file or folder at dest.
	Materialize(ctx context.Context, root []byte, dest string) error
	// MaterializeMax is Materialize of at most so many bytes.
	MaterializeMax(ctx context.Context, root []byte, dest string, most uint64) error
	// Snapshot is Save of the folders named below dir while they are written to.
	// What has not changed since the last one is not read again, until
	// EndSnapshots.
	Snapshot(ctx context.Context, dir string, names []string) (root []byte, size uint64, err error)
	EndSnapshots(dir string)
	// Save makes a DAG of a folder.
	Save(ctx context.Context, dir string) (root []byte, size uint64, err error)
}

// Sandbox runs containers. job/sandbox's Runtime is the real one.
type Sandbox interface {
	Prepare(ctx context.Context, spec sandbox.Spec) error
	// Start is given secrets where the spec says so. They go into memory alone.
	Start(ctx context.Context, id string, secrets protocol.Secrets) error
	Wait(ctx context.Context, id string) (sandbox.Exit, error)
	Stop(ctx context.Context, id string, grace time.Duration) error
	Exec(ctx context.Context, id string, spec sandbox.ExecSpec) (int, error)
	// Forward makes a way to the container's ports, which its caller closes.
	Forward(ctx context.Context, id string) (Forwarder, error)
	// ReadLog reads records from a number on; closed says that no more will
	// come after those returned. It waits until there is something to say.
	ReadLog(ctx context.Context, id string, from uint64, maxBytes int) (records []LogRecord, closed bool, err error)
	Recover(ctx context.Context) ([]sandbox.Recovered, error)
	Remove(ctx context.Context, id string) error
}
