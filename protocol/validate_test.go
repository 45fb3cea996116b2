package protocol

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
)

// refusal is one change that makes a valid sample wrong.
type refusal[M Message] struct {
	name   string
	change func(M)
}

// refuse checks that the sample is valid and that each change makes it not so.
func refuse[M Message](t *testing.T, want error, changes ...refusal[M]) {
	t.Helper()
	sample := sampleOf[M]()
	if err := sample.Validate(testNow); err != nil {
		t.Fatalf("the sample %s is not valid: %v", sample.Kind(), err)
	}
	for _, c := range changes {
		m, ok := proto.Clone(sample).(M)
		if !ok {
			t.Fatal("cloned as another type")
		}
		c.change(m)
		if err := m.Validate(testNow); !errors.Is(err, want) {
			t.Errorf("%s, %s: got %v, want %v", sample.Kind(), c.name, err, want)
		}
	}
}

func TestValidateCapacity(t *testing.T) {
	type r = refusal[*Capacity]
	refuse(
		t, ErrInvalid,
		r{"no asset", func(m *Capacity) { m.Asset = "" }},
		r{"long asset", func(m *Capacity) { m.Asset = strings.Repeat("a", 17) }},
		r{"odd asset", func(m *Capacity) { m.Asset = "US$" }},
		r{"lives too long", func(m *Capacity) { m.ExpiresMs = at(MaxCapLife + time.Second) }},
		r{"ends before it begins", func(m *Capacity) { m.ExpiresMs = m.IssuedMs }},
		r{"unknown class", func(m *Capacity) { m.Classes = []string{"gpu/amd/mi300"} }},
		r{"too many classes", func(m *Capacity) { m.Classes = slices.Repeat([]string{"cpu"}, maxClasses+1) }},
		r{"more free than there are", func(m *Capacity) { m.Gpus[0].Free = 3 }},
		r{"too many cards", func(m *Capacity) { m.Gpus[0].Count = 5000 }},
		r{"card without a model", func(m *Capacity) { m.Gpus[0].Model = "" }},
		r{"text that is none", func(m *Capacity) { m.Gpus[0].Driver = "\xff" }},
		r{"too many kinds of card", func(m *Capacity) { m.Gpus = slices.Repeat(m.Gpus, maxGPUs+1) }},
		r{"more cpu free", func(m *Capacity) { m.CpuMillisFree = m.CpuMillis + 1 }},
		r{"more memory free", func(m *Capacity) { m.MemoryBytesFree = m.MemoryBytes + 1 }},
		r{"more disk free", func(m *Capacity) { m.DiskBytesFree = m.DiskBytes + 1 }},
		r{"long region", func(m *Capacity) { m.Region = strings.Repeat("x", 33) }},
		r{"zero byte", func(m *Capacity) { m.Agent = "a\x00b" }},
		r{"bad address", func(m *Capacity) { m.Addrs = [][]byte{{0xff, 0xff}} }},
		r{"empty address", func(m *Capacity) { m.Addrs = [][]byte{{}} }},
		r{"too many addresses", func(m *Capacity) { m.Addrs = slices.Repeat(m.Addrs, maxAddrs+1) }},
	)
	refuse(
		t, ErrStale,
		r{"expired", func(m *Capacity) { m.IssuedMs, m.ExpiresMs = at(-20*time.Minute), at(-3*time.Minute) }},
		r{"from the future", func(m *Capacity) { m.IssuedMs = at(3 * time.Minute) }},
	)
	if skewed := (&Capacity{Asset: "test", IssuedMs: at(time.Minute), ExpiresMs: at(2 * time.Minute)}); skewed.Validate(testNow) != nil {
		t.Error("a clock a minute ahead is refused")
	}
}

func TestValidateOffer(t *testing.T) {
	type r = refusal[*Offer]
	refuse(
		t, ErrInvalid,
		r{"short nonce", func(m *Offer) { m.Nonce = fill(1, 15) }},
		r{"lives too long", func(m *Offer) { m.ExpiresMs = at(MaxOfferLife + time.Second) }},
		r{"no resources", func(m *Offer) { m.Resources = nil }},
		r{"no cpu", func(m *Offer) { m.Resources.CpuMillis = 0 }},
		r{"no memory", func(m *Offer) { m.Resources.MemoryBytes = 0 }},
		r{"impossible disk", func(m *Offer) { m.Resources.DiskBytes = 1 << 60 }},
		r{"too many cards", func(m *Offer) { m.Resources.GpuCount = maxGPUs + 1 }},
		r{"nameless model", func(m *Offer) { m.Resources.GpuModels = []string{""} }},
		r{"long CUDA version", func(m *Offer) { m.Resources.GpuCuda = strings.Repeat("1", 17) }},
		r{"long requirement", func(m *Offer) { m.Resources.GpuRequire = strings.Repeat("1", maxRequire+1) }},
		r{"requirement that is no text", func(m *Offer) { m.Resources.GpuRequire = "\xff" }},
		r{"nameless capability", func(m *Offer) { m.Resources.GpuCapabilities = []string{""} }},
		r{"too many capabilities", func(m *Offer) { m.Resources.GpuCapabilities = slices.Repeat([]string{"video"}, maxGPUs+1) }},
		r{"no image", func(m *Offer) { m.Image = nil }},
		r{"image is no CID", func(m *Offer) { m.Image.Root = fill(1, 36) }},
		r{"image of another hash", func(m *Offer) { m.Image.Root = append([]byte{1, 0x55, 0x11, 20}, fill(1, 20)...) }},
		r{"image of another codec", func(m *Offer) { m.Image.Root = append([]byte{1, 0x72, 0x12, 32}, fill(1, 32)...) }},
		r{"short config", func(m *Offer) { m.Image.ConfigSha256 = fill(1, 31) }},
		r{"no class", func(m *Offer) { m.Classes = nil }},
		r{"unknown class", func(m *Offer) { m.Classes = []string{"vram/9"} }},
		r{"no tasks", func(m *Offer) { m.Tasks = 0 }},
		r{"too many tasks", func(m *Offer) { m.Tasks = maxTasks + 1 }},
		r{"negative limit", func(m *Offer) { m.RunLimitMs = -1 }},
		r{"impossible outputs", func(m *Offer) { m.OutputBytes = maxBytes + 1 }},
		r{"impossible log", func(m *Offer) { m.LogBytes = maxBytes + 1 }},
		r{"endless limit", func(m *Offer) { m.FetchLimitMs = maxMillis + 1 }},
		r{"odd network policy", func(m *Offer) { m.Net = "all" }},
		r{"network without a limit", func(m *Offer) { m.NetBytes = 0 }},
		r{"limit without a network", func(m *Offer) { m.Net = "none" }},
		r{"impossible network", func(m *Offer) { m.NetBytes = maxBytes + 1 }},
		r{"bids after its end", func(m *Offer) { m.BidsUntilMs = m.ExpiresMs + 1 }},
		r{"bids before its begin", func(m *Offer) { m.BidsUntilMs = m.IssuedMs - 1 }},
		r{"no asset", func(m *Offer) { m.Asset = "" }},
	)
	refuse(t, ErrStale, r{"expired", func(m *Offer) {
		m.IssuedMs, m.BidsUntilMs, m.ExpiresMs = at(-4*time.Minute), at(-4*time.Minute), at(-3*time.Minute)
	}})
}

func TestValidateBidAndDecline(t *testing.T) {
	type b = refusal[*Bid]
	refuse(
		t, ErrInvalid,
		b{"short offer id", func(m *Bid) { m.OfferId = fill(1, 31) }},
		b{"no slots", func(m *Bid) { m.Slots = 0 }},
		b{"too many slots", func(m *Bid) { m.Slots = maxTasks + 1 }},
		b{"negative start", func(m *Bid) { m.StartInMs = -1 }},
		b{"no asset", func(m *Bid) { m.Asset = "" }},
		b{"valid for too long", func(m *Bid) { m.ValidUntilMs = at(time.Hour) }},
	)
	type d = refusal[*Decline]
	refuse(
		t, ErrInvalid,
		d{"no reason", func(m *Decline) { m.Reason = 0 }},
		d{"unknown reason", func(m *Decline) { m.Reason = 999 }},
		d{"no offer", func(m *Decline) { m.OfferId = nil }},
	)
	refuse(t, ErrStale, d{"from the future", func(m *Decline) { m.IssuedMs = at(time.Hour) }})
	type a = refusal[*Answer]
	refuse(
		t, ErrInvalid,
		a{"empty", func(m *Answer) { m.Bid = nil }},
		a{"both", func(m *Answer) { m.Decline = fill(1, 9) }},
		a{"too large", func(m *Answer) { m.Bid = make([]byte, MaxSmall+1) }},
	)
}

func TestValidateLease(t *testing.T) {
	type r = refusal[*Lease]
	refuse(
		t, ErrInvalid,
		r{"nonce", func(m *Lease) { m.Nonce = nil }},
		r{"offer id", func(m *Lease) { m.OfferId = nil }},
		r{"bid id", func(m *Lease) { m.BidId = nil }},
		r{"provider", func(m *Lease) { m.Provider = "nobody" }},
		r{"job", func(m *Lease) { m.Job = "" }},
		r{"to be accepted too late", func(m *Lease) { m.AcceptByMs = at(time.Hour) }},
		r{"resources", func(m *Lease) { m.Resources = nil }},
		r{"image", func(m *Lease) { m.Image = nil }},
		r{"task", func(m *Lease) { m.Spec = nil }},
		r{"too many words", func(m *Lease) { m.Spec.Command = slices.Repeat([]string{"x"}, maxCommand+1) }},
		r{"long word", func(m *Lease) { m.Spec.Entrypoint = []string{strings.Repeat("x", maxArg+1)} }},
		r{"nameless variable", func(m *Lease) { m.Spec.Env[0].Name = "" }},
		r{"too many variables", func(m *Lease) { m.Spec.Env = slices.Repeat(m.Spec.Env, maxEnv+1) }},
		r{"input is no CID", func(m *Lease) { m.Spec.Inputs[0].Root = nil }},
		r{"cache outside", func(m *Lease) { m.Spec.Caches[0].Key = "../x" }},
		r{"cache of no CID", func(m *Lease) { m.Spec.Caches[0].Key = "cid:x" }},
		r{"cache nowhere", func(m *Lease) { m.Spec.Caches[0].To = "cache" }},
		r{"too many caches", func(m *Lease) { m.Spec.Caches = slices.Repeat(m.Spec.Caches, maxCaches+1) }},
		r{"streams no output", func(m *Lease) { m.Spec.Streams = []uint32{1} }},
		r{"streams twice", func(m *Lease) { m.Spec.Streams = []uint32{0, 0} }},
		r{"long sealed key", func(m *Lease) { m.Spec.SealedKey = fill(1, maxSealedKey+1) }},
		r{"ready at no port", func(m *Lease) { m.Spec.Ready.Port = 0 }},
		r{"ready at no TCP port", func(m *Lease) { m.Spec.Ready.Port = 1 << 16 }},
		r{"ready at once", func(m *Lease) { m.Spec.Ready.WithinMs = 0 }},
		r{"ready far too late", func(m *Lease) { m.Spec.Ready.WithinMs = maxReadyMs + 1 }},
		r{"ready without a path", func(m *Lease) { m.Spec.Ready.Http = "" }},
		r{"ready elsewhere", func(m *Lease) { m.Spec.Ready.Http = "http://example.org/" }},
		r{"ready on another host", func(m *Lease) { m.Spec.Ready.Http = "//example.org/" }},
		r{"ready with a second line", func(m *Lease) { m.Spec.Ready.Http = "/ HTTP/1.1\r\nX: y" }},
		r{"ready with a bad escape", func(m *Lease) { m.Spec.Ready.Http = "/%zz" }},
		r{"ready with a fragment", func(m *Lease) { m.Spec.Ready.Http = "/a#b" }},
		r{"ready with a long path", func(m *Lease) { m.Spec.Ready.Http = "/" + strings.Repeat("x", maxReadyPath) }},
		r{"idle for no time", func(m *Lease) { m.Spec.IdleStopMs = minIdleMs - 1 }},
		r{"idle backwards", func(m *Lease) { m.Spec.IdleStopMs = -1 }},
		r{"idle for ever", func(m *Lease) { m.Spec.IdleStopMs = maxMillis + 1 }},
		r{"input to nowhere", func(m *Lease) { m.Spec.Inputs[0].To = "in" }},
		r{"input upwards", func(m *Lease) { m.Spec.Inputs[0].To = "/../etc" }},
		r{"input over all", func(m *Lease) { m.Spec.Inputs[0].To = "/" }},
		r{"output upwards", func(m *Lease) { m.Spec.Outputs = []string{"/out/.."} }},
		r{"too many outputs", func(m *Lease) { m.Spec.Outputs = slices.Repeat([]string{"/out"}, maxOutputs+1) }},
		r{"limits", func(m *Lease) { m.Limits = nil }},
		r{"no time to run", func(m *Lease) { m.Limits.RunMs = 0 }},
		r{"no processes", func(m *Lease) { m.Limits.Pids = 0 }},
		r{"saves for days", func(m *Lease) { m.Limits.SaveMs = maxSaveMs + 1 }},
		r{"impossible outputs", func(m *Lease) { m.Limits.OutputBytes = maxBytes + 1 }},
		r{"outputs without a limit", func(m *Lease) { m.Limits.OutputBytes = 0 }},
		r{"impossible log", func(m *Lease) { m.Limits.LogBytes = maxBytes + 1 }},
		r{"log without a limit", func(m *Lease) { m.Limits.LogBytes = 0 }},
		r{"network policy", func(m *Lease) { m.Net = "" }},
		r{"network without a limit", func(m *Lease) { m.Limits.NetBytes = 0 }},
		r{"limit without a network", func(m *Lease) { m.Net = "none" }},
		r{"impossible network", func(m *Lease) { m.Limits.NetBytes = maxBytes + 1 }},
		r{"no budget", func(m *Lease) { m.Budget = nil }},
		r{"budget in another asset", func(m *Lease) { m.Budget.Asset = "other" }},
		r{"heartbeat too fast", func(m *Lease) { m.HeartbeatMs = MinHeartbeat - 1 }},
		r{"heartbeat too slow", func(m *Lease) { m.HeartbeatMs = MaxHeartbeat + 1 }},
		r{"holder", func(m *Lease) { m.Holders = []string{"nobody"} }},
		r{"too many holders", func(m *Lease) { m.Holders = slices.Repeat(m.Holders, maxHolders+1) }},
	)
}

func TestValidateRunning(t *testing.T) {
	id := func(name string) string { return name + " without a lease id" }
	refuse(
		t, ErrInvalid,
		refusal[*Decision]{id("decision"), func(m *Decision) { m.LeaseId = nil }},
		refusal[*Decision]{"long detail", func(m *Decision) { m.Detail = strings.Repeat("x", maxDetail+1) }},
	)
	refuse(
		t, ErrInvalid,
		refusal[*Heartbeat]{id("heartbeat"), func(m *Heartbeat) { m.LeaseId = nil }},
		refusal[*Heartbeat]{"phase", func(m *Heartbeat) { m.Phase = 0 }},
		refusal[*Heartbeat]{"unknown phase", func(m *Heartbeat) { m.Phase = 9 }},
		refusal[*Heartbeat]{"negative usage", func(m *Heartbeat) { m.UsageMs = -1 }},
	)
	refuse(
		t, ErrInvalid,
		refusal[*Verdict]{id("verdict"), func(m *Verdict) { m.LeaseId = nil }},
		refusal[*Verdict]{"too large", func(m *Verdict) { m.Cancel = make([]byte, MaxSmall+1) }},
	)
	refuse(
		t, ErrInvalid,
		refusal[*LogChunk]{id("log"), func(m *LogChunk) { m.LeaseId = nil }},
		refusal[*LogChunk]{"gap", func(m *LogChunk) { m.Records[1].Seq = 6 }},
		refusal[*LogChunk]{"stream", func(m *LogChunk) { m.Records[0].Stream = 0 }},
		refusal[*LogChunk]{"too many records", func(m *LogChunk) { m.Records = make([]*LogRecord, maxRecords+1) }},
	)
	refuse(t, ErrInvalid, refusal[*Heartbeat]{"outputs are no CID", func(m *Heartbeat) { m.Outputs = []byte("x") }})
	refuse(
		t, ErrInvalid,
		refusal[*Result]{id("result"), func(m *Result) { m.LeaseId = nil }},
		refusal[*Result]{"fetched backwards", func(m *Result) { m.FetchMs = -1 }},
		refusal[*Result]{"prepared for ever", func(m *Result) { m.PrepareMs = maxMillis + 1 }},
		refusal[*Result]{"saved backwards", func(m *Result) { m.SaveMs = -1 }},
		refusal[*Result]{"outcome", func(m *Result) { m.Outcome = 0 }},
		refusal[*Result]{"outputs are no CID", func(m *Result) { m.Outputs = []byte("x") }},
		refusal[*Result]{"nameless limit", func(m *Result) { m.Exceeded.Limit = "" }},
		refusal[*Result]{"no charge", func(m *Result) { m.Charge = nil }},
		refusal[*Result]{"no exit source", func(m *Result) { m.ExitSource = "" }},
		refusal[*Result]{"long reason", func(m *Result) { m.Reason = strings.Repeat("x", maxDetail+1) }},
	)
	refuse(t, ErrStale, refusal[*Result]{"from the future", func(m *Result) { m.EndedMs = at(time.Hour) }})
	refuse(
		t, ErrInvalid,
		refusal[*Receipt]{id("receipt"), func(m *Receipt) { m.LeaseId = nil }},
		refusal[*Receipt]{"result id", func(m *Receipt) { m.ResultId = []byte("x") }},
		refusal[*Receipt]{"no charge", func(m *Receipt) { m.Charge = nil }},
		refusal[*Receipt]{"no end", func(m *Receipt) { m.End = "" }},
	)
	refuse(
		t, ErrInvalid,
		refusal[*Cancel]{id("cancel"), func(m *Cancel) { m.LeaseId = nil }},
		refusal[*Cancel]{"negative grace", func(m *Cancel) { m.GraceMs = -1 }},
	)
	refuse(t, ErrInvalid, refusal[*LeaseQuery]{id("query"), func(m *LeaseQuery) { m.LeaseId = nil }})
	refuse(t, ErrInvalid, refusal[*LeaseStatus]{id("status"), func(m *LeaseStatus) { m.LeaseId = nil }})
	refuse(
		t, ErrInvalid,
		refusal[*ExecRequest]{id("exec"), func(m *ExecRequest) { m.LeaseId = nil }},
		refusal[*ExecRequest]{"no command", func(m *ExecRequest) { m.Command = nil }},
		refusal[*ExecRequest]{"zero byte", func(m *ExecRequest) { m.Command = []string{"a\x00"} }},
	)
	refuse(
		t, ErrInvalid,
		refusal[*PortRequest]{id("port"), func(m *PortRequest) { m.LeaseId = nil }},
		refusal[*PortRequest]{"no port", func(m *PortRequest) { m.Port = 0 }},
		refusal[*PortRequest]{"no such port", func(m *PortRequest) { m.Port = 1 << 16 }},
	)
	refuse(t, ErrInvalid, refusal[*Ping]{"short nonce", func(m *Ping) { m.Nonce = fill(1, 3) }})
	refuse[*CapacityQuery](t, ErrInvalid)
}

func TestClasses(t *testing.T) {
	all := AllClasses()
	seen := map[string]bool{}
	for _, c := range all {
		if err := CheckClass(c); err != nil || seen[c] {
			t.Errorf("class %s: twice, or %v", c, err)
		}
		seen[c] = true
	}
	for _, bad := range []string{"", "gpu", "gpu/nvidia/", "gpu/nvidia/rtx1", "vram/08", "vram/7", "vram/", "CPU"} {
		if CheckClass(bad) == nil {
			t.Errorf("class %q is taken", bad)
		}
	}
	for gb, want := range map[uint64]string{0: "vram/8", 6: "vram/8", 8: "vram/8", 12: "vram/8", 16: "vram/16", 24: "vram/24", 47: "vram/24", 48: "vram/48", 141: "vram/141", 500: "vram/141"} {
		if got := VRAMClass(gb * GB); got != want {
			t.Errorf("%d GB is of class %s, want %s", gb, got, want)
		}
	}
	for name, c := range map[string]struct {
		r    *Resources
		want []string
	}{
		"nothing":                {nil, []string{"cpu"}},
		"cpu":                    {&Resources{CpuMillis: 1}, []string{"cpu"}},
		"models":                 {&Resources{GpuCount: 1, GpuModels: []string{"rtx4090", "h200"}}, []string{"gpu/nvidia/rtx4090", "gpu/nvidia/h200"}},
		"memory":                 {&Resources{GpuCount: 1, GpuVramBytes: 48 * GB}, []string{"vram/48", "vram/80", "vram/141"}},
		"all cards":              {&Resources{GpuAll: true, GpuVramBytes: 100 * GB}, []string{"vram/80", "vram/141"}},
		"a model without class":  {&Resources{GpuCount: 1, GpuModels: []string{"gtx-1080"}, GpuVramBytes: 80 * GB}, []string{"vram/80", "vram/141"}},
		"one model with, one no": {&Resources{GpuCount: 1, GpuModels: []string{"h200", "gh200-480gb"}, GpuVramBytes: 141 * GB}, []string{"vram/141"}},
	} {
		if got := ClassesWanted(c.r); !slices.Equal(got, c.want) {
			t.Errorf("%s: wanted of %v, want %v", name, got, c.want)
		}
	}
	got := ClassesOf(&Capacity{CpuMillis: 1, Gpus: []*GPU{{Model: "rtx4090", VramBytes: 24 * GB}, {Model: "gtx-1080", VramBytes: 8 * GB}}})
	if want := []string{"cpu", "gpu/nvidia/rtx4090", "vram/24", "vram/8"}; !slices.Equal(got, want) {
		t.Errorf("classes %v, want %v", got, want)
	}
}

// Whoever has a card is found by whoever wants it.
func TestEveryModelIsFound(t *testing.T) {
	for _, m := range Models() {
		has := ClassesOf(&Capacity{Gpus: []*GPU{{Model: m.Name, VramBytes: m.VRAM}}})
		for _, r := range []*Resources{
			{GpuCount: 1, GpuModels: []string{m.Name}},
			{GpuCount: 1, GpuVramBytes: m.VRAM},
			{GpuCount: 1},
			{GpuAll: true},
			{GpuCount: 1, GpuModels: []string{m.Name, "gtx-1080"}},
		} {
			if !slices.ContainsFunc(ClassesWanted(r), func(c string) bool { return slices.Contains(has, c) }) {
				t.Errorf("%s is in %v, looked for in %v", m.Name, has, ClassesWanted(r))
			}
		}
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{"main": true, "dev-1": true, "": false, "1dev": false, "Dev": false, strings.Repeat("a", 33): false, "a/b": false} {
		if err := CheckNetwork(name); (err == nil) != ok {
			t.Errorf("network %q: %v", name, err)
		}
	}
	for name, fake := range map[string]bool{"dev": true, "devnet": true, "test-7": true, "main": false, "production-dev": false} {
		if AllowsFake(name) != fake {
			t.Errorf("fake GPUs on %s: %v", name, !fake)
		}
	}
	if got := ID("dev", "bid"); got != "/lumbung/dev/bid/1" {
		t.Error(got)
	}
	if got := Topic("dev", "cpu"); got != "/lumbung/dev/offers/cpu/1" {
		t.Error(got)
	}
	for _, k := range allKinds {
		if MaxSize(k) < 1024 || MaxSize(k) > MaxLogChunk {
			t.Errorf("%s may have %d bytes", k, MaxSize(k))
		}
	}
}
