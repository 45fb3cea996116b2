package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/lumbung-net/lumbung/protocol"
)

// The way of secrets: Start writes them into a pipe that the shim inherits; the
// shim puts them into a file system in memory that it mounts in its own mount
// namespace, which runsc's gofer shows in the container. They are never an
// argument, a variable or a file of a disk, and end with the shim's namespace.

// secretsFD is where the shim reads secrets, if its plan says that there are any.
const secretsFD = readyFD + 1

// handover gives secrets to a shim; it is empty where there are none.
type handover struct {
	data    []byte
	out, in *os.File
}

func newHandover(p plan, secrets protocol.Secrets) (*handover, error) {
	switch {
	case p.Spec.Secrets != (len(secrets) > 0):
		return nil, fmt.Errorf("%w: it was prepared for secrets: %t; given are %d", ErrSpec, p.Spec.Secrets, len(secrets))
	case len(secrets) == 0:
		return &handover{}, nil
	}
	if err := secrets.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSpec, err)
	}
	h := &handover{data: secrets.Encode()}
	var err error
	h.out, h.in, err = os.Pipe()
	return h, err
}

// inherit are the files that the shim gets.
func (h *handover) inherit(ready *os.File) []*os.File {
	if h.out == nil {
		return []*os.File{ready}
	}
	return []*os.File{ready, h.out}
}

// send writes the secrets, once the shim lives. A shim that does not take them
// says why itself.
func (h *handover) send(ctx context.Context) {
	if h.in == nil {
		return
	}
	_ = h.out.Close()
	stop := context.AfterFunc(ctx, func() { _ = h.in.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	_, _ = h.in.Write(h.data)
	h.close()
}

func (h *handover) close() {
	clear(h.data)
	if h.in != nil {
		_ = errors.Join(h.in.Close(), h.out.Close()) // again is no harm
	}
}

// takeSecrets reads what Start gave this shim.
func takeSecrets(p plan) (protocol.Secrets, error) {
	if !p.Spec.Secrets {
		return nil, nil
	}
	unix.CloseOnExec(secretsFD)
	f := os.NewFile(secretsFD, "secrets")
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, 2*protocol.MaxSecretBytes))
	if err != nil {
		return nil, fmt.Errorf("reading the secrets: %w", err)
	}
	secrets, err := protocol.DecodeSecrets(data)
	if err == nil && len(secrets) == 0 {
		err = errors.New("there are none")
	}
	if err != nil {
		return nil, fmt.Errorf("reading the secrets: %w", err)
	}
	return secrets, nil
}

// mountSecrets makes the files of SecretsDir, for the container's user alone. The
// calling process has a mount namespace of its own, which propagates nothing. A
// ramfs is never swapped out, as a tmpfs may be, and an ordinary user may mount
// one too.
func mountSecrets(dir string, p plan, secrets protocol.Secrets) error {
	if len(secrets) == 0 {
		return nil
	}
	target := filepath.Join(dir, dirSecrets)
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("lumbung-secrets", target, "ramfs", flags, "mode=0500"); err != nil {
		return fmt.Errorf("mounting memory for the secrets: %w", err)
	}
	for name, value := range secrets {
		if err := writeSecret(filepath.Join(target, name), value, p); err != nil {
			return fmt.Errorf("writing the secret %s: %w", name, err)
		}
		clear(value)
	}
	if err := os.Chown(target, int(p.UID), int(p.GID)); err != nil {
		return fmt.Errorf("giving the secrets to their user: %w", err)
	}
	if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, ""); err != nil {
		return fmt.Errorf("making the secrets read-only: %w", err)
	}
	return nil
}

func writeSecret(file string, value []byte, p plan) (err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(value); err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o400), f.Chown(int(p.UID), int(p.GID)))
}

// secretsMount shows what mountSecrets made.
func secretsMount(dir string) specs.Mount {
	return specs.Mount{
		Destination: SecretsDir, Type: "bind", Source: filepath.Join(dir, dirSecrets),
		Options: []string{"rbind", "nosuid", "nodev", "noexec", "ro"},
	}
}
