// Command pack compresses a static runsc for embedding.
//
//	go run ./job/sandbox/internal/pack -in build/runsc -out job/sandbox/payload/runsc-linux-amd64
//
// writes OUT.zst and OUT.sha256 (of the unpacked file), atomically, and leaves
// both alone when they are of that input already.
package main

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

func main() {
	in := flag.String("in", "", "static runsc")
	out := flag.String("out", "", "output path without ending")
	flag.Parse()
	if err := pack(*in, *out); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func pack(in, out string) error {
	if in == "" || out == "" {
		return errors.New("both -in and -out are needed")
	}
	raw, err := os.ReadFile(in)
	if err != nil {
		return err
	}
	if err := static(raw); err != nil {
		return fmt.Errorf("%s: %w: build it with CGO_ENABLED=0", in, err)
	}
	sum := sha256.Sum256(raw)
	text := hex.EncodeToString(sum[:]) + "\n"
	if old, err := os.ReadFile(out + ".sha256"); err == nil && string(old) == text {
		if _, err := os.Stat(out + ".zst"); err == nil {
			return nil
		}
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return err
	}
	zst := enc.EncodeAll(raw, nil)
	if err := enc.Close(); err != nil {
		return err
	}
	if err := replace(out+".zst", zst); err != nil {
		return err
	}
	if err := replace(out+".sha256", []byte(text)); err != nil {
		return err
	}
	fmt.Printf("%s: %d bytes to %d, sha256 %s", out+".zst", len(raw), len(zst), text)
	return nil
}

// static refuses a dynamically linked file: it could not start in its chroot.
func static(raw []byte) error {
	f, err := elf.NewFile(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("dynamically linked")
		}
	}
	return nil
}

func replace(name string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	tmp := name + ".tmp"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}
