package node

import "golang.org/x/sys/windows"

// freeDisk is how many bytes an ordinary user may still write in a folder.
func freeDisk(dir string) (uint64, error) {
	path, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var free uint64
	err = windows.GetDiskFreeSpaceEx(path, &free, nil, nil)
	return free, err
}
