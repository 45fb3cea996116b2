package sandbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// OCI runtimes start a program before they know that the kernel takes it, and
// then its failure cannot be told from the program's own. So the shim looks at
// it first, in the container that was created but not started.

// runnable gives docker's code and a reason when the kernel would not run a
// command in the root of a process; else 0.
func runnable(pid int, command, cwd string, env []string) (int, string) {
	im, err := rootOf(pid)
	if err != nil {
		return 0, "" // it has ended: the start will say so
	}
	defer im.close()
	code, reason := CodeNotFound, "command not found: "+command+" is not in the PATH of the container"
	for _, name := range candidates(command, cwd, env) {
		c, why := im.runnable(name)
		if c == 0 {
			return 0, ""
		}
		if code == CodeNotFound && (c != CodeNotFound || strings.Contains(command, "/")) {
			code, reason = c, why
		}
	}
	return code, reason
}

// rootOf is what a process of a container sees as its root, mounts included. No
// link in it leads out.
func rootOf(pid int) (*image, error) {
	root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &image{root: root}, nil
}

// candidates are the files a command may mean, in their order.
func candidates(command, cwd string, env []string) []string {
	if strings.Contains(command, "/") {
		if path.IsAbs(command) {
			return []string{command}
		}
		return []string{path.Join(cwd, command)}
	}
	var names []string
	for _, e := range env {
		if list, is := strings.CutPrefix(e, "PATH="); is {
			names = nil // the last one counts
			for _, dir := range strings.Split(list, ":") {
				if !path.IsAbs(dir) {
					dir = path.Join(cwd, dir)
				}
				names = append(names, path.Join(dir, command))
			}
		}
	}
	return names
}

// programHead is how much of a file is looked at: the kernel reads 256 bytes for
// a script, and program headers come first in every linker's output.
const programHead = 4096

func (im *image) runnable(name string) (int, string) {
	head, err := im.head(name)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return CodeNotFound, "command not found: " + name
	case err != nil:
		return CodeCannotExecute, fmt.Sprintf("command cannot be executed: %s: %v", name, err)
	}
	needs, err := interpreter(head)
	if err != nil {
		return CodeCannotExecute, fmt.Sprintf("command cannot be executed: %s: %v", name, err)
	}
	if !path.IsAbs(needs) {
		return 0, "" // none, or one that only the kernel can tell
	}
	if _, err := im.head(needs); errors.Is(err, unix.ENOENT) {
		return CodeNotFound, fmt.Sprintf("command not found: %s needs %s", name, needs)
	}
	return 0, ""
}

// head is the first bytes of a file that may be executed.
func (im *image) head(name string) ([]byte, error) {
	at, err := im.open(name, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer func() { _ = at.Close() }()
	info, err := at.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return nil, unix.EACCES
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", at.Fd()))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, programHead))
}

// elfMachine is this machine's number in an ELF file.
var elfMachine = map[string]uint16{"amd64": 62, "arm64": 183}[runtime.GOARCH]

var errFormat = errors.New("exec format error")

// interpreter reads the head of a program: what the kernel loads to run it, ""
// for nothing. It fails for what is no program of this machine's.
func interpreter(head []byte) (string, error) {
	if line, is := bytes.CutPrefix(head, []byte("#!")); is {
		line, _, _ = bytes.Cut(line[:min(len(line), 254)], []byte("\n"))
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			return "", errFormat
		}
		return string(fields[0]), nil
	}
	const (
		header   = 64 // bytes of an ELF header of 64 bits
		load     = 56 // and of a program header
		ptInterp = 3
	)
	if len(head) < header || !bytes.HasPrefix(head, []byte("\x7fELF\x02\x01")) || binary.LittleEndian.Uint16(head[18:]) != elfMachine {
		return "", errFormat
	}
	at, size, count := binary.LittleEndian.Uint64(head[32:]), binary.LittleEndian.Uint16(head[54:]), binary.LittleEndian.Uint16(head[56:])
	if size != load {
		return "", errFormat
	}
	for range count {
		if at > uint64(len(head)) || uint64(len(head))-at < load {
			return "", nil // beyond what was read
		}
		p := head[at:]
		at += load
		if binary.LittleEndian.Uint32(p) != ptInterp {
			continue
		}
		from, length := binary.LittleEndian.Uint64(p[8:]), binary.LittleEndian.Uint64(p[32:])
		if from > uint64(len(head)) || length > uint64(len(head))-from {
			return "", nil
		}
		name, _, _ := bytes.Cut(head[from:from+length], []byte{0})
		return string(name), nil
	}
	return "", nil
}
