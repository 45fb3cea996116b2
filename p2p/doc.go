// Package p2p is a lumbung node's place in the network: its libp2p host and
// identity, how it is reached and finds others, the one wrapper around every
// stream (Serve and Call), the gossip of offers and the adverts in the DHT.
//
// It hides libp2p's many parts and their pitfalls: who may be dialled, which
// transport is preferred, what is limited by peer and by IP, and when the DHT
// answers queries. It knows the messages of package protocol and nothing of
// jobs, money or content.
package p2p
