// Package node puts a lumbung node together: the host, the store, the content,
// the market's two sides and the local API. It is the one place that knows all
// the parts; read it from Config over New to Run. It hides how the market's
// small interfaces are met by libp2p, SQLite, files and gVisor.
package node
