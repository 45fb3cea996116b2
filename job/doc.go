// Package job is the market: what a job is, how offers are answered and
// placed, the contract between a renter and a provider, and the runner of each
// side. It declares what it needs of the network, the content, the sandbox and
// the store; package node fits the real ones, so nothing here sees libp2p, SQL
// or gVisor.
package job
