// Package ledger counts money: checked 128-bit amounts, metering and charges,
// and a double-entry journal whose every entry names its cause. It hides how a
// sum is rounded and which accounts a lease moves; it does no I/O and reads no
// clock.
package ledger
