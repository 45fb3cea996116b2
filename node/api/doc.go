// Package api serves a node over HTTP and JSON: on a private Unix socket in the
// node's home and, when asked for, on a loopback TCP address behind a token. It
// hides listening and locking, the framing of streams, who may call, and how
// errors become RFC 9457 problems. What the node does is behind Backend; the
// types are those of node/client.
package api
