package main

import "github.com/lumbung-net/lumbung/job/sandbox"

// shim runs this process as the supervisor of one container, if that is what
// it was started for.
func shim(args []string) (code int, ok bool) {
	if len(args) < 2 || args[1] != sandbox.ShimArg {
		return 0, false
	}
	return sandbox.ShimMain(args[2:]), true
}
