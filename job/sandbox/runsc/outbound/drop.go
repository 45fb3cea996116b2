package outbound

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// dropPrivileges gives up what this process was started with and does not need:
// root, where uid is another one, and every capability. No program that it might
// be made to start gains any.
func dropPrivileges(uid int) error {
	if uid >= 0 {
		if err := syscall.Setgroups(nil); err != nil {
			return fmt.Errorf("leaving groups: %w", err)
		}
		if err := syscall.Setresgid(uid, uid, uid); err != nil {
			return fmt.Errorf("becoming group %d: %w", uid, err)
		}
		if err := syscall.Setresuid(uid, uid, uid); err != nil {
			return fmt.Errorf("becoming user %d: %w", uid, err)
		}
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("no new privileges: %w", errno)
	}
	return noCapabilities()
}
