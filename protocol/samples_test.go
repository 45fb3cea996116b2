package protocol

import (
	"bytes"
	"crypto/ed25519"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
)

// testNet and testNow are the network and the time of all samples.
const testNet = "test"

var testNow = time.UnixMilli(1_800_000_000_000)

// testKey is a key that is the same every time, so that envelopes are too.
func testKey(t testing.TB, seed byte) crypto.PrivKey {
	t.Helper()
	raw := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	key, err := crypto.UnmarshalEd25519PrivateKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

const samplePeer = "12D3KooWAuXCGxBuwBKorfveZtB8AZ7oMjb6AjDhxVcAQFYEBkPc"

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

// sampleCID is a CIDv1, raw, SHA-256.
func sampleCID() []byte { return append([]byte{1, 0x55, 0x12, 32}, fill(0xc1, 32)...) }

func sampleAddr() []byte { return []byte{4, 127, 0, 0, 1, 6, 0x12, 0xa9} } // /ip4/127.0.0.1/tcp/4777

func at(d time.Duration) int64 { return testNow.Add(d).UnixMilli() }

func sampleResources() *Resources {
	return &Resources{CpuMillis: 2500, MemoryBytes: 4 << 30, DiskBytes: 10 << 30, GpuCount: 1, GpuModels: []string{"rtx4090"}, GpuVramBytes: 24 * GB, GpuCuda: "12.4", GpuCapabilities: []string{"compute", "video"}, GpuRequire: "cuda>=12.4 brand=tesla,driver>=535"}
}

func sampleImage() *Image {
	return &Image{Root: sampleCID(), ConfigSha256: fill(0xcf, 32), Size: 123456, Platform: "linux/amd64"}
}

func sampleCapacity() *Capacity {
	return &Capacity{
		Seq: 7, IssuedMs: at(0), ExpiresMs: at(20 * time.Minute), Classes: []string{"cpu", "gpu/nvidia/rtx4090", "vram/24"},
		Gpus:      []*GPU{{Model: "rtx4090", Count: 2, Free: 1, VramBytes: 24 * GB, Driver: "570.1", Cuda: "12.8", Fake: true, PricePerHour: 400, Compute: "8.9"}},
		CpuMillis: 8000, CpuMillisFree: 6000, MemoryBytes: 32 << 30, MemoryBytesFree: 16 << 30, DiskBytes: 100 << 30, DiskBytesFree: 50 << 30,
		Asset: "test", CpuPricePerHour: 10, Region: "eu", Reachability: "public", Agent: "lumbung/0.1", Addrs: [][]byte{sampleAddr()},
		Portability: samplePortability(),
	}
}

func sampleOffer() *Offer {
	return &Offer{
		Nonce: fill(1, 16), IssuedMs: at(0), BidsUntilMs: at(2 * time.Second), ExpiresMs: at(time.Minute), Classes: []string{"gpu/nvidia/rtx4090"},
		Resources: sampleResources(), Image: sampleImage(), InputBytes: 99, Tasks: 12, Asset: "test", MaxPricePerHour: 500,
		FetchLimitMs: 60_000, RunLimitMs: 3_600_000, Net: "outbound", NetBytes: 10 << 30, Addrs: [][]byte{sampleAddr()}, OutputBytes: 1 << 30, LogBytes: 1 << 20, OpenFiles: 4096,
		Portability: samplePortability(),
	}
}

func samplePortability() *Portability {
	return &Portability{Engine: "gvisor-1-amd64-64-root", Cpu: fill(0x5a, 30)}
}

func sampleCheckpoint() *Checkpoint {
	return &Checkpoint{Root: sampleCID(), Bytes: 1 << 20, AtMs: at(-time.Second), Portability: samplePortability(), Last: true}
}

func sampleBid() *Bid {
	return &Bid{
		OfferId: fill(2, 32), IssuedMs: at(0), ValidUntilMs: at(10 * time.Second), Asset: "test", PricePerHour: 450,
		Slots: 3, StartInMs: 250, ImageBytesCached: 1000, CpuMillisFree: 6000,
	}
}

func sampleLease() *Lease {
	return &Lease{
		Nonce: fill(3, 16), OfferId: fill(2, 32), BidId: fill(4, 32), Provider: samplePeer, Job: "job-1", Task: 5, Attempt: 1,
		IssuedMs: at(0), AcceptByMs: at(5 * time.Second), Resources: sampleResources(), Image: sampleImage(),
		Spec: &Task{
			Command: []string{"render", "--tile", "5"}, Env: []*EnvVar{{Name: "TILE", Value: "5"}},
			Inputs: []*Input{{Root: sampleCID(), To: "/in", Size: 10, Private: true}}, Outputs: []string{"/out"}, Workdir: "/work", Entrypoint: []string{"/bin/sh"},
			Caches: []*Cache{{Key: "weights", To: "/cache", Size: 1 << 30}}, Streams: []uint32{0}, Private: true, SealedKey: fill(9, 200),
			SealedSecrets: fill(10, 300),
			Ready:         &Ready{Port: 8080, Http: "/health?deep=1", WithinMs: 300_000}, IdleStopMs: 600_000,
			CheckpointEveryMs: 600_000, Restore: sampleCID(), CheckpointKey: fill(10, 200),
		},
		Limits: &Limits{FetchMs: 60_000, RunMs: 3_600_000, LogBytes: 1 << 20, OutputBytes: 1 << 30, Pids: 1024, SaveMs: 60_000, OpenFiles: 4096, NetBytes: 10 << 30},
		Net:    "outbound", Asset: "test", PricePerHour: 450, Budget: &Amount{Asset: "test", Hi: 1, Lo: 2}, HeartbeatMs: 1000,
		Addrs: [][]byte{sampleAddr()}, Holders: []string{samplePeer}, RestoreBytes: 12345,
	}
}

func sampleResult() *Result {
	return &Result{
		LeaseId: fill(5, 32), Outcome: Outcome_OUTCOME_FAILED, ExitCode: 137, ExitSource: "limit", Reason: "out of memory",
		Exceeded: &Exceeded{Limit: "memory", Max: 10, Seen: 11, AtMs: at(-time.Second)}, Outputs: sampleCID(), OutputBytes: 77,
		StartedMs: at(-time.Minute), EndedMs: at(-time.Second), UsageMs: 59_000, LogSeq: 9, Charge: &Amount{Asset: "test", Lo: 7}, ProviderFault: true,
		FetchMs: 400, PrepareMs: 30, SaveMs: 20,
		NetUpBytes: 1000, NetDownBytes: 2000,
	}
}

// samples has one valid message of every kind, with every field set.
func samples() []Message {
	return []Message{
		sampleCapacity(),
		&CapacityQuery{},
		sampleOffer(),
		sampleBid(),
		&Decline{OfferId: fill(2, 32), IssuedMs: at(0), Reason: Reason_REASON_PRICE, PricePerHour: 900},
		&Answer{Bid: fill(6, 100)},
		sampleLease(),
		&Decision{LeaseId: fill(5, 32), AtMs: at(0), Accepted: true, Reason: Reason_REASON_BUSY, Detail: "words"},
		&Heartbeat{LeaseId: fill(5, 32), Seq: 3, AtMs: at(0), Phase: Phase_PHASE_RUNNING, UsageMs: 1500, FetchedBytes: 5, FetchBytes: 6, LogSeq: 4, Outputs: sampleCID(), OutputBytes: 9, Checkpoint: sampleCheckpoint(), CheckpointFailed: "no room", Trouble: "it is hot"},
		&Verdict{LeaseId: fill(5, 32), GoOn: true, Cancel: fill(7, 10), Receipt: fill(8, 10), LogSeq: 4, Checkpoint: sampleCID()},
		&LogChunk{LeaseId: fill(5, 32), FirstSeq: 4, Records: []*LogRecord{{Seq: 4, Stream: 1, AtMs: at(0), Data: []byte("out\n")}, {Seq: 5, Stream: 2, AtMs: at(0), Data: []byte("err\n")}}},
		sampleResult(),
		&Receipt{LeaseId: fill(5, 32), ResultId: fill(9, 32), AtMs: at(0), UsageMs: 59_000, Charge: &Amount{Asset: "test", Lo: 7}, End: "failed"},
		&Cancel{LeaseId: fill(5, 32), AtMs: at(0), GraceMs: 10_000, Reason: "stopped"},
		&LeaseQuery{LeaseId: fill(5, 32)},
		&LeaseStatus{LeaseId: fill(5, 32), Known: true, Decision: fill(1, 8), Heartbeat: fill(2, 8), Result: fill(3, 8)},
		&ExecRequest{LeaseId: fill(5, 32), AtMs: at(0), Command: []string{"sh"}, Tty: true, Rows: 24, Cols: 80},
		&PortRequest{LeaseId: fill(5, 32), AtMs: at(0), Port: 8080},
		&Ping{Nonce: fill(1, 16), AtMs: at(0)},
		&Ack{Of: fill(2, 32)},
	}
}
