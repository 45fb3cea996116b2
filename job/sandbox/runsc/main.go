// Command runsc is gVisor's runsc with one thing more: its gofer can serve a
// root file system whose files are still arriving. It hides gVisor's gofer
// protocol from the rest of lumbung; package sandbox carries the program built
// from this as its payload.
//
// For a container without the annotation "lumbung.lazy" it is upstream's runsc.
package main

import (
	"fmt"
	"os"

	"gvisor.dev/gvisor/runsc/cli/maincli"
	"gvisor.dev/gvisor/runsc/fsgofer/extension"
	"gvisor.dev/gvisor/runsc/version"
)

// version.Version is set when linking, and must be referred to for that.
var _ = version.Version()

// features is the argument that makes this say what it can do beyond upstream's
// runsc, which would fail. Package sandbox asks before it relies on that.
const features = "lumbung-features"

func main() {
	if len(os.Args) == 2 && os.Args[1] == features {
		fmt.Println("lazy/1")
		return
	}
	root := &lazyRoot{fd: -1}
	if err := root.reach(os.Args, os.Getenv(envSocket)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(128) // as runsc does
	}
	extension.Register(root)
	maincli.Main()
}
