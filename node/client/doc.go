// Package client talks to a lumbung node over its local API and owns the API's
// types. The command line, the tests and other people's programs use it; it
// hides HTTP, the Unix socket, event resumption and the framing of streams.
package client
