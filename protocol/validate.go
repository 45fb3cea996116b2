package protocol

import (
	"crypto/sha256"
	"fmt"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
)

// Bounds of fields, each chosen far above honest use.
const (
	maxAddrs     = 16
	maxAddrLen   = 256
	maxGPUs      = 16
	maxRequire   = 2048
	maxClasses   = 16
	maxCommand   = 512
	maxArg       = 32 << 10
	maxEnv       = 256
	maxInputs    = 64
	maxCaches    = 16
	maxSealedKey = 2048
	maxOutputs   = 16
	maxPath      = 1024
	maxTasks     = 100_000
	maxHolders   = 16
	maxDetail    = 512
	maxRecords   = 4096
	maxMillis    = int64(400 * 24 * time.Hour / time.Millisecond)
	maxSaveMs    = int64(24 * time.Hour / time.Millisecond)
	maxReadyMs   = int64(15 * time.Minute / time.Millisecond) // nobody pays for it
	minIdleMs    = int64(10 * time.Second / time.Millisecond)
	maxCPUMillis = 4096 * 1000
	maxBytes     = 1 << 50 // of memory, disk, outputs or log: a sum of some, times the most tasks, is no overflow
)

// Limits that both sides hold heartbeats and leases to, in milliseconds.
const (
	MinHeartbeat = 200
	MaxHeartbeat = 60_000
)

func bad(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrInvalid)...)
}

// first returns the first error of a list of checks.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func text(name, s string, maxLen int) error {
	if len(s) > maxLen {
		return bad("%s is %d bytes long, over %d", name, len(s), maxLen)
	}
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return bad("%s is not plain UTF-8 text", name)
	}
	return nil
}

func needed(name, s string, maxLen int) error {
	if s == "" {
		return bad("%s is missing", name)
	}
	return text(name, s, maxLen)
}

func digest(name string, b []byte) error {
	if len(b) != sha256.Size {
		return bad("%s has %d bytes, want %d", name, len(b), sha256.Size)
	}
	return nil
}

func nonce(b []byte) error {
	if len(b) != 16 {
		return bad("nonce has %d bytes, want 16", len(b))
	}
	return nil
}

func contentID(name string, b []byte) error {
	c, err := cid.Cast(b)
	if err != nil {
		return bad("%s is no CID", name)
	}
	p := c.Prefix()
	if p.Version != 1 || p.MhType != 0x12 || p.MhLength != sha256.Size {
		return bad("%s is not a CIDv1 with SHA-256", name)
	}
	switch p.Codec {
	case cid.Raw, cid.DagProtobuf, cid.DagCBOR:
		return nil
	}
	return bad("%s has the codec 0x%x; raw, dag-pb and dag-cbor are understood", name, p.Codec)
}

func addresses(list [][]byte) error {
	if len(list) > maxAddrs {
		return bad("%d addresses, over %d", len(list), maxAddrs)
	}
	for _, a := range list {
		if len(a) == 0 || len(a) > maxAddrLen {
			return bad("an address has %d bytes, want 1 to %d", len(a), maxAddrLen)
		}
		if _, err := multiaddr.NewMultiaddrBytes(a); err != nil {
			return bad("an address is no multiaddr")
		}
	}
	return nil
}

func spanMs(name string, ms int64) error {
	if ms < 0 || ms > maxMillis {
		return bad("%s of %d ms is not between 0 and %d", name, ms, maxMillis)
	}
	return nil
}

// issued checks that a message was made about now.
func issued(ms int64, now time.Time) error {
	t := time.UnixMilli(ms)
	if t.After(now.Add(MaxSkew)) {
		return fmt.Errorf("made %s in the future, check both clocks: %w", t.Sub(now).Round(time.Second), ErrStale)
	}
	return nil
}

func expires(issuedMs, expiresMs int64, life time.Duration, now time.Time) error {
	if err := issued(issuedMs, now); err != nil {
		return err
	}
	if expiresMs <= issuedMs || expiresMs-issuedMs > life.Milliseconds() {
		return bad("a life of %d ms is not between 1 and %d", expiresMs-issuedMs, life.Milliseconds())
	}
	if t := time.UnixMilli(expiresMs); t.Before(now.Add(-MaxSkew)) {
		return fmt.Errorf("expired %s ago: %w", now.Sub(t).Round(time.Second), ErrStale)
	}
	return nil
}

func asset(s string) error {
	if s == "" || len(s) > 16 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
		return bad("asset %.20q: want 1 to 16 of a-z, 0-9, . and -", s)
	}
	return nil
}

func amount(name string, a *Amount) error {
	if a == nil {
		return bad("%s is missing", name)
	}
	return asset(a.GetAsset())
}

func fileBytes(name string, n uint64) error {
	if n > maxBytes {
		return bad("%s of %d bytes are over 1 PiB", name, n)
	}
	return nil
}

func netPolicy(s string, limit uint64) error {
	if s != "none" && s != "outbound" {
		return bad("network policy %.20q is neither none nor outbound", s)
	}
	if (limit > 0) != (s == "outbound") {
		return bad("network %s with a limit of %d bytes", s, limit)
	}
	return fileBytes("network", limit)
}

func resources(r *Resources) error {
	switch {
	case r == nil:
		return bad("resources are missing")
	case r.GetCpuMillis() == 0 || r.GetCpuMillis() > maxCPUMillis:
		return bad("cpu of %d millis is not between 1 and %d", r.GetCpuMillis(), maxCPUMillis)
	case r.GetMemoryBytes() == 0 || r.GetMemoryBytes() > maxBytes:
		return bad("memory of %d bytes is not between 1 and 1 PiB", r.GetMemoryBytes())
	case r.GetDiskBytes() > maxBytes:
		return bad("disk of %d bytes is over 1 PiB", r.GetDiskBytes())
	case r.GetGpuCount() > maxGPUs:
		return bad("%d GPUs, over %d", r.GetGpuCount(), maxGPUs)
	case len(r.GetGpuModels()) > maxClasses:
		return bad("%d GPU models, over %d", len(r.GetGpuModels()), maxClasses)
	case len(r.GetGpuCapabilities()) > maxGPUs:
		return bad("%d GPU capabilities, over %d", len(r.GetGpuCapabilities()), maxGPUs)
	}
	for _, c := range r.GetGpuCapabilities() {
		if err := needed("GPU capability", c, 32); err != nil {
			return err
		}
	}
	if err := first(text("least CUDA version", r.GetGpuCuda(), 16), text("GPU requirement", r.GetGpuRequire(), maxRequire)); err != nil {
		return err
	}
	for _, m := range r.GetGpuModels() {
		if err := needed("GPU model", m, 32); err != nil {
			return err
		}
	}
	return nil
}

func image(im *Image) error {
	if im == nil {
		return bad("image is missing")
	}
	return first(
		contentID("image root", im.GetRoot()),
		digest("image config", im.GetConfigSha256()),
		text("platform", im.GetPlatform(), 64),
	)
}

func absPath(name, p string) error {
	if err := needed(name, p, maxPath); err != nil {
		return err
	}
	if !strings.HasPrefix(p, "/") || path.Clean(p) != p || p == "/" {
		return bad("%s %.60q is not a clean absolute path below /", name, p)
	}
	return nil
}

func peerID(name, s string) error {
	if _, err := peer.Decode(s); err != nil {
		return bad("%s %.60q is no peer id", name, s)
	}
	return nil
}
