package content

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/windows"
)

// hardLinked is not told by the file information there.
func hardLinked(fs.FileInfo) (fileID, bool) { return fileID{}, false }

// freeSpace returns the bytes this user can still write on dir's volume.
func freeSpace(dir string) (uint64, error) {
	path, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(path, &free, nil, nil); err != nil {
		return 0, err
	}
	return free, nil
}

// isDiskFull says whether err means that no room, or no quota, is left.
func isDiskFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL) ||
		errors.Is(err, windows.ERROR_DISK_QUOTA_EXCEEDED)
}
