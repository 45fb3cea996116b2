package api

import (
	"io/fs"
	"os"
	"syscall"
)

const errLocked = syscall.Errno(32) // ERROR_SHARING_VIOLATION

// tryLock opens a file that nobody else may open for writing meanwhile.
func tryLock(path string) (*os.File, error) {
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	h, err := syscall.CreateFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, syscall.FILE_SHARE_READ, nil,
		syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(h), path), nil
}

// ownedByUs trusts the temporary folder, which is each user's own on Windows.
func ownedByUs(fs.FileInfo) bool { return true }
