// Command lumbung is the one binary of the network: node, renter and provider.
// This package hides how commands are read and results are shown; it reaches a
// running node through package node/client alone.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = ""

func main() {
	if code, ok := shim(os.Args); ok {
		os.Exit(code)
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	os.Exit(newApp(signals).main(os.Args[1:]))
}

// outliveReaders lets a command that has begun things end them although nobody
// reads what it says any more: in a pipe ^C ends the reader too.
func outliveReaders() { signal.Ignore(syscall.SIGPIPE) }
