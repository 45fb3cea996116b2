package main

import (
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/lisafs"
)

// What follows would change the tree, or reach a socket in it. The messages for
// it are not supported and the connection is read-only, so none is called.

var (
	_ lisafs.ControlFDImpl = (*file)(nil)
	_ lisafs.OpenFDImpl    = (*opened)(nil)
)

// SetStat implements lisafs.ControlFDImpl.
func (*file) SetStat(s lisafs.SetStatReq) (uint32, error) { return s.Mask, unix.EROFS }

// OpenCreate implements lisafs.ControlFDImpl.
func (*file) OpenCreate(linux.FileMode, lisafs.UID, lisafs.GID, string, uint32) (*lisafs.ControlFD, lisafs.Statx, *lisafs.OpenFD, int, error) {
	return nil, lisafs.Statx{}, nil, -1, unix.EROFS
}

// Mkdir implements lisafs.ControlFDImpl.
func (*file) Mkdir(linux.FileMode, lisafs.UID, lisafs.GID, string) (*lisafs.ControlFD, lisafs.Statx, error) {
	return nil, lisafs.Statx{}, unix.EROFS
}

// Mknod implements lisafs.ControlFDImpl.
func (*file) Mknod(linux.FileMode, lisafs.UID, lisafs.GID, string, uint32, uint32) (*lisafs.ControlFD, lisafs.Statx, error) {
	return nil, lisafs.Statx{}, unix.EROFS
}

// Symlink implements lisafs.ControlFDImpl.
func (*file) Symlink(string, string, lisafs.UID, lisafs.GID) (*lisafs.ControlFD, lisafs.Statx, error) {
	return nil, lisafs.Statx{}, unix.EROFS
}

// Link implements lisafs.ControlFDImpl.
func (*file) Link(lisafs.ControlFDImpl, string) (*lisafs.ControlFD, lisafs.Statx, error) {
	return nil, lisafs.Statx{}, unix.EROFS
}

// Connect implements lisafs.ControlFDImpl.
func (*file) Connect(uint32) (int, error) { return -1, unix.EPERM }

// ConnectWithCreds implements lisafs.ControlFDImpl.
func (*file) ConnectWithCreds(uint32, lisafs.UID, lisafs.GID) (int, error) { return -1, unix.EPERM }

// BindAt implements lisafs.ControlFDImpl.
func (*file) BindAt(string, uint32, linux.FileMode, lisafs.UID, lisafs.GID) (*lisafs.ControlFD, lisafs.Statx, *lisafs.BoundSocketFD, int, error) {
	return nil, lisafs.Statx{}, nil, -1, unix.EROFS
}

// Unlink implements lisafs.ControlFDImpl.
func (*file) Unlink(string, uint32) error { return unix.EROFS }

// RenameAt implements lisafs.ControlFDImpl.
func (*file) RenameAt(string, lisafs.ControlFDImpl, string) error { return unix.EROFS }

// RenameAt2 implements lisafs.ControlFDImpl.
func (*file) RenameAt2(string, lisafs.ControlFDImpl, string, uint32) error { return unix.EROFS }

// SetXattr implements lisafs.ControlFDImpl.
func (*file) SetXattr(string, string, uint32) error { return unix.EROFS }

// RemoveXattr implements lisafs.ControlFDImpl.
func (*file) RemoveXattr(string) error { return unix.EROFS }

// Write implements lisafs.OpenFDImpl.
func (*opened) Write([]byte, uint64) (uint64, error) { return 0, unix.EROFS }

// Allocate implements lisafs.OpenFDImpl.
func (*opened) Allocate(uint64, uint64, uint64) error { return unix.EROFS }
