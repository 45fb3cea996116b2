package protocol

import "errors"

// What a caller decides by. The first three are a peer's answers to a request
// and travel as a status; the others say what was wrong with a message.
var (
	// ErrRetry says that the same peer may be asked again, later.
	ErrRetry = errors.New("try again later")
	// ErrElsewhere says that another peer must be asked.
	ErrElsewhere = errors.New("ask another peer")
	// ErrBlame says that the request itself was wrong; it must not be repeated.
	ErrBlame = errors.New("the request was refused as wrong")

	// ErrInvalid says that a message has a field out of bounds or a bad signature.
	ErrInvalid = errors.New("invalid message")
	// ErrTooLarge says that a message is over its size limit.
	ErrTooLarge = errors.New("message too large")
	// ErrStale says that a message has expired or is not yet valid.
	ErrStale = errors.New("message out of its time")
)

// Status is how a request ended, as a byte on the wire.
type Status byte

// The statuses. Anything else is read as StatusBlame.
const (
	StatusOK        Status = 0
	StatusRetry     Status = 1
	StatusElsewhere Status = 2
	StatusBlame     Status = 3
)

// StatusOf is the status that tells a peer of an error.
func StatusOf(err error) Status {
	switch {
	case err == nil:
		return StatusOK
	case errors.Is(err, ErrElsewhere):
		return StatusElsewhere
	case errors.Is(err, ErrBlame), errors.Is(err, ErrInvalid), errors.Is(err, ErrTooLarge), errors.Is(err, ErrStale):
		return StatusBlame
	default:
		return StatusRetry
	}
}

// Err is the sentinel of a status; nil for StatusOK.
func (s Status) Err() error {
	switch s {
	case StatusOK:
		return nil
	case StatusRetry:
		return ErrRetry
	case StatusElsewhere:
		return ErrElsewhere
	default:
		return ErrBlame
	}
}
