// Package content keeps, checks and moves content-addressed blocks.
//
// It hides how blocks lie on disk (pack files under an index log that survive
// kill -9), how container images, files and folders become DAGs of blocks that
// IPFS tools can read, how a DAG is fetched from many peers at once, and how
// blocks nobody needs are collected. It knows nothing of libp2p, of the
// database or of jobs: streams, roots and time are handed to it.
//
// Every block is named by a CIDv1 over sha2-256 with the codec raw, dag-pb or
// dag-cbor. A block is verified when it is put, when it is served and when it
// arrives from a peer. Files and folders are UnixFS in the unixfs-v1-2025
// profile of IPIP-499 (1 MiB raw leaves). An image is one dag-cbor root naming
// its config, its manifest and one map per layer; a layer map lists FastCDC
// chunks of the uncompressed layer tar, so that images that share most of
// their bytes share most of their blocks.
package content
