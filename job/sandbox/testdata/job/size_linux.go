package main

import (
	"fmt"
	"syscall"
	"unsafe"
)

// size asks the terminal on stdin.
func size() string {
	var ws struct{ Rows, Columns, X, Y uint16 }
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&ws))); errno != 0 {
		return errno.Error()
	}
	return fmt.Sprintf("%dx%d", ws.Columns, ws.Rows)
}
