package sandbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
)

// EnvRunsc names a runsc to use instead of the embedded one, for developing.
const EnvRunsc = "LUMBUNG_RUNSC"

// packed is a compressed program and what it must be once unpacked.
type packed struct {
	zst    []byte
	sha256 string // hex, of the unpacked file
}

// maxRuntime bounds what is unpacked; runsc is 83 MB.
const maxRuntime = 512 << 20

// Payload says whether this binary carries a runtime.
func Payload() bool { return len(embedded().zst) > 0 }

// locate gives the path of a runsc that may be executed: the one asked for, or
// the embedded one unpacked under dir and checked against its hash.
func locate(ctx context.Context, dir, asked string, p packed) (string, error) {
	if asked == "" {
		asked = os.Getenv(EnvRunsc)
	}
	if asked != "" {
		return checkGiven(asked)
	}
	return unpacked(ctx, dir, "runsc", p)
}

// unpacked gives the path of an embedded program, unpacked under dir and checked
// against its hash.
func unpacked(ctx context.Context, dir, name string, p packed) (string, error) {
	if len(p.zst) == 0 {
		return "", fmt.Errorf("%w: this lumbung was built without it: `make build` makes one with it, "+
			"or set %s to a static runsc. Renting works without", ErrNoRuntime, EnvRunsc)
	}
	if len(p.sha256) != sha256.Size*2 {
		return "", fmt.Errorf("%w: the embedded hash is damaged: rebuild with `make build`", ErrNoRuntime)
	}
	target := filepath.Join(dir, name+"-"+p.sha256[:16])
	if err := verify(ctx, target, p.sha256); err == nil {
		return target, nil
	}
	if err := unpack(ctx, target, p); err != nil {
		return "", fmt.Errorf("unpacking %s of the sandbox to %s (needs about 90 MB there): %w", name, target, err)
	}
	return target, nil
}

func checkGiven(file string) (string, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrNoRuntime, file, err)
	}
	info, err := os.Stat(abs)
	if err != nil {
		return "", fmt.Errorf("%w: %s (given by option or %s): %w", ErrNoRuntime, abs, EnvRunsc, err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("%w: %s (given by option or %s) is no executable file", ErrNoRuntime, abs, EnvRunsc)
	}
	return abs, nil
}

func verify(ctx context.Context, file, want string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o100 == 0 || info.Size() > maxRuntime {
		return fmt.Errorf("%s is not the file that was unpacked", file)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, withContext{ctx, f}); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		return fmt.Errorf("%s is damaged: sha256 %s, want %s", file, got, want)
	}
	return nil
}

// staleUnpack is the age at which a temporary file of a killed process is
// taken for abandoned.
const staleUnpack = time.Hour

func unpack(ctx context.Context, target string, p packed) (err error) {
	dir := filepath.Dir(target)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	sweep(dir)
	tmp, err := os.CreateTemp(dir, "unpack-*")
	if err != nil {
		return err
	}
	defer func() {
		_ = tmp.Close()
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	dec, err := zstd.NewReader(bytes.NewReader(p.zst), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxRuntime))
	if err != nil {
		return err
	}
	defer dec.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(tmp, sum), io.LimitReader(withContext{ctx, dec}, maxRuntime+1))
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); n > maxRuntime || got != p.sha256 {
		return fmt.Errorf("the embedded runtime is damaged (sha256 %s, want %s): install lumbung again", got, p.sha256)
	}
	if err := errors.Join(tmp.Chmod(0o755), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	dropPages(p.zst) // read once, and a quarter of an idle node's memory
	return os.Rename(tmp.Name(), target)
}

// sweep removes what killed processes left half unpacked.
func sweep(dir string) {
	old, _ := filepath.Glob(filepath.Join(dir, "unpack-*"))
	for _, name := range old {
		info, err := os.Lstat(name)
		if err == nil && time.Since(info.ModTime()) > staleUnpack {
			_ = os.RemoveAll(name)
		}
	}
}

// withContext ends a long copy when its context does.
type withContext struct {
	ctx context.Context
	r   io.Reader
}

func (c withContext) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
