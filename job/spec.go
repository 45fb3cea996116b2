package job

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/protocol"
)

// Asset is what prices are in when a job does not say: millionths of a dollar
// of mutual credit.
const Asset = "usd"

// NetworkOutbound is the network of a task that reaches the public internet.
const NetworkOutbound = "outbound"

// Spec is a job as its owner wrote it, with defaults filled in. Sizes are
// bytes, CPU thousandths of a core.
type Spec struct {
	Name      string            `json:"name,omitempty"`
	Image     string            `json:"image"`
	Command   []string          `json:"command,omitempty"`
	Workdir   string            `json:"workdir,omitempty"`
	Array     *Array            `json:"array,omitempty"`
	GPUs      GPUWish           `json:"gpus,omitzero"`
	CPUMillis uint32            `json:"cpu_millis"`
	Memory    uint64            `json:"memory"`
	Disk      uint64            `json:"disk"`
	Env       map[string]string `json:"env,omitempty"`
	Inputs    []InputSpec       `json:"inputs,omitempty"`
	Outputs   []OutputSpec      `json:"outputs,omitempty"`
	Limits    LimitSpec         `json:"limits"`
	Pay       PaySpec           `json:"pay"`
	Retry     RetrySpec         `json:"retry"`
	Network   string            `json:"network"`
	// Private encrypts inputs and outputs: nobody but the awarded provider and
	// the renter can read them.
	Private bool         `json:"private,omitempty"`
	Secrets []SecretSpec `json:"secrets,omitempty"`
	// Checkpoint saves the tasks' state, so that another provider can go on.
	Checkpoint CheckpointSpec `json:"checkpoint,omitzero"`
	Caches     []CacheSpec    `json:"cache,omitempty"`
	Ports      []PortSpec     `json:"ports,omitempty"`
	Ready      *ReadySpec     `json:"ready,omitempty"`
	// IdleStop ends the job, as done, when its ports have had no connection for
	// so long; 0 never does.
	IdleStop time.Duration `json:"idle_stop,omitempty"`
	On       string        `json:"on,omitempty"`
}

// Array makes one job of many tasks over a range of numbers.
type Array struct {
	First     int `json:"first"`
	Last      int `json:"last"`
	Chunk     int `json:"chunk"`
	Parallel  int `json:"parallel,omitempty"`   // 0 is all at once
	MaxFailed int `json:"max_failed,omitempty"` // failed tasks that the job bears
}

// GPUWish says which GPUs a task needs; All is every matching card of one
// provider.
type GPUWish struct {
	Count int      `json:"count,omitempty"`
	All   bool     `json:"all,omitempty"`
	Any   []string `json:"any,omitempty"`
	VRAM  uint64   `json:"vram,omitempty"`
	// CUDA is the least version that the driver must run, such as "12.4".
	CUDA string `json:"cuda,omitempty"`
	// Capabilities are parts of the driver; none is compute and utility.
	Capabilities []string `json:"capabilities,omitempty"`
	// Require is what the image asks of the driver, in NVIDIA_REQUIRE_CUDA.
	Require string `json:"require,omitempty"`
}

// InputSpec is a file or folder of the renter, or a CID, that appears at To.
type InputSpec struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// OutputSpec is a folder of the container that comes back to To.
type OutputSpec struct {
	From string `json:"from"`
	To   string `json:"to,omitempty"`
	// Stream brings what is there while the job runs.
	Stream bool `json:"stream,omitempty"`
}

// CacheSpec is a folder at To that stays on a provider for this renter's later
// jobs under Key; a key "cid:…" is a DAG that is there read-only.
type CacheSpec struct {
	Key string `json:"key"`
	To  string `json:"to"`
}

// LimitSpec bounds one task.
type LimitSpec struct {
	Fetch  time.Duration `json:"fetch"`
	Run    time.Duration `json:"run"`
	Logs   uint64        `json:"logs"`
	Output uint64        `json:"output"`
	Pids   uint32        `json:"pids"`
	Net    uint64        `json:"net,omitempty"` // to the internet and from it together
	// OpenFiles are those that one process may have open; 0 leaves it to the
	// provider.
	OpenFiles uint32 `json:"open_files,omitempty"`
}

// PaySpec bounds what a job may cost; a zero amount is no bound. MaxHourly is
// for one task, Budget for the whole job.
type PaySpec struct {
	MaxHourly ledger.Amount `json:"max_hourly,omitzero"`
	Budget    ledger.Amount `json:"budget,omitzero"`
}

// RetrySpec says what happens to a task that failed. A provider's fault is
// retried twice unless Max says otherwise; a job's own failure only when Max
// was given.
type RetrySpec struct {
	Max         int  `json:"max"`
	Given       bool `json:"given,omitempty"`
	AvoidFailed bool `json:"avoid_failed_provider"`
}

// Defaults of a spec.
const (
	DefaultCPUMillis  = 1000
	DefaultMemory     = 1 << 30
	DefaultDisk       = 10 << 30
	DefaultFetchLimit = 30 * time.Minute
	DefaultRunLimit   = time.Hour
	DefaultLogBytes   = 16 << 20
	DefaultOutput     = 4 << 30 // room for it is set aside on the provider
	DefaultPids       = 1024
	DefaultNet        = 10_000_000_000 // of a job with a network
	DefaultRetries    = 2
	saveLimit         = 30 * time.Minute
	maxArray          = 100_000
)

// ErrSpec says that a job is not well described.
var ErrSpec = errors.New("the job is not well described")

func specErr(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrSpec)...)
}

// WithDefaults fills in what was not said.
func (s Spec) WithDefaults() Spec {
	setDefault(&s.CPUMillis, DefaultCPUMillis)
	setDefault(&s.Memory, DefaultMemory)
	setDefault(&s.Disk, DefaultDisk)
	setDefault(&s.Limits.Fetch, DefaultFetchLimit)
	setDefault(&s.Limits.Run, DefaultRunLimit)
	setDefault(&s.Limits.Logs, DefaultLogBytes)
	setDefault(&s.Limits.Output, DefaultOutput)
	setDefault(&s.Limits.Pids, DefaultPids)
	setDefault(&s.Network, "none")
	if s.Network == NetworkOutbound {
		setDefault(&s.Limits.Net, DefaultNet)
	}
	if !s.Retry.Given {
		s.Retry.Max, s.Retry.AvoidFailed = DefaultRetries, true
	}
	if s.Array != nil {
		a := *s.Array
		setDefault(&a.Chunk, 1)
		s.Array = &a
	}
	return s.withServiceDefaults()
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Validate reports the first thing that cannot be.
func (s Spec) Validate() error {
	if strings.TrimSpace(s.Image) == "" {
		return specErr("image: missing; name one, such as oci:./dir or an image's name from `lumbung image ls`")
	}
	if len(s.Name) > 64 {
		return specErr("name: %d bytes long, over 64", len(s.Name))
	}
	if err := s.Array.validate(); err != nil {
		return err
	}
	switch {
	case s.Network != "none" && s.Network != NetworkOutbound:
		return specErr("network: %q is neither none nor outbound", s.Network)
	case s.Network == "none" && s.Limits.Net > 0:
		return specErr("limits.net: it bounds nothing without network: outbound")
	}
	if s.GPUs.Count < 0 || s.GPUs.Count > 16 {
		return specErr("gpus.count: %d is not between 0 and 16", s.GPUs.Count)
	}
	if err := s.GPUs.validate(); err != nil {
		return err
	}
	if s.Limits.Fetch < 0 || s.Limits.Run < 0 {
		return specErr("limits: a time below zero")
	}
	if n := s.Limits.OpenFiles; n != 0 && (n < protocol.MinOpenFiles || n > protocol.MaxOpenFiles) {
		return specErr("limits.open_files: %d is not between %d and %d", n, protocol.MinOpenFiles, protocol.MaxOpenFiles)
	}
	if s.Retry.Max < 0 || s.Retry.Max > 100 {
		return specErr("retry.max: %d is not between 0 and 100", s.Retry.Max)
	}
	if s.Pay.MaxHourly.Hi != 0 {
		return specErr("pay.max_hourly: %s is more than any price can be; leave it out for no bound", s.Pay.MaxHourly)
	}
	if err := s.validatePrivate(); err != nil {
		return err
	}
	if err := s.validatePorts(); err != nil {
		return err
	}
	if err := s.validateCheckpoint(); err != nil {
		return err
	}
	if err := s.validatePaths(); err != nil {
		return err
	}
	if err := s.validateService(); err != nil {
		return err
	}
	return s.validateSecrets()
}

// mountedOn are the places in the container that something is mounted on.
func (s Spec) mountedOn() []string {
	var out []string
	for _, in := range s.Inputs {
		out = append(out, path.Clean(in.To))
	}
	for _, o := range s.Outputs {
		out = append(out, path.Clean(o.From))
	}
	for _, c := range s.Caches {
		out = append(out, path.Clean(c.To))
	}
	return out
}

func (s Spec) validatePaths() error {
	seen := map[string]bool{}
	check := func(what, p string) error {
		switch {
		case !strings.HasPrefix(p, "/") || path.Clean(p) == "/":
			return specErr("%s: %q is no absolute path below /", what, p)
		case seen[path.Clean(p)]:
			return specErr("%s: %q is used twice", what, p)
		}
		seen[path.Clean(p)] = true
		return nil
	}
	for i, in := range s.Inputs {
		if in.From == "" {
			return specErr("inputs[%d].from: missing", i)
		}
		if err := check(fmt.Sprintf("inputs[%d].to", i), in.To); err != nil {
			return err
		}
	}
	for i, out := range s.Outputs {
		if err := check(fmt.Sprintf("outputs[%d].from", i), out.From); err != nil {
			return err
		}
	}
	for i, c := range s.Caches {
		if err := protocol.CacheKey(c.Key); err != nil {
			return specErr("cache[%d].key: %v", i, err)
		}
		if err := check(fmt.Sprintf("cache[%d].to", i), c.To); err != nil {
			return err
		}
	}
	return nil
}

func (a *Array) validate() error {
	switch {
	case a == nil:
		return nil
	case a.Last < a.First:
		return specErr("array.range: ends (%d) before it begins (%d)", a.Last, a.First)
	case a.Chunk < 1:
		return specErr("array.chunk: %d is not above 0", a.Chunk)
	case a.Parallel < 0 || a.MaxFailed < 0:
		return specErr("array: parallel and max_failed are not below 0")
	case a.Last-a.First >= maxArray*a.Chunk:
		return specErr("array.range: more than %d tasks", maxArray)
	}
	return nil
}

// Tasks is the number of tasks of a job.
func (s Spec) Tasks() int {
	if s.Array == nil {
		return 1
	}
	return (s.Array.Last-s.Array.First)/s.Array.Chunk + 1
}

// Parallel is how many tasks may run at once.
func (s Spec) Parallel() int {
	if s.Array == nil || s.Array.Parallel == 0 {
		return s.Tasks()
	}
	return min(s.Array.Parallel, s.Tasks())
}

// MaxFailed is how many failed tasks the job bears before it is stopped.
func (s Spec) MaxFailed() int {
	if s.Array == nil {
		return 0
	}
	return s.Array.MaxFailed
}

// Range is the first and last number of a task of an array, or zeros.
func (s Spec) Range(task int) (first, last int) {
	if s.Array == nil {
		return 0, 0
	}
	first = s.Array.First + task*s.Array.Chunk
	return first, min(first+s.Array.Chunk-1, s.Array.Last)
}

// outputLimit is how much a task may leave as outputs: nothing where it has none,
// so that no provider sets room aside for them.
func (s Spec) outputLimit() uint64 {
	if len(s.Outputs) == 0 {
		return 0
	}
	return s.Limits.Output
}

// Resources is what one task needs.
func (s Spec) Resources() *protocol.Resources {
	return &protocol.Resources{
		CpuMillis:    s.CPUMillis,
		MemoryBytes:  s.Memory,
		DiskBytes:    s.Disk,
		GpuCount:     uint32(s.GPUs.Count),
		GpuModels:    s.GPUs.Any,
		GpuVramBytes: s.GPUs.VRAM,
		GpuAll:       s.GPUs.All,
		GpuCuda:      s.GPUs.CUDA, GpuCapabilities: s.GPUs.Capabilities, GpuRequire: s.GPUs.Require,
	}
}
