// Command runsc is gVisor's runsc with three things more: its gofer can serve a
// root file system whose files are still arriving, it can restore a container in
// rootless mode, and a container can have a network that is a process beside it
// (package outbound). It hides gVisor's gofer protocol and its netstack from the
// rest of lumbung; package sandbox carries the program built from this as its
// payload.
//
// For a container without the annotation "lumbung.lazy" that is not restored and
// run without the environment variable LUMBUNG_NET, it is upstream's runsc.
package main

import (
	"fmt"
	"os"
	"slices"

	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cli/maincli"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/fsgofer/extension"
	"gvisor.dev/gvisor/runsc/version"

	"github.com/lumbung-net/lumbung/job/sandbox/runsc/outbound"
)

// version.Version is set when linking, and must be referred to for that.
var _ = version.Version()

func main() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == features:
		printFeatures()
		return
	case len(os.Args) > 1 && os.Args[1] == outbound.Arg:
		os.Exit(outbound.Main(os.Args[2:]))
	}
	link, err := linkOf(os.Args, os.Getenv(envLink))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(128) // as runsc does
	}
	root := &lazyRoot{fd: -1}
	if err := root.reach(os.Args, os.Getenv(envSocket)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(128) // as runsc does
	}
	extension.Register(root)
	switch {
	case slices.Contains(os.Args, restoreName):
		cli.Run(nil, map[util.SubCommand]string{new(restore): ""}, nil)
		return
	case link != nil:
		runLinked(link)
		return
	}
	maincli.Main()
}
