package job

import (
	"context"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// Store keeps the market's records. Update commits all that fn wrote in one
// transaction, or nothing when fn fails; what it wrote is durable before Update
// returns. View reads one consistent state.
type Store interface {
	Update(ctx context.Context, fn func(Tx) error) error
	View(ctx context.Context, fn func(Tx) error) error
}

// ContractFilter chooses contracts; a zero field does not choose.
type ContractFilter struct {
	Side Side
	Open bool // not in a terminal state, or not yet booked
	Job  string
	Task int // with Job, and only when TaskSet
	// TaskSet makes Task choose, for task 0 is a task.
	TaskSet bool
	Limit   int
}

// Message is one signed message of a contract, as it was made or received.
type Message struct {
	Kind protocol.Kind
	Raw  []byte
	At   time.Time
}

// Tx is one transaction. Records are copies: changing one changes nothing until
// it is put back. A record that is not there is ErrNotFound.
type Tx interface {
	PutJob(*Job) error
	Job(id string) (*Job, error)
	// Jobs lists jobs, newest first; open ones only, or all.
	Jobs(all bool, limit int) ([]*Job, error)

	// PutSecrets keeps a job's sealed secrets until DropSecrets.
	PutSecrets(job string, sealed []byte) error
	Secrets(job string) ([]byte, error)
	DropSecrets(job string) error

	PutTask(*TaskRecord) error
	Task(job string, index int) (*TaskRecord, error)
	Tasks(job string) ([]*TaskRecord, error)

	PutContract(*Contract) error
	Contract(id protocol.MsgID) (*Contract, error)
	Contracts(ContractFilter) ([]*Contract, error)

	// AppendMessage adds to the evidence of a contract; the same bytes again
	// are kept once.
	AppendMessage(lease protocol.MsgID, m Message) error
	// Messages lists the evidence in the order it came.
	Messages(lease protocol.MsgID) ([]Message, error)
	// LastMessage is the newest of a kind.
	LastMessage(lease protocol.MsgID, kind protocol.Kind) (Message, error)

	// AppendLog adds records whose number follows what is there; those already
	// there are passed over. It returns the next number wanted.
	AppendLog(lease protocol.MsgID, records []LogRecord) (next uint64, err error)
	// Log reads records from a number on, up to about maxBytes of data.
	Log(lease protocol.MsgID, from uint64, maxBytes int) ([]LogRecord, error)

	// Post books an entry once: the same cause and kind again is no second one.
	Post(ledger.Entry) error
	// Emit appends an event; its number is given by the store.
	Emit(Event) error

	// HoldBlocks keeps a DAG from collection for an owner ("job:…") until a
	// time, or for ever when until is zero. ReleaseBlocks ends all of an
	// owner's holds.
	HoldBlocks(owner string, root []byte, until time.Time) error
	ReleaseBlocks(owner string) error
}
