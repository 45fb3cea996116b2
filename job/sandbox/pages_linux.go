package sandbox

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropPages lets the kernel forget pages of the binary itself; they are read
// from its file again should anybody ask. b must be embedded, never written to.
func dropPages(b []byte) {
	page := uintptr(os.Getpagesize())
	if uintptr(len(b)) < 2*page {
		return
	}
	start := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	skip := (page - start%page) % page
	whole := (uintptr(len(b)) - skip) / page * page
	_ = unix.Madvise(b[skip:skip+whole], unix.MADV_DONTNEED) // only memory is lost when it fails
}
