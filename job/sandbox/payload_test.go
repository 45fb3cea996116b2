package sandbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func packOf(t *testing.T, raw []byte) packed {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	p := packed{zst: enc.EncodeAll(raw, nil), sha256: hex.EncodeToString(sum[:])}
	if err := enc.Close(); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestUnpack(t *testing.T) {
	t.Setenv(EnvRunsc, "")
	dir := filepath.Join(t.TempDir(), "runtime")
	raw := bytes.Repeat([]byte("runsc "), 1<<16)
	p := packOf(t, raw)
	file, err := locate(t.Context(), dir, "", p)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func() error{
		"untouched":      func() error { return nil },
		"changed":        func() error { return os.WriteFile(file, append([]byte("x"), raw[1:]...), 0o755) },
		"cut":            func() error { return os.Truncate(file, 10) },
		"removed":        func() error { return os.Remove(file) },
		"not executable": func() error { return os.Chmod(file, 0o600) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		again, err := locate(t.Context(), dir, "", p)
		if err != nil || again != file {
			t.Errorf("%s: %s %v", name, again, err)
		}
		data, err := os.ReadFile(file)
		if err != nil || !bytes.Equal(data, raw) {
			t.Errorf("%s: the file was not repaired: %v", name, err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "unpack-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestUnpackDamagedPayload(t *testing.T) {
	t.Setenv(EnvRunsc, "")
	p := packOf(t, []byte("right"))
	p.sha256 = strings.Repeat("0", 64)
	dir := t.TempDir()
	if _, err := locate(t.Context(), dir, "", p); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("%v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("left: %v", entries)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := locate(ctx, dir, "", packOf(t, []byte("right"))); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestNoRuntime(t *testing.T) {
	t.Setenv(EnvRunsc, "")
	_, err := locate(t.Context(), t.TempDir(), "", packed{})
	if !errors.Is(err, ErrNoRuntime) || !strings.Contains(err.Error(), "make build") {
		t.Errorf("%v", err)
	}
	if _, err := locate(t.Context(), t.TempDir(), "/nope", packed{}); !errors.Is(err, ErrNoRuntime) || !strings.Contains(err.Error(), "/nope") {
		t.Errorf("%v", err)
	}
}

func TestExceededText(t *testing.T) {
	for want, e := range map[string]Exceeded{
		"memory limit 512 MiB exceeded at 00:00:00 UTC (seen 600 MiB)": {Limit: LimitMemory, Max: 512 << 20, Seen: 600 << 20, Killed: true},
		"disk limit 1.5 GiB reached at 00:00:00 UTC (seen 1.5 GiB)":    {Limit: LimitDisk, Max: 3 << 29, Seen: 3 << 29},
		"pids limit 64 exceeded at 00:00:00 UTC (seen 70)":             {Limit: LimitPids, Max: 64, Seen: 70, Killed: true},
		"time limit 1m0s exceeded at 00:00:00 UTC (seen 1m1s)":         {Limit: LimitTime, Max: 60e9, Seen: 61e9, Killed: true},
	} {
		if got := e.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
