package client

import (
	"encoding/json"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// The market's own records are the API's: a job, a task, an event and an amount
// have one form from the store to the terminal.
type (
	// Job is a job of this node's renter.
	Job = job.Job
	// Task is one task of a job.
	Task = job.TaskRecord
	// Contract is one lease, on either side.
	Contract = job.Contract
	// Times is where the time of one attempt at a task went.
	Times = job.Times
	// Spec is a job as its owner wrote it.
	Spec = job.Spec
	// SecretSpec is a secret of a job, by its name.
	SecretSpec = job.SecretSpec
	// Event is one line of the node's log of what happened.
	Event = job.Event
	// LogRecord is one piece of a task's output.
	LogRecord = job.LogRecord
	// Amount is a sum of money in base units.
	Amount = ledger.Amount
)

// Problem is an error as the API tells it (RFC 9457), with what to do next.
type Problem struct {
	Type      string `json:"type,omitempty"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Code      string `json:"code"`   // stable word for scripts, such as "not_found"
	Remedy    string `json:"remedy"` // what to do next
	Retryable bool   `json:"retryable"`
}

// Error implements error.
func (p *Problem) Error() string {
	if p.Detail == "" {
		return p.Title
	}
	return p.Detail
}

// Progress is how far a long request is, in bytes; Total is 0 while unknown.
type Progress struct {
	Phase string  `json:"phase"`
	Done  uint64  `json:"done"`
	Total uint64  `json:"total"`
	Rate  float64 `json:"rate"` // bytes a second
}

// Line is one line of a streamed answer (application/x-ndjson): progress, then
// a result or a problem.
type Line struct {
	Progress *Progress       `json:"progress,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Problem  *Problem        `json:"problem,omitempty"`
}

// Status is the node at a glance.
type Status struct {
	PeerID    string         `json:"peer_id"`
	Network   string         `json:"network"`
	Roles     []string       `json:"roles"`
	Version   string         `json:"version"`
	PID       int            `json:"pid"`
	Home      string         `json:"home"`
	Started   time.Time      `json:"started"`
	Addrs     []string       `json:"addrs"`
	Peers     int            `json:"peers"`
	Reachable string         `json:"reachability"`
	DHTPeers  int            `json:"dht_peers"`
	Store     StoreStatus    `json:"store"`
	Renter    *RenterStatus  `json:"renter,omitempty"`
	Provider  *ProviderStats `json:"provider,omitempty"`
	Transfers []Transfer     `json:"transfers,omitempty"`
	Memory    uint64         `json:"memory_bytes"` // resident
	Warnings  []string       `json:"warnings,omitempty"`
}

// Transfer is blocks on their way: what this node fetches, or what one peer
// takes from it.
type Transfer struct {
	Direction string        `json:"direction"` // in or out
	Root      string        `json:"root,omitempty"`
	Peer      string        `json:"peer,omitempty"` // who takes
	Peers     int           `json:"peers"`          // that gave something, or take
	Bytes     uint64        `json:"bytes"`          // so far; of a fetch, those here
	Total     uint64        `json:"total,omitempty"`
	Rate      uint64        `json:"bytes_per_second"`
	ETA       time.Duration `json:"eta_ns,omitempty"`
}

// StoreStatus is what the block store holds.
type StoreStatus struct {
	Blocks uint64 `json:"blocks"`
	Bytes  uint64 `json:"bytes"`
	Disk   uint64 `json:"disk_bytes"`
}

// RenterStatus counts the renter's jobs.
type RenterStatus struct {
	Open  int    `json:"open_jobs"`
	Tasks int    `json:"active_tasks"`
	Spent Amount `json:"spent"`
}

// ProviderStats is what a provider has, sells and runs.
type ProviderStats struct {
	State     string     `json:"state"` // open, paused, draining, drained
	CPUMillis uint32     `json:"cpu_millis"`
	CPUFree   uint32     `json:"cpu_millis_free"`
	Memory    uint64     `json:"memory"`
	MemFree   uint64     `json:"memory_free"`
	Disk      uint64     `json:"disk"`
	DiskFree  uint64     `json:"disk_free"`
	GPUs      []GPUStats `json:"gpus,omitempty"`
	Prices    Prices     `json:"prices"`
	Leases    int        `json:"leases"`
	Earned    Amount     `json:"earned"`
	Sandbox   string     `json:"sandbox"` // what runs containers, or why nothing can
}

// GPUStats is one kind of card.
type GPUStats struct {
	Model string `json:"model"`
	Count int    `json:"count"`
	Free  int    `json:"free"`
	VRAM  uint64 `json:"vram"`
	Fake  bool   `json:"fake,omitempty"`
	Price Amount `json:"price_per_hour"`
}

// Prices are what a provider asks, per hour.
type Prices struct {
	CPU Amount            `json:"cpu_per_core_hour"`
	GPU Amount            `json:"gpu_hour"`
	By  map[string]Amount `json:"by_model,omitempty"`
}

// PriceRequest changes prices; an empty field is left as it is. Values are
// decimals of the main unit, such as "0.40".
type PriceRequest struct {
	CPU string            `json:"cpu,omitempty"`
	GPU string            `json:"gpu,omitempty"`
	By  map[string]string `json:"by_model,omitempty"`
}

// Identity is what `lumbung id` shows.
type Identity struct {
	PeerID  string   `json:"peer_id"`
	Network string   `json:"network"`
	Addrs   []string `json:"addrs"` // with /p2p/…, to give to others
}

// PeerPing is one answer of a peer.
type PeerPing struct {
	Peer string        `json:"peer"`
	RTT  time.Duration `json:"rtt_ns"`
	Via  string        `json:"via"` // such as "direct tcp" or "relayed"
}

// Netcheck is the state of this node's reachability.
type Netcheck struct {
	Listen       []string  `json:"listen"`
	Announced    []string  `json:"announced"`
	Reachability string    `json:"reachability"`
	DHTMode      string    `json:"dht_mode"`
	DHTPeers     int       `json:"dht_peers"`
	Bootstrap    []string  `json:"bootstrap"`
	Connected    int       `json:"connected"`
	Relays       []string  `json:"relays"`
	Findings     []Finding `json:"findings"`
}

// Finding is one line of doctor or netcheck. Level is ok, warn or fail.
type Finding struct {
	Level  string `json:"level"`
	What   string `json:"what"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

// SubmitRequest hands a job to the node. Relative paths are of Dir.
type SubmitRequest struct {
	Spec Spec   `json:"spec"`
	Dir  string `json:"dir"`
	// Secrets are the values of those that the spec names. The node keeps them
	// encrypted, for as long as the job is open; no answer has them.
	Secrets protocol.Secrets `json:"secrets,omitempty"`
	// Key makes the request repeatable: the same key again is the same job.
	Key string `json:"key,omitempty"`
}

// JobDetail is all there is to know of a job.
type JobDetail struct {
	Job       Job        `json:"job"`
	Tasks     []Task     `json:"tasks"`
	Contracts []Contract `json:"contracts"`
	Times     []Times    `json:"times"` // of each attempt, in the tasks' order
}

// Quote is what a job would cost and where it would run.
type Quote struct {
	Bids     []QuotedBid    `json:"bids"`
	Reasons  map[string]int `json:"reasons,omitempty"` // of those that declined
	Heard    int            `json:"heard"`
	Cheapest Amount         `json:"cheapest,omitzero"` // over the limit, if only price was wrong
	// MostPerTask is the cost of one task that runs to its limit at the best bid.
	MostPerTask Amount `json:"most_per_task"`
	Tasks       int    `json:"tasks"`
	ImageBytes  uint64 `json:"image_bytes"`
	InputBytes  uint64 `json:"input_bytes"`
}

// QuotedBid is one provider's signed price.
type QuotedBid struct {
	Peer     string        `json:"peer"`
	Price    Amount        `json:"price_per_hour"`
	Slots    int           `json:"slots"`
	StartIn  time.Duration `json:"start_in_ns"`
	Cached   uint64        `json:"image_bytes_cached"`
	RTT      time.Duration `json:"rtt_ns"`
	ToFetch  uint64        `json:"to_fetch"`
	ValidFor time.Duration `json:"valid_for_ns"`
}

// ProviderOffer is one provider as the DHT shows it.
type ProviderOffer struct {
	Peer         string     `json:"peer"`
	CPUMillis    uint32     `json:"cpu_millis"`
	CPUFree      uint32     `json:"cpu_millis_free"`
	Memory       uint64     `json:"memory"`
	MemFree      uint64     `json:"memory_free"`
	GPUs         []GPUStats `json:"gpus,omitempty"`
	CPUPrice     Amount     `json:"cpu_price_per_core_hour"`
	Region       string     `json:"region,omitempty"`
	Reachability string     `json:"reachability"`
	Agent        string     `json:"agent"`
	Paused       bool       `json:"paused,omitempty"`
	Expires      time.Time  `json:"expires"`
	Live         bool       `json:"live"` // answered now, not only found in the DHT
}

// Image is an image of the node's store.
type Image struct {
	Name     string    `json:"name"`
	ID       string    `json:"id"`
	CID      string    `json:"cid"`
	Size     uint64    `json:"size"`
	Platform string    `json:"platform"`
	Layers   int       `json:"layers"`
	Created  time.Time `json:"created"`
}

// PathRequest names a local file or folder, absolute. That of an image may have
// the form before it, like "oci:", or be a name in a registry or a store, like
// "docker://debian:12".
type PathRequest struct {
	Path     string `json:"path"`
	Name     string `json:"name,omitempty"`
	Platform string `json:"platform,omitempty"` // to take of an image for several
}

// FromRequest asks for an image of one static program.
type FromRequest struct {
	Program    string      `json:"program"` // absolute
	Name       string      `json:"name,omitempty"`
	Entrypoint []string    `json:"entrypoint,omitempty"` // default the program
	Files      []FileInput `json:"files,omitempty"`
}

// FileInput is a file that goes into an image.
type FileInput struct {
	From string `json:"from"` // on this machine, absolute
	To   string `json:"to"`   // in the image, absolute
}

// Added is what `lumbung add` made.
type Added struct {
	CID   string `json:"cid"`
	Bytes uint64 `json:"bytes"`
	Files int    `json:"files"`
}

// Collected is what a collection gave back.
type Collected struct {
	Blocks uint64 `json:"blocks"`
	Bytes  uint64 `json:"bytes"`
}

// Fetched is what `lumbung get` wrote.
type Fetched struct {
	Tasks []FetchedTask `json:"tasks"`
}

// FetchedTask is the outputs of one task.
type FetchedTask struct {
	Task  int      `json:"task"`
	Paths []string `json:"paths"`
	Bytes uint64   `json:"bytes"`
	State string   `json:"state"`
	// Partial says that the task runs and this is what it had streamed.
	Partial bool `json:"partial,omitempty"`
}

// Wallet is what this node owes and is owed. Trust says what stands behind it.
type Wallet struct {
	PeerID   string          `json:"peer_id"`
	Balances []WalletBalance `json:"balances"`
}

// WalletBalance is the account with one peer on one rail.
type WalletBalance struct {
	Rail  string `json:"rail"` // "credit"
	Peer  string `json:"peer"`
	Owed  Amount `json:"owed_to_peer"`
	Due   Amount `json:"owed_by_peer"`
	Trust string `json:"trust"`
}

// Statement is a list of bookings with totals.
type Statement struct {
	PeerID string          `json:"peer_id"`
	Rows   []StatementRow  `json:"rows"`
	Owed   Amount          `json:"owed"` // to providers
	Due    Amount          `json:"due"`  // by renters
	ByPeer []WalletBalance `json:"by_peer"`
}

// StatementRow is one lease that was charged.
type StatementRow struct {
	Time   time.Time `json:"time"`
	Side   string    `json:"side"` // renter or provider
	Peer   string    `json:"peer"` // the other side
	Job    string    `json:"job"`
	Task   int       `json:"task"`
	Lease  string    `json:"lease"`
	State  string    `json:"state"`
	Usage  int64     `json:"usage_ms"`
	Price  Amount    `json:"price_per_hour"`
	Charge Amount    `json:"charge"`
}

// StopRequest ends a job.
type StopRequest struct {
	Grace time.Duration `json:"grace_ns"`
}

// ExecRequest runs a command in a task's container; the connection is upgraded
// and carries frames both ways afterwards.
type ExecRequest struct {
	Task    int      `json:"task"`
	Command []string `json:"command"`
	TTY     bool     `json:"tty"`
	Rows    int      `json:"rows,omitempty"`
	Cols    int      `json:"cols,omitempty"`
}

// LogLine is one line of streamed logs: a record of a task, or the problem that
// ended the stream.
type LogLine struct {
	Task    int        `json:"task"`
	Record  *LogRecord `json:"record,omitempty"`
	Problem *Problem   `json:"problem,omitempty"`
}

// LastEvent is the number of the newest event.
type LastEvent struct {
	Seq uint64 `json:"seq"`
}

// PingRequest names a peer by its id or a whole address.
type PingRequest struct {
	Peer string `json:"peer"`
}

// OutputsRequest asks for the outputs of one task, or of all when Task is -1,
// below Dest (absolute), or where the job says when Dest is empty.
type OutputsRequest struct {
	Dest string `json:"dest,omitempty"`
	Task int    `json:"task"`
}

// PinRequest names a DAG to keep.
type PinRequest struct {
	CID string `json:"cid"` // or a CID with a path below it: what that leads to is pinned
	// From are multiaddrs of IPFS nodes, with /p2p/…, to fetch it from instead
	// of from this network. The node's operator must allow it.
	From []string `json:"from,omitempty"`
}

// Pin is a DAG that is kept until it is unpinned.
type Pin struct {
	CID     string    `json:"cid"`
	Bytes   uint64    `json:"bytes,omitempty"`
	Created time.Time `json:"created,omitzero"`
}

// ShutdownRequest ends a node.
type ShutdownRequest struct {
	// StopJobs ends the containers that run for others too.
	StopJobs bool `json:"stop_jobs"`
}
