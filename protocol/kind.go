package protocol

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
)

// Kind names a message; it is part of the domain of its signature.
type Kind string

// The kinds of messages.
const (
	KindCapacity      Kind = "capacity"
	KindCapacityQuery Kind = "capacity-query"
	KindOffer         Kind = "offer"
	KindBid           Kind = "bid"
	KindDecline       Kind = "decline"
	KindAnswer        Kind = "answer"
	KindLease         Kind = "lease"
	KindDecision      Kind = "decision"
	KindHeartbeat     Kind = "heartbeat"
	KindVerdict       Kind = "verdict"
	KindLogChunk      Kind = "log-chunk"
	KindResult        Kind = "result"
	KindReceipt       Kind = "receipt"
	KindCancel        Kind = "cancel"
	KindLeaseQuery    Kind = "lease-query"
	KindLeaseStatus   Kind = "lease-status"
	KindExec          Kind = "exec"
	KindPort          Kind = "port"
	KindAck           Kind = "ack"
	KindPing          Kind = "ping"
)

// Version is the version of every message and protocol id of this build.
const Version = "1"

// Sizes in bytes and durations that bound messages before any work is done for
// them. A size counts the whole envelope.
const (
	MaxCapacity  = 2 << 10
	MaxOffer     = 4 << 10
	MaxSmall     = 8 << 10  // bid, decline, decision, heartbeat, receipt, …
	MaxExec      = 96 << 10 // a command line and an environment may be long
	MaxLease     = MaxExec + maxSealedSecrets
	MaxLogChunk  = 256 << 10
	MaxStatus    = 32 << 10
	MaxSkew      = 2 * time.Minute
	MaxOfferLife = 5 * time.Minute
	MaxCapLife   = 30 * time.Minute
)

// Message is a message of the market.
type Message interface {
	proto.Message
	// Kind names the message.
	Kind() Kind
	// Validate reports the first field that is out of bounds at the time now.
	Validate(now time.Time) error
}

// Kind implements Message.
func (*Capacity) Kind() Kind { return KindCapacity }

// Kind implements Message.
func (*CapacityQuery) Kind() Kind { return KindCapacityQuery }

// Kind implements Message.
func (*Offer) Kind() Kind { return KindOffer }

// Kind implements Message.
func (*Bid) Kind() Kind { return KindBid }

// Kind implements Message.
func (*Decline) Kind() Kind { return KindDecline }

// Kind implements Message.
func (*Answer) Kind() Kind { return KindAnswer }

// Kind implements Message.
func (*Lease) Kind() Kind { return KindLease }

// Kind implements Message.
func (*Decision) Kind() Kind { return KindDecision }

// Kind implements Message.
func (*Heartbeat) Kind() Kind { return KindHeartbeat }

// Kind implements Message.
func (*Verdict) Kind() Kind { return KindVerdict }

// Kind implements Message.
func (*LogChunk) Kind() Kind { return KindLogChunk }

// Kind implements Message.
func (*Result) Kind() Kind { return KindResult }

// Kind implements Message.
func (*Receipt) Kind() Kind { return KindReceipt }

// Kind implements Message.
func (*Cancel) Kind() Kind { return KindCancel }

// Kind implements Message.
func (*LeaseQuery) Kind() Kind { return KindLeaseQuery }

// Kind implements Message.
func (*LeaseStatus) Kind() Kind { return KindLeaseStatus }

// Kind implements Message.
func (*ExecRequest) Kind() Kind { return KindExec }

// Kind implements Message.
func (*PortRequest) Kind() Kind { return KindPort }

// Kind implements Message.
func (*Ack) Kind() Kind { return KindAck }

// Kind implements Message.
func (*Ping) Kind() Kind { return KindPing }

// MaxSize is the largest envelope of a kind, in bytes.
func MaxSize(k Kind) int {
	switch k {
	case KindCapacity:
		return MaxCapacity
	case KindOffer:
		return MaxOffer
	case KindLease:
		return MaxLease
	case KindLogChunk:
		return MaxLogChunk
	case KindExec:
		return MaxExec
	case KindLeaseStatus:
		return MaxStatus
	case KindAnswer, KindVerdict:
		return 2 * MaxSmall
	default:
		return MaxSmall
	}
}

var networkName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// CheckNetwork reports whether a network's name can be used in ids.
func CheckNetwork(name string) error {
	if !networkName.MatchString(name) {
		return fmt.Errorf("network name %q: want 1 to 32 of a-z, 0-9 and -, beginning with a letter", name)
	}
	return nil
}

// AllowsFake reports whether fake GPUs may be advertised on a network: only
// where its name says that it is for development or tests.
func AllowsFake(network string) bool {
	return strings.HasPrefix(network, "dev") || strings.HasPrefix(network, "test")
}

// ID is the protocol id of a name, such as "bid" or "content/get".
func ID(network, name string) string {
	return "/lumbung/" + network + "/" + name + "/" + Version
}

// DHTPrefix is the protocol prefix of the network's own DHT.
func DHTPrefix(network string) string { return "/lumbung/" + network }

// Topic is the gossip topic of a resource class.
func Topic(network, class string) string {
	return "/lumbung/" + network + "/offers/" + class + "/" + Version
}
