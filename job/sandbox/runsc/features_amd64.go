package main

import "gvisor.dev/gvisor/pkg/cpuid"

// cacheLine must be the same where a state is restored, says gVisor.
func cacheLine() uint32 {
	cpuid.Initialize()
	return cpuid.HostFeatureSet().CacheLine()
}
