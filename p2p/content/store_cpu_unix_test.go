//go:build unix

package content

import (
	"syscall"
	"time"
)

// processCPU is the processor time this process has used, the kernel's for it
// included.
func processCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
