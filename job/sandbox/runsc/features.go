package main

import (
	"encoding/hex"
	"fmt"
	"runtime"
	"runtime/debug"

	"gvisor.dev/gvisor/pkg/cpuid"
)

// features is the argument that makes this say what it can do beyond upstream's
// runsc, which would fail. Package sandbox asks before it relies on that.
const features = "lumbung-features"

func printFeatures() {
	fmt.Println("lazy/1")
	fmt.Println("net/1")
	fmt.Println("checkpoint/1 " + engine() + " " + hex.EncodeToString(cpu()))
}

// engine names what a saved state is written by: another version of gVisor may
// not read it, and another kind of processor cannot run it.
func engine() string {
	version := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "gvisor.dev/gvisor" {
				version = m.Version
			}
		}
	}
	return fmt.Sprintf("gvisor-%s-%s-%d", version, runtime.GOARCH, cacheLine())
}

// cpu has one bit for each feature of the processor that gVisor knows, under
// gVisor's own number: a state can be restored where none of its bits is missing.
func cpu() []byte {
	cpuid.Initialize()
	host := cpuid.HostFeatureSet().Fixed()
	var bits []byte
	for _, f := range cpuid.AllFeatures() {
		if !host.HasFeature(f) {
			continue
		}
		for len(bits) <= int(f)/8 {
			bits = append(bits, 0)
		}
		bits[f/8] |= 1 << (f % 8)
	}
	return bits
}
