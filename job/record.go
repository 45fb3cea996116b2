package job

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// ErrNotFound says that the store has no such record.
var ErrNotFound = errors.New("not found")

// Job states, as users see them.
const (
	JobQueued    = "queued"    // no task has a provider yet
	JobRunning   = "running"   // at least one task is under way
	JobDone      = "done"      // every task that had to succeed did
	JobFailed    = "failed"    // more tasks failed than the job bears
	JobCancelled = "cancelled" // stopped by its owner
)

// Job is a renter's job as it is stored.
type Job struct {
	ID        string         `json:"id"`
	Spec      Spec           `json:"spec"`
	Dir       string         `json:"dir,omitempty"` // folder that relative output paths are of
	State     string         `json:"state"`
	Reason    string         `json:"reason,omitempty"`
	Remedy    string         `json:"remedy,omitempty"`
	Created   time.Time      `json:"created"`
	Ended     time.Time      `json:"ended,omitzero"`
	Image     ImageRef       `json:"image"`
	Inputs    []Root         `json:"inputs,omitempty"`
	Nonce     []byte         `json:"private_nonce,omitempty"` // with the node's key it gives a private job's keys; no secret
	Spent     ledger.Amount  `json:"spent"`
	ExitCode  int            `json:"exit_code"`
	Unplaced  map[string]int `json:"unplaced,omitempty"` // reasons, counted, of the last round that placed nothing
	Heard     int            `json:"heard,omitempty"`    // providers that answered that round
	Cheapest  ledger.Amount  `json:"cheapest,omitzero"`  // the best price over the limit in that round
	StopAsked time.Time      `json:"stop_asked,omitzero"`
	Grace     time.Duration  `json:"grace,omitempty"`
	Counts    map[string]int `json:"counts,omitempty"` // tasks by state
	Shared    []Root         `json:"shared,omitempty"` // caches that are DAGs, as far as they are here
}

// Over reports whether nothing more will happen to the job.
func (j *Job) Over() bool {
	return j.State == JobDone || j.State == JobFailed || j.State == JobCancelled
}

// ImageRef is the image that a job runs, resolved when it was submitted.
type ImageRef struct {
	Name     string `json:"name"`
	ID       string `json:"id"`   // "sha256:…" of the OCI config
	Root     []byte `json:"root"` // CID
	Size     uint64 `json:"size"` // bytes
	Platform string `json:"platform"`
}

// Root is content that a job needs.
type Root struct {
	To   string `json:"to"`
	CID  []byte `json:"cid"`
	Size uint64 `json:"size"`
}

// Task states, besides the states of its contract (leased, fetching, running,
// saving, done, failed, cancelled).
const (
	TaskQueued = "queued"
)

// TaskRecord is one task of a job. Attempts counts the leases it had.
type TaskRecord struct {
	Job      string         `json:"job"`
	Index    int            `json:"index"`
	First    int            `json:"first"`
	Last     int            `json:"last"`
	State    string         `json:"state"`
	Attempts int            `json:"attempts"`
	Retries  int            `json:"retries"`
	Lease    protocol.MsgID `json:"lease"`
	Provider string         `json:"provider,omitempty"`
	Avoid    []string       `json:"avoid,omitempty"`
	ExitCode int            `json:"exit_code"`
	Source   string         `json:"exit_source,omitempty"`
	Reason   string         `json:"reason,omitempty"`
	Exceeded *Exceeded      `json:"exceeded,omitempty"`
	Exported bool           `json:"exported,omitempty"` // they are where the job wants them
	Outputs  []byte         `json:"outputs,omitempty"`  // CID of the DAG of all outputs
	Streamed []byte         `json:"streamed,omitempty"` // CID of the streamed outputs as they were last
	Charge   ledger.Amount  `json:"charge"`             // of all attempts
	UsageMs  int64          `json:"usage_ms"`
	NetUp    uint64         `json:"net_up,omitempty"`   // bytes to the internet, of all attempts
	NetDown  uint64         `json:"net_down,omitempty"` // and from it
	Started  time.Time      `json:"started,omitzero"`
	Ended    time.Time      `json:"ended,omitzero"`
	Fetched  uint64         `json:"fetched,omitempty"`
	ToFetch  uint64         `json:"to_fetch,omitempty"`
	NotUntil time.Time      `json:"not_until,omitzero"` // a retry waits till then
	// Checkpoints are those that are here, the newest first, until the task is over.
	Checkpoints []CheckpointRecord `json:"checkpoints,omitempty"`
	Moves       int                `json:"moves,omitempty"` // times it went on elsewhere from one that its last provider made
}

// Over reports whether the task has come to its end.
func (t *TaskRecord) Over() bool {
	s := State(t.State)
	return s == Done || s == Failed || s == Cancelled
}

// Active reports whether the task has a lease that is not over.
func (t *TaskRecord) Active() bool { return t.State != TaskQueued && !t.Over() }

// Exceeded names the limit that ended a task: Max and Seen are bytes,
// milliseconds or a count, as the limit is.
type Exceeded struct {
	Limit string    `json:"limit"`
	Max   uint64    `json:"max"`
	Seen  uint64    `json:"seen"`
	At    time.Time `json:"at"`
}

// Event types.
const (
	EventJob        = "job"        // a job was created or changed its state
	EventTask       = "task"       // a task changed its state or made progress
	EventOutput     = "output"     // a running task's streamed outputs are here as they are now
	EventCheckpoint = "checkpoint" // a checkpoint of a running task is here
	EventContract   = "contract"   // a provider's contract changed its state
	EventProvider   = "provider"   // paused, resumed, drained, repriced
	EventNode       = "node"       // started, stopping
	EventNotice     = "notice"     // something that a person may want to know
)

// Event is one line of the node's log of what happened. Data is the JSON of the
// record that changed.
type Event struct {
	Seq   uint64          `json:"seq"`
	Time  time.Time       `json:"time"`
	Type  string          `json:"type"`
	Job   string          `json:"job,omitempty"`
	Task  int             `json:"task,omitempty"`
	Lease string          `json:"lease,omitempty"`
	Peer  string          `json:"peer,omitempty"`
	State string          `json:"state,omitempty"`
	Text  string          `json:"text,omitempty"`
	Data  json.RawMessage `json:"data,omitempty"`
}

// LogRecord is one piece of output: Stream 1 is stdout, 2 stderr, 3 a remark of
// the sandbox.
type LogRecord struct {
	Seq    uint64    `json:"seq"`
	Stream int       `json:"stream"`
	Time   time.Time `json:"time"`
	Data   []byte    `json:"data"`
}

func jsonOf(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return b
}
