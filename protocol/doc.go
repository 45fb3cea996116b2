// Package protocol is what lumbung's nodes say to each other: the messages,
// their signed envelopes, the ids of protocols and topics, the canonical
// resource classes and the limits of every field. It does no I/O and reads no
// clock; whoever calls passes the time in.
package protocol

//go:generate go run ./gen
